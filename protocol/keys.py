"""CURVE keys as files: who an agent is, and by what it knows its gateway. Both shores keep them alike.

A key is one line of text, so that it can be read aloud, pasted and put under configuration management:

    isthmus-curve-secret 64-HEX-DIGITS NAME
    isthmus-curve-public 64-HEX-DIGITS NAME [port=PORT]

`port` says that the key answers at another port of the same host (a gateway that rotates its key listens at two).
Lines that begin with # are remarks. A file of secrets is written whole or not at all, for its owner alone (0600), and
one that everybody may read, or others may write, is refused: its secret is none. Public keys are no secret, but who can
change them chooses whom we trust.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import InputError

KEY_NBYTES = 32
# Names appear in logs, metrics, file names and ZAP user ids: nothing in them needs quoting anywhere.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SECRET = "isthmus-curve-secret"  # noqa: S105 - the word that begins a line, not a password
_PUBLIC = "isthmus-curve-public"
_HEX = re.compile(f"[0-9A-Fa-f]{{{2 * KEY_NBYTES}}}")
MOST_NBYTES = 64 * 1024
# Nothing for others, and no writing for the group. A group may read: that is how orchestrators mount secrets.
_TOO_OPEN = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 bytes that name somebody, and what people call them."""

    data: bytes
    name: str
    port: int | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.data)

    def line(self) -> str:
        port = "" if self.port is None else f" port={self.port}"
        return f"{_PUBLIC} {self.data.hex()} {self.name}{port}"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A secret of 32 bytes and the public key that belongs to it. Its repr does not show the secret."""

    secret: bytes = field(repr=False)
    public: PublicKey

    @property
    def name(self) -> str:
        return self.public.name


def fingerprint(public: bytes) -> str:
    """What people compare: the first 16 hex digits of the key's SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def require_name(name: str) -> str:
    """`name` itself. Raises InputError unless it can be the name of an agent, a gateway or an API key."""
    if not NAME.fullmatch(name):
        remedy = "use 1 to 63 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise InputError(f"{name[:80]!r} cannot be a name", remedy)
    return name


def make_pair(name: str) -> KeyPair:
    """A new pair, from the operating system's randomness. Raises InputError for a name that cannot be one."""
    from protocol import sockets  # in here and below: most commands read files and open no socket

    public, secret = sockets.curve_pair()
    return KeyPair(secret, PublicKey(public, require_name(name)))


def parse_key(text: str) -> bytes:
    """A public key as 64 hex digits, or as the 40 characters of Z85 that other tools print. Raises InputError."""
    if (data := _from_hex(text)) is not None:
        return data
    if len(text) == 40:
        from protocol import sockets

        if (data := sockets.from_z85(text)) is not None:
            return data
    raise InputError(f"{text[:80]!r} is not a CURVE key", "give 64 hex digits, or 40 characters of Z85")


def write_pair(path: Path, pair: KeyPair, *, overwrite: bool = False) -> None:
    """Write the secret, mode 0600. Raises InputError when it cannot be written, or is there already."""
    remark = (
        f"# Secret of {pair.name}, public key {pair.public.data.hex()}. Keep it here; whoever has it is {pair.name}."
    )
    write_private(path, f"{remark}\n{_SECRET} {pair.secret.hex()} {pair.name}\n".encode(), overwrite=overwrite)


def read_pair(path: Path) -> KeyPair:
    """Raises InputError for what is missing, too open or no secret key."""
    lines = key_lines(read_private(path), path)
    words = lines[0].split() if len(lines) == 1 else []
    if len(words) != 3 or words[0] != _SECRET:
        raise InputError(f"{path} holds no secret key", f"it should hold one line `{_SECRET} HEX NAME`")
    # No message below may quote the line: it would put the secret into a log.
    secret = _from_hex(words[1])
    if secret is None:
        raise InputError(f"the secret in {path} is not {2 * KEY_NBYTES} hex digits", "make a new key")
    from protocol import sockets

    return KeyPair(secret, PublicKey(sockets.curve_public(secret), require_name(words[2])))


