"""From a model to a bundle on disk, opened again and run as agent and gateway would."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from partitioner.crossing.boundary import Codes, decodes_first, emit_codes, take_codes
from partitioner.graph.model import load, serialise
from partitioner.judging.verify import SplitPair
from partitioner.people.report import Silent
from partitioner.planning import assemble as assembling
from partitioner.planning import build as building
from partitioner.planning import workshop as sharing
from partitioner.planning import write as writing
from partitioner.planning.build import Built, Order, build
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Search
from partitioner.planning.recheck import recheck
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, Bundle, segment_digest, sha256
from protocol.engines.ort import OrtEngine
from protocol.errors import AccuracyRefusedError, BundleError, InputError, ModelError
from protocol.messages import PlacementKind
from protocol.plan import PlanConditions
from tests import models

SEARCH = Search(Machines(slowdown=8.0, budget_s=1.0), budget_s=1.0, memory=False)


def order(folder: Path, maker: Any = models.residual, **changes: Any) -> Order:
    """An order for a toy with its calibration data in `folder`."""
    np.savez(folder / "data.npz", x=models.image_samples(24))
    base = Order(
        models.write(maker(), folder),
        folder / "bundle",
        calibration=folder / "data.npz",
        search=SEARCH,
        recipe_budget_s=0.0,
    )
    return replace(base, **changes)


def built(folder: Path, maker: Any = models.residual, **changes: Any) -> Built:
    return build(order(folder, maker, **changes), Silent())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The residual net cut in two places, the second with two tensors; INT8 heads."""
    folder = tmp_path_factory.mktemp("residual")
    cuts = (("r3",), ("r1", "c3"))
    return Bundle.open(built(folder, cuts=cuts, precision="int8", bound=0.1).target)


def test_a_bundle_opens_and_holds_every_placement(bundle: Bundle) -> None:
    assert bundle.verify() == 7
    families = dict.fromkeys(p.id.partition(".")[0] for p in bundle.manifest.placements)
    assert list(families) == ["full-cloud", "cut-1", "cut-2", "edge-only"]
    cuts = {"full-cloud": ("x",), "cut-1": ("r3",), "cut-2": ("r1", "c3"), "edge-only": ()}
    assert all(p.cut == cuts[p.id.partition(".")[0]] for p in bundle.manifest.placements)
    assert {p.id for p in bundle.remote_segments()} == {p.id for p in bundle.manifest.placements} - {"edge-only"}
    assert bundle.manifest.plan[0][1] == pytest.approx(1000)
    assert bundle.manifest.plan[-1][2] == pytest.approx(0.1)


def test_codings_of_one_cut_share_head_and_tail_and_differ_in_what_they_are_called(bundle: Bundle) -> None:
    cuts = [p for p in bundle.manifest.placements if p.id.partition(".")[0] == "cut-1"]
    assert 1 < len(cuts) <= 3
    assert len({(p.head, p.tail) for p in cuts}) == 1
    assert len({p.segment for p in cuts}) == len(cuts)
    assert sorted({p.cost.up_nbytes for p in cuts}) == sorted(p.cost.up_nbytes for p in cuts)
    for entry in cuts:
        assert all((t.codec == "levels") == (t.levels is not None) for t in entry.boundary)
        assert entry.certificate is not None
        assert entry.certificate.achieved >= entry.certificate.bound


def test_digests_tie_segments_to_their_files(bundle: Bundle) -> None:
    files = bundle.manifest.files
    full = bundle.manifest.placement(PlacementKind.FULL_CLOUD)
    assert full is not None
    assert full.segment == bundle.manifest.model.digest == files["full.onnx"].sha256
    cut = bundle.manifest.placements[1]
    assert cut.head is not None
    assert cut.tail is not None
    assert cut.segment == segment_digest(files[cut.head].sha256, files[cut.tail].sha256, cut.boundary)


def test_conditions_say_how_it_was_made(bundle: Bundle) -> None:
    conditions = bundle.manifest.conditions
    assert conditions.edge_slowdown == 8.0
    assert conditions.calibration_samples == 12
    assert {"onnxruntime", "onnx", "onnx_ir", "numpy", "python", "isthmus"} <= set(conditions.versions)


