"""Where a device keeps its bundles. Everything here survives a stop at any point.

    STATE/bundles/
      current.json          what runs, what is proven, how far an update has come (see `record`)
      lock                  held by whoever may change anything below
      bringing              held by a command that brings a bundle beside a daemon, until its wish is there
      wish.json             what it wishes (see `wishes`)
      wishing               held while one command leaves a wish: it waits until the one before was taken
      parts/SHA256          a file that is arriving; its size says how far it has come
      incoming/DIGEST/      a bundle that is being put together, its manifest first
      held/DIGEST/          bundles that were verified whole: plain folders as `partitioner split` writes them

Nothing is fetched that is here already: a file is looked for by its digest in every bundle on the shelf, and copied
(hashed as it is). Bundles share no files by hard links: a bundle's files have one name each, which whoever opens it
insists on, so that nobody can change one of them from elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from edge_agent.bundles import record as records
from edge_agent.bundles.disk import LEAVING, Disk, sha256_of
from edge_agent.bundles.record import Record
from protocol.bundle import (
    MANIFEST,
    MANIFEST_DIGEST,
    SIGNATURE,
    Bundle,
    FileEntry,
    Manifest,
    check_relative,
    read_regular,
    sha256,
)
from protocol.errors import BundleError, IsthmusError
from protocol.onnx_scan import external_references

MOST_FILES = 10_000
CURRENT = "current.json"
WISH = "wish.json"


class Shelf:
    """`root` is STATE/bundles. One process at a time changes it: `lock` it first. Raises OSError when the disk does."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self.disk = disk or Disk()
        self._parts, self._incoming, self._held = root / "parts", root / "incoming", root / "held"

    def make(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.root, self._parts, self._incoming, self._held):
            self.disk.make_folder(folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether the shelf is ours until the end of the block; False: another process has it."""
        self.make()
        with _locked(self.root / "lock", wait=False) as ours:
            yield ours

    @contextlib.contextmanager
    def bringing(self) -> Iterator[None]:
        """Nobody prunes `incoming` until the end of the block; then only what no wish names."""
        self.make()
        with _locked(self.root / "bringing", wait=True):
            yield

    @contextlib.contextmanager
    def wishing(self) -> Iterator[None]:
        """Nobody else leaves a wish until the end of the block."""
        with _locked(self.root / "wishing", wait=True):
            yield

    # ---- the record -------------------------------------------------------------------------------------------------

    def load(self) -> Record:
        """Raises BundleError for a file that was damaged."""
        path = self.root / CURRENT
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Record()
        return records.decode(data, name=str(path))

    def save(self, record: Record) -> None:
        self.disk.write(self.root / CURRENT, records.encode(record))

    # ---- what is there ----------------------------------------------------------------------------------------------

    def folder(self, digest: str) -> Path:
        """Where the bundle lies once it is held."""
        return self._held / digest

    def incoming(self, digest: str) -> Path:
        return self._incoming / digest

    def held(self) -> list[str]:
        """Digests of the bundles that were put on the shelf whole."""
        return _names(self._held)

    def nbytes(self, folder: Path | None = None) -> int:
        """What lies on the shelf, or in one of its folders."""
        found = 0
        for path, _, names in os.walk(folder or self.root):
            for name in names:
                with contextlib.suppress(OSError):
                    found += (Path(path) / name).lstat().st_size
        return found

    def free_nbytes(self) -> int:
        """What the file system still takes from us."""
        at = self.root
        while not at.exists():
            at = at.parent
        return shutil.disk_usage(at).free

    def trouble(self, digest: str) -> str | None:
        """Why a held bundle cannot be used, if so. Its graphs are read, other files only looked at."""
        folder = self.folder(digest)
        try:
            bundle = self.opened(folder, digest)
            for name in needed(bundle, whole=False):
                if _size_of(folder, name) != bundle.manifest.files[name].nbytes:
                    return f"its file {name} is damaged or gone"
        except IsthmusError as error:
            return error.fact
        return None

    # ---- putting one together ---------------------------------------------------------------------------------------

    def begin(self, digest: str, manifest: bytes, signature: bytes | None) -> Path:
        """The folder of a new bundle, with its manifest, which nobody has parsed yet, and its signature."""
        folder = self.incoming(digest)
        self.disk.make_folder(folder)
        if signature is not None:
            self.disk.write(folder / SIGNATURE, signature)
        elif (folder / SIGNATURE).exists():
            self.disk.remove(folder / SIGNATURE)
        self.disk.write(folder / MANIFEST_DIGEST, f"{sha256(manifest)}  {MANIFEST}\n".encode())
        self.disk.write(folder / MANIFEST, manifest)
        return folder

    def adopt(self, bundle: Bundle, *, whole: bool) -> Path:
        """Copy a bundle that lies elsewhere on this device into `incoming`. Raises BundleError, OSError."""
        check_listing(bundle)
        signature = None
        if (bundle.root / SIGNATURE).exists():
            signature = read_regular(bundle.root, SIGNATURE)
        folder = self.begin(bundle.digest, read_regular(bundle.root, MANIFEST), signature)
        for name in needed(bundle, whole=whole):
            entry, target = bundle.manifest.files[name], folder / name
            if _size_of(folder, name) == entry.nbytes and sha256_of(target) == entry.sha256:
                continue
            if _size_of(bundle.root, name) != entry.nbytes:
                raise BundleError(f"{bundle.root / name} is missing or damaged", "copy the bundle again")
            self.disk.make_folder(target.parent)
            if self.disk.copy(bundle.root / name, target) != entry.sha256:
                self.disk.remove(target)
                raise BundleError(f"{bundle.root / name} does not match its digest", "copy the bundle again")
        return folder

    def signed_with(self, digest: str) -> str | None:
        """The sha256 of an incoming bundle's signature, empty without one; None if its manifest has not come yet."""
        folder = self.incoming(digest)
        try:
            if sha256_of(folder / MANIFEST) != digest:
                return None
            return sha256_of(folder / SIGNATURE) if (folder / SIGNATURE).exists() else ""
        except OSError:
            return None

    @staticmethod
    def opened(folder: Path, digest: str) -> Bundle:
        """A bundle that was believed when it came: nothing is parsed but the manifest that was. Raises BundleError."""
        if sha256(read_regular(folder, MANIFEST)) != digest:
            raise BundleError(f"{folder / MANIFEST} is another bundle's", "install the bundle again")
        return Bundle.open(folder)

    def part(self, sha: str) -> Path:
        """Where a file arrives."""
        return self._parts / sha

    def take(self, bundle: Bundle, name: str, sha: str) -> None:
        """The file that arrived as part `sha` is file `name` of the bundle that is being put together."""
        target = bundle.root / name
        self.disk.make_folder(target.parent)
        self.disk.finish(self.part(sha), target)

    def missing(self, bundle: Bundle, *, whole: bool) -> dict[str, FileEntry]:
        """Files of an incoming bundle that are nowhere on the shelf, by name; what is elsewhere on it is copied here.

        Raises BundleError for paths and sizes that no bundle has.
        """
        check_listing(bundle)
        wanted: dict[str, FileEntry] = {}
        seen: set[str] = set()
        while fresh := [name for name in needed(bundle, whole=whole) if name not in seen]:
            seen.update(fresh)
            for name in fresh:
                entry = bundle.manifest.files[name]
                if _size_of(bundle.root, name) != entry.nbytes and not self._copy(bundle, name, entry):
                    wanted[name] = entry
        return wanted

    def _copy(self, bundle: Bundle, name: str, entry: FileEntry) -> bool:
        for found in self._lying_about(bundle, entry):
            target = bundle.root / name
            if found == target:
                continue
            self.disk.make_folder(target.parent)
            if self.disk.copy(found, target) == entry.sha256:
                return True
            self.disk.remove(target)  # what lay there was damaged
        return False

    def _lying_about(self, beside: Bundle, entry: FileEntry) -> Iterator[Path]:
        """Files of believed bundles that should hold what `entry` says."""
        believed = [beside]
        for digest in _names(self._held):
            with contextlib.suppress(BundleError):
                believed.append(self.opened(self._held / digest, digest))
        for bundle in believed:
            for name, other in bundle.manifest.files.items():
                if other.sha256 == entry.sha256 and _size_of(bundle.root, name) == entry.nbytes:
                    yield bundle.root / name

    def verify(self, bundle: Bundle, *, whole: bool) -> None:
        """Hash every file that is needed. Raises BundleError, and removes the culprit, which may then come again."""
        for name in needed(bundle, whole=whole):
            path, entry = bundle.root / name, bundle.manifest.files[name]
            if _size_of(bundle.root, name) != entry.nbytes or sha256_of(path) != entry.sha256:
                self.disk.remove(path)
                raise BundleError(f"{name} is not what the manifest says", "fetch it again")

    def keep(self, digest: str) -> Path:
        """The bundle is verified: move it to where it runs from."""
        target = self.folder(digest)
        if not target.exists():
            self.disk.rename(self.incoming(digest), target)
        return target

    def _wished(self) -> str:
        """The bundle that a wish names which nobody has taken yet."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return str(json.loads((self.root / WISH).read_bytes()[:4096])["bundle"])
        return ""

    def drop(self, digest: str) -> None:
        """Forget a bundle, held or incoming."""
        for folder in (self.incoming(digest), self.folder(digest)):
            self.disk.remove(folder)

    def prune(self, wanted: frozenset[str]) -> list[str]:
        """Remove every bundle that is not `wanted`, and files that are still arriving unless a wanted one is."""
        for above in (self._incoming, self._held):
            for name in os.listdir(above) if above.exists() else ():
                if name.startswith(LEAVING):
                    self.disk.remove(above / name)
        with _locked(self.root / "bringing", wait=False) as ours:
            wanted |= {self._wished()}
            coming = _names(self._incoming) if ours else ()
            gone = [d for d in {*_names(self._held), *coming} if d not in wanted]
            for digest in sorted(gone):
                self.drop(digest)
        if not set(_names(self._incoming)) & wanted:
            for sha in _names(self._parts):
                self.disk.remove(self._parts / sha)
        return sorted(gone)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the file's lock is ours until the end of the block."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def check_listing(bundle: Bundle) -> None:
    """Raises BundleError for a manifest that lists more than any bundle has, or names it strangely."""
    files = bundle.manifest.files
    if len(files) > MOST_FILES:
        raise BundleError(f"the manifest lists {len(files)} files", f"a bundle has at most {MOST_FILES}")
    for name, entry in files.items():
        check_relative(bundle.root, name)
        if entry.nbytes < 0 or name in (MANIFEST, MANIFEST_DIGEST, SIGNATURE) or "/." in f"/{name}":
            raise BundleError(f"the manifest lists {name!r} with {entry.nbytes} bytes", "rebuild the bundle")


def needed(bundle: Bundle, *, whole: bool) -> list[str]:
    """Files that a device needs: the heads, and the whole model and a known answer to compare them with; `whole`: all
    that are listed.

    Weights beside a graph are known only once the graph is there: ask again when it has come.
    """
    manifest: Manifest = bundle.manifest
    if whole:
        return list(manifest.files)
    graphs = dict.fromkeys(p.head for p in manifest.placements if p.head is not None)
    graphs |= dict.fromkeys(["full.onnx"] if "full.onnx" in manifest.files else [])
    graphs |= dict.fromkeys([manifest.known.file] if manifest.known is not None else [])
    found = dict.fromkeys(name for name in graphs if name in manifest.files)
    for name in list(found):
        if name.endswith(".onnx") and _size_of(bundle.root, name) == manifest.files[name].nbytes:
            with contextlib.suppress(IsthmusError):
                named = {r.location for r in external_references(bundle.read(name))}
                found |= dict.fromkeys(sorted(named & manifest.files.keys()))
    return list(found)


def _size_of(root: Path, name: str) -> int | None:
    """Of a plain file; None for anything else."""
    try:
        status = (root / name).lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _names(folder: Path) -> list[str]:
    """Names in a folder that are digests; none if there is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if len(name) == 64)
    except FileNotFoundError:
        return []
