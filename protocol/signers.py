"""Keys that sign, as files: who vouches for a bundle. Ed25519; its library is loaded when a key is used.

    isthmus-signing-secret 64-HEX-DIGITS NAME
    isthmus-signing-public 64-HEX-DIGITS NAME

The files keep the rules of `protocol.keys`: a secret is written whole, for its owner alone (0600), never over another,
and refused if others can read it. A key's id is the SHA-256 of its 32 public bytes, in hex.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from protocol import keys
from protocol.errors import InputError

KEY_NBYTES = 32
_SECRET = "isthmus-signing-secret"  # noqa: S105 - the word that begins a line, not a password
_PUBLIC = "isthmus-signing-public"
_HEX = re.compile(f"[0-9A-Fa-f]{{{2 * KEY_NBYTES}}}")
_REMEDY = "give the file NAME.pub that `partitioner keys new` has written"


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """The public half, 32 bytes, and what people call it."""

    data: bytes
    name: str

    @property
    def key_id(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether `signature` (64 bytes) over `message` was made with the secret half."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.data).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def line(self) -> str:
        return f"{_PUBLIC} {self.data.hex()} {self.name}"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret of 32 bytes and its public half. Its repr does not show the secret."""

    secret: bytes = field(repr=False)
    public: VerifyKey

    @classmethod
    def of(cls, secret: bytes, name: str) -> SigningKey:
        """Raises InputError for a name that cannot be one. `secret` has 32 bytes."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        return cls(secret, VerifyKey(public, keys.require_name(name)))

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same ones for the same message."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)


def make_key(name: str) -> SigningKey:
    """A new key, from the operating system's randomness. Raises InputError for a name that cannot be one."""
    return SigningKey.of(os.urandom(KEY_NBYTES), name)


def write_key(path: Path, key: SigningKey) -> None:
    """Write the secret, mode 0600. Raises InputError when it cannot be written, or is there already."""
    remark = f"# Signs bundles as {key.public.name}, key id {key.public.key_id}. Keep it off devices and gateways."
    keys.write_private(path, f"{remark}\n{_SECRET} {key.secret.hex()} {key.public.name}\n".encode(), overwrite=False)


def read_key(path: Path) -> SigningKey:
    """Raises InputError for what is missing, too open or no secret key."""
    lines = keys.key_lines(keys.read_private(path), path)
    words = lines[0].split() if len(lines) == 1 else []
    # No message may quote the line: it would put the secret into a log.
    if len(words) != 3 or words[0] != _SECRET or not _HEX.fullmatch(words[1]):
        raise InputError(f"{path} holds no signing key", "make one with `partitioner keys new DIR`")
    return SigningKey.of(bytes.fromhex(words[1]), words[2])


def write_verify_keys(path: Path, known: tuple[VerifyKey, ...]) -> None:
    """Write public keys, one line each, mode 0644, in place of what was there. Raises InputError."""
    keys.write_shared(path, "".join(f"{key.line()}\n" for key in known).encode())


def read_verify_keys(path: Path) -> tuple[VerifyKey, ...]:
    """Every public key in the file, at least one, each once. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(keys.MOST_NBYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", _REMEDY) from error
    try:
        known = {key.data: key for key in map(parse_verify_key, keys.key_lines(data, path))}
    except InputError as error:
        raise error if str(path) in error.fact else InputError(f"{path}: {error.fact}", error.remedy) from error
    if not known:
        raise InputError(f"{path} holds no public key", _REMEDY)
    return tuple(known.values())


def parse_verify_key(line: str) -> VerifyKey:
    """One line of a file of public keys. Raises InputError."""
    words = line.split()
    if words[:1] == [_SECRET]:
        raise InputError("a secret key stands where a public one belongs", "it is known to others now: make a new one")
    if len(words) != 3 or words[0] != _PUBLIC or not _HEX.fullmatch(words[1]):
        raise InputError(f"{line[:80]!r} is no public key of a signer", f"write `{_PUBLIC} HEX NAME`")
    return VerifyKey(bytes.fromhex(words[1]), keys.require_name(words[2]))


def given_verify_keys(text: str) -> tuple[VerifyKey, ...]:
    """Public keys as people hand them over: the name of a file, or a line of one. Raises InputError."""
    return (parse_verify_key(text),) if text.split()[:1] == [_PUBLIC] else read_verify_keys(Path(text))
