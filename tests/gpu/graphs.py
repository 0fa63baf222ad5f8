"""One small graph for everything that TensorRT is known to take or to refuse, each with our sentence about it.

The unit tests judge them without any library; the compile gate hands those that we take to the real compiler, so that
neither list can drift from the truth. What is refused was tried with TensorRT-RTX 1.7.1; `theirs` is what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

Named = tuple[str, int, list[Any]]


class Case(NamedTuple):
    """`ours` is part of our sentence, None where we take the graph."""

    name: str
    model: bytes
    ours: str | None = None
    theirs: str = ""


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Named],
    outputs: Sequence[Named],
    weights: Sequence[tuple[str, Any]] = (),
    *,
    opset: int = 17,
) -> bytes:
    made = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    data: bytes = helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString()
    return data


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """`inputs` and `outputs` are names with spaces between; the node is called like its operator."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"the_{op}", **attributes)


X, Y = ("x", T.FLOAT, ["N", 4]), ("y", T.FLOAT, ["N", 4])
CAST = node("Cast", "x", "y", to=T.FLOAT)
SCALE = ("s", np.float32(0.1))


def _crosses_in(element: int) -> bytes:
    return graph([CAST], [("x", element, ["N", 4])], [Y])


def _crosses_out(element: int) -> bytes:
    return graph([node("Cast", "x", "y", to=element)], [X], [("y", element, ["N", 4])])


def _decoded(element: int, zero: Any = None) -> bytes:
    names = "x s" if zero is None else "x s z"
    weights = [SCALE] if zero is None else [SCALE, ("z", zero)]
    return graph([node("DequantizeLinear", names, "y")], [("x", element, ["N", 4])], [Y], weights)


def _coded(zero: Any) -> bytes:
    pair = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    return graph(pair, [X], [Y], [SCALE, ("z", zero)])


def _boundary(element: int, zero: float) -> bytes:
    steps = [node("Cast", "x", "c", to=T.FLOAT), node("Sub", "c z", "d"), node("Mul", "d s", "y")]
    return graph(steps, [("x", element, ["N", 4])], [Y], [SCALE, ("z", np.float32(zero))])


def _coding() -> bytes:
    steps = [
        node("Div", "x s", "d"), node("Round", "d", "r"), node("Add", "r z", "a"), node("Clip", "a low high", "c"),
        node("Cast", "c", "y", to=T.UINT8),
    ]  # fmt: skip
    numbers = {"z": 131, "low": 0, "high": 255}
    weights = [SCALE, *((name, np.float32(number)) for name, number in numbers.items())]
    return graph(steps, [X], [("y", T.UINT8, ["N", 4])], weights)


def _convolution() -> bytes:
    """As the partitioner makes it: int8 in and weights, float32 out."""
    steps = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"),
        helper.make_node("DequantizeLinear", ["w", "t", "u"], ["v"], name="the_weights", axis=0),
        node("Conv", "d v b", "y", pads=[1] * 4),
    ]  # fmt: skip
    weights = [
        SCALE, ("z", np.int8(0)), ("w", np.ones((8, 4, 3, 3), np.int8)), ("t", np.full(8, 0.1, np.float32)),
        ("u", np.zeros(8, np.int8)), ("b", np.ones(8, np.float32)),
    ]  # fmt: skip
    return graph(steps, [("x", T.FLOAT, ["N", 4, 6, 6])], [("y", T.FLOAT, ["N", 8, 6, 6])], weights)


TAKEN = (
    Case("identity", graph([node("Identity", "x", "y")], [X], [Y])),
    *(
        Case(f"{name} goes in and out", model)
        for name, element in (
            ("float16", T.FLOAT16), ("int64", T.INT64), ("int32", T.INT32), ("int8", T.INT8), ("uint8", T.UINT8),
            ("bool", T.BOOL),
        )
        for model in (_crosses_in(element), _crosses_out(element))
    ),
    Case("eight bits by Cast, Sub, Mul with a zero point", _boundary(T.UINT8, 131.0)),
    Case("codes of eight bits by Div, Round, Add, Clip, Cast", _coding()),
    Case("Conv in symmetric int8, a scale a channel, its bias float", _convolution()),
    Case("DequantizeLinear of int8 with zero point 0", _decoded(T.INT8, np.int8(0))),
    Case("DequantizeLinear of int8 without a zero point", _decoded(T.INT8)),
    Case("QDQ pair in symmetric int8", _coded(np.int8(0))),
    Case(
        "Reshape by the shape of an input",
        graph([node("Shape", "x", "n"), node("Reshape", "w n", "r"), node("Add", "x r", "y")],
              [("x", T.FLOAT, [1, 4])], [("y", T.FLOAT, [1, 4])], [("w", np.ones((4, 1), np.float32))]),
    ),
    Case("uint8 weight behind a Cast",
         graph([node("Cast", "w", "v", to=T.FLOAT), node("Mul", "x v", "y")], [X], [Y], [("w", np.ones(4, np.uint8))])),
)  # fmt: skip