def test_split_placements_answer_like_the_whole_model(bundle: Bundle) -> None:
    feeds = [{"x": x[None]} for x in models.image_samples(6, seed=99)]
    with OrtEngine(bundle.read("full.onnx"), label="full") as engine:
        expected = [engine.infer(f)["logits"] for f in feeds]
    for entry in [p for p in bundle.manifest.placements if p.kind is PlacementKind.CUT]:
        head, tail = bundle.read(entry.head or ""), bundle.read(entry.tail or "")
        with SplitPair(head, tail, entry.cut, entry.head_outputs) as pair:
            got = [pair.infer(f)["logits"] for f in feeds]
        scale = max(float(np.abs(e).max()) for e in expected)
        assert max(float(np.abs(e - g).max()) for e, g in zip(expected, got, strict=True)) < 0.1 * scale


def test_what_crosses_are_uint8_codes_under_the_tensors_own_names(bundle: Bundle) -> None:
    for entry in [p for p in bundle.manifest.placements if p.kind is PlacementKind.CUT]:
        assert entry.precision == "int8"
        with OrtEngine(bundle.read(entry.head or ""), label="head") as head:
            assert {s.name: s.dtype for s in head.outputs} == dict.fromkeys(entry.cut, "uint8")
        tail = bundle.read(entry.tail or "")
        graph = onnx.load_model_from_string(tail).graph
        assert [i.name for i in graph.input] == list(entry.cut)
        assert not any(n.op_type == "DequantizeLinear" for n in graph.node)
        for tensor in entry.boundary:
            assert decodes_first(tail, tensor.spec.name)
            assert tensor.spec.dtype == "uint8"
            assert tensor.scale is not None
            assert tensor.codec in ("raw", "zstd", "levels")


def test_the_quantised_head_hands_out_the_codes_that_it_has(bundle: Bundle) -> None:
    graph = onnx.load_model_from_string(bundle.read("cut-1/head.onnx")).graph
    makers = {o: n.op_type for n in graph.node for o in n.output}
    assert makers["r3"] == "QuantizeLinear"
    assert sum(n.op_type == "QuantizeLinear" and "r3" in n.output[0] for n in graph.node) == 1


def test_the_tail_is_proven_batchable_and_takes_a_batch(bundle: Bundle) -> None:
    entry = bundle.manifest.placements[1]
    assert entry.batch is not None
    assert entry.batch.batchable
    assert entry.batch.output_axes == {"logits": 0}
    assert [t.batch_axis for t in entry.boundary] == [0]
    with OrtEngine(bundle.read(entry.tail or ""), label="tail") as tail:
        assert tail.infer({"r3": np.zeros((5, 8, 16, 16), np.uint8)})["logits"].shape == (5, 10)


def test_a_fixed_batch_tail_runs_at_batch_one_and_says_why(tmp_path: Path) -> None:
    manifest = built(tmp_path, models.fixed_batch, cuts=(("r3",), ("flat",))).manifest
    baked, free = (next(p for p in manifest.placements if p.id == id_) for id_ in ("cut-1", "cut-2"))
    assert baked.batch is not None
    assert free.batch is not None
    assert not baked.batch.batchable
    assert "does not run at batch 3" in baked.batch.reason
    assert baked.boundary[0].batch_axis is None
    assert free.batch.batchable
    assert free.boundary[0].batch_axis == 0


def test_int64_tensors_and_inputs_cross_as_they_are(tmp_path: Path) -> None:
    path = models.write(models.tokens(), tmp_path)
    cut = ("active", "mask")
    manifest = build(Order(path, tmp_path / "bundle", cuts=(cut,)), Silent()).manifest
    entry = manifest.placements[1]
    assert {t.spec.name: t.spec.dtype for t in entry.boundary} == {"active": "uint8", "mask": "int64"}
    opened = Bundle.open(tmp_path / "bundle")
    feed = {"ids": np.arange(7, dtype=np.int64)[None], "mask": np.ones((1, 7), np.int64)}
    with SplitPair(opened.read(entry.head or ""), opened.read(entry.tail or ""), cut, ()) as pair:
        assert pair.infer(feed)["logits"].shape == (1, 10)


def test_outputs_before_the_cut_stay_on_the_device(tmp_path: Path) -> None:
    manifest = built(tmp_path, models.two_heads, cuts=(("r3",),)).manifest
    entry = manifest.placements[1]
    assert entry.head_outputs == ("early",)
    assert [t.spec.name for t in entry.boundary] == ["r3"]
    assert recheck(tmp_path / "bundle", None).files == 5


