"""The model folder as it lies on disk: which models and versions there are, and which of them are still being written.

    ROOT/NAME/VERSION/...     NAME: letters, digits, dot, dash, underscore; VERSION: 1, 2, ... without leading zeros
    ROOT/NAME/config.pbtxt    how the model is served, and which of its versions

A look costs one stat for every file and reads nothing but changed config.pbtxt files. A version's fingerprint covers
names, sizes, times and inodes of its files and of config.pbtxt, so that whatever is written, replaced or renamed shows;
whether the content really differs is found out when it is opened. A folder that changed since the last look is not
quiet; it is when it has stayed the same for `quiet_s` seconds. What lies there complete at the first look counts as
quiet at once. Hidden files are ignored everywhere, links are never followed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloud_gateway.models.served import CONFIG, SAFE_NAME, ServedVersion, open_bundle, open_version, read_settings
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import FoundModel, Sighting
from protocol.bundle import MANIFEST, MANIFEST_DIGEST
from protocol.errors import InputError, IsthmusError

MOST_FILES = 20_000  # of one version; more are not looked at, and opening it will tell
MOST_LEVELS = 8
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Glance:
    """What one look showed. `quiet` is False while anything is still being written: look again soon."""

    models: Mapping[str, FoundModel]
    warnings: tuple[str, ...]
    quiet: bool


@dataclass(frozen=True, slots=True)
class _Seen:
    fingerprint: str
    since: float  # when it was first seen so
    settled: bool


class Repository:
    """A model folder, and bundles that lie elsewhere and were named by hand. Nothing is read before the first look.

    Bundles are called like their models; several of one model are its versions 1, 2, ... and all of them are served.
    """

    def __init__(
        self,
        root: Path | None,
        bundles: Sequence[Path] = (),
        *,
        policy: VersionPolicy | None = None,
        quiet_s: float = 1.0,
    ) -> None:
        self.root = root
        self.policy = policy or VersionPolicy()  # of models that state none
        self._bundles = tuple(bundles)
        self.quiet_s = quiet_s
        self._named: dict[tuple[str, int], Path] = {}
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._policies: dict[str, tuple[str, VersionPolicy | None]] = {}
        self._looked = False

    @property
    def bundles(self) -> frozenset[str]:
        """The names of the bundles that were named by hand, known after the first look."""
        return frozenset(name for name, _ in self._named)

    def look(self, *, now: float, trusting: bool = False) -> Glance:
        """Everything that is there; `trusting` takes all of it for complete, because somebody says so.

        Raises InputError if the folder cannot be read and, at the first look, BundleError for a bundle named by hand.
        """
        warnings: list[str] = []
        found: dict[str, dict[int, tuple[Path, str]]] = {}
        policies: dict[str, VersionPolicy] = {}
        if not self._looked:
            self._name_bundles()
        for (name, version), path in self._named.items():
            found.setdefault(name, {})[version] = path, _fingerprint(path)
            policies[name] = VersionPolicy("all")
        for name, folder in self._models(warnings):
            if name in policies:
                warnings.append(f"{folder} is not served: a bundle that was named by hand is called {name!r}")
                continue
            config = _stamp(folder / CONFIG)
            found[name] = {v: (path, _fingerprint(path) + config) for v, path in _versions(folder, warnings)}
            policies[name] = self._policy(name, folder, config, warnings)
        models = {}
        for name, versions in found.items():
            sightings = {v: self._sighting((name, v), *at, now, trusting) for v, at in versions.items()}
            models[name] = FoundModel(sightings, policies[name])
        present = {(name, version) for name, versions in found.items() for version in versions}
        self._seen = {key: seen for key, seen in self._seen.items() if key in present}
        self._looked = True
        quiet = all(sighting.quiet for model in models.values() for sighting in model.versions.values())
        # A name that is no text must not break whoever writes the warning down.
        return Glance(models, tuple(w.encode("utf-8", "backslashreplace").decode() for w in warnings), quiet)

    def open(self, name: str, version: int, *, build: int) -> ServedVersion:
        """Open a version that was seen. Raises BundleError, ModelError or InputError."""
        named = self._named.get((name, version))
        if named is not None:
            return open_bundle(named, name=name, version=version, build=build)
        if self.root is None:
            raise InputError(f"there is no version {version} of {name!r}", "name a model folder")
        return open_version(name, version, self.root / name / str(version), build=build)

    # ---- within -----------------------------------------------------------------------------------------------------

    def _name_bundles(self) -> None:
        for path in self._bundles:
            name = open_bundle(path).name
            version = 1 + sum(1 for taken, _ in self._named if taken == name)
            self._named[name, version] = path

    def _models(self, warnings: list[str]) -> Iterator[tuple[str, Path]]:
        if self.root is None:
            return
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(
                f"the model folder {self.root} cannot be read ({error.strerror})", "name a folder with NAME/VERSION/"
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                warnings.append(f"{entry.path} is a symbolic link, which is not followed")
            elif entry.is_dir() and not SAFE_NAME.fullmatch(entry.name):
                warnings.append(f"{entry.path} is no model: names are letters, digits, dots, dashes and underscores")
            elif entry.is_dir():
                yield entry.name, Path(entry.path)

    def _policy(self, name: str, folder: Path, stamp: str, warnings: list[str]) -> VersionPolicy:
        """The policy of a model's config.pbtxt; of one that is wrong, the last that was right."""
        before = self._policies.get(name)
        if before is None or before[0] != stamp:
            try:
                bundle = any((path / MANIFEST).exists() for _, path in _versions(folder, []))
                settings = read_settings(name, folder, bundle=bundle)
                before = stamp, settings.version_policy if settings else None
                self._policies[name] = before
            except (IsthmusError, OSError) as error:
                warnings.append(str(error))
        return (before[1] if before else None) or self.policy

    def _sighting(self, key: tuple[str, int], path: Path, fingerprint: str, now: float, trusting: bool) -> Sighting:
        if trusting:
            return Sighting(fingerprint)
        seen = self._seen.get(key)
        if seen is None or seen.fingerprint != fingerprint:
            seen = _Seen(fingerprint, now, settled=not self._looked and _is_complete(path))
        if not seen.settled and now - seen.since >= self.quiet_s:
            seen = _Seen(fingerprint, seen.since, settled=True)
        self._seen[key] = seen
        return Sighting(fingerprint, seen.settled)


