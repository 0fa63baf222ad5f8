"""The only way to the disk: every durable act by itself, so that a test can stop before or after any of them.

A file is there whole or not at all, and what was renamed stays renamed when the power fails: the file is synchronised
before, its folder after.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK_NBYTES = 1 << 20
LEAVING = ".leaving-"  # begins the name of a folder that is being removed


class Disk:
    """`around` is called before and after each act with its name."""

    def __init__(self, around: Callable[[str], None] = lambda act: None) -> None:
        self._around = around

    def make_folder(self, path: Path) -> None:
        """With its parents; nothing where it is there already."""
        if not path.is_dir():
            with self._act(f"make {path.name}"):
                path.mkdir(parents=True, exist_ok=True)
            self._synchronise(path.parent)

    def write(self, path: Path, data: bytes) -> None:
        """Replace `path` by `data`."""
        part = path.with_name(f".{path.name}.part")
        with self._act(f"write {part.name}"), part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.rename(part, path)

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end; not yet synchronised: whoever goes on there hashes what it finds."""
        with self._act(f"append to {path.name}"), path.open("ab") as file:
            file.write(data)

    def finish(self, path: Path, target: Path) -> None:
        """What was appended is whole: give it its name."""
        with self._act(f"synchronise {path.name}"), path.open("rb") as file:
            os.fsync(file.fileno())
        self.rename(path, target)

    def rename(self, path: Path, target: Path) -> None:
        with self._act(f"rename {path.name} to {target.name}"):
            os.replace(path, target)
        self._synchronise(target.parent)
        if path.parent != target.parent:
            self._synchronise(path.parent)

    def copy(self, path: Path, target: Path) -> str:
        """The sha256 (hex) of what was copied. `target` is there whole or not at all."""
        part = target.with_name(f".{target.name}.part")
        digest = hashlib.sha256()
        with self._act(f"copy to {part.name}"), path.open("rb") as source, part.open("wb") as file:
            while chunk := source.read(CHUNK_NBYTES):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        self.rename(part, target)
        return digest.hexdigest()

    def remove(self, path: Path) -> None:
        """A file, or a folder with all that is in it, which is gone at once; nothing where nothing is."""
        if path.is_dir() and not path.is_symlink():
            leaving = path.with_name(f"{LEAVING}{path.name}")
            if path.name.startswith(LEAVING):
                leaving = path
            else:
                shutil.rmtree(leaving, ignore_errors=True)
                self.rename(path, leaving)
            with self._act(f"remove folder {path.name}"):
                shutil.rmtree(leaving, ignore_errors=True)
        elif os.path.lexists(path):
            with self._act(f"remove {path.name}"):
                path.unlink(missing_ok=True)

    def _synchronise(self, folder: Path) -> None:
        with self._act(f"synchronise folder {folder.name}"):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _act(self, what: str) -> Iterator[None]:
        self._around(f"before {what}")
        yield
        self._around(f"after {what}")


def sha256_of(path: Path) -> str:
    """The sha256 (hex) of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trouble_of(error: OSError) -> str:
    """In words that say what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({error.strerror}); free some, what came is kept and goes on"
    return f"the disk refuses ({error.strerror or error})"
