"""What a serialised ONNX graph takes, does and gives, without the `onnx` package: enough to judge it. Pure.

    outline = read_outline(model)
    outline.inputs      values with element type and shape; weights that old exporters list among them are left out
    outline.nodes       every node, those of bodies and model-local functions too
    outline.constants   weights and Constant nodes by name, of which only small integers are read

Element types are the numbers of onnx.proto (1 float32, 2 uint8, 3 int8, ...). A devious graph may name one tensor twice
in different bodies; this reads it as if both were one, which can only make a judgement stricter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.onnx_scan import Field, fields, text
from protocol.tensors import Dim
from protocol.wire import Buffer

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, DOUBLE, BFLOAT16 = 1, 2, 3, 6, 7, 9, 10, 11, 16
ELEMENT_NAMES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

_VARINT, _BYTES = 0, 2
_MOST_READ_NBYTES = 64 * 1024  # zero points are small


class Value(NamedTuple):
    """An input or output of the graph. `element` is 0 where it is no tensor; `shape` is None where it is not stated."""

    name: str
    element: int
    shape: tuple[Dim, ...] | None


class Constant(NamedTuple):
    """A weight. `is_zero` is None where its values were not read: they are many, or lie in another file."""

    element: int
    shape: tuple[int, ...]
    is_zero: bool | None


class Node(NamedTuple):
    """`integers` are its integer attributes. An input that is left out is an empty name."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: dict[str, int]

    def __str__(self) -> str:
        return f"{self.op} {self.name or ', '.join(self.outputs)!r}"


@dataclass(slots=True)
class Outline:
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    own_functions: set[tuple[str, str]] = field(default_factory=set)  # (domain, name)


def read_outline(model: Buffer) -> Outline:
    """Raises ModelError when the bytes are no graph."""
    view = memoryview(model).cast("B")
    outline = Outline()
    for part in fields(view, 0, len(view)):
        if part.wire_type != _BYTES:
            continue
        if part.number == 7:
            _graph(view, part, outline, is_main=True)
        elif part.number == 25:
            _function(view, part, outline)
    outline.inputs = [value for value in outline.inputs if value.name not in outline.constants]
    return outline


def _function(view: memoryview, whole: Field, outline: Outline) -> None:
    names = {1: "", 10: ""}
    for part in fields(view, whole.value, whole.end):
        if part.wire_type == _BYTES and part.number in names:
            names[part.number] = text(view, part)
        elif part.wire_type == _BYTES and part.number == 7:
            _node(view, part, outline)
    outline.own_functions.add((names[10], names[1]))


def _graph(view: memoryview, whole: Field, outline: Outline, *, is_main: bool) -> None:
    pending = [(whole, is_main)]
    while pending:
        graph, main = pending.pop()
        for part in fields(view, graph.value, graph.end):
            if part.wire_type != _BYTES:
                continue
            if part.number == 1:
                pending += [(body, False) for body in _node(view, part, outline, bodies_later=True)]
            elif part.number == 5:
                name, constant = _tensor(view, part)
                outline.constants[name] = constant
            elif part.number == 11 and main:
                outline.inputs.append(_value(view, part))
            elif part.number == 12 and main:
                outline.outputs.append(_value(view, part))


def _node(view: memoryview, whole: Field, outline: Outline, *, bodies_later: bool = False) -> list[Field]:
    """Adds the node; its bodies are returned, or read at once, for the nodes of functions."""
    names: dict[int, list[str]] = {1: [], 2: [], 3: [], 4: [], 7: []}
    integers: dict[str, int] = {}
    bodies: list[Field] = []
    tensor: Constant | None = None
    for part in fields(view, whole.value, whole.end):
        if part.wire_type == _BYTES and part.number in names:
            names[part.number].append(text(view, part))
        elif part.wire_type == _BYTES and part.number == 5:
            found = _attribute(view, part, integers, bodies)
            tensor = tensor if found is None else found
    op, domain, name = ("".join(names[n][-1:]) for n in (4, 7, 3))
    node = Node(op, "" if domain == "ai.onnx" else domain, name, tuple(names[1]), tuple(names[2]), integers)
    outline.nodes.append(node)
    if op == "Constant" and tensor is not None and node.outputs:
        outline.constants[node.outputs[0]] = tensor
    if bodies_later:
        return bodies
    for body in bodies:
        _graph(view, body, outline, is_main=False)
    return []


