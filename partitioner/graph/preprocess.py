"""Declared pre-processing becomes nodes in front of the model, so that every placement starts from the uint8 image.

    image uint8 -> Cast -> crop a fraction -> Resize -> crop pixels -> channel order -> Mul, Sub, Div -> the model

The input keeps its name; the tensor that the model then reads is called NAME/prepared. Cast comes first, because
TensorRT takes uint8 as a network input followed by a Cast and nowhere else. What is not needed is left out. Numbers are
float32, and the last three steps are (x * scale - mean) / std as numpy computes it in float32, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from partitioner.graph.canvas import Canvas
from partitioner.graph.inputs import InputSpec, Size
from protocol.errors import ModelError

ANTIALIAS_OPSET = 18  # Resize knows `antialias` from here on
MIN_OPSET = 13  # the normal form's: per-channel QuantizeLinear
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)

Sides = tuple[int | None, int | None]


def least_opset(specs: Sequence[InputSpec]) -> int:
    """The opset that the declared steps need at least."""
    filters = any(spec.resize is not None and spec.interpolation != "linear" for spec in specs)
    return ANTIALIAS_OPSET if filters else MIN_OPSET


def compile_input(model: ir.Model, specs: Sequence[InputSpec]) -> ir.Model:
    """Put the declared steps in front of `model`, in place, and return it.

    A declared input becomes uint8 in the application's layout; its batch dimension stays free or fixed as it was.
    Raises ModelError for an input that the model lacks or that is no image, for steps that do not end in what the model
    takes, and for a model of an opset below `least_opset(specs)`.
    """
    opset = model.graph.opset_imports.get("", 0)
    if specs and opset < least_opset(specs):
        raise ModelError(
            f"the declared pre-processing needs opset {least_opset(specs)} but the model has {opset}",
            f"export it with opset {least_opset(specs)} or newer, or declare interpolation=linear",
        )
    for spec in specs:
        value = _input(model, spec)
        given, canvas = _paint(spec, value, _prefix(model.graph, spec.name))
        if canvas.nodes:
            _put_in_front(model.graph, value, given, canvas)
    return model


def front(model: ir.Model, specs: Sequence[InputSpec]) -> ir.Model:
    """The declared steps alone, from uint8 images called NAME/given to tensors called like the inputs of `model`.

    `model` is the model *before* `compile_input`; with the front one proves that compiled(image) = model(front(image)).
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": least_opset(specs)}, name="pre-processing")
    for spec in specs:
        value = _input(model, spec)
        given, canvas = _paint(spec, value, spec.name)
        given.name = f"{spec.name}/given"
        result = ir.node("Identity", [canvas.at], outputs=[ir.val(spec.name, value.dtype, _copy(value.shape))])
        graph.inputs.append(given)
        for constant in canvas.constants.values():
            graph.register_initializer(constant)
        graph.extend([*canvas.nodes, result])
        graph.outputs.extend(result.outputs)
    return ir.Model(graph, ir_version=8, producer_name="isthmus")


def _put_in_front(graph: ir.Graph, value: ir.Value, given: ir.Value, canvas: Canvas) -> None:
    ir.convenience.replace_all_uses_with(value, canvas.at)
    graph.inputs[graph.inputs.index(value)] = given
    for constant in canvas.constants.values():
        graph.register_initializer(constant)
    graph.insert_before(graph[0], canvas.nodes)


def _input(model: ir.Model, spec: InputSpec) -> ir.Value:
    given = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    found = next((v for v in given if v.name == spec.name), None)
    if found is None:
        names = ", ".join(v.name or "" for v in given)
        raise ModelError(f"the model has no input {spec.name!r}", f"declare one of its own: {names}")
    if found.dtype not in (*_FLOATS, ir.DataType.UINT8) or found.shape is None or len(found.shape) != 4:
        remedy = "an image input has four dimensions, one of them channels, and float or uint8 elements"
        raise ModelError(f"input {_shown(found)} is no image", remedy)
    if any(found is output for output in model.graph.outputs):
        raise ModelError(f"input {spec.name!r} is an output of the model as well", "leave its pre-processing outside")
    return found


def _prefix(graph: ir.Graph, name: str) -> str:
    """What the new tensors' names begin with: the input's name, unless the model has names of that kind already."""
    taken = [v.name or "" for node in graph.all_nodes() for v in node.outputs] + list(graph.initializers)
    while any(other.startswith(f"{name}/") for other in taken):
        name += "_"
    return name


def _paint(spec: InputSpec, value: ir.Value, prefix: str) -> tuple[ir.Value, Canvas]:
    """The new input and everything between it and what the model reads; no nodes where nothing is to be done."""
    layout = _model_layout(spec, value)
    channels = _channels(spec, value, layout)
    wanted = _sides(value, layout)
    given = _given(spec, value, channels, wanted)
    size = spec.size or (None if spec.resize or spec.crop else _size(wanted))
    canvas = Canvas(prefix, given, spec.layout, size)
    is_float = value.dtype != ir.DataType.UINT8
    if is_float:
        canvas.cast(ir.DataType.FLOAT)
    elif not _is_plain(spec):
        raise ModelError(f"input {_shown(value)} takes 8-bit images", "declare no resize, scale, mean or std for it")
    _shape(spec, canvas)
    canvas.lay_out(layout)
    _check_result(spec, canvas, wanted)
    if spec.colour == "bgr":
        canvas.flip_channels()
    _normalise(spec, canvas, channels)
    if is_float and value.dtype != ir.DataType.FLOAT:
        assert value.dtype is not None
        canvas.cast(value.dtype)
    if canvas.nodes:  # named, and of the type and shape that the model declares
        canvas.at.name = f"{prefix}/prepared"
        canvas.at.type, canvas.at.shape = value.type, _copy(value.shape)
    return given, canvas