def test_auto_ships_fp32_where_int8_misses_the_bound_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembling, "slower_than_fp32", lambda *_: "")  # a toy of 20 us may be slower or not
    entry = built(tmp_path, models.outliers, cuts=(("restored",),)).manifest.placements[1]
    assert entry.precision == "fp32"
    assert entry.notes
    assert "INT8 head" in entry.notes[0]
    assert "is below the bound" in entry.notes[0]


def test_an_int8_head_that_is_slower_is_not_shipped_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "interleaved_medians", lambda works: {n: float(n == "int8") + 1 for n in works})
    entry = built(tmp_path, cuts=(("r3",),)).manifest.placements[1]
    assert entry.precision == "fp32"
    assert "INT8 head, 8-bit boundary not shipped: slower on this machine (2000.00 ms, fp32 1000.00 ms)" in entry.notes


def test_the_ladder_ends_at_an_fp32_boundary(tmp_path: Path) -> None:
    entry = built(tmp_path, models.outliers, cuts=(("stretched",),)).manifest.placements[1]
    assert entry.boundary[0].spec.dtype == "float32"
    assert entry.boundary[0].scale is None
    assert any("fp32 head, 8-bit boundary not shipped" in note for note in entry.notes)
    assert "fp32 head, fp16 boundary not shipped" in entry.notes[-1]
    assert recheck(tmp_path / "bundle", tmp_path / "data.npz").placements[0].achieved == 1.0


def test_int8_is_refused_where_it_misses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = order(tmp_path, models.outliers, cuts=(("restored",),), precision="int8")
    listing = sorted(os.listdir(tmp_path))
    with pytest.raises(AccuracyRefusedError, match="meets the bound"):
        build(before, Silent())
    assert sorted(os.listdir(tmp_path)) == listing


def test_fp32_never_quantises_the_head(tmp_path: Path) -> None:
    manifest = built(tmp_path, cuts=(("r3",),), precision="fp32").manifest
    assert manifest.placements[1].precision == "fp32"
    assert manifest.placements[-1].precision == "fp32"
    assert manifest.placements[1].boundary[0].spec.dtype == "uint8"


def test_labels_make_the_metric_accuracy(tmp_path: Path) -> None:
    asked = order(tmp_path, cuts=(("r3",),))
    np.savez(tmp_path / "data.npz", x=models.image_samples(24), y=np.arange(24) % 10)
    certificate = build(asked, Silent()).manifest.placements[1].certificate
    assert certificate is not None
    assert certificate.metric == "accuracy"
    assert certificate.samples == 12


def test_without_data_the_bundle_says_that_inputs_were_random(tmp_path: Path) -> None:
    manifest = built(tmp_path, cuts=(("r3",),), calibration=None).manifest
    certificate = manifest.placements[1].certificate
    assert certificate is not None
    assert certificate.random_inputs
    assert any("inputs were random" in n for n in manifest.notes)


def test_auto_says_what_it_measured_and_whether_to_split(tmp_path: Path) -> None:
    result = built(tmp_path)
    assert result.manifest.measured
    assert any(n.startswith("solved exactly ") for n in result.manifest.notes)
    cuts = [p for p in result.manifest.placements if p.kind == PlacementKind.CUT]
    assert len(cuts) <= 3
    assert cuts or any(n.startswith("do not split") for n in result.manifest.notes)


def test_auto_keeps_a_losing_cut_only_when_asked(tmp_path: Path) -> None:
    # The device is as fast as this machine and the round trip takes a second: nothing but edge-only can win.
    manifest = built(
        tmp_path, search=replace(SEARCH, keep_best=True, machines=Machines(budget_s=1.0), scope=PlanConditions(1.0))
    ).manifest
    assert [p.kind for p in manifest.placements].count(PlacementKind.CUT) == 1
    assert [s[0] for s in manifest.plan] == ["edge-only"]
    assert any(n.startswith("do not split") for n in manifest.notes)