def _attribute(view: memoryview, whole: Field, integers: dict[str, int], bodies: list[Field]) -> Constant | None:
    name, number, tensor = "", None, None
    for part in fields(view, whole.value, whole.end):
        if part.number == 1 and part.wire_type == _BYTES:
            name = text(view, part)
        elif part.number == 3 and part.wire_type == _VARINT:
            number = part.value
        elif part.number == 5 and part.wire_type == _BYTES:
            tensor = _tensor(view, part)[1]
        elif part.number in (6, 11) and part.wire_type == _BYTES:
            bodies.append(part)
    if number is not None:
        integers[name] = number
    return tensor


def _tensor(view: memoryview, whole: Field) -> tuple[str, Constant]:
    name, element = "", 0
    zero: bool | None = True
    shape: list[int] = []
    for part in fields(view, whole.value, whole.end):
        if part.number == 1:
            shape += _integers(view, part)
        elif part.number == 2 and part.wire_type == _VARINT:
            element = part.value
        elif part.number == 8 and part.wire_type == _BYTES:
            name = text(view, part)
        elif part.number in (4, 5, 7, 9, 10, 11):
            zero = zero and _holds_zeros(view, part)
        elif part.number == 13 or (part.number == 14 and part.value == 1):
            zero = None
    return name, Constant(element, tuple(shape), zero)


def _holds_zeros(view: memoryview, part: Field) -> bool | None:
    """Zero is all zero bytes in every encoding of a number but -0.0."""
    if part.wire_type == _VARINT:
        return part.value == 0
    if part.end - part.value > _MOST_READ_NBYTES:
        return None
    return not any(view[part.value : part.end])


def _integers(view: memoryview, part: Field) -> Iterator[int]:
    """A repeated integer, packed or not."""
    if part.wire_type == _VARINT:
        yield part.value
        return
    value = shift = 0
    for byte in view[part.value : part.end] if part.wire_type == _BYTES else b"":
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0


def _value(view: memoryview, whole: Field) -> Value:
    name, element = "", 0
    shape: tuple[Dim, ...] | None = None
    for part in fields(view, whole.value, whole.end):
        if part.number == 1 and part.wire_type == _BYTES:
            name = text(view, part)
        elif part.number == 2 and part.wire_type == _BYTES:
            for kind in fields(view, part.value, part.end):
                if kind.number == 1 and kind.wire_type == _BYTES:
                    element, shape = _tensor_type(view, kind)
    return Value(name, element, shape)


def _tensor_type(view: memoryview, whole: Field) -> tuple[int, tuple[Dim, ...] | None]:
    element = 0
    shape: tuple[Dim, ...] | None = None
    for part in fields(view, whole.value, whole.end):
        if part.number == 1 and part.wire_type == _VARINT:
            element = part.value
        elif part.number == 2 and part.wire_type == _BYTES:
            dims = [d for d in fields(view, part.value, part.end) if d.number == 1 and d.wire_type == _BYTES]
            shape = tuple(_dim(view, dim) for dim in dims)
    return element, shape


def _dim(view: memoryview, whole: Field) -> Dim:
    dim: Dim = None
    for part in fields(view, whole.value, whole.end):
        if part.number == 1 and part.wire_type == _VARINT:
            dim = part.value if part.value < 1 << 31 else None  # -1 is what some exporters write for "any"
        elif part.number == 2 and part.wire_type == _BYTES and part.end > part.value:
            dim = text(view, part)
    return dim
