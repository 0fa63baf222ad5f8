"""Any ONNX model: every kind of network that people hand in is cut, and head and tail give the same bits as the whole.

The full sweep is `python -m benchmarks cuts`; a seeded sample of it runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import cuts as cuts_suite
from benchmarks.control_flow import control_flow
from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.served import open_bundle
from cloud_gateway.scheduling.admission import Limits
from edge_agent.heads import Heads
from partitioner.graph.cuts import complete, prefix_candidates, separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.judging import verify
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from partitioner.planning.recheck import recheck
from partitioner.planning.write import with_weights, write_bundle
from protocol import bundle as bundles
from protocol.bundle import Bundle, FileEntry, Manifest
from protocol.engines.ort import OrtEngine
from protocol.errors import BundleError, EngineError, ModelError
from protocol.graphs import Graph
from protocol.tensors import Array
from tests import models

FLOAT = TensorProto.FLOAT


def swept(model: LoadedModel, feed: dict[str, Array], *, most: int = 12, wide: int = 6) -> cuts_suite.Sweep:
    chosen = cuts_suite.choose(model.topology, cuts_suite.Most(alone=most, several=most, wide=wide))
    found = cuts_suite.sweep(model.name, model, feed, chosen)
    assert found.tried > 0
    assert found.inexact == []
    assert found.worst <= 1e-5
    return found


# ---- a seeded sample of the sweep ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_a_light_model_is_cut_bit_for_bit(name: str, tmp_path: Path) -> None:
    path = dict(cuts_suite.sources(tmp_path))[name]()
    found = swept(*cuts_suite.prepared(path), most=2, wide=1)
    assert 1e-3 < found.largest < 1e6


def test_loops_scans_and_nested_branches_are_cut_bit_for_bit(tmp_path: Path) -> None:
    path = models.write(control_flow(), tmp_path)
    model, feed = cuts_suite.prepared(path)
    found = swept(model, feed, most=100, wide=20)
    assert found.tried >= 12
    steps = {s.op: s for s in model.topology.steps}
    assert {"r1", "r2", "tenth", "trips"} <= set(steps["If"].inputs)
    assert "tenth" in steps["Scan"].inputs


@pytest.mark.shared
@pytest.mark.parametrize("name", cuts_suite.SHARED)
def test_a_shared_model_is_cut_bit_for_bit(name: str, tmp_path: Path) -> None:
    path = dict(cuts_suite.sources(tmp_path)).get(name)
    if path is None:
        pytest.skip("the shared models are not here; set ISTHMUS_SHARED to the folder with models/")
    swept(*cuts_suite.prepared(path()), most=2, wide=2)


# ---- masks, shapes, quantised models ---------------------------------------------------------------------------------


def encoder() -> onnx.ModelProto:
    """Two layers of masked mixing, free batch and length; the additive mask is made from int64 once and expanded."""
    net, width = models.Net(), 64
    net.add("Gather", [net.weight("table", 2000, width), "ids"], "h0")
    last = net.constant("one_axis", np.array([1], np.int64))
    net.add("Unsqueeze", ["mask", last], "wide")
    net.add("Cast", ["wide"], "wide_float", to=FLOAT)
    net.add("Sub", [net.constant("one", np.float32(1)), "wide_float"], "inverse")
    net.add("Mul", ["inverse", net.constant("low", np.float32(-1e9))], "bias")
    for i in range(2):
        net.add("MatMul", [f"h{i}", net.weight(f"q{i}", width, width)], f"query{i}")
        net.add("Transpose", [f"h{i}"], f"key{i}", perm=[0, 2, 1])
        net.add("MatMul", [f"query{i}", f"key{i}"], f"scores{i}")
        net.add("Shape", [f"scores{i}"], f"size{i}")
        net.add("Expand", ["bias", f"size{i}"], f"bias{i}")
        net.add("Add", [f"scores{i}", f"bias{i}"], f"masked{i}")
        net.add("Softmax", [f"masked{i}"], f"weights{i}", axis=-1)
        net.add("MatMul", [f"weights{i}", f"h{i}"], f"mixed{i}")
        net.add("MatMul", [f"mixed{i}", net.weight(f"o{i}", width, width)], f"h{i + 1}")
    net.add("ReduceMean", ["h2"], "pooled", axes=[1], keepdims=0)
    net.add("Gemm", ["pooled", net.weight("fc.w", width, 10), net.weight("fc.b", 10)], "logits")
    tokens = (TensorProto.INT64, ["N", "L"])
    return net.model({"ids": tokens, "mask": tokens}, models.LOGITS)


def test_a_mask_crosses_as_an_input_and_the_rest_is_recomputed(tmp_path: Path) -> None:
    model, feed = cuts_suite.prepared(models.write(encoder(), tmp_path))
    candidates = {c.cut for c in prefix_candidates(model.topology)}
    assert {("mask", "h0"), ("mask", "h1"), ("h2",)} <= candidates
    assert not any(name.startswith("bias") for cut in candidates for name in cut)
    sides = separate(model.topology, ["mask", "h1"])
    names = {model.topology.steps[i].name for i in sides.head_steps & sides.tail_steps}
    assert {"node_wide", "node_inverse", "node_bias"} <= names
    swept(model, feed, most=100, wide=10)


def test_a_mask_is_recomputed_in_the_tail_that_ships(tmp_path: Path) -> None:
    model, _ = cuts_suite.prepared(models.write(encoder(), tmp_path))
    tail = split(model, separate(model.topology, ["mask", "h1"])).tail
    assert [v.name for v in tail.graph.inputs] == ["mask", "h1"]
    assert {"Unsqueeze", "Cast", "Sub", "Mul", "Expand", "Shape"} <= {n.op_type for n in tail.graph}


def test_a_step_recomputed_for_one_output_does_not_replace_the_other_that_crossed(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Cast", ["mask"], "wide", to=FLOAT)
    net.nodes.append(helper.make_node("Split", ["wide"], ["left", "right"], name="halves", axis=1, num_outputs=2))
    net.add("MatMul", ["x", net.weight("w1", 8, 8)], "hidden")
    net.add("Mul", ["hidden", "left"], "shown")
    net.add("MatMul", ["shown", net.weight("w2", 8, 8)], "mixed")
    net.add("Add", ["mixed", "right"], "moved")
    net.add("Mul", ["moved", "left"], "y")
    inputs = {"x": (FLOAT, [1, 8]), "mask": (TensorProto.INT64, [1, 16])}
    model, feed = cuts_suite.prepared(models.write(net.model(inputs, {"y": [1, 8]}, opset=18), tmp_path))
    sides = separate(model.topology, ["mask", "left", "shown"])
    assert {model.topology.steps[i].name for i in sides.head_steps & sides.tail_steps} == {"node_wide", "halves"}
    tail = split(model, sides).tail
    assert {v.name for v in tail.graph.inputs} == {"mask", "left", "shown"}
    found = cuts_suite.sweep("mask", model, feed, [sides])
    assert (found.exact, found.tried) == (1, 1)
    with OrtEngine(serialise(tail), label="tail", optimise=False) as engine:  # what crossed is read, not made anew
        crossed = {"mask": feed["mask"], "shown": np.ones((1, 8), np.float32), "left": np.zeros((1, 8), np.float32)}
        assert not engine.infer(crossed)["y"].any()


def quantised(kind: type[np.integer]) -> onnx.ModelProto:
    """conv -> Q -> DQ -> relu -> Q -> DQ -> conv, with the codes read on two ways."""
    net = models.Net()
    scale, zero = net.constant("scale", np.float32(0.05)), net.constant("zero", np.array(3, kind))
    net.conv("x", "c1", 3, 8)
    net.add("QuantizeLinear", ["c1", scale, zero], "codes1")
    net.add("DequantizeLinear", ["codes1", scale, zero], "d1")
    net.add("Relu", ["d1"], "r1")
    net.add("QuantizeLinear", ["r1", scale, zero], "codes2")
    net.add("DequantizeLinear", ["codes2", scale, zero], "d2")
    net.add("DequantizeLinear", ["codes2", scale, zero], "d3")
    net.add("Add", [net.conv("d2", "c2", 8, 8), "d3"], "sum")
    net.classify("sum", 8)
    return net.model(models.IMAGE, models.LOGITS)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_models_are_cut_at_their_codes(kind: type[np.integer], tmp_path: Path) -> None:
    model, feed = cuts_suite.prepared(models.write(quantised(kind), tmp_path))
    candidates = [c.cut for c in prefix_candidates(model.topology)]
    assert ("codes1",) in candidates
    assert ("codes2",) in candidates
    assert not any(n in ("d1", "d2", "d3") for cut in candidates for n in cut)
    halves = split(model, separate(model.topology, ["codes2"]))
    assert halves.tail.graph.inputs[0].dtype == ir.DataType.from_numpy(np.dtype(kind))
    assert sum(n.op_type == "DequantizeLinear" for n in halves.tail.graph) == 2
    swept(model, feed, most=100)


# ---- shapes, opsets, domains -----------------------------------------------------------------------------------------


def free_sides() -> onnx.ModelProto:
    """Free batch, height and width; a resize to the size of an earlier tensor, taken by Shape."""
    net = models.Net()
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.add("Relu", [net.conv("r1", "c2", 8, 8, stride=2)], "r2")
    net.add("Shape", ["r1"], "size")
    net.add("Resize", ["r2", "", "", "size"], "up", mode="nearest")
    net.add("Add", ["up", "r1"], "sum")
    net.classify("sum", 8)
    return net.model({"x": (FLOAT, ["N", 3, "H", "W"])}, models.LOGITS)


def test_models_with_free_sides_are_cut(tmp_path: Path) -> None:
    model, feed = cuts_suite.prepared(models.write(free_sides(), tmp_path))
    assert ("r1",) in {c.cut for c in prefix_candidates(model.topology)}
    swept(model, feed, most=100)
    sides = separate(model.topology, ["r1"])
    halves = split(model, sides)
    with verify.SplitPair(serialise(halves.head), serialise(halves.tail), ["r1"], (), optimise=False) as pair:
        for shape in ((1, 3, 10, 14), (2, 3, 16, 8)):  # the halves are as free as the whole
            assert pair.infer({"x": np.ones(shape, np.float32)})["logits"].shape == (shape[0], 10)


RUNTIME_OPSET = 26  # the newest that onnxruntime 1.31.1 says it supports


def of_opset(opset: int) -> onnx.ModelProto:
    net = models.Net()
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.conv("r1", "c2", 8, 8)
    net.add("Add", ["c2", "r1"], "sum")
    net.classify("sum", 8)
    return net.model(models.IMAGE, models.LOGITS, opset=opset, ir_version=6 if opset < 13 else 8)


@pytest.mark.parametrize("opset", range(11, RUNTIME_OPSET + 1))
def test_every_opset_is_cut(opset: int, tmp_path: Path) -> None:
    model, feed = cuts_suite.prepared(models.write(of_opset(opset), tmp_path))
    assert model.opset == (17 if opset < 13 else opset)
    assert model.notes == ((f"converted from opset {opset} to 17",) if opset < 13 else ())
    swept(model, feed, most=100)


@pytest.mark.parametrize("opset", [RUNTIME_OPSET + 1, 99])
def test_a_newer_opset_than_the_runtime_knows_is_named_with_the_newest_that_it_does(opset: int, tmp_path: Path) -> None:
    path = models.write(of_opset(opset), tmp_path)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.fact == f"{path} has opset {opset}, and this ONNX Runtime reads ai.onnx up to {RUNTIME_OPSET}"
    assert caught.value.remedy == f"export it with opset {RUNTIME_OPSET}, or install a newer onnxruntime"


def test_a_newer_format_than_the_runtime_knows_is_lowered(tmp_path: Path) -> None:
    proto = models.residual()
    proto.ir_version = onnx.IR_VERSION
    model, feed = cuts_suite.prepared(models.write(proto, tmp_path))
    swept(model, feed, most=4)


def test_operators_of_other_domains_are_cut_where_the_runtime_has_them(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Scaler", ["x"], "scaled", domain="ai.onnx.ml", offset=[0.5] * 4, scale=[2.0] * 4)
    net.add("FusedMatMul", ["scaled", net.weight("w", 4, 6)], "hidden", domain="com.microsoft", alpha=0.5)
    net.add("Relu", ["hidden"], "active")
    net.add("Normalizer", ["active"], "y", domain="ai.onnx.ml", norm="L2")
    opsets = [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
    proto = net.model({"x": (FLOAT, ["N", 4])}, {"y": ["N", 6]}, opsets=opsets)
    model, feed = cuts_suite.prepared(models.write(proto, tmp_path))
    assert swept(model, feed, most=100).alone == 3


def nested_functions() -> onnx.ModelProto:
    """A function that calls a function, used twice, with an If inside that captures the function's input."""
    net = models.Net()
    net.conv("x", "c1", 3, 8)
    net.nodes.append(helper.make_node("Outer", ["c1"], ["g1"], name="call1", domain="toy"))
    net.conv("g1", "c2", 8, 8)
    net.nodes.append(helper.make_node("Outer", ["c2"], ["g2"], name="call2", domain="toy"))
    net.classify("g2", 8)
    opset = helper.make_opsetid("", models.OPSET)
    inner = helper.make_function("toy", "Inner", ["a"], ["b"], [helper.make_node("Sigmoid", ["a"], ["b"])], [opset])
    out = helper.make_tensor_value_info("t", FLOAT, None)
    branch = helper.make_graph([helper.make_node("Mul", ["a", "s"], ["t"])], "branch", [], [out])
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [
        helper.make_node("Inner", ["a"], ["s"], domain="toy"),
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch, else_branch=branch),
    ]
    outer = helper.make_function("toy", "Outer", ["a"], ["b"], nodes, [opset, helper.make_opsetid("toy", 1)])
    opsets = [helper.make_opsetid("toy", 1)]
    return net.model(models.IMAGE, models.LOGITS, opsets=opsets, functions=[inner, outer])


