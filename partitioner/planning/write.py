"""A bundle appears whole or not at all: written beside its place, synced to the disk, then renamed into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from protocol.bundle import MANIFEST, MANIFEST_DIGEST, Manifest, encode_manifest, sha256
from protocol.errors import InputError
from protocol.graphs import external_of
from protocol.outputs import folder_beside


def check_target(target: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a place that must not be written. Raises InputError."""
    if not os.path.lexists(target):
        nearest = next(p for p in target.absolute().parents if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"{target} cannot be written: {nearest} is no writable folder", "choose another place")
        return
    if not force:
        raise InputError(f"{target} exists already", "choose another place or replace it with --force")
    is_bundle = target.is_dir() and not target.is_symlink() and (target / MANIFEST).is_file()
    if not is_bundle:
        raise InputError(f"{target} exists and is no bundle, so --force does not replace it", "choose another place")


def with_weights(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a bundle and, where some are graphs with large weights, the files that hold these, each once.

    The manifest lists and hashes all of them.
    """
    weights = {name: content for data in files.values() for name, content in external_of(data).items()}
    return {**files, **cast("dict[str, bytes]", weights)}


def write_bundle(target: Path, manifest: Manifest, files: Mapping[str, bytes], *, force: bool) -> str:
    """Write the bundle and return the digest of its manifest. `files` holds the bytes of every file it lists.

    Raises InputError when `target` exists without `force`, or cannot be written; nothing is left behind then.
    """
    check_target(target, force=force)
    encoded = encode_manifest(manifest)
    digest = sha256(encoded)
    contents = {**files, MANIFEST: encoded, MANIFEST_DIGEST: f"{digest}  {MANIFEST}\n".encode()}
    with folder_beside(target) as fresh:
        _fill(fresh, contents)
        _move_in(fresh, target)
    return digest


def _fill(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for directory in [*(p for p in folder.iterdir() if p.is_dir()), folder]:
        _sync(directory)


def _move_in(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
        _sync(target.parent)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    target.rename(old)  # onto an empty directory, which rename(2) replaces
    try:
        fresh.rename(target)
    except BaseException:
        old.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
