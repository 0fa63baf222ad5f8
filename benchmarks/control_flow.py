"""A hand-made network with If, Loop and Scan, nested and with captures: what no extractor of ours may tear apart.

    x[N,3,16,16] -> conv -> relu = r1 -> conv -> relu = r2
        If(mean(r2) > 0.2)   then Loop(3 times: carried + 0.1 r1, an If inside that captures r2)   else r2 - r1
        Scan over the rows of the pooled result, adding what the main graph computed -> gemm -> logits, states

Law: bodies read tensors of the graph around them (r1, r2, a constant), the innermost one across two borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, CLASSES, WIDTH = TensorProto.FLOAT, 10, 8

Named = Sequence[tuple[str, int, list[int] | None]]


def control_flow() -> onnx.ModelProto:
    """Input `x` float32 [N, 3, 16, 16]; outputs `logits` [N, 10] and `states` [N, 8]. Seeded weights."""
    rng = np.random.default_rng(7)
    weights: list[onnx.TensorProto] = []

    def constant(name: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(name: str, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return constant(name, (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32))

    nodes = [
        _node("Conv", ["x", weight("w1", WIDTH, 3, 3, 3)], "c1", pads=[1] * 4),
        _node("Relu", ["c1"], "r1"),
        _node("Conv", ["r1", weight("w2", WIDTH, WIDTH, 3, 3)], "c2", pads=[1] * 4),
        _node("Relu", ["c2"], "r2"),
        _node("ReduceMean", ["r2"], "mean", keepdims=0),
        _node("Greater", ["mean", constant("threshold", np.float32(0.2))], "above"),
        _node("If", ["above"], "chosen", then_branch=_then(), else_branch=_else()),
        _node("GlobalAveragePool", ["chosen"], "pooled"),
        _node("Flatten", ["pooled"], "flat"),
        _node("Gemm", ["flat", weight("w3", WIDTH, WIDTH)], "mixed", transB=1),
        helper.make_node(
            "Scan", ["start", "flat"], ["last", "summed"], name="node_scan", num_scan_inputs=1, body=_rows()
        ),
        _node("Add", ["summed", "mixed"], "states"),
        _node("Gemm", ["states", weight("w4", CLASSES, WIDTH)], "logits", transB=1),
    ]
    constant("trips", np.int64(3))
    constant("tenth", np.float32(0.1))
    constant("start", np.zeros(WIDTH, np.float32))
    graph = helper.make_graph(
        nodes,
        "control_flow",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3, 16, 16])],
        [
            helper.make_tensor_value_info("logits", FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("states", FLOAT, ["N", WIDTH]),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _then() -> onnx.GraphProto:
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    loop = _node("Loop", ["trips", "yes", "r2"], "looped", body=_body())
    return _graph("then", [yes, loop], [], [("looped", FLOAT, None)])


def _else() -> onnx.GraphProto:
    return _graph("else", [_node("Sub", ["r2", "r1"], "apart")], [], [("apart", FLOAT, None)])


def _body() -> onnx.GraphProto:
    """One trip: carried + 0.1 r1, and then, two graphs deep, + r2 while the trip's number is odd."""
    nodes = [
        _node("Mul", ["r1", "tenth"], "step"),
        _node("Add", ["carried_in", "step"], "moved"),
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("two", TensorProto.INT64, [], [2])),
        _node("Mod", ["i", "two"], "rest"),
        _node("Cast", ["rest"], "odd", to=TensorProto.BOOL),
        _node(
            "If",
            ["odd"],
            "carried_out",
            then_branch=_graph("odd", [_node("Add", ["moved", "r2"], "with_r2")], [], [("with_r2", FLOAT, None)]),
            else_branch=_graph("even", [_node("Identity", ["moved"], "as_is")], [], [("as_is", FLOAT, None)]),
        ),
        _node("Identity", ["going_in"], "going_out"),
    ]
    inputs: Named = [("i", TensorProto.INT64, []), ("going_in", TensorProto.BOOL, []), ("carried_in", FLOAT, None)]
    return _graph("body", nodes, inputs, [("going_out", TensorProto.BOOL, []), ("carried_out", FLOAT, None)])


def _rows() -> onnx.GraphProto:
    """A running sum over the rows; the main graph's `tenth` is captured."""
    nodes = [
        _node("Mul", ["row", "tenth"], "scaled"),
        _node("Add", ["sum_in", "scaled"], "sum_out"),
        _node("Identity", ["sum_out"], "row_out"),
    ]
    inputs = [("sum_in", FLOAT, [WIDTH]), ("row", FLOAT, [WIDTH])]
    return _graph("rows", nodes, inputs, [("sum_out", FLOAT, [WIDTH]), ("row_out", FLOAT, [WIDTH])])


def _graph(name: str, nodes: Sequence[onnx.NodeProto], inputs: Named, outputs: Named) -> onnx.GraphProto:
    given = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
    return helper.make_graph(nodes, name, given, [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs])


def _node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], name=f"node_{output}", **attributes)