def sparse() -> onnx.ModelProto:
    net = models.Net()
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.add("Mul", ["r1", "sparse"], "thinned")
    net.classify(net.conv("thinned", "c2", 8, 8), 8)
    values = numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "sparse")
    places = numpy_helper.from_array(np.array([[1, 0, 0], [6, 0, 0]], np.int64), "sparse_places")
    graph = helper.make_graph(
        net.nodes,
        "sparse",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", FLOAT, ["N", 10])],
        net.initializers,
        sparse_initializer=[helper.make_sparse_tensor(values, places, [8, 1, 1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("maker", [nested_functions, sparse])
def test_functions_in_functions_and_sparse_weights_are_cut(
    maker: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    path = models.write(maker(), tmp_path)
    model, feed = cuts_suite.prepared(path)
    with OrtEngine(path.read_bytes(), label="as handed in", optimise=False) as engine:
        assert np.array_equal(engine.infer(feed)["logits"], cuts_suite._whole(model, feed, optimise=False)["logits"])
    swept(model, feed, most=100)


def with_sequence() -> onnx.ModelProto:
    net = models.Net()
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.add("SplitToSequence", ["r1"], "parts", axis=1, keepdims=1)
    net.add("ConcatFromSequence", ["parts"], "joined", axis=1)
    net.classify("joined", 8)
    return net.model(models.IMAGE, models.LOGITS)


def test_a_sequence_cannot_cross_but_stays_whole_on_either_side(tmp_path: Path) -> None:
    model, feed = cuts_suite.prepared(models.write(with_sequence(), tmp_path))
    with pytest.raises(ModelError, match=r"'parts', made by node 'node_parts' \(SplitToSequence\), is a sequence"):
        separate(model.topology, ["parts"])
    assert {("r1",), ("joined",)} <= {c.cut for c in prefix_candidates(model.topology)}
    assert swept(model, feed, most=100).refused


def test_an_element_type_that_the_wire_lacks_is_named(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Cast", ["x"], "half", to=TensorProto.BFLOAT16)
    net.add("Cast", ["half"], "back", to=FLOAT)
    net.add("Relu", ["back"], "y")
    proto = net.model({"x": (FLOAT, [1, 4])}, {"y": [1, 4]})
    model = load(models.write(proto, tmp_path))
    with pytest.raises(ModelError, match=r"'half', made by node .*Cast.* is a tensor of bfloat16"):
        separate(model.topology, ["half"])


def in_halves(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network computed in float16 between a first and a last Cast, as converters leave it."""
    graph = proto.graph
    for weight in graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for node in graph.node:
        node.input[:] = ["x/half" if name == "x" else name for name in node.input]
        node.output[:] = ["logits/half" if name == "logits" else name for name in node.output]
    first = helper.make_node("Cast", ["x"], ["x/half"], name="first", to=TensorProto.FLOAT16)
    last = helper.make_node("Cast", ["logits/half"], ["logits"], name="last", to=FLOAT)
    nodes = [first, *graph.node, last]
    del graph.node[:]
    graph.node.extend(nodes)
    return proto


def test_a_model_in_float16_is_split_within_float16s_own_rounding(tmp_path: Path) -> None:
    model = models.write(in_halves(models.residual()), tmp_path)
    order = Order(model, tmp_path / "b", (("r1",),), Search(memory=False), "fp32", bound=0.2)
    manifest = build(order, Silent()).manifest
    (entry,) = [p for p in manifest.placements if p.id == "cut-1"]
    assert [b.spec.dtype for b in entry.boundary] == ["float16"]
    assert entry.certificate is not None
    assert 1e-5 < entry.certificate.fp32_max_abs_difference <= entry.certificate.fp32_bound
    assert entry.certificate.achieved == 1.0


def test_chance_in_a_branch_is_not_drawn_twice(tmp_path: Path) -> None:
    net = models.Net()
    out = helper.make_tensor_value_info("noise", FLOAT, [4])
    draw = helper.make_node("RandomNormal", [], ["noise"], shape=[4], name="draw")
    branch = helper.make_graph([draw], "branch", [], [out])
    net.add("If", [net.constant("yes", np.array(True))], "noise_out", then_branch=branch, else_branch=branch)
    net.add("Add", ["x", "noise_out"], "noisy")
    net.add("Relu", ["noisy"], "active")
    net.add("Sub", ["active", "noise_out"], "y")
    model = load(models.write(net.model({"x": (FLOAT, [1, 4])}, {"y": [1, 4]}), tmp_path))
    with pytest.raises(ModelError, match="'noise_out' also crosses"):
        separate(model.topology, ["active"])
    assert complete(model.topology, ["active"]).cut == ("active", "noise_out")


# ---- large weights ---------------------------------------------------------------------------------------------------


def test_a_large_model_keeps_its_weights_beside_the_graph(tmp_path: Path) -> None:
    path = models.write(models.residual(), tmp_path)
    plain, large = load(path), load(path, most_inline_nbytes=1000)
    assert isinstance(large.data, Graph)
    assert isinstance(large.source, Graph)
    assert len(large.data) < len(plain.data) / 2
    assert large.source_digest == plain.source_digest
    assert all(name.startswith("weights/") for name in large.data.external)
    feed = cuts_suite.feed_for(plain.inputs)
    answers = []
    for data in (plain.data, large.data, large.source, path.read_bytes()):
        with OrtEngine(data, label="model", optimise=False) as engine:
            answers.append(engine.infer(feed)["logits"])
    assert all(np.array_equal(answers[0], a) for a in answers)


def test_head_and_tail_share_the_weights_files_and_equal_the_whole(tmp_path: Path) -> None:
    path = models.write(models.residual(), tmp_path)
    model = load(path, most_inline_nbytes=1000)
    feed = cuts_suite.feed_for(model.inputs)
    found = cuts_suite.sweep("large", model, feed, cuts_suite.choose(model.topology, cuts_suite.Most(wide=6)))
    assert found.inexact == []
    assert found.tried >= 8
    halves = split(model, separate(model.topology, ["r3"]))
    head, tail = serialise(halves.head), serialise(halves.tail)
    assert isinstance(head, Graph)
    assert isinstance(tail, Graph)
    assert {**head.external, **tail.external}.keys() == model.data.external.keys()  # type: ignore[attr-defined]
    assert not head.external.keys() & tail.external.keys()


def test_external_data_comes_back_as_files_of_the_bundle(tmp_path: Path) -> None:
    proto = models.residual()
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=512)
    model = load(tmp_path / "model.onnx", most_inline_nbytes=1000)
    sides = separate(model.topology, ["r3"])
    halves = split(model, sides)
    files = with_weights({"full.onnx": model.data, "cut-1/tail.onnx": serialise(halves.tail)})
    assert sum(name.startswith("weights/") for name in files) == len(model.data.external)  # type: ignore[attr-defined]
    opened = written(tmp_path / "bundle", files, model)
    assert opened.verify() == len(files)
    x = cuts_suite.feed_for(model.inputs)
    whole = cuts_suite._whole(model, x, optimise=False)["logits"]
    with OrtEngine(opened.graph("full.onnx"), label="full", optimise=False) as engine:
        assert np.array_equal(engine.infer(x)["logits"], whole)
    with (
        OrtEngine(serialise(halves.head), label="head", optimise=False) as head,
        OrtEngine(opened.graph("cut-1/tail.onnx"), label="tail", optimise=False) as tail,
    ):
        assert np.array_equal(tail.infer(head.infer(x))["logits"], whole)
    with pytest.raises(EngineError, match="was not given"):
        OrtEngine(opened.read("full.onnx"), label="full").activate()


def test_a_weight_that_was_changed_is_refused(tmp_path: Path) -> None:
    model = load(models.write(models.residual(), tmp_path), most_inline_nbytes=1000)
    opened = written(tmp_path / "bundle", with_weights({"full.onnx": model.data}), model)
    weight = next(p for p in (opened.root / "weights").iterdir())
    weight.write_bytes(bytes(weight.stat().st_size))
    with pytest.raises(BundleError, match="does not match its digest"):
        opened.graph("full.onnx")


def written(target: Path, files: dict[str, bytes], model: LoadedModel) -> Bundle:
    entries = {name: FileEntry(bundles.sha256(content), len(content)) for name, content in files.items()}
    info = bundles.ModelInfo(
        model.name, entries["full.onnx"].sha256, model.source_digest, model.opset, model.inputs, model.outputs
    )
    conditions = bundles.Conditions("here", 1.0, 1, 1, 0.0, "fp32", {}, "0" * 64, 0, "now")
    write_bundle(target, Manifest(bundles.SCHEMA_VERSION, info, entries, (), conditions), files, force=False)
    return Bundle.open(target)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_large_model_becomes_a_bundle_that_agent_and_gateway_load(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("partitioner.graph.large_weights.MOST_INLINE_NBYTES", 1000)
    np.savez(tmp_path / "data.npz", x=models.image_samples(24))
    order = Order(
        models.write(models.residual(), tmp_path),
        tmp_path / "bundle",
        cuts=(("r3",),),
        precision=precision,
        bound=0.5,
        calibration=tmp_path / "data.npz",
        search=Search(memory=False),
    )
    opened = Bundle.open(build(order, Silent()).target)
    assert any(name.startswith("weights/") for name in opened.manifest.files)
    recheck(opened.root, tmp_path / "data.npz")
    heads = Heads(opened)
    heads.activate()
    heads.deactivate()
    assert heads.failed == {}
    catalogue = Catalogue(Desk(Limits(), threads=1), Defaults(), orphaned=lambda _: None)
    catalogue.load(open_bundle(opened.root))
    catalogue.close()
