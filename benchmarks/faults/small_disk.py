"""A disk that can be filled to the last block: a file system in memory, mounted for a while. It needs root."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

_STEPS = (1 << 20, 4096)


class SmallDisk:
    """`folder` is the disk's root between `__enter__` and `__exit__`. The folder is made if it is not there."""

    def __init__(self, folder: Path, *, mib: int) -> None:
        self.folder, self._mib = folder, mib
        self._theirs = folder / "theirs"

    def __enter__(self) -> Self:
        """Raises OSError where nothing may be mounted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"size={self._mib}m,mode=0700"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if mounted.returncode:
            raise OSError(f"only root may mount a small file system: {mounted.stderr.strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)

    def fill(self) -> None:
        """Let somebody else take all that is left."""
        with self._theirs.open("ab", buffering=0) as file:
            for size in _STEPS:
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        """Let them give it back."""
        self._theirs.unlink(missing_ok=True)
