"""What an order of engines costs while nothing fails, beside the engine alone, in turn: microseconds of one run.

    order        two engines of the processor's kind in order, against the first of them by itself
    deputy       a run that is given to a thread which may be given up, as on CUDA, against the same run without

The engines are ONNX Runtime on a graph of two nodes, so that nothing but the way to them is measured.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper

from benchmarks.results import Options, Result
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.workshop import Workshop
from protocol.engines.ort import OrtEngine
from protocol.engines.ort_cuda import BoundOrtEngine

RUNS, QUICK_RUNS = 5000, 300
ORDER_US = 15.0  # a hand-over between threads costs several times as much


def run(options: Options) -> list[Result]:
    """Median differences of runs in turn, one sample a repeat."""
    graph, rows = _graph(), {"x": np.ones((4, 16), np.float32)}
    runs = QUICK_RUNS if options.quick else RUNS
    workshop = Workshop()
    alone = OrtEngine(graph, label="alone")
    offers = [Offer(kind, lambda kind=kind: OrtEngine(graph, label=kind)) for kind in ("first", "second")]  # type: ignore[misc]
    ordered = PreferredEngine(offers, label="tail", workshop=workshop)
    bound = BoundOrtEngine(graph, label="bound", on="cpu")
    deputed = BoundOrtEngine(graph, label="deputed", on="cpu", run_timeout_s=30.0)
    samples: dict[str, list[float]] = {"order": [], "deputy": []}
    with contextlib.ExitStack() as stack:
        stack.callback(workshop.stop)
        for engine in (alone, ordered, bound, deputed):
            stack.enter_context(engine)
        for _ in range(options.repeats):
            samples["order"].append(_dearer_us(lambda: ordered.infer(rows), lambda: alone.infer(rows), runs))
            samples["deputy"].append(_dearer_us(lambda: deputed.infer(rows), lambda: bound.infer(rows), runs))
    return [
        Result.bounded("order of two: a run costs more by", "us", samples["order"], at_most=ORDER_US),
        Result.of("a run given to a deputy costs more by", "us", samples["deputy"], note="on CUDA only"),
    ]


def _dearer_us(one: Callable[[], object], other: Callable[[], object], runs: int) -> float:
    """By how much the median of one lies above the other's, in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for each, into in zip((one, other), taken, strict=True):
            start = time.perf_counter()
            each()
            into.append(time.perf_counter() - start)
    return (statistics.median(taken[0]) - statistics.median(taken[1])) * 1e6


def _graph() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 16]) for name in ("x", "y"))
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    serialised: bytes = model.SerializeToString()
    return serialised