def write_public(path: Path, keys: tuple[PublicKey, ...]) -> None:
    """Write public keys, one line each, mode 0644, in place of what was there. Raises InputError."""
    write_shared(path, "".join(f"{key.line()}\n" for key in keys).encode())


def read_public(path: Path) -> tuple[PublicKey, ...]:
    """Every public key in the file, at least one. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_NBYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "copy the gateway's server.pub there") from error
    keys = tuple(parse_public(line) for line in key_lines(data, path))
    if not keys:
        raise InputError(f"{path} holds no public key", "copy the gateway's server.pub there")
    return keys


def parse_public(line: str) -> PublicKey:
    """One line of a file of public keys, or a bare key as `parse_key` takes it. Raises InputError."""
    words = line.split()
    if len(words) == 1:
        return PublicKey(parse_key(words[0]), "unnamed")
    if words[:1] == [_SECRET]:
        raise InputError("a secret key stands where a public one belongs", "it is known to others now: make a new one")
    if len(words) not in (3, 4) or words[0] != _PUBLIC:
        raise InputError(f"{line[:80]!r} is not a public key", f"write `{_PUBLIC} HEX NAME`")
    return PublicKey(parse_key(words[1]), require_name(words[2]), _port(words[3]) if len(words) == 4 else None)


def given_public(text: str) -> tuple[PublicKey, ...]:
    """Public keys as people hand them over: the name of a file, a line of one, or a bare key. Raises InputError."""
    return read_public(Path(text)) if os.path.isfile(text) else (parse_public(text),)


def is_there(path: Path) -> bool:
    """Whether there is anything under that name. Raises InputError where nobody may look: that is no "no"."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(
            f"{path} cannot be looked at ({error.strerror})", "run it as its owner, or name another"
        ) from error
    return True


def read_private(path: Path) -> bytes:
    """What a file of secrets holds. Raises InputError if it is missing, no plain file, or open to others."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(MOST_NBYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "make the key, or name its folder") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a plain file", "name the file that holds the key")
    if status.st_mode & _TOO_OPEN:
        mode = stat.S_IMODE(status.st_mode)
        raise InputError(
            f"{path} is open to others (mode {mode:04o}), so its secret may be known to them",
            f"make a new key; or `chmod 600 {path}` if nobody else can have read it",
        )
    return data


def write_private(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a file for its owner alone: it appears whole, with mode 0600 from the first byte on. Raises InputError."""
    _write(path, data, mode=0o600, overwrite=overwrite)


def write_shared(path: Path, data: bytes) -> None:
    """Write a file that everybody may read (0644), in place of what was there; it appears whole. Raises InputError."""
    _write(path, data, mode=0o644, overwrite=True)


def _write(path: Path, data: bytes, *, mode: int, overwrite: bool) -> None:
    part: str | None = None
    try:
        handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        if overwrite:
            os.replace(part, path)
            part = None
        else:
            os.link(part, path)  # unlike a rename it fails when somebody was faster
        _sync_folder(path.parent)
    except FileExistsError:
        raise InputError(f"{path} is there already", "it is not replaced; remove it yourself if you mean it") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", "choose another place") from error
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """A name survives a power cut only once its folder is on the disk too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def key_lines(data: bytes, path: Path) -> list[str]:
    """The lines of a file of keys, without remarks. Raises InputError for what is too large, or no plain text."""
    if len(data) > MOST_NBYTES:
        raise InputError(f"{path} is larger than any file of keys", f"name a file of at most {MOST_NBYTES} bytes")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise InputError(f"{path} is no file of keys", "it should hold lines of plain ASCII text") from None
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _from_hex(text: str) -> bytes | None:
    return bytes.fromhex(text) if _HEX.fullmatch(text) else None


def _port(word: str) -> int:
    name, _, value = word.partition("=")
    if name != "port" or not (value.isascii() and value.isdigit() and len(value) <= 5 and 0 < int(value) < 65536):
        raise InputError(f"{word[:80]!r} after a key's name", "write port=PORT, or nothing")
    return int(value)
