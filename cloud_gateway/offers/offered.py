"""A bundle as devices may fetch it: its files by digest. No path ever comes from the wire.

A stretch is read without hashing the file again: the device hashes what it got, and so finds out whatever happened to
it here or on the way. What is no longer the plain file that the manifest lists is not read at all.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol import messages as m
from protocol import signing
from protocol.bundle import MANIFEST, SIGNATURE, Bundle, check_relative, read_regular
from protocol.errors import BundleError

MOST_SIGNATURE_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OfferedFile:
    """A plain file below `root`, as long as its listing says."""

    root: Path
    name: str
    nbytes: int

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` from `offset`, fewer at the end. Raises BundleError if it is not the file that was listed."""
        for part in (self.root / self.name).parents:
            if part == self.root:
                break
            if part.is_symlink():
                raise BundleError(f"{part} is a symbolic link", "a bundle holds plain files only")
        try:
            descriptor = os.open(self.root / self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BundleError(f"{self.name} cannot be read ({error.strerror})", "copy the bundle again") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size != self.nbytes:
                raise BundleError(f"{self.name} is not the file that its manifest lists", "copy the bundle again")
            return os.pread(descriptor, nbytes, offset)
        except OSError as error:
            raise BundleError(f"{self.name} cannot be read ({error.strerror})", "copy the bundle again") from error
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class OfferedBundle:
    """What is said of a bundle, and its files by the sha256 (32 bytes) of what they hold."""

    offer: m.Offer
    files: Mapping[bytes, OfferedFile]

    @classmethod
    def open(cls, folder: Path) -> OfferedBundle:
        """Read the manifest in `folder`, and hash its signature if there is one. Raises BundleError."""
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        files: dict[bytes, OfferedFile] = {}
        for name, entry in manifest.files.items():
            check_relative(folder, name)
            files[bytes.fromhex(entry.sha256)] = OfferedFile(folder, name, entry.nbytes)
        digest = bytes.fromhex(bundle.digest)
        listing = OfferedFile(folder, MANIFEST, (folder / MANIFEST).stat().st_size)
        files[digest] = listing
        signature, signature_nbytes, counter = None, 0, 0
        if (folder / SIGNATURE).is_file():
            data = read_regular(folder, SIGNATURE)
            if len(data) > MOST_SIGNATURE_NBYTES:
                raise BundleError(f"{folder / SIGNATURE} holds {len(data)} bytes", "sign the bundle again")
            signature, signature_nbytes = hashlib.sha256(data).digest(), len(data)
            files[signature] = OfferedFile(folder, SIGNATURE, len(data))
            counter = signing.look(data, name=str(folder / SIGNATURE))[0].counter
        offer = m.Offer(
            model=manifest.model.name[: m.MAX_TEXT_LENGTH],
            model_digest=bytes.fromhex(manifest.model.digest),
            bundle=digest,
            manifest_nbytes=listing.nbytes,
            nbytes=sum(entry.nbytes for entry in manifest.files.values()),
            files=len(manifest.files),
            signature=signature,
            signature_nbytes=signature_nbytes,
            counter=counter,
        )
        return cls(offer, files)


@dataclass(frozen=True, slots=True)
class OfferedRevocations:
    """The signed list of what nobody may run: devices check it themselves."""

    digest: bytes
    file: OfferedFile

    @classmethod
    def open(cls, path: Path) -> OfferedRevocations:
        """Hash the list. Raises BundleError if it is no plain file, or too large for one."""
        data = read_regular(path.parent, path.name, most_nbytes=MOST_SIGNATURE_NBYTES)
        if len(data) > MOST_SIGNATURE_NBYTES:
            raise BundleError(f"{path} holds {len(data)} bytes or more", "no list of revocations does")
        return cls(hashlib.sha256(data).digest(), OfferedFile(path.parent, path.name, len(data)))


def signature_stamp(folder: Path) -> object:
    """Changes when the bundle's signature does; None without one."""
    try:
        status = (folder / SIGNATURE).lstat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
