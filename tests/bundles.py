"""Bundles made of any bytes, for what moves and hashes files and runs none of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from protocol.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, FileEntry, Manifest, encode_manifest, sha256
from tests.manifests import cut, edge_only, full_cloud, manifest


def manifest_of(files: Mapping[str, bytes], *, model: str = "toy", notes: tuple[str, ...] = ()) -> Manifest:
    """A manifest that lists `files`: an edge-only placement, and a cut where there is a `cut-1/head.onnx`."""
    placements = [full_cloud(), edge_only()]
    if "cut-1/head.onnx" in files:
        placements.append(cut("cut-1", 0.01, 10_000, 0.01))
    digest = sha256(files.get("full.onnx", b"full"))
    made = manifest(
        [msgspec.structs.replace(p, head="edge.onnx" if p.id == "edge-only" else p.head) for p in placements],
        name=model,
        notes=notes,
    )
    return msgspec.structs.replace(
        made,
        model=msgspec.structs.replace(made.model, digest=digest),
        files={name: FileEntry(sha256(data), len(data)) for name, data in files.items()},
    )


def bundle_in(folder: Path, files: Mapping[str, bytes], *, model: str = "toy", notes: tuple[str, ...] = ()) -> Bundle:
    """Write a bundle of `files` into `folder`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    listing = encode_manifest(manifest_of(files, model=model, notes=notes))
    (folder / MANIFEST).write_bytes(listing)
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(listing)}  {MANIFEST}\n")
    return Bundle.open(folder)
