"""Graphs through TensorRT-RTX's real compiler, which needs no GPU; all are in `python -m tests.gpu.compile_gate`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip(
    "tensorrt_rtx", reason="tensorrt-rtx is not installed; `make gpu-gate` runs this in an environment of its own"
)

from onnx import TensorProto

from protocol.engines.trt_build import PlanBuild
from protocol.engines.trt_child import Order
from protocol.engines.trt_graphs import check_graph, profile_shapes
from protocol.engines.trt_options import Span, TrtOptions
from tests.gpu.compile_gate import Verdict, build, of_model
from tests.gpu.graphs import REFUSED, TAKEN, Case, graph, node

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: case.name)
def test_what_our_check_takes_is_built(case: Case) -> None:
    assert build("cases", "", case.name, lambda: case.model).problem == ""


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_our_check_refuses_never_reaches_the_compiler(case: Case) -> None:
    verdict = build("cases", "", case.name, lambda: case.model)
    assert "TensorRT does not take this graph" in verdict.problem
    assert str(case.ours) in verdict.problem


def test_every_tail_and_head_of_the_demo_is_built_in_every_form() -> None:
    verdicts = list(of_model("digits", DIGITS))
    assert [v for v in verdicts if v.problem] == []
    tails, heads = {"8 bit", "half", "8 bit, fp16"}, {"int8 whole", "int8 head", "float head"}
    assert {v.form for v in verdicts} == {"fp32", "fp16"} | tails | heads
    assert all(isinstance(v, Verdict) and v.is_dynamic for v in verdicts)


def test_the_parsers_own_words_come_back() -> None:
    square = [("x", TensorProto.FLOAT, [3, 3])], [("y", TensorProto.FLOAT, [])]
    verdict = build("cases", "", "Det", lambda: graph([node("Det", "x", "y")], *square))
    assert "the parser refuses the graph" in verdict.problem
    assert "Det" in verdict.problem


@pytest.mark.parametrize(
    "spans",
    [(Span(1, 32, 32),), (Span(1, 1, 1), Span(2, 32, 32)), (Span(1, 1, 1), Span(2, 8, 8), Span(9, 32, 32))],
    ids=["one", "two", "three"],
)
@pytest.mark.parametrize("captured", [False, True], ids=["as it is", "to be captured"])
def test_several_profiles_are_built_also_for_runs_that_are_captured(spans: tuple[Span, ...], captured: bool) -> None:
    graph = DIGITS.read_bytes()
    shapes = profile_shapes(check_graph(graph), TrtOptions(edition="tensorrt-rtx", max_batch=32), spans)
    order = Order(edition="tensorrt-rtx", profiles=tuple(shapes), workspace_nbytes=1 << 30, captured=captured)
    with PlanBuild(order, graph) as build_of_it:
        assert build_of_it.run(timeout_s=300).plan
