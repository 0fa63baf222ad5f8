"""What administrators did, on the disk before it happens: append-only, hash-chained, and no act without a record.

    with log.act("api:ops", "model.load", "digits/3"):      # AccessError if it cannot be recorded: then do nothing
        ...                                                  # its end is recorded too: done, or failed and why

Beside `audit.log` lies `audit.log.anchor` with the newest record's number and hash: a log that is cut off no longer
reaches it. A full log is renamed to `audit.log.FIRST-LAST` and the chain goes on in a new one. A line that a crash has
torn was never acknowledged, so nothing was done for it: the next record tells what was left of it, in its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cloud_gateway.access import chain
from cloud_gateway.access.chain import Head, Record, Verdict
from protocol import keys
from protocol.errors import AccessError, InputError

MOST_NBYTES = 16 * 2**20
_ROTATED = re.compile(r"\.\d{10}-\d{10}")
_ANCHOR = re.compile(rb"(\d{1,15}) ([0-9a-f]{64})\n")


class AuditLog:
    """Constructing touches nothing. Safe for several threads and processes at once."""

    def __init__(self, path: Path, *, most_nbytes: int = MOST_NBYTES, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._anchor = path.with_name(path.name + ".anchor")
        self._most_nbytes = most_nbytes
        self._clock = clock

    @contextmanager
    def act(self, actor: str, action: str, target: str = "") -> Iterator[None]:
        """Record that an act begins and how it ends. Raises AccessError, before anything was done, if it cannot be."""
        begun = self.append(actor, action, target, "begun").seq
        try:
            yield
        except BaseException as error:
            self.append(actor, action, target, f"failed: {error or type(error).__name__}", of=begun)
            raise
        self.append(actor, action, target, "done", of=begun)

    def append(self, actor: str, action: str, target: str, outcome: str, *, of: int = 0) -> Record:
        """Write one record; it is on the disk when this returns. Raises AccessError, and leaves the log as it was."""
        try:
            with self._locked():
                head = self._head()
                if head.seq < self._anchored().seq:
                    raise AccessError(
                        f"{self.path} ends before its anchor: records were removed",
                        "find out by whom; then put log and anchor aside to begin a new log",
                    )
                if self.path.exists() and self.path.stat().st_size >= self._most_nbytes:
                    head = self._rotate(head)
                return self._write(head, actor, action, target, outcome, of)
        except (OSError, InputError) as error:
            why = error.strerror if isinstance(error, OSError) else error.fact
            raise AccessError(
                f"the audit log {self.path} cannot be written ({why}), so {action} is refused",
                "make room or mend its permissions: nothing is done that is not recorded",
            ) from error

    def verify(self, *, expect: str | None = None) -> Verdict:
        """Check everything that is at hand, renamed parts first. `expect` is a hash that must be on the chain.

        Raises InputError if there is no log.
        """
        parts = self.parts()
        if not parts:
            raise InputError(f"there is no audit log {self.path}", "name the file, such as KEYS/audit.log")
        wanted = [self._anchored()] + ([Head(0, expect.lower())] if expect else [])
        return chain.verify(_lines(parts), expect=[w for w in wanted if w.hash != chain.GENESIS])

    def records(self) -> Iterator[Record]:
        """Every record at hand, oldest first. Raises AccessError at a line that is none."""
        for where, line in _lines(self.parts()):
            try:
                yield chain.decode(line.rstrip(b"\n"))
            except ValueError as error:
                raise AccessError(f"{where}: {error}", "see `cloud-gateway audit verify`") from None

    def parts(self) -> list[Path]:
        """The files of the log that are at hand, oldest first."""
        beside = self.path.parent.glob(f"{self.path.name}.*")
        aside = sorted(path for path in beside if _ROTATED.fullmatch(path.name.removeprefix(self.path.name)))
        return [*aside, self.path] if self.path.exists() else aside

    # ---- under the lock ---------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _head(self) -> Head:
        """Where the chain ends. A torn last line is cut off, and a record tells of it."""
        parts = self.parts()
        while parts:
            part = parts.pop()
            lines, torn = _tail(part)
            head = self._head_of(part, lines)
            if torn and part == self.path:
                head = head or (self._head_of(parts[-1], _tail(parts[-1])[0]) if parts else None)
                return self._mend(head or Head(), torn)
            if head is not None:
                return head
        return Head()

    def _head_of(self, part: Path, line: bytes) -> Head | None:
        if not line:
            return None
        try:
            record = chain.decode(line)
        except ValueError as error:
            raise AccessError(
                f"the last record of {part} does not hold: {error}",
                "find out by whom; then put log and anchor aside to begin a new log",
            ) from None
        return Head(record.seq, record.hash)

    def _mend(self, head: Head, torn: bytes) -> Head:
        os.truncate(self.path, self.path.stat().st_size - len(torn))
        left = f"{len(torn)} bytes with SHA-256 {hashlib.sha256(torn).hexdigest()}"
        record = self._write(head, "audit", "audit.mend", self.path.name, f"a torn line was cut off: {left}", 0)
        return Head(record.seq, record.hash)

    def _rotate(self, head: Head) -> Head:
        with self.path.open("rb") as file:
            first = chain.decode(file.readline(chain.MOST_LINE_NBYTES).rstrip(b"\n")).seq
        aside = self.path.with_name(f"{self.path.name}.{first:010d}-{head.seq:010d}")
        os.rename(self.path, aside)
        record = self._write(head, "audit", "audit.rotate", aside.name, "done", 0)
        return Head(record.seq, record.hash)

    def _write(self, head: Head, actor: str, action: str, target: str, outcome: str, of: int) -> Record:
        utc = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        record = chain.link(head, utc=utc, actor=actor, action=action, target=target, outcome=outcome, of=of)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            line = chain.encode(record)
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)  # a record that was not acknowledged must not stay
                raise
        finally:
            os.close(handle)
        keys.write_private(self._anchor, f"{record.seq} {record.hash}\n".encode(), overwrite=True)
        return record

    def _anchored(self) -> Head:
        try:
            found = _ANCHOR.fullmatch(self._anchor.read_bytes())
        except FileNotFoundError:
            return Head()
        if found is None:
            raise AccessError(f"{self._anchor} is no anchor", "restore it, or remove it if you trust the log")
        return Head(int(found[1]), found[2].decode())


def _tail(path: Path) -> tuple[bytes, bytes]:
    """The last whole line (without its newline), and what stands after it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 2 * chain.MOST_LINE_NBYTES, 0))
        data = file.read()
    whole, newline, torn = data.rpartition(b"\n")
    return (whole.rpartition(b"\n")[2] if newline else b""), torn


def _lines(parts: list[Path]) -> Iterator[tuple[str, bytes]]:
    for part in parts:
        with part.open("rb") as file:
            number = 0
            while line := file.readline(chain.MOST_LINE_NBYTES):
                number += 1
                yield f"{part}:{number}", line
