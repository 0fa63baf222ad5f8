"""Whether TensorRT takes a graph, in one sentence before it sees it; and the profiles an engine is built with. Pure.

TensorRT's own words for what it does not take are assertions of its source. What it refuses, or takes and computes
otherwise than it is written, was tried out with TensorRT-RTX 1.7.1 (`docs/tensorrt.md` lists every case):

- DequantizeLinear from uint8, from int32 (biases), or with a zero point other than 0: only symmetric int8 is taken.
  Eight bits that cross a cut are therefore decoded by Cast, Sub, Mul, which takes any zero point.
- a uint8 tensor may be read by Cast and nothing else, and be written by Cast only.
- graphs of integer operators (QLinearConv, MatMulInteger, ...) and of other vendors' domains.
- float64, which it would silently compute in float32; 16-bit and unsigned integers, strings.
- shapes that depend on values: an engine's memory is laid out before it sees any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from protocol.engines.trt_options import GpuError, Span, TrtOptions
from protocol.onnx_outline import (
    BOOL,
    DOUBLE,
    ELEMENT_NAMES,
    FLOAT,
    FLOAT16,
    INT8,
    INT32,
    INT64,
    UINT8,
    Node,
    Outline,
    Value,
    read_outline,
)
from protocol.tensors import TensorSpec
from protocol.wire import Buffer

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # least, best, most

_CROSSING = frozenset({FLOAT, FLOAT16, UINT8, INT8, INT32, INT64, BOOL})
_NEVER = frozenset({4, 5, 8, DOUBLE, 12, 13, 14, 15})
_QUANTISED_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
_SIZED_BY_VALUES = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress"})
# operator -> which of its inputs say how large its output is
_SIZES = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Slice": (1, 2, 3, 4), "TopK": (1,), "Resize": (2, 3),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "OneHot": (1,), "Pad": (1,), "Squeeze": (1,), "Unsqueeze": (1,),
    "Split": (1,), "Upsample": (1,),
}  # fmt: skip
_EXPORT_FLOAT = "export or quantise it with symmetric int8, or serve it with onnxruntime"


def check_graph(model: Buffer) -> Outline:
    """The outline of a graph that nothing is known against.

    Raises GpuError ("unsupported-graph") with the first reason and how many more there are; ModelError when the bytes
    are no graph.
    """
    outline = read_outline(model)
    reasons = list(refusals(outline))
    if reasons:
        fact, remedy = reasons[0]
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise GpuError(f"TensorRT does not take this graph: {fact}{more}", remedy, cause="unsupported-graph")
    return outline


def refusals(outline: Outline) -> Iterator[tuple[str, str]]:
    """(fact, remedy) for everything that TensorRT would refuse, or compute otherwise than it is written."""
    yield from _crossing(outline)
    for name, constant in outline.constants.items():
        if constant.element in _NEVER:
            yield f"weight {name!r} is {_named(constant.element)}", "export it in float32 or int64"
    readers = _readers(outline)
    for node in outline.nodes:
        yield from _node(outline, node)
    for tensor in _bytes(outline):
        for reader in readers.get(tensor, ()):
            if reader.op not in ("Cast", "DequantizeLinear"):
                yield f"{reader} reads uint8 tensor {tensor!r}", "let a Cast read it and nothing else"
    yield from _sizes(outline)


def _crossing(outline: Outline) -> Iterator[tuple[str, str]]:
    for kind, values in (("input", outline.inputs), ("output", outline.outputs)):
        for value in values:
            if value.element not in _CROSSING:
                names = ", ".join(ELEMENT_NAMES[n] for n in sorted(_CROSSING))
                yield f"{kind} {value.name!r} is {_named(value.element)}", f"let it be one of {names}"
            elif value.shape is None and kind == "input":
                yield f"input {value.name!r} has no shape", "export it with one"


def _node(outline: Outline, node: Node) -> Iterator[tuple[str, str]]:
    if node.domain and (node.domain, node.op) not in outline.own_functions:
        yield f"{node} is of the domain {node.domain!r}", "export it with ONNX's own operators"
    elif node.op.startswith("QLinear") or node.op in _QUANTISED_OPERATORS:
        yield f"{node} computes in integers (QOperator form)", _EXPORT_FLOAT
    elif node.op in _SIZED_BY_VALUES:
        yield f"the size of what {node} gives depends on values", "cut before it, and let the edge or the caller do it"
    elif node.op in ("DequantizeLinear", "QuantizeLinear"):
        yield from _quantiser(outline, node)
    elif node.op == "Cast" and node.integers.get("to") in _NEVER:
        yield f"{node} casts to {_named(node.integers['to'])}", "export it in float32 or int64"


def _quantiser(outline: Outline, node: Node) -> Iterator[tuple[str, str]]:
    zero = outline.constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    stated = len(node.inputs) > 2 and bool(node.inputs[2])
    element = zero.element if zero else 0
    if node.op == "DequantizeLinear" and not element:
        source = outline.constants.get(node.inputs[0]) if node.inputs else None
        element = source.element if source else next(
            (v.element for v in outline.inputs if node.inputs[:1] == (v.name,)), 0
        )  # fmt: skip
    if not element:
        element = node.integers.get("output_dtype", UINT8 if node.op == "QuantizeLinear" else 0)
    if element == UINT8:
        yield f"{node} has 8-bit codes without a sign (uint8)", _EXPORT_FLOAT
    elif element == INT32:
        yield f"{node} decodes int32 (a quantised bias)", "quantise it without biases"
    elif stated and (zero is None or not zero.is_zero):
        what = "a zero point that is computed" if zero is None else "a zero point other than 0"
        yield f"{node} has {what}", _EXPORT_FLOAT


def _bytes(outline: Outline) -> list[str]:
    """Tensors that are known to be uint8."""
    known = [v.name for v in outline.inputs if v.element == UINT8]
    known += [name for name, constant in outline.constants.items() if constant.element == UINT8]
    return known + [n for node in outline.nodes if node.op == "Cast" and node.integers.get("to") == UINT8
                    for n in node.outputs]  # fmt: skip


def _readers(outline: Outline) -> dict[str, list[Node]]:
    readers: dict[str, list[Node]] = {}
    for node in outline.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers


def _sizes(outline: Outline) -> Iterator[tuple[str, str]]:
    """Operators whose output's size follows from what an input holds, not from how large it is."""
    from_values = {value.name for value in outline.inputs}
    for node in outline.nodes:  # in the order of the graph, which is topological
        for place in _SIZES.get(node.op, ()):
            if place < len(node.inputs) and node.inputs[place] in from_values:
                yield (
                    f"the size of what {node} gives depends on the values of an input",
                    "export it with that input as a constant",
                )
        if node.op not in ("Shape", "Size", "Constant") and not from_values.isdisjoint(node.inputs):
            from_values.update(node.outputs)


