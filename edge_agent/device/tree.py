"""Small files of sysfs and procfs under a root. Nothing in here raises: what cannot be read or understood is None.

A board's files are strangers: they may be missing, unreadable, huge, binary, pipes, or answer with an error while a
part of the chip is switched off. So every read is bounded, never waits, and takes plain files only.
"""

from __future__ import annotations

import os
import re
import stat
from itertools import islice
from pathlib import Path

LINE_NBYTES = 4096
TABLE_NBYTES = 1024 * 1024  # /proc/cpuinfo of a machine with hundreds of cores
MOST_MATCHES = 512
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{1,9})?")


class Tree:
    """Reads below `root`; paths are relative to it, without a slash in front."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def text(self, path: str) -> str | None:
        """One value as people wrote it, without what a terminal cannot show; None if there is none."""
        raw = self._read(path, LINE_NBYTES)
        if raw is None:
            return None
        shown = "".join(c if c.isprintable() else " " for c in raw.decode("utf-8", "replace"))
        return " ".join(shown.split()) or None

    def lines(self, path: str) -> list[str]:
        """The lines of a table, at most TABLE_NBYTES of it; none if there is none."""
        raw = self._read(path, TABLE_NBYTES)
        return [] if raw is None else raw.decode("utf-8", "replace").splitlines()

    def number(self, path: str) -> float | None:
        """A decimal number that stands alone."""
        text = self.text(path)
        return float(text) if text is not None and _NUMBER.fullmatch(text) else None

    def matches(self, pattern: str) -> list[str]:
        """Paths that match, sorted, at most MOST_MATCHES."""
        try:
            found = sorted(islice(self.root.glob(pattern), MOST_MATCHES))
            return [path.relative_to(self.root).as_posix() for path in found]
        except (OSError, ValueError):
            return []

    def first_number(self, *patterns: str) -> float | None:
        """The first number that any of the patterns leads to."""
        for pattern in patterns:
            for path in self.matches(pattern):
                if (number := self.number(path)) is not None:
                    return number
        return None

    def _read(self, path: str, limit: int) -> bytes | None:
        try:
            # Without O_NONBLOCK a pipe would hang us.
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            read = b""
            while len(read) < limit and (more := os.read(descriptor, limit - len(read))):
                read += more  # procfs hands out a page at a time
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return read


def fields(lines: list[str]) -> dict[str, str]:
    """`key : value` lines up to the first empty one."""
    found: dict[str, str] = {}
    for line in lines:
        if not line.strip():
            break
        key, colon, value = line.partition(":")
        if colon:
            found[key.strip()] = value.strip()
    return found