def _shape(spec: InputSpec, canvas: Canvas) -> None:
    if isinstance(spec.crop, float):
        canvas.crop_fraction(spec.crop)
    if spec.resize is not None:
        canvas.resize(spec.resize, spec.interpolation)
    if isinstance(spec.crop, Size):
        canvas.crop_pixels(spec.crop)


def _normalise(spec: InputSpec, canvas: Canvas, channels: int) -> None:
    steps = (("scale", "Mul", spec.scale, 1.0), ("mean", "Sub", spec.mean, 0.0), ("std", "Div", spec.std, 1.0))
    for name, op, numbers, neutral in steps:
        if len(numbers) not in (1, channels):
            fact = f"{name} of input {spec.name!r} has {len(numbers)} numbers but the image has {channels} channels"
            raise ModelError(fact, "give one number, or one per channel")
        if any(x != neutral for x in numbers):
            form = () if len(numbers) == 1 else (channels, 1, 1) if canvas.layout == "nchw" else (channels,)
            constant = canvas.constant(name, np.array(numbers, np.float32).reshape(form))
            canvas.at = canvas.op(op, f"by_{name}", [canvas.at, constant])


def _model_layout(spec: InputSpec, value: ir.Value) -> str:
    """Where the model's channels are: as declared, or the one axis that can hold them."""
    if spec.model_layout is not None:
        return spec.model_layout
    axes = (("nchw", 1), ("nhwc", 3))
    for counts in ((1, 3), (4,)) if spec.channels is None else ((spec.channels,),):
        found = [layout for layout, axis in axes if _fixed(value, axis) in counts]
        if len(found) == 1:
            return found[0]
    fact = f"input {_shown(value)} does not say which of its dimensions holds the channels"
    raise ModelError(fact, "declare model=nchw or model=nhwc")


def _channels(spec: InputSpec, value: ir.Value, layout: str) -> int:
    stated = _fixed(value, 1 if layout == "nchw" else 3)
    count = stated or spec.channels
    if count is None:
        raise ModelError(f"input {_shown(value)} has a free number of channels", "declare channels=3")
    if spec.channels not in (None, count):
        raise ModelError(f"input {_shown(value)} has {count} channels", f"it cannot take channels={spec.channels}")
    if spec.colour == "bgr" and count != 3:
        raise ModelError(f"input {_shown(value)} has {count} channels", "colour=bgr needs three")
    return count


def _given(spec: InputSpec, value: ir.Value, channels: int, wanted: Sides) -> ir.Value:
    sides: Sides = wanted if spec.resize is None and spec.crop is None else (None, None)
    if spec.size is not None:
        sides = spec.size.height, spec.size.width
    named = [f"{spec.name}.{what}" if n is None else n for n, what in zip(sides, ("height", "width"), strict=True)]
    image = [*named, channels] if spec.layout == "nhwc" else [channels, *named]
    assert value.shape is not None
    return ir.val(spec.name, ir.DataType.UINT8, ir.Shape([value.shape[0], *image]))


def _check_result(spec: InputSpec, canvas: Canvas, wanted: Sides) -> None:
    height, width = ("?" if n is None else str(n) for n in wanted)
    remedy = f"the model takes {height}x{width}"
    if canvas.size is None:
        if _size(wanted) is not None:
            fact = f"the steps declared for input {spec.name!r} leave the picture's size open"
            raise ModelError(fact, f"{remedy}: declare size=HEIGHTxWIDTH, or end with crop={height}x{width}")
        return
    result = canvas.size.height, canvas.size.width
    if any(w not in (None, r) for w, r in zip(wanted, result, strict=True)):
        raise ModelError(f"the steps declared for input {spec.name!r} end in pictures of {canvas.size}", remedy)


def _is_plain(spec: InputSpec) -> bool:
    return spec.resize is None and (spec.scale, spec.mean, spec.std) == ((1.0,), (0.0,), (1.0,))


def _sides(value: ir.Value, layout: str) -> Sides:
    first = 2 if layout == "nchw" else 1
    return _fixed(value, first), _fixed(value, first + 1)


def _size(sides: Sides) -> Size | None:
    height, width = sides
    return None if height is None or width is None else Size(height, width)


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape(list(shape))


def _fixed(value: ir.Value, axis: int) -> int | None:
    dim = value.shape[axis] if value.shape is not None else None
    return dim if isinstance(dim, int) else None


def _shown(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype else "?"
    return f"{value.name}: {dtype} [{', '.join(map(str, value.shape or ()))}]"
