"""The bundle that `edge-agent bundles` made the current one, read without its locks: a daemon may be running."""

from __future__ import annotations

from pathlib import Path

from edge_agent.bundles.shelf import Shelf


def current_bundle(state_dir: Path) -> Path | None:
    """Its folder, or None if none is installed. Raises BundleError if the shelf's record is damaged."""
    shelf = Shelf(state_dir / "bundles")
    current = shelf.load().current
    return shelf.folder(current) if current else None
