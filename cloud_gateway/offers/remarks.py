"""What is odd about the settings of offers, seen before a gateway is started with them. Manifests are read, no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cloud_gateway.config import GatewaySettings
from cloud_gateway.models.served import safe_name
from protocol.bundle import MANIFEST, Bundle
from protocol.errors import IsthmusError


def remarks(settings: GatewaySettings) -> tuple[str, ...]:
    """One sentence for what is offered and lies nowhere; none where models lie on another machine."""
    models, wanted = settings.models, set(settings.updates.offer) - {"*"}
    if not wanted or (models.repository is not None and not models.repository.is_dir()):
        return ()
    found = set(_names(models.bundles, models.repository))
    if not (unknown := sorted(wanted - found)):
        return ()
    there = f"what there is: {', '.join(sorted(found))}" if found else "there is no bundle at all"
    named = ", ".join(map(repr, unknown))
    return (f"updates.offer names {named}, of which no bundle lies where models are served from; {there}",)


def _names(bundles: Iterable[Path], repository: Path | None) -> Iterator[str]:
    """By what a bundle may be offered: its folder's name there, and its model's."""
    for folder in bundles:
        if name := _model(folder):
            yield from (safe_name(name), name)
    for manifest in () if repository is None else repository.glob(f"[!.]*/[1-9]*/{MANIFEST}"):
        if name := _model(manifest.parent):
            yield from (manifest.parent.parent.name, name)


def _model(folder: Path) -> str:
    """Empty for a bundle that cannot be read: whoever serves it says why."""
    try:
        return Bundle.open(folder).manifest.model.name
    except (IsthmusError, OSError):
        return ""