REFUSED = (
    Case("DequantizeLinear of uint8", _decoded(T.UINT8, np.uint8(0)), "without a sign (uint8)", "refused"),
    Case("DequantizeLinear of uint8 with a zero point", _decoded(T.UINT8, np.uint8(9)), "without a sign", "refused"),
    Case("DequantizeLinear of uint8 without one", _decoded(T.UINT8), "without a sign", "refused"),
    Case("DequantizeLinear of int8 with zero point 3", _decoded(T.INT8, np.int8(3)), "point other than 0", "refused"),
    Case("QDQ pair in uint8", _coded(np.uint8(0)), "without a sign", "RTX takes it"),
    Case("QuantizeLinear to uint8 at the end",
         graph([node("QuantizeLinear", "x s z", "y")], [X], [("y", T.UINT8, ["N", 4])], [SCALE, ("z", np.uint8(7))]),
         "without a sign", "refused"),
    Case("QuantizeLinear without a zero point",
         graph([node("QuantizeLinear", "x s", "y")], [X], [("y", T.UINT8, ["N", 4])], [SCALE]),
         "without a sign", "refused"),
    Case("DequantizeLinear of an int32 bias",
         graph([node("DequantizeLinear", "w s z", "v"), node("Add", "x v", "y")], [X], [Y],
               [SCALE, ("w", np.ones(4, np.int32)), ("z", np.int32(0))]),
         "quantised bias", "refused"),
    Case("QLinearMatMul",
         graph([node("QLinearMatMul", "x s z w s z s z", "y")], [("x", T.INT8, ["N", 4])], [("y", T.INT8, ["N", 4])],
               [SCALE, ("z", np.int8(0)), ("w", np.ones((4, 4), np.int8))]),
         "QOperator", "refused"),
    Case("MatMulInteger",
         graph([node("MatMulInteger", "x w", "i"), node("Cast", "i", "y", to=T.FLOAT)],
               [("x", T.INT8, ["N", 4])], [Y], [("w", np.ones((4, 4), np.int8))]),
         "QOperator", "refused"),
    Case("DynamicQuantizeLinear",
         graph([node("DynamicQuantizeLinear", "x", "q s z"), node("Cast", "q", "y", to=T.FLOAT)], [X], [Y]),
         "QOperator", "refused"),
    Case("an operator of a vendor",
         graph([helper.make_node("QLinearAdd", ["x"] * 8, ["y"], name="the_add", domain="com.microsoft")], [X], [Y]),
         "'com.microsoft'", "refused"),
    Case("Reshape of uint8",
         graph([node("Reshape", "x n", "r"), node("Cast", "r", "y", to=T.FLOAT)],
               [("x", T.UINT8, ["N", 4])], [("y", T.FLOAT, ["N", 2, 2])], [("n", np.array([-1, 2, 2]))]),
         "reads uint8 tensor", "refused"),
    *(
        Case(f"{name} at an {end}", model, name, theirs)
        for name, element, theirs in (
            ("float64", T.DOUBLE, "computed in float32"), ("uint16", T.UINT16, "refused"),
            ("int16", T.INT16, "refused"), ("uint32", T.UINT32, "refused"), ("uint64", T.UINT64, "refused"),
        )
        for end, model in (("input", _crosses_in(element)), ("output", _crosses_out(element)))
    ),
    Case("float64 inside",
         graph([node("Cast", "x", "d", to=T.DOUBLE), node("Cast", "d", "y", to=T.FLOAT)], [X], [Y]),
         "float64", "computed in float32"),
    Case("a float64 weight",
         graph([node("Cast", "w", "v", to=T.FLOAT), node("Mul", "x v", "y")], [X], [Y], [("w", np.ones(4))]),
         "float64", "computed in float32"),
    Case("NonZero", graph([node("NonZero", "x", "y")], [X], [("y", T.INT64, [2, None])]),
         "depends on values", "refused"),
    Case("Unique", graph([node("Unique", "x", "y")], [("x", T.FLOAT, ["N"])], [("y", T.FLOAT, [None])]),
         "depends on values", "refused"),
    Case("NonMaxSuppression",
         graph([node("NonMaxSuppression", "b c m", "y")], [("b", T.FLOAT, [1, 9, 4]), ("c", T.FLOAT, [1, 2, 9])],
               [("y", T.INT64, [None, 3])], [("m", np.array([5]))]),
         "depends on values", "refused"),
    Case("Reshape by the values of an input",
         graph([node("Reshape", "x k", "y")], [("x", T.FLOAT, ["N", 4]), ("k", T.INT64, [2])],
               [("y", T.FLOAT, [None, None])]),
         "values of an input", "refused without values in the profile"),
    Case("TopK by the values of an input",
         graph([node("TopK", "x k", "y i")], [X, ("k", T.INT64, [1])], [("y", T.FLOAT, ["N", None])]),
         "values of an input", "refused without values in the profile"),
)  # fmt: skip