def test_a_slow_device_makes_a_cut_win(tmp_path: Path) -> None:
    # 3,072 input bytes against 40 for the answer: with a device 500 times slower only early cuts or full-cloud can win.
    manifest = built(
        tmp_path, search=replace(SEARCH, machines=Machines(slowdown=500.0, budget_s=1.0), scope=PlanConditions(0.0))
    ).manifest
    assert manifest.plan[0][0] == "full-cloud"


def test_an_existing_place_is_refused_and_force_replaces_a_bundle_only(tmp_path: Path) -> None:
    first = built(tmp_path, cuts=(("r3",),))
    with pytest.raises(InputError, match="exists already"):
        built(tmp_path, cuts=(("r3",),))
    second = built(tmp_path, cuts=(("r1",),), force=True)
    assert Bundle.open(second.target).manifest.placements[1].cut == ("r1",)
    assert first.digest != second.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "data.npz", "model.onnx"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is no bundle"):
        built(tmp_path, cuts=(("r3",),), target=tmp_path / "mine", force=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_write_that_is_interrupted_leaves_the_old_bundle_and_nothing_else(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = built(tmp_path, cuts=(("r3",),)).digest
    listing = sorted(os.listdir(tmp_path))

    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises((error, InputError)):
        built(tmp_path, cuts=(("r1",),), force=True)
    assert sorted(os.listdir(tmp_path)) == listing
    assert Bundle.open(tmp_path / "bundle").digest == digest


def test_the_manifest_digest_file_is_what_sha256sum_reads(bundle: Bundle) -> None:
    stated, name = (bundle.root / MANIFEST_DIGEST).read_text().split()
    assert name == MANIFEST
    assert stated == sha256((bundle.root / MANIFEST).read_bytes())


def test_one_changed_byte_fails_verification(tmp_path: Path) -> None:
    target = built(tmp_path, cuts=(("r3",),)).target
    path = target / "cut-1" / "tail.onnx"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="does not match its digest"):
        recheck(target, None)


def test_verify_judges_other_data_with_all_of_it(bundle: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=models.image_samples(20, seed=5))
    seen = recheck(bundle.root, tmp_path / "other.npz")
    assert {p.samples for p in seen.placements} == {20}
    assert not seen.random_inputs


def test_a_model_changed_by_normalising_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(models.write(models.residual(), tmp_path))
    other = load(models.write(models.outliers(), tmp_path, "other.onnx"))
    monkeypatch.setattr(building, "load", lambda _, **__: replace(model, source=other.source))
    with pytest.raises(ModelError, match="changed its answers"):
        built(tmp_path, cuts=(("r3",),))


def test_cast_sub_mul_is_what_dequantize_linear_computes(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Identity", ["t"], "y")
    tail = ir.from_proto(net.model({"t": (onnx.TensorProto.FLOAT, ["N", 256])}, {"y": ["N", 256]}))
    codes = np.arange(256, dtype=np.uint8)[None]
    parameters = Codes(0.0371, 93)
    with OrtEngine(serialise(take_codes(tail, {"t": parameters})), label="tail") as engine:
        got = engine.infer({"t": codes})["y"]
    expected = (codes.astype(np.float32) - np.float32(93)) * np.float32(0.0371)
    assert np.array_equal(got, expected)


def test_a_crossing_tensor_that_the_head_itself_goes_on_using_keeps_its_float_values(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Relu", ["x"], "a")
    net.add("Neg", ["a"], "b")
    head = ir.from_proto(net.model({"x": (onnx.TensorProto.FLOAT, [1, 8])}, {"a": [1, 8], "b": [1, 8]}))
    coded, codes = emit_codes(head, ["a"], {"a": (0.0, 2.0)})
    x = np.linspace(-1, 2, 8, dtype=np.float32)[None]
    with OrtEngine(serialise(coded), label="head") as engine:
        out = engine.infer({"x": x})
    assert out["a"].dtype == np.uint8
    assert np.array_equal(out["b"], -np.maximum(x, 0))
    assert codes["a"].zero_point == 0


def test_verify_sends_what_crosses_through_its_codec(bundle: Bundle, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=models.image_samples(20, seed=5))
    seen = {p.id: p for p in recheck(bundle.root, None).placements}
    lossy = [p.id for p in bundle.manifest.placements if p.id.startswith("cut-1.")]
    assert lossy
    assert all(seen[id_].max_abs_difference != seen["cut-1"].max_abs_difference for id_ in lossy)
