"""Tails in float16 in bundles: judged behind the head that ships, listed and hashed, and nobody's trouble elsewhere."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import numpy_helper
from typer.testing import CliRunner

from edge_agent.bundles.shelf import needed
from partitioner.cli import app
from partitioner.crossing.boundary import decodes_first
from partitioner.people.explain import Question, explain
from partitioner.people.page import sections
from partitioner.people.report import Silent
from partitioner.people.sentences import sentences
from partitioner.planning.build import Order, build
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Search
from partitioner.planning.recheck import recheck
from partitioner.planning.write import write_bundle
from protocol.bundle import MANIFEST, Bundle, FileEntry, Manifest, sha256
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_graphs import check_graph, profile_shapes
from protocol.engines.trt_options import TrtOptions
from protocol.errors import AccuracyRefusedError, BundleError
from protocol.graphs import external_of
from protocol.onnx_outline import read_outline
from tests import models

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"
SEARCH = Search(Machines(slowdown=8.0, budget_s=0.5), budget_s=0.5, memory=False)
SHARED = Path(os.environ.get("ISTHMUS_SHARED", ROOT.parent / "shared")) / "models"


def order(folder: Path, *cuts: tuple[str, ...], maker: Any = models.residual, **changes: Any) -> Order:
    np.savez(folder / "data.npz", x=models.image_samples(24))
    asked: dict[str, Any] = {"half_tails": True, "bound": 0.2} | changes
    return Order(
        models.write(maker(), folder),
        folder / "bundle",
        cuts=cuts,
        calibration=folder / "data.npz",
        search=SEARCH,
        recipe_budget_s=0.0,
        **asked,
    )


def built(folder: Path, *cuts: tuple[str, ...], **changes: Any) -> Bundle:
    return Bundle.open(build(order(folder, *cuts, **changes), Silent()).target)


def loud() -> onnx.ModelProto:
    """A model whose inside is out of float16's range, and whose answers are not."""
    proto = models.residual()
    for weight in proto.graph.initializer:
        if weight.name == "fc.w":
            array = numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(array * np.float32(1e7), weight.name))
    (node,) = [node for node in proto.graph.node if "logits" in node.output]
    node.output[:] = ["loud"]
    proto.graph.node.append(onnx.helper.make_node("Mul", ["loud", "small"], ["logits"], name="hush"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1e-7, np.float32), "small"))
    return proto


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two cuts, the second with two tensors; INT8 heads where they hold."""
    return built(tmp_path_factory.mktemp("halves"), ("r3",), ("r1", "c3"))


def test_every_placement_with_work_for_a_gateway_has_a_tail_in_float16(bundle: Bundle) -> None:
    files = bundle.manifest.files
    for entry in bundle.manifest.placements:
        if entry.tail is None:
            assert entry.half is None
            continue
        assert entry.half is not None, entry.notes
        assert entry.half.file == entry.tail.replace(".onnx", ".fp16.onnx")
        assert entry.half.file in files
        proof = entry.half.certificate
        assert proof.achieved >= proof.bound
        assert (proof.metric, proof.samples) == ("agreement", entry.certificate.samples if entry.certificate else 0)
    assert bundle.verify() == 7 + 3 + (bundle.manifest.known is not None) - 1


def test_its_inside_is_float16_and_what_crosses_is_decoded_as_before(bundle: Bundle) -> None:
    for entry in bundle.remote_segments():
        assert entry.half is not None
        assert entry.tail is not None
        half, tail = bundle.graph(entry.half.file), bundle.graph(entry.tail)
        outlines = [read_outline(graph) for graph in (half, tail)]
        assert outlines[0].inputs == outlines[1].inputs
        assert outlines[0].outputs == outlines[1].outputs
        assert any(constant.element == onnx.TensorProto.FLOAT16 for constant in outlines[0].constants.values())
        for tensor in entry.boundary:
            if tensor.scale is not None:
                assert decodes_first(half, tensor.spec.name)
                assert outlines[0].constants[f"{tensor.spec.name}/scale"].element == onnx.TensorProto.FLOAT


def test_tensorrt_takes_it_by_our_own_check(bundle: Bundle) -> None:
    for entry in bundle.remote_segments():
        assert entry.half is not None
        check_graph(bundle.graph(entry.half.file))


@pytest.mark.parametrize(
    ("path", "cut", "name", "shape"),
    [
        (DIGITS, "down/relu", "image", (1, 224, 224)),
        (SHARED / "resnet8l_cifar10.onnx", "act_3", "input", (3, 32, 32)),
    ],
    ids=["digits", "resnet8"],
)
def test_tensorrt_takes_those_of_real_models_as_well(
    tmp_path: Path, path: Path, cut: str, name: str, shape: tuple[int, ...]
) -> None:
    if not path.is_file():
        pytest.skip(f"{path} is not here; set ISTHMUS_SHARED to the folder with models/")
    noise = np.random.default_rng(7).integers(0, 256, (8, *shape))
    np.savez(tmp_path / "data.npz", **{name: noise.astype(np.uint8 if name == "image" else np.float32)})  # type: ignore[arg-type]
    asked = Order(
        path,
        tmp_path / "bundle",
        cuts=((cut,),),
        calibration=tmp_path / "data.npz",
        search=SEARCH,
        precision="fp32",
        bound=0.5,
        half_tails=True,
        lossless_input=True,
        known_answer=False,
    )
    made = Bundle.open(build(asked, Silent()).target)
    halves = {p.half.file for p in made.remote_segments() if p.half is not None}
    assert halves == {"full.fp16.onnx", "cut-1/tail.fp16.onnx"}, [p.notes for p in made.manifest.placements]
    for file in halves:
        outline = check_graph(made.graph(file))
        assert profile_shapes(outline, TrtOptions(edition="tensorrt-rtx", max_batch=8))


def test_it_answers_nearly_as_the_tail_does(bundle: Bundle) -> None:
    x = models.image_samples()[:3]
    for entry in bundle.remote_segments():
        assert entry.half is not None
        assert entry.tail is not None
        crossing: Any = {"x": x}
        if entry.head is not None:
            with OrtEngine(bundle.graph(entry.head), label="head") as head:
                made = head.infer(crossing)
            crossing = {name: made[name] for name in entry.cut}
        answers = []
        for file in (entry.tail, entry.half.file):
            with OrtEngine(bundle.graph(file), label=file) as engine:
                answers.append(engine.infer(crossing)["logits"])
        np.testing.assert_allclose(answers[1], answers[0], atol=0.02, rtol=0.02)
        assert not np.array_equal(answers[0], answers[1])


def test_segments_and_all_other_files_are_the_same_without(tmp_path: Path) -> None:
    found = []
    for name, wanted in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        one = built(tmp_path / name, ("r3",), precision="fp32", half_tails=wanted).manifest
        found.append(({p.id: p.segment for p in one.placements}, {f for f in one.files if "fp16" not in f}))
        assert any("fp16" in file for file in one.files) is wanted
    assert found[0] == found[1]


def test_a_manifest_without_them_is_read_and_a_reader_that_knows_none_leaves_them_out(bundle: Bundle) -> None:
    told = json.loads(bundle.root.joinpath(MANIFEST).read_bytes())
    for entry in told["placements"]:
        assert (entry.pop("half") is None) is (entry["tail"] is None)
        entry["of a later day"] = 1
    read = msgspec.convert(told, Manifest)
    assert all(entry.half is None for entry in read.placements)
    assert read.files == bundle.manifest.files


def test_what_no_converter_can_do_is_told_and_no_error_of_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("of the converter's own")

    monkeypatch.setattr("partitioner.crossing.half_tail.convert_float_to_float16", fails)
    (entry, *_) = built(tmp_path, ("r3",), precision="fp32").remote_segments()
    assert entry.half is None
    assert "no tail in float16: the graph cannot be computed in float16 (AssertionError: of the" in entry.notes[0]


def test_large_weights_lie_beside_it_once_for_all_cuts_and_no_device_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitioner.graph.large_weights.MOST_INLINE_NBYTES", 64)
    monkeypatch.setattr("partitioner.planning.halving.LEAST_WEIGHT_NBYTES", 64)
    bundle = built(tmp_path, ("r1",), ("r3",), precision="fp32")
    named: dict[str, set[str]] = {}
    for entry in bundle.remote_segments():
        assert entry.half is not None, entry.notes
        graph = bundle.graph(entry.half.file)
        named[entry.half.file] = set(external_of(graph))
        with OrtEngine(graph, label="half") as engine:
            assert engine.outputs
    last = named["cut-2/tail.fp16.onnx"]
    assert last
    assert last <= named["cut-1/tail.fp16.onnx"] <= named["full.fp16.onnx"] <= bundle.manifest.files.keys()
    assert not named["full.fp16.onnx"] & set(needed(bundle, whole=False))
    assert bundle.verify() == len(bundle.manifest.files)


def test_where_it_does_not_hold_the_entry_says_why_and_the_build_goes_on(tmp_path: Path) -> None:
    bundle = built(tmp_path, ("r3",), maker=loud, precision="fp32", bound=0.05)
    assert not any("fp16" in file for file in bundle.manifest.files)
    for name in ("full-cloud", "cut-1"):
        (entry,) = [p for p in bundle.manifest.placements if p.id == name]
        assert entry.half is None
        (note,) = [note for note in entry.notes if note.startswith("no tail in float16: ")]
        assert "is below the bound" in note


def test_a_bundle_with_such_tails_verifies_and_one_with_others_does_not(bundle: Bundle, tmp_path: Path) -> None:
    seen = recheck(bundle.root, bundle.root.parent / "data.npz")
    assert all(one.half is not None for one in seen.placements if not one.id.startswith("edge-only"))
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    half = onnx.load_model_from_string(files["cut-1/tail.fp16.onnx"])
    for weight in half.graph.initializer:
        if weight.name == "fc.b":
            shift = np.arange(10, dtype=np.float16) * 100
            weight.CopyFrom(numpy_helper.from_array(shift, "fc.b"))
    files["cut-1/tail.fp16.onnx"] = half.SerializeToString()
    listed = {name: FileEntry(sha256(content), len(content)) for name, content in files.items()}
    write_bundle(tmp_path / "other", replace(bundle.manifest, files=listed), files, force=False)
    with pytest.raises(AccuracyRefusedError, match=r"cut-1.* in float16"):
        recheck(tmp_path / "other", bundle.root.parent / "data.npz")
    files["cut-1/tail.fp16.onnx"] = files["full.fp16.onnx"]
    listed = {name: FileEntry(sha256(content), len(content)) for name, content in files.items()}
    write_bundle(tmp_path / "foreign", replace(bundle.manifest, files=listed), files, force=False)
    with pytest.raises(BundleError, match="disagree about what crosses"):
        recheck(tmp_path / "foreign", None)


def test_the_commands_tell_of_them(tmp_path: Path) -> None:
    asked = order(tmp_path)
    words = ["split", str(asked.model), "--calibration", str(asked.calibration), "-o", str(asked.target), "--cut", "r3"]
    flags = ["--half-tails", "--precision", "fp32", "--bound", "0.2", "--no-memory"]
    done = CliRunner().invoke(app, [*words, *flags])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert re.search(r"cut-1: tail in float16 too, [\d.]+ instead of [\d.]+ MB, agreement [\d.]+ at worst", said)
    done = CliRunner().invoke(app, ["verify", str(asked.target), "--data", str(asked.calibration)])
    assert done.exit_code == 0, done.output
    assert "in float16" in done.output


def test_explanation_and_report_show_what_was_proven_of_them(bundle: Bundle) -> None:
    for mbit in (1e6, 1e-3):
        seen = explain(bundle.manifest, Question(mbit))
        best = next(p for p in bundle.manifest.placements if p.id == seen.best.id)
        assert seen.half == (best.half.certificate if best.half is not None else None)
        assert any(", with its tail in float16 " in said for said in sentences(seen)) is (best.half is not None)
    assert "cut-1, tail in float16" in str(sections.certificates(bundle.manifest))
