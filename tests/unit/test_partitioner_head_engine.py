"""Heads for TensorRT: codes by arithmetic equal QuantizeLinear's, and our own check takes every head that is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from partitioner.crossing.boundary import Codes, codes_for, emit_codes, take_codes
from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.int8.calibration import BINS, Histogram, clip
from partitioner.int8.head_engine import estimated_ratio, refusal
from partitioner.int8.quantise import quantise
from partitioner.int8.recipes import PLAIN, Recipe, for_tensorrt, plain_for, restrict
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges, ranges
from partitioner.judging.verify import SplitPair
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_graphs import check_graph
from protocol.errors import ModelError
from protocol.tensors import Array
from tests import models

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
SYMMETRIC = for_tensorrt(Recipe(name="minmax"))
ALL_SYMMETRIC = for_tensorrt(Recipe(name="all", float_first=False))


def sampled(path: Path) -> tuple[LoadedModel, Samples, Ranges]:
    model = load(path)
    shape = [d if isinstance(d, int) else 1 for d in model.inputs[0].shape][1:]
    array = np.random.default_rng(5).random((16, *shape), np.float32)
    if model.inputs[0].dtype == "uint8":
        array = (array * 255).astype(np.uint8)
    samples = Samples({model.inputs[0].name: array}, frozenset(), None, False, "")
    return model, samples, ranges(model, samples)


@pytest.fixture(scope="module", params=["digits", "residual"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Ranges]:
    folder = tmp_path_factory.mktemp("subject")
    path = DIGITS if request.param == "digits" else models.write(models.residual(), folder)
    model, _, seen = sampled(path)
    return model, seen


# ---- codes ----------------------------------------------------------------------------------------------------------


def _emitted(values: Array, codes: Codes) -> tuple[Array, Array]:
    """uint8 [n], uint8 [n]: float32 [n] through QuantizeLinear, and through the operators that stand for it."""
    low, high = -codes.zero_point * codes.scale, (255 - codes.zero_point) * codes.scale
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xt"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["t"], name="id")], "g", value[:1], value[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    made = []
    for by_arithmetic in (False, True):
        head, found = emit_codes(ir.from_proto(proto), ["t"], {"t": (low, high)}, by_arithmetic=by_arithmetic)
        assert found["t"].zero_point == codes.zero_point
        if by_arithmetic:
            check_graph(serialise(head))
        with OrtEngine(serialise(head), label="head") as engine:
            made.append(engine.infer({"x": values})["t"])
    return made[0], made[1]


def _edges(codes: Codes) -> Array:
    """Every tie between two codes and its neighbours in float32, far beyond both ends, the ends of float32, zeros."""
    scale = np.float32(codes.scale)
    ties = (np.arange(-600, 600, dtype=np.float32) / np.float32(2)) * scale
    near = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    limits = np.finfo(np.float32)
    ends = np.array([0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.tiny, np.inf, -np.inf], np.float32)
    return np.concatenate([ties, *near, ends])


@pytest.mark.parametrize("reach", [(0.0, 6.0), (-1.0, 1.0), (-0.37, 2.9), (-5.0, 0.0), (0.0, 1e-30), (-3e30, 1e30)])
def test_codes_by_arithmetic_are_quantize_linears_own_at_every_tie_and_beyond_both_ends(
    reach: tuple[float, float],
) -> None:
    codes = codes_for(*reach)
    expected, made = _emitted(_edges(codes), codes)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made, expected)
    assert {0, 255} <= set(made.tolist())


@settings(max_examples=30)
@given(
    st.floats(2.0**-20, 2.0**20, width=32), st.floats(0.0, 1.0), st.lists(st.floats(-2.0, 2.0, width=32), min_size=1)
)
def test_codes_by_arithmetic_are_quantize_linears_own(span: float, share: float, values: list[float]) -> None:
    codes = codes_for(-span * share, span * (1.0 - share))
    expected, made = _emitted(np.array(values, np.float32) * np.float32(span), codes)
    np.testing.assert_array_equal(made, expected)


def test_a_value_is_taken_before_the_head_has_rounded_it_to_seven_bits(tmp_path: Path) -> None:
    model, samples, seen = sampled(models.write(models.residual(), tmp_path))
    halves = split(model, separate(model.topology, ("r3",)))
    eight = quantise(halves.head, seen, ALL_SYMMETRIC)
    head, _ = emit_codes(eight, ["r3"], seen, by_arithmetic=True)
    with OrtEngine(serialise(head), label="head") as engine:
        made = np.concatenate([engine.infer(feed)["r3"].ravel() for feed in samples.feeds(range(8))])
    assert len(np.unique(made)) > 130  # a ReLU's symmetric codes are 0..127
    first = head.graph.outputs[0].producer()
    assert first is not None
    assert not [n for n in head.graph if n.op_type == "QuantizeLinear" and not n.outputs[0].uses()]


def test_the_tail_decodes_what_arithmetic_has_coded(tmp_path: Path) -> None:
    model, samples, seen = sampled(models.write(models.residual(), tmp_path))
    halves = split(model, separate(model.topology, ("r3",)))
    head, codes = emit_codes(halves.head, ["r3"], seen, by_arithmetic=True)
    plain, same = emit_codes(halves.head, ["r3"], seen)
    assert codes == same
    tail = serialise(take_codes(halves.tail, codes))
    with SplitPair(serialise(head), tail, ("r3",), ()) as new, SplitPair(serialise(plain), tail, ("r3",), ()) as old:
        for feed in samples.feeds(range(4)):
            np.testing.assert_array_equal(new.infer(feed)["logits"], old.infer(feed)["logits"])


# ---- graphs ---------------------------------------------------------------------------------------------------------


# Methods of calibration differ in numbers alone; these differ in which nodes a graph holds.
FORMS = [r for r in plain_for("tensorrt") if r.name in ("minmax", "minmax, first too", "per tensor")]


@pytest.mark.parametrize("recipe", FORMS, ids=lambda recipe: recipe.name)
def test_our_check_takes_heads_at_early_and_late_cuts_and_the_whole_model_in_every_form(
    recipe: Recipe, subject: tuple[LoadedModel, Ranges]
) -> None:
    model, seen = subject
    assert refusal("tensorrt", quantise(model.graph, seen, recipe)) == ""
    made = 0
    for candidate in prefix_candidates(model.topology)[:: len(model.topology.steps) // 4]:
        halves = split(model, separate(model.topology, candidate.cut))
        names = [n for n in candidate.cut if model.topology.crosses_as_codes(n)]
        own = restrict(recipe, (n.name or "" for n in halves.head.graph))
        try:
            eight = quantise(halves.head, seen, own)
        except ModelError:
            continue  # it holds nothing but a float first convolution
        assert refusal("tensorrt", emit_codes(eight, names, seen, by_arithmetic=True)[0]) == ""
        made += 1
    assert made


def test_a_float_head_with_codes_is_taken_as_well(subject: tuple[LoadedModel, Ranges]) -> None:
    model, seen = subject
    cut = prefix_candidates(model.topology)[1].cut
    head = split(model, separate(model.topology, cut)).head
    assert "without a sign" in refusal("tensorrt", emit_codes(head, cut, seen)[0])
    assert refusal("tensorrt", emit_codes(head, cut, seen, by_arithmetic=True)[0]) == ""


def test_heads_for_onnx_runtime_are_not_judged(subject: tuple[LoadedModel, Ranges]) -> None:
    model, seen = subject
    eight = quantise(model.graph, seen)
    assert refusal("tensorrt", eight).startswith("TensorRT does not take this graph")
    assert refusal("onnxruntime", eight) == ""


def test_a_free_size_that_is_no_batch_is_refused_with_its_name(tmp_path: Path) -> None:
    proto = models.residual()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model = load(models.write(proto, tmp_path))
    assert "height" in refusal("tensorrt", model.graph)


def test_every_recipe_for_tensorrt_is_symmetric_with_float_biases_and_none_comes_twice() -> None:
    recipes = plain_for("tensorrt")
    for recipe in recipes:
        assert (recipe.activation_type, recipe.weight_type, recipe.made_for) == ("int8", "int8", "tensorrt")
        assert not recipe.reduce_range
    assert len({recipe.name for recipe in recipes}) == len(recipes) < len(PLAIN)
    assert plain_for("onnxruntime") == PLAIN


# ---- what is left float, and times ----------------------------------------------------------------------------------


def _with_a_large_idle_weight() -> onnx.ModelProto:
    """One weight of c2 is a hundred times larger than the others but meets only zeros: one scale for all is ruin."""

    def changed(name: str, array: Array) -> Array:
        if name in ("c1.w", "c1.b"):
            array[0] = 0.0 if name == "c1.w" else -1.0
        if name == "c2.w":
            array[0, 0] = 100.0
        return array

    proto = models.residual()
    for i, old in enumerate(proto.graph.initializer):
        array = changed(old.name, onnx.numpy_helper.to_array(old).copy())
        proto.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(array, old.name))
    return proto


def test_a_product_left_float_is_rounded_by_no_engine_and_reads_one_scale(tmp_path: Path) -> None:
    model, samples, seen = sampled(models.write(_with_a_large_idle_weight(), tmp_path))
    recipe = for_tensorrt(Recipe(name="r", float_first=False, excluded=("node_c2", "node_r2")))
    graph = quantise(model.graph, seen, recipe)
    for node in graph.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].producer() is not None:
            scale = node.inputs[1]
            assert scale is not None
            assert scale.const_value is not None
            assert scale.const_value.size == 1  # of an activation: TensorRT takes one
    assert refusal("tensorrt", graph) == ""
    found = []
    for data, optimise in ((model.data, True), (serialise(graph), True), (serialise(graph), False)):
        with OrtEngine(data, label="test", optimise=optimise) as engine:
            found.append(np.concatenate([engine.infer(feed)["logits"] for feed in samples.feeds(range(8))]))
    for made in found[1:]:
        assert np.abs(made - found[0]).max() < 0.05 * np.abs(found[0]).max()


def test_time_is_estimated_by_work_not_measured(subject: tuple[LoadedModel, Ranges]) -> None:
    model, seen = subject
    none = estimated_ratio(model.graph, model.topology)
    some = estimated_ratio(quantise(model.graph, seen, SYMMETRIC), model.topology)
    most = estimated_ratio(quantise(model.graph, seen, ALL_SYMMETRIC), model.topology)
    assert none == 1.0
    assert 0.25 < most < some < 1.0


def _noise_of(histogram: Histogram, end: float) -> float:
    """Of symmetric codes that end there, counted value by value."""
    values = np.repeat(histogram.centres, histogram.counts)
    step = 2.0 * end / 255.0
    rounded = np.clip(np.rint(values / step), -127, 127) * step
    return float(np.square(values - rounded).sum())


@pytest.mark.parametrize("positive", [False, True])
def test_symmetric_codes_end_where_their_own_noise_is_least(positive: bool) -> None:
    values = np.random.default_rng(3).standard_t(3, 20_000)
    values = np.maximum(values, 0.0) if positive else values
    low, high = float(values.min()), float(values.max())
    histogram = Histogram(low, high, np.histogram(values, BINS, (low, high))[0])
    recipe = for_tensorrt(Recipe(name="mse", calibration="mse"))
    least, most = clip(histogram, recipe)
    end = max(-least, most)
    assert low <= least <= most <= high
    assert end < max(-low, high)
    tried = np.linspace(0.2, 1.0, 33) * max(-low, high)
    assert _noise_of(histogram, end) <= 1.1 * min(_noise_of(histogram, float(e)) for e in tried)