def _named(element: int) -> str:
    return ELEMENT_NAMES.get(element, "no tensor" if element == 0 else f"of element type {element}")


# ---- profiles -------------------------------------------------------------------------------------------------------


def specs(values: list[Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a checked graph as the Engine contract tells them; an output without a shape has rank 0."""
    return tuple(TensorSpec(value.name, ELEMENT_NAMES[value.element], value.shape or ()) for value in values)


def profile_shapes(
    outline: Outline, options: TrtOptions, spans: Sequence[Span] | None = None
) -> list[dict[str, Shapes]]:
    """For each profile the least, best and most shape of every input; `spans` are their batch sizes, else the last of
    `options.choices`.

    A free dimension is the batch (`options.batch_axes`, else axis 0, and wherever the same name stands again) or is
    named in `options.free`. Raises GpuError ("unsupported-graph") for one that is neither.
    """
    batch_names = {
        dim
        for value in outline.inputs
        if isinstance(dim := _batch_dim(value, options.batch_axes), str)
    }  # fmt: skip
    profiles = []
    for batch in options.choices()[-1] if spans is None else spans:
        shapes: dict[str, Shapes] = {}
        for value in outline.inputs:
            spans = [
                _span(value, axis, batch, batch_names, options) for axis in range(len(value.shape or ()))
            ]  # fmt: skip
            least, best, most = (tuple(getattr(s, part) for s in spans) for part in ("least", "best", "most"))
            shapes[value.name] = (least, best, most)
        profiles.append(shapes)
    return profiles


def is_batched(outline: Outline, options: TrtOptions) -> bool:
    """Whether any input has a free batch dimension; the others run one size."""
    return any(not isinstance(_batch_dim(value, options.batch_axes), int) for value in outline.inputs)


def _batch_dim(value: Value, axes: Mapping[str, int | None]) -> int | str | None:
    """The size or name of the input's batch dimension; 0 where it has none."""
    axis = axes.get(value.name, 0)
    return value.shape[axis] if axis is not None and value.shape and axis < len(value.shape) else 0


def _span(value: Value, axis: int, batch: Span, batch_names: set[str], options: TrtOptions) -> Span:
    dim = (value.shape or ())[axis]
    if isinstance(dim, int):
        return Span(dim, dim, dim)
    if axis == options.batch_axes.get(value.name, 0) or dim in batch_names:
        return batch
    if dim is not None and dim in options.free:
        return options.free[dim]
    raise GpuError(
        f"input {value.name!r} has the free dimension {dim or '?'} at axis {axis}, for which no size is known",
        "state its least, best and most size, or export the model with a fixed one",
        cause="unsupported-graph",
    )