def _versions(folder: Path, warnings: list[str]) -> list[tuple[int, Path]]:
    found: list[tuple[int, Path]] = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        warnings.append(f"{folder} cannot be read ({error.strerror})")
        return found
    for entry in entries:
        if entry.name.startswith(".") or (entry.is_file() and not entry.is_symlink()):
            continue
        if entry.is_symlink() and entry.name != CONFIG:
            warnings.append(f"{entry.path} is a symbolic link, which is not followed")
        elif entry.is_dir() and not _VERSION.fullmatch(entry.name):
            warnings.append(f"{entry.path} is no version: versions are numbered 1, 2, ...")
        elif entry.is_dir():
            found.append((int(entry.name), Path(entry.path)))
    if not found:
        warnings.append(f"{folder} holds no version: put the model into {folder / '1'}")
    return found


def _is_complete(path: Path) -> bool:
    """Whether a folder could be opened: a bundle's digest is written last."""
    if (path / MANIFEST).exists():
        return (path / MANIFEST_DIGEST).exists()
    try:
        return any(entry.is_file() and not entry.name.startswith(".") for entry in os.scandir(path))
    except OSError:  # removed while we look
        return False


def _fingerprint(folder: Path) -> str:
    """Digest over names, sizes, times and inodes of everything in `folder`."""
    digest = hashlib.blake2b(digest_size=16)
    for line in sorted(_stamps(folder, "", MOST_LEVELS)):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamps(folder: Path, prefix: str, levels: int) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))[:MOST_FILES]
    except OSError as error:
        yield f"{prefix} {error.errno}\n"
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if levels:
                yield from _stamps(Path(entry.path), f"{prefix}{entry.name}/", levels - 1)
            continue
        yield f"{prefix}{entry.name} {_stamp(Path(entry.path))}\n"


def _stamp(path: Path) -> str:
    """What changes whenever a file is written or replaced; "" if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
