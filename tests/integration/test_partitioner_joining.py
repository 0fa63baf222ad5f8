"""A common suffix: suffix after bridge is the tail bit for bit, old readers see nothing of it, and where there is none
the bundle says why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper

from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from partitioner.planning.recheck import recheck
from partitioner.planning.write import write_bundle
from protocol.bundle import Bundle, FileEntry, PlacementEntry, sha256
from protocol.engines.ort import OrtEngine
from protocol.errors import BundleError
from protocol.tensors import Tensors
from tests import models


def built(folder: Path, *cuts: tuple[str, ...], maker: Any = models.residual, **changes: Any) -> Bundle:
    np.savez(folder / "data.npz", x=models.image_samples(24))
    order = Order(
        models.write(maker(), folder),
        folder / "bundle",
        cuts=cuts,
        calibration=folder / "data.npz",
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=0.2,
        **({"common_suffix": True} | changes),
    )
    return Bundle.open(build(order, Silent()).target)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Cuts at r1 and r3 and, between them, where two tensors cross; INT8 heads where they hold."""
    return built(tmp_path_factory.mktemp("joined"), ("r1",), ("r3",), ("r1", "c3"))


def run(bundle: Bundle, file: str | None, feed: Tensors) -> Tensors:
    assert file is not None
    with OrtEngine(bundle.graph(file), label=file, optimise=False) as engine:
        return engine.infer(feed)


def cuts_of(bundle: Bundle) -> dict[str, PlacementEntry]:
    return {p.id: p for p in bundle.remote_segments() if re.fullmatch(r"cut-\d", p.id)}


def test_suffix_after_bridge_is_the_tail_bit_for_bit(bundle: Bundle) -> None:
    suffix = bundle.manifest.suffix
    assert suffix is not None
    assert (suffix.batch_axes, suffix.output_axes) == ({"r3/joined": 0}, {"logits": 0})
    assert suffix.max_abs_difference < 1e-5
    entries = cuts_of(bundle)
    assert {id_: entry.bridge for id_, entry in entries.items()} == {id_: f"{id_}/bridge.onnx" for id_ in entries}
    for entry in entries.values():
        made = run(bundle, entry.head, {"x": models.image_samples()[:3]})
        crossing = {name: made[name] for name in entry.cut}
        joined = run(bundle, suffix.file, run(bundle, entry.bridge, crossing))
        assert np.array_equal(joined["logits"], run(bundle, entry.tail, crossing)["logits"])


def test_one_batch_of_the_suffix_holds_rows_of_every_cut(bundle: Bundle) -> None:
    suffix = bundle.manifest.suffix
    assert suffix is not None
    rows, alone = [], []
    for number, entry in enumerate(cuts_of(bundle).values()):
        made = run(bundle, entry.head, {"x": models.image_samples()[number : number + 1]})
        crossing = {name: made[name] for name in entry.cut}
        rows.append(run(bundle, entry.bridge, crossing)["r3/joined"])
        alone.append(run(bundle, entry.tail, crossing)["logits"])
    together = run(bundle, suffix.file, {"r3/joined": np.concatenate(rows)})["logits"]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_all_codings_of_a_cut_share_its_bridge_and_every_file_is_listed(bundle: Bundle) -> None:
    files = bundle.manifest.files
    for entry in bundle.remote_segments():
        family = entry.id.partition(".")[0]
        assert entry.bridge == (None if family == "full-cloud" else f"{family}/bridge.onnx")
        assert entry.bridge is None or entry.bridge in files
    assert bundle.verify() == 2 + 3 * 3 + 2


def test_segments_are_the_same_with_and_without_a_suffix(tmp_path: Path) -> None:
    found = []
    for name, wanted in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        one = built(tmp_path / name, ("r1",), ("r3",), precision="fp32", common_suffix=wanted)
        found.append({p.id: p.segment for p in one.manifest.placements})
        assert (one.manifest.suffix is not None) is wanted
    assert found[0] == found[1]


def test_a_bundle_with_a_suffix_verifies_and_one_with_another_suffix_does_not(bundle: Bundle, tmp_path: Path) -> None:
    assert len(recheck(bundle.root, None).placements) >= 3
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    suffix = onnx.load_model_from_string(files["suffix.onnx"])
    bias = next(weight for weight in suffix.graph.initializer if weight.name == "fc.b")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, "fc.b"))
    files["suffix.onnx"] = suffix.SerializeToString()
    listed = {name: FileEntry(sha256(content), len(content)) for name, content in files.items()}
    write_bundle(tmp_path / "other", replace(bundle.manifest, files=listed), files, force=False)
    with pytest.raises(BundleError, match="differ from its tail by 1"):
        recheck(tmp_path / "other", None)


@pytest.mark.parametrize(
    ("maker", "cuts", "reason"),
    [
        (models.residual, [("r1",)], "fewer than two cuts take batches"),
        (models.fixed_batch, [("r1",), ("r3",)], "fewer than two cuts take batches"),
        (models.two_heads, [("r1",), ("r3",)], "no other cut reaches"),
    ],
    ids=["one cut", "no batches", "other outputs"],
)
def test_where_there_is_no_common_suffix_the_bundle_says_why(
    tmp_path: Path, maker: Any, cuts: list[tuple[str, ...]], reason: str
) -> None:
    one = built(tmp_path, *cuts, maker=maker, precision="fp32")
    assert one.manifest.suffix is None
    assert any(note.startswith(f"no common suffix: {reason}") for note in one.manifest.notes), one.manifest.notes
    assert not any("bridge" in file for file in one.manifest.files)
