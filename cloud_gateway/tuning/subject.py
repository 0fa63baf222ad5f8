"""What is to be tuned: one graph of a bundle, a model folder or an ONNX file, loaded once per number of threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.lanes import Lane
from cloud_gateway.models.served import ServedVersion, open_bundle, open_model, open_version
from cloud_gateway.models.settings import ModelSettings
from cloud_gateway.scheduling.admission import Limits
from protocol.bundle import MANIFEST
from protocol.errors import InputError
from protocol.messages import PlacementKind


def open_subject(path: Path, placement: str | None) -> ServedVersion:
    """The version at `path` with the one tail that is to be tuned: `placement`, or the whole model.

    `path` is an ONNX file, a bundle, `NAME/VERSION` or `NAME` (its newest version). Raises InputError, BundleError or
    ModelError.
    """
    version = _open(path)
    if placement is None:
        tails = [tail for tail in version.tails if tail.kind is PlacementKind.FULL_CLOUD] or list(version.tails)
    else:
        tails = [tail for tail in version.tails if tail.placement == placement]
    if not tails:
        known = ", ".join(dict.fromkeys(tail.placement for tail in version.tails))
        raise InputError(f"{path} has no placement {placement}", f"it has {known}")
    # What its folder declares is what is in question: the sweep must not be bound by it.
    declared = ModelSettings(max_batch_size=0 if version.settings.max_batch_size == 0 else None)
    return replace(version, tails=(tails[0],), settings=declared)


def _open(path: Path) -> ServedVersion:
    if path.is_file():
        return open_model(path)
    if path.name.isdigit() and path.is_dir():
        return open_version(path.absolute().parent.name, int(path.name), path)
    if (path / MANIFEST).exists():
        return open_bundle(path)
    versions = [each for each in path.iterdir() if each.name.isdigit()] if path.is_dir() else []
    if not versions:
        raise InputError(f"{path} is no model", "name an ONNX file, a bundle, or a folder with NAME/VERSION")
    newest = max(versions, key=lambda each: int(each.name))
    return open_version(path.absolute().name, int(newest.name), newest)


@contextmanager
def loaded(subject: ServedVersion, threads: Iterable[int], *, largest: int) -> Iterator[dict[int, Lane]]:
    """An active lane for every number of threads. Raises EngineError."""
    lanes: dict[int, Lane] = {}
    catalogues: list[Catalogue] = []
    try:
        for count in threads:
            defaults = Defaults(threads=count, max_rows=largest)
            catalogue = Catalogue(Desk(Limits(), threads=1), defaults, orphaned=lambda _: None)
            catalogues.append(catalogue)
            catalogue.load(subject)
            (lanes[count],) = catalogue.lanes.values()
        yield lanes
    finally:
        for catalogue in catalogues:
            catalogue.close()
