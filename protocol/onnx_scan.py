"""Finds what a serialised ONNX graph would read from other files, without the `onnx` package. Pure.

External data is a file-read primitive: a runtime resolves whatever path a tensor states, and from bytes it does so
against the current directory (measured). So every graph is scanned before a runtime sees it. Large weights of the main
graph may lie in files that the caller read and hashed, and are then handed over in memory; anything else that names a
file (in a body, a function, an attribute, a sparse tensor, a compiled engine) is refused.

Only the messages on the way to a tensor are walked; field numbers are those of onnx.proto, and of a field that occurs
twice every occurrence counts. The walk keeps its own stack, so that nesting cannot exhaust Python's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from protocol.errors import ModelError
from protocol.wire import Buffer

_NODE, _TENSOR, _SPARSE = "node", "tensor", "sparse tensor"
# message -> field number -> message
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "main graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: _NODE, 11: "attribute"},
    "main graph": {1: _NODE, 5: "weight", 15: _SPARSE},
    "graph": {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 8, 13, 14, 1
_OP_TYPE, _COMPILED = 4, b"EPContext"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Reference(NamedTuple):
    """A large weight that lies in another file; `nbytes` is None where the graph leaves it to the tensor's shape."""

    tensor: str
    location: str
    offset: int
    nbytes: int | None


class Field(NamedTuple):
    """One field of a message, as it stands in the bytes."""

    number: int
    wire_type: int
    value: int  # of a number; of bytes the place where they begin
    end: int


def external_references(model: Buffer) -> list[Reference]:
    """The weights of the main graph that lie in other files, in the order of the graph.

    Raises ModelError when the bytes are damaged, or when anything but such a weight names a file.
    """
    view = memoryview(model).cast("B")
    found: list[Reference] = []
    pending: list[tuple[str, int, int]] = [("model", 0, len(view))]
    while pending:
        kind, start, end = pending.pop()
        if kind in ("weight", _TENSOR):
            reference = _reference(view, start, end)
            if reference is not None and kind == _TENSOR:
                raise ModelError(
                    f"tensor {reference.tensor!r} names the file {reference.location!r} from where no file is read "
                    "(a body, a function, an attribute or a sparse tensor)",
                    "save the model in one file",
                )
            found += [reference] if reference is not None else []
            continue
        children = _CHILDREN[kind]
        inside: list[tuple[str, int, int]] = []
        for field in fields(view, start, end):
            if field.wire_type == _BYTES and field.number in children:
                inside.append((children[field.number], field.value, field.end))
            elif kind == _NODE and field.number == _OP_TYPE and bytes(view[field.value : field.end]) == _COMPILED:
                raise ModelError(
                    "the graph holds a compiled engine (EPContext), which may name files", "export it again"
                )
        pending.extend(reversed(inside))
    return found


def check_external(model: Buffer, given: Mapping[str, Buffer]) -> list[str]:
    """The locations that `model` needs, all of which are `given` and long enough.

    Raises ModelError like `external_references`, and when a file is not among those given or is too short.
    """
    references = external_references(model)
    for tensor, location, offset, nbytes in references:
        if location not in given:
            raise ModelError(
                f"tensor {tensor!r} lies in the file {location!r}, which was not given with the graph",
                "open the model through its bundle, or save it in one file",
            )
        size = memoryview(given[location]).nbytes
        if offset + (nbytes or 0) > size:
            raise ModelError(
                f"tensor {tensor!r} ends at byte {offset + (nbytes or 0)} of {location!r}, which holds {size}",
                "copy or export it again",
            )
    return list(dict.fromkeys(r.location for r in references))


def _reference(view: memoryview, start: int, end: int) -> Reference | None:
    name, outside = "", False
    entries: dict[str, str] = {}
    for field in fields(view, start, end):
        if field.number == _TENSOR_NAME and field.wire_type == _BYTES:
            name = text(view, field)
        elif field.number == _DATA_LOCATION and field.wire_type == _VARINT and field.value == _EXTERNAL:
            outside = True
        elif field.number == _EXTERNAL_DATA and field.wire_type == _BYTES:
            outside = True
            key, value = _entry(view, field)
            if key in entries:
                raise ModelError(f"tensor {name!r} states its {key} twice", "export it again")
            entries[key] = value
    if not outside:
        return None
    offset, nbytes = _number(entries.get("offset", "0")), entries.get("length")
    return Reference(name, entries.get("location", ""), offset, None if nbytes is None else _number(nbytes))


def _entry(view: memoryview, field: Field) -> tuple[str, str]:
    texts = {1: "", 2: ""}
    for inner in fields(view, field.value, field.end):
        if inner.wire_type == _BYTES and inner.number in texts:
            texts[inner.number] = text(view, inner)
    return texts[1], texts[2]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"external data begins or ends at {text[:40]!r}, which is no number", "export it again")
    return int(text)


def text(view: memoryview, field: Field) -> str:
    """The characters that a field of bytes holds."""
    return bytes(view[field.value : field.end]).decode("utf-8", "replace")


def fields(view: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between `start` and `end`. Raises ModelError where the bytes are none."""
    at = start
    while at < end:
        tag, at = _varint(view, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _varint(view, at, end)
            yield Field(number, wire_type, value, at)
            continue
        if wire_type == _BYTES:
            size, at = _varint(view, at, end)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise _damaged()
        if size > end - at or number == 0:
            raise _damaged()
        yield Field(number, wire_type, at, at + size)
        at += size


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise _damaged()


def _damaged() -> ModelError:
    return ModelError("the graph is damaged: its bytes are no protocol buffer", "copy or export it again")
