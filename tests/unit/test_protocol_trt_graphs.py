"""What TensorRT takes, judged from the bytes of a graph, and the profiles that follow from its free dimensions."""

from __future__ import annotations

import contextlib
import itertools

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from protocol.engines.trt_graphs import check_graph, is_batched, profile_shapes, specs
from protocol.engines.trt_options import GpuError, Span, TrtOptions
from protocol.errors import ModelError
from protocol.onnx_outline import read_outline
from protocol.tensors import TensorSpec
from tests import models
from tests.gpu.graphs import REFUSED, TAKEN, Case, X, Y, graph, node


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_what_it_takes_passes(case: Case) -> None:
    check_graph(case.model)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_it_does_not_take_is_refused_in_a_sentence_with_a_remedy(case: Case) -> None:
    with pytest.raises(GpuError) as refused:
        check_graph(case.model)
    assert refused.value.cause == "unsupported-graph"
    assert refused.value.is_final
    assert str(case.ours) in refused.value.fact
    assert refused.value.remedy


def test_several_reasons_are_counted() -> None:
    names = ["x", "a", "b", "y"]
    steps = [node("NonZero", x, y) for x, y in itertools.pairwise(names)]
    with pytest.raises(GpuError, match=r"and 2 more"):
        check_graph(graph(steps, [X], [("y", TensorProto.INT64, [2, None])]))


def test_a_body_and_a_function_are_judged_like_the_graph_around_them() -> None:
    body = helper.make_graph([node("NonZero", "x", "z")], "body", [], [helper.make_tensor_value_info("z", 7, None)])
    branches = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    with pytest.raises(GpuError, match="NonZero"):
        check_graph(graph([branches], [X, ("c", TensorProto.BOOL, [])], [("y", TensorProto.INT64, [2, None])]))
    check_graph(models.with_function().SerializeToString())


@pytest.mark.parametrize("make", [models.residual, models.tokens, models.branching, models.looping, models.old_export])
def test_the_outline_is_what_onnx_itself_reads(make: object) -> None:
    model: onnx.ModelProto = make()  # type: ignore[operator]
    outline = read_outline(model.SerializeToString())
    weights = {w.name for w in model.graph.initializer}
    assert [v.name for v in outline.inputs] == [v.name for v in model.graph.input if v.name not in weights]
    assert [v.name for v in outline.outputs] == [v.name for v in model.graph.output]
    for value, theirs in zip(outline.outputs, model.graph.output, strict=True):
        assert value.element == theirs.type.tensor_type.elem_type
        assert value.shape == tuple(d.dim_param or d.dim_value for d in theirs.type.tensor_type.shape.dim)
    assert {(n.op, n.outputs) for n in outline.nodes} >= {(n.op_type, tuple(n.output)) for n in model.graph.node}
    assert weights <= outline.constants.keys()


@given(st.binary(max_size=300))
def test_whatever_the_bytes_are_the_outline_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ModelError):
        read_outline(data)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=4))
def test_a_damaged_graph_is_read_or_refused(at: int, noise: bytes) -> None:
    data = TAKEN[-1].model
    at %= len(data)
    with contextlib.suppress(ModelError):
        read_outline(data[:at] + noise + data[at + len(noise) :])


# ---- profiles -------------------------------------------------------------------------------------------------------


def test_the_batch_runs_from_one_to_the_lanes_knee() -> None:
    outline = read_outline(graph([node("Relu", "x", "y")], [X], [Y]))
    assert profile_shapes(outline, TrtOptions(max_batch=8)) == [{"x": ((1, 4), (8, 4), (8, 4))}]
    assert is_batched(outline, TrtOptions())


def test_several_profiles_are_smallest_first_and_all_name_every_input() -> None:
    outline = read_outline(graph([node("Add", "x z", "y")], [X, ("z", TensorProto.FLOAT, [4])], [Y]))
    options = TrtOptions(batches=(Span(2, 8, 16), Span(1, 1, 1)))
    assert profile_shapes(outline, options) == [
        {"x": ((1, 4), (1, 4), (1, 4)), "z": ((4,), (4,), (4,))},
        {"x": ((2, 4), (8, 4), (16, 4)), "z": ((4,), (4,), (4,))},
    ]


def test_another_axis_can_be_the_batch_and_the_same_name_means_the_same_size() -> None:
    state = ("state", TensorProto.FLOAT, [2, "B", 4])
    mask = ("mask", TensorProto.FLOAT, [2, "B", 4])
    outline = read_outline(
        graph([node("Add", "state mask", "y")], [state, mask], [("y", TensorProto.FLOAT, [2, "B", 4])])
    )
    options = TrtOptions(max_batch=3, batch_axes={"state": 1, "mask": None})
    shapes = ((2, 1, 4), (2, 3, 4), (2, 3, 4))
    assert profile_shapes(outline, options) == [{"state": shapes, "mask": shapes}]


def test_another_free_dimension_needs_its_sizes() -> None:
    outline = read_outline(
        graph([node("Relu", "x", "y")], [("x", TensorProto.FLOAT, ["N", "T"])], [("y", TensorProto.FLOAT, ["N", "T"])])
    )
    with pytest.raises(GpuError, match="'x' has the free dimension T at axis 1"):
        profile_shapes(outline, TrtOptions())
    options = TrtOptions(free={"T": Span(1, 64, 128)})
    assert profile_shapes(outline, options) == [{"x": ((1, 1), (1, 64), (1, 128))}]


def test_a_fixed_graph_has_one_size_and_is_not_batched() -> None:
    fixed = [("x", TensorProto.FLOAT, [1, 4])]
    outline = read_outline(graph([node("Relu", "x", "y")], fixed, [("y", TensorProto.FLOAT, [1, 4])]))
    assert profile_shapes(outline, TrtOptions(max_batch=8)) == [{"x": ((1, 4),) * 3}]
    assert not is_batched(outline, TrtOptions(max_batch=8))


def test_inputs_and_outputs_are_told_as_the_engine_contract_wants_them() -> None:
    outline = check_graph(graph([node("Relu", "x", "y")], [X], [Y]))
    assert specs(outline.inputs) == (TensorSpec("x", "float32", ("N", 4)),)
    assert specs(outline.outputs) == (TensorSpec("y", "float32", ("N", 4)),)
