"""What a command was asked to write: refused before the work if it cannot be, then there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import InputError


def check_output(path: Path) -> None:
    """Raises InputError when no file could be written there; leaves everything as it is. Parents are not made."""
    part = _part(path)
    if path.is_dir() or not part.parent.is_dir():
        raise InputError(f"{path} cannot be a file", "give the path of a file in a folder that exists")
    try:
        if part != path:
            part.touch()
            part.unlink()
    except OSError as error:
        raise _refused(path, error) from error


def write_output(path: Path, data: bytes) -> None:
    """Whatever was there stays until all of `data` is on the disk. Raises InputError when it cannot be written."""
    part = _part(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            if part != path:
                os.fsync(file.fileno())
                os.replace(part, path.resolve())
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if part != path:
            part.unlink(missing_ok=True)  # gone already when it was renamed


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A new folder to fill and to rename to `target`; gone in the end if it was not. Parents are made.

    Raises InputError when it, or anything that is done with it, cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    except OSError as error:
        raise _refused(target.parent, error) from error
    try:
        fresh.chmod(0o755)
        yield fresh
    except OSError as error:
        raise _refused(target, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already when it was renamed


def _part(path: Path) -> Path:
    """Where it is written first; the path itself where that is no plain file (a pipe, /dev/null)."""
    if path.exists() and not path.is_file():
        return path
    real = path.resolve()  # a link stays a link
    return real.with_name(f".{real.name}.{os.getpid()}.part")


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written ({error.strerror})", "choose another place")
