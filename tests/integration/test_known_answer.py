"""A built bundle brings a question along, and only heads that answer it as they did at the build serve."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from edge_agent.bundles.first_run import judge
from edge_agent.bundles.shelf import needed
from protocol import known
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, FileEntry, encode_manifest, sha256


def changed(bundle: Path, target: Path, file: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The bundle with one graph changed and everything hashed anew, as a faulty build would have it."""
    shutil.copytree(bundle, target)
    manifest = Bundle.open(target).manifest
    model = onnx.load(target / file)
    change(model)
    data = model.SerializeToString()
    (target / file).write_bytes(data)
    listing = encode_manifest(replace(manifest, files={**manifest.files, file: FileEntry(sha256(data), len(data))}))
    (target / MANIFEST).write_bytes(listing)
    (target / MANIFEST_DIGEST).write_text(f"{sha256(listing)}\n")
    return target


def weaken(model: onnx.ModelProto) -> None:
    """Half of the largest weight is gone: answers stay like the right ones to noise (cosine 0.5), and are wrong."""
    largest = max(model.graph.initializer, key=lambda w: len(w.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values.reshape(-1)[::2] = 0
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))


def test_the_build_puts_a_small_question_with_every_heads_answer_into_the_bundle(toy_bundle: Path) -> None:
    bundle = Bundle.open(toy_bundle)
    heads = {entry.head for entry in bundle.manifest.placements if entry.head}
    assert bundle.manifest.known is not None
    assert set(bundle.manifest.known.most_deviation) == heads
    assert (toy_bundle / known.FILE).stat().st_size < known.MOST_NBYTES
    assert known.FILE in needed(bundle, whole=False), "devices fetch it"
    assert judge(toy_bundle) == ""


@pytest.mark.parametrize("placement", ["cut-1", "cut-2", "edge-only"])
def test_a_head_that_computes_nearly_the_same_does_not_serve(toy_bundle: Path, tmp_path: Path, placement: str) -> None:
    entry = next(p for p in Bundle.open(toy_bundle).manifest.placements if p.id.startswith(placement))
    assert entry.head is not None
    reason = judge(changed(toy_bundle, tmp_path / "bundle", entry.head, weaken))
    assert placement in reason
    assert "does not give the known" in reason


def test_a_bundle_without_a_question_is_tried_with_noise(toy_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(toy_bundle, target)
    listing = encode_manifest(replace(Bundle.open(target).manifest, known=None))
    (target / MANIFEST).write_bytes(listing)
    (target / MANIFEST_DIGEST).write_text(f"{sha256(listing)}\n")
    assert judge(target) == ""
