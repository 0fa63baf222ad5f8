"""Eight bits between head and tail: the head emits its own codes, the tail begins with Cast, Sub, Mul.

    head  ... -> t/float -> QuantizeLinear -> t (uint8)  ~~ wire ~~>  t (uint8) -> Cast -> Sub -> Mul -> ... tail

Cast, Sub, Mul is exactly what DequantizeLinear computes, and what TensorRT's parser takes with any zero point (it
refuses uint8 or a non-zero zero point in DequantizeLinear). A quantised head that already ends in DequantizeLinear
loses it and hands out the codes that it has. The tensor on the wire keeps its ONNX name; the float ones are renamed.

TensorRT takes no QuantizeLinear to uint8. Heads for it emit the same codes by arithmetic, equal to the last bit:

    head  ... -> t/float -> Div -> Round -> Add -> Clip -> Cast -> t (uint8)

ONNX's Round goes to the even neighbour, as QuantizeLinear does. The value is taken before the head's own rounding to
symmetric int8: that has seven bits for what a ReLU gives, the codes have eight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from partitioner.graph.split import clone, values_of, with_inputs
from partitioner.judging.observe import Ranges
from protocol.errors import ModelError

_LEAST_CODE, _MOST_CODE = 0, 255


class Codes(NamedTuple):
    """uint8 affine: value = (code - zero_point) * scale."""

    scale: float
    zero_point: int


def codes_for(low: float, high: float) -> Codes:
    """Codes that cover [low, high] and represent zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255.0))
    if scale <= 0.0:
        return Codes(1.0, 0)
    return Codes(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


def emit_codes(
    head: ir.Model, names: Iterable[str], ranges: Ranges, *, by_arithmetic: bool = False
) -> tuple[ir.Model, dict[str, Codes]]:
    """A copy of the head whose outputs `names` are uint8 codes. Raises ModelError for a tensor without a range."""
    copy = clone(head)
    found: dict[str, Codes] = {}
    for name in names:
        value = values_of(copy)[name]
        own = None if by_arithmetic else _own_codes(value)
        if own is not None:
            codes_value, found[name] = own
        else:
            if name not in ranges:
                raise ModelError(f"tensor {name!r} has no finite range on the calibration data", "cut elsewhere")
            found[name] = codes_for(*ranges[name])
            make = _quantise_by_arithmetic if by_arithmetic else _quantise
            codes_value = make(copy, value, found[name])
        _hand_out(copy, value, codes_value)
    return copy, found


def take_codes(tail: ir.Model, codes: Mapping[str, Codes]) -> ir.Model:
    """A copy of the tail whose inputs in `codes` are uint8 codes, decoded by Cast, Sub, Mul in float32."""

    def enter(copy: ir.Model, name: str, entry: ir.Value) -> tuple[ir.Value, ir.Value]:
        fresh = ir.val(name, ir.DataType.UINT8, entry.shape)
        return fresh, _decode(copy, fresh, codes[name])

    return with_inputs(tail, codes.keys(), enter)


def _own_codes(value: ir.Value) -> tuple[ir.Value, Codes] | None:
    """The uint8 codes that `value` was just dequantised from, if they are per tensor."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    codes, scale, zero_point = node.inputs[:3]
    if codes is None or scale is None or zero_point is None or codes.producer() is None or codes.is_graph_output():
        return None
    scale_array, zero_array = _constant(scale), _constant(zero_point)
    if scale_array is None or zero_array is None or scale_array.size != 1 or zero_array.dtype != np.uint8:
        return None
    return codes, Codes(float(scale_array.reshape(())), int(zero_array.reshape(())))


def _constant(value: ir.Value) -> np.ndarray | None:
    return None if value.const_value is None else value.const_value.numpy()


def _quantise(model: ir.Model, value: ir.Value, codes: Codes) -> ir.Value:
    name = value.name
    scale = initializer(model, f"{name}/scale", np.array(codes.scale, np.float32))
    zero_point = initializer(model, f"{name}/zero_point", np.array(codes.zero_point, np.uint8))
    output = ir.val(f"{name}/codes", ir.DataType.UINT8, value.shape)
    model.graph.append(ir.node("QuantizeLinear", [value, scale, zero_point], outputs=[output], name=f"{name}/quantise"))
    return output


def _quantise_by_arithmetic(model: ir.Model, value: ir.Value, codes: Codes) -> ir.Value:
    """What QuantizeLinear computes, in operators of float32."""
    name = value.name
    constants = {
        "scale": codes.scale, "zero_point": codes.zero_point, "least": _LEAST_CODE, "most": _MOST_CODE
    }  # fmt: skip
    given = {n: initializer(model, f"{name}/{n}", np.array(number, np.float32)) for n, number in constants.items()}
    steps = (("Div", ("scale",)), ("Round", ()), ("Add", ("zero_point",)), ("Clip", ("least", "most")), ("Cast", ()))
    last = _before_rounding(value)
    for op, more in steps:
        dtype = ir.DataType.UINT8 if op == "Cast" else ir.DataType.FLOAT
        output = ir.val(f"{name}/{op.lower()}", dtype, value.shape)
        attributes = {"to": dtype.value} if op == "Cast" else None
        inputs = [last, *(given[n] for n in more)]
        model.graph.append(ir.node(op, inputs, attributes, outputs=[output], name=f"{name}/{op.lower()}"))
        last = output
    return last


def _before_rounding(value: ir.Value) -> ir.Value:
    """The exact form of a value that was rounded to eight bits just now; the value itself where it was not."""
    exact = value
    for op in ("DequantizeLinear", "QuantizeLinear"):
        node = exact.producer()
        if node is None or node.op_type != op or node.inputs[0] is None:
            return value
        exact = node.inputs[0]
    return exact


def _hand_out(model: ir.Model, value: ir.Value, codes: ir.Value) -> None:
    """Make `codes` the output that `value` was, under its name."""
    name = value.name
    value.name = f"{name}/float"
    codes.name = name
    codes.dtype = ir.DataType.UINT8
    codes.shape = value.shape
    outputs = model.graph.outputs
    outputs[:] = [codes if v is value else v for v in outputs]
    for op in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        if node is None or node.op_type != op or value.uses() or value.is_graph_output() or node.inputs[0] is None:
            break
        value = node.inputs[0]
        model.graph.remove(node, safe=True)


def _decode(model: ir.Model, entry: ir.Value, codes: Codes) -> ir.Value:
    name = entry.name
    zero_point = initializer(model, f"{name}/zero_point", np.array(codes.zero_point, np.float32))
    scale = initializer(model, f"{name}/scale", np.array(codes.scale, np.float32))
    steps = (("Cast", None), ("Sub", zero_point), ("Mul", scale))
    value = entry
    for op, constant in steps:
        output = ir.val(f"{name}/{op.lower()}", ir.DataType.FLOAT, entry.shape)
        inputs = [value] if constant is None else [value, constant]
        attributes = {"to": ir.DataType.FLOAT.value} if op == "Cast" else None
        model.graph.append(ir.node(op, inputs, attributes, outputs=[output], name=f"{name}/{op.lower()}"))
        value = output
    return value


def initializer(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    """A constant of the graph, under a name that it does not have yet."""
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype = ir.DataType.from_numpy(array.dtype)
    value.shape = ir.Shape(array.shape)
    model.graph.register_initializer(value)
    return value


def decodes_first(tail: bytes, name: str) -> bool:
    """Whether a serialised tail's input `name` goes through Cast, Sub, Mul and nothing else."""
    graph = ir.from_proto(onnx.load_model_from_string(tail)).graph
    value = next((v for v in graph.inputs if v.name == name), None)
    for op in ("Cast", "Sub", "Mul"):
        users = [] if value is None else [node for node, _ in value.uses()]
        if len(users) != 1 or users[0].op_type != op:
            return False
        value = users[0].outputs[0]
    return True
