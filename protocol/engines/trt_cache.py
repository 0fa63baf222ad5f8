"""Plans that this user built, kept on disk. A plan is machine code: one that we did not write ourselves is never run.

    FOLDER/                    0700
      seal.key                 0600, 32 random bytes, made on first use; who cannot read it cannot seal a plan
      <64 hex digits>.plan     magic, HMAC-SHA256 of all that follows, length of the identity, identity, plan
      build.lock               0600, empty; whoever builds holds it

The name is the sha256 of the identity: everything that a plan depends on (graph, library and its version, driver, GPU,
profiles, flags). Identity and plan are sealed together, so that a plan cannot be passed off as another's. What does not
hold is as good as absent: `read` says why, and the caller builds again. Nothing ever comes here over a network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from protocol.errors import EngineError

KEY_FILE = "seal.key"
KEY_NBYTES = 32
SUFFIX = ".plan"
MAGIC = b"isthmus-sealed-plan-1\n"
_MAC_NBYTES = 32
_LENGTH_NBYTES = 4
MOST_NBYTES = 16 << 30  # of all plans together; those unused for longest go first
LOCK_FILE = "build.lock"
LOOK_S = 0.2  # how often whoever waits for its turn looks
STALE_S = 3600.0  # a file that is still being written after so long: its writer is dead
_BEING_WRITTEN = ".isthmus-"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

Identity = Mapping[str, object]


class PlanCache:
    """One folder. Threads and processes may share it: files appear whole or not at all."""

    def __init__(self, folder: Path, *, most_nbytes: int = MOST_NBYTES) -> None:
        self._folder = folder
        self._most_nbytes = most_nbytes

    def read(self, identity: Identity) -> bytes | str:
        """The plan of that identity, or in one sentence why there is none that may be run.

        Raises EngineError when the folder or its key are open to others: then nothing in it can be believed.
        """
        key = self._key()
        path = self._folder / file_name(identity)
        try:
            sealed = _read_own(path)
        except FileNotFoundError:
            return "it was not built here before"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror or error})"
        except EngineError as error:  # this file alone: the folder is ours, so the next one takes its place
            return str(error)
        plan = unseal(sealed, identity, key)
        if isinstance(plan, str):
            return f"{path}: {plan}"
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used: the last to go
        return plan

    def write(self, identity: Identity, plan: bytes) -> None:
        """Keep a plan. Raises EngineError like `read`, and when the disk does not take it."""
        key = self._key()
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=_BEING_WRITTEN, delete=False) as file:
                try:
                    file.write(seal(plan, identity, key))
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, self._folder / file_name(identity))
                except BaseException:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file.name)
                    raise
            self._prune(keep=file_name(identity))
        except OSError as error:
            raise EngineError(
                f"the plan cannot be kept in {self._folder} ({error.strerror or error})", "make room there"
            ) from error

    @contextlib.contextmanager
    def turn(self, given_up: Callable[[], bool], *, timeout_s: float) -> Iterator[bool]:
        """Wait until no other process builds for this folder; gives whether there was one.

        After `timeout_s`, and where the file system knows no locks, it goes on without: a plan too many is no harm.
        """
        with contextlib.ExitStack() as stack:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                lock = stack.enter_context(open(os.open(self._folder / LOCK_FILE, flags, 0o600), "rb"))
            except OSError:
                lock = None
            waited = False
            if lock is not None:
                never, until = threading.Event(), time.monotonic() + timeout_s
                while not _locked(lock.fileno()) and not given_up() and time.monotonic() < until:
                    waited = True
                    never.wait(LOOK_S)
            yield waited  # closing the file gives the lock back

    def _prune(self, *, keep: str) -> None:
        """Remove the plans unused for longest until the rest is within the bound, and what the dead left behind."""
        for path in self._folder.glob(f"{_BEING_WRITTEN}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((path.name == keep, status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, _, size, _ in found)
        for is_kept, _, size, path in sorted(found):
            if total <= self._most_nbytes or is_kept:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _key(self) -> bytes:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self._folder, os.stat(self._folder), _OTHERS_MAY_WRITE)
            path = self._folder / KEY_FILE
            with contextlib.suppress(FileExistsError):
                _write_new(path, secrets.token_bytes(KEY_NBYTES))
            key = _read_own(path, forbidden=stat.S_IRWXG | stat.S_IRWXO)
        except OSError as error:
            why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or error
            raise EngineError(
                f"the plan cache {self._folder} cannot be used ({why})",
                "name a folder that this user may write",
            ) from error
        if len(key) != KEY_NBYTES:
            raise EngineError(f"{path} holds {len(key)} bytes, not {KEY_NBYTES}", "remove it and the plans beside it")
        return key


def _locked(descriptor: int) -> bool:
    """Whether the lock is ours now, or cannot be had on this file system at all."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def file_name(identity: Identity) -> str:
    return hashlib.sha256(_encoded(identity)).hexdigest() + SUFFIX


def seal(plan: bytes, identity: Identity, key: bytes) -> bytes:
    """What is written: nobody without the key can make the same of another plan or identity."""
    known = _encoded(identity)
    length = len(known).to_bytes(_LENGTH_NBYTES, "big")
    return b"".join((MAGIC, _mac(key, length, known, plan), length, known, plan))


def unseal(sealed: bytes, identity: Identity, key: bytes) -> bytes | str:
    """The plan, or in one sentence why it may not be run. The seal is checked before anything is read from it."""
    start = len(MAGIC) + _MAC_NBYTES
    if len(sealed) < start + _LENGTH_NBYTES or not sealed.startswith(MAGIC):
        return "this is no sealed plan"
    body = memoryview(sealed)[start:]
    length = int.from_bytes(body[:_LENGTH_NBYTES], "big")
    known, plan = body[_LENGTH_NBYTES : _LENGTH_NBYTES + length], body[_LENGTH_NBYTES + length :]
    if not hmac.compare_digest(sealed[len(MAGIC) : start], _mac(key, body[:_LENGTH_NBYTES], known, plan)):
        return "its seal does not hold: it was damaged, or made with another key"
    if known != _encoded(identity):
        return "it is the plan of something else"
    return bytes(plan)


def _mac(key: bytes, *parts: bytes | memoryview) -> bytes:
    mac = hmac.new(key, digestmod="sha256")
    for part in parts:
        mac.update(part)
    return mac.digest()


def _encoded(identity: Identity) -> bytes:
    return msgspec.json.encode(identity, order="deterministic")


def _read_own(path: Path, *, forbidden: int = _OTHERS_MAY_WRITE) -> bytes:
    """A plain file of this user, which nobody else may change. Raises EngineError where others may, OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise EngineError(f"{path} is no plain file", "remove it")
        _check_owner(path, status, forbidden)
        return file.read()


def _write_new(path: Path, data: bytes) -> None:
    """Whole or not at all, for its owner alone, and only where nothing is yet. Raises FileExistsError, OSError."""
    if path.exists():
        raise FileExistsError(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_BEING_WRITTEN) as file:  # 0600 from the beginning
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path)  # who comes second gets FileExistsError, and uses the first one's


def _check_owner(path: Path, status: os.stat_result, forbidden: int) -> None:
    if status.st_uid != os.geteuid():
        raise EngineError(f"{path} belongs to another user", "name a folder of this user's own")
    if status.st_mode & forbidden:
        raise EngineError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})",
            f"remove what others may have written there, then chmod {'700' if path.is_dir() else '600'} {path}",
        )
