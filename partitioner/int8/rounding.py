"""Weights in eight bits: symmetric int8, one scale an output channel or one for all, as DequantizeLinear of codes.

    scale = max |w| / 127        code = round(w / scale)

A channel whose weights are all but zero would get a scale so small that its bias, kept in 32 bits at the scale of input
times weights, overflows: its scale is then as large as the bias needs. One numpy expression a layer: the quantiser goes
channel by channel and takes most of a second for MobileNetV2, and a search rounds the same weights a hundred times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from partitioner.graph.split import clone
from partitioner.int8.recipes import HEAVY, Recipe
from protocol.tensors import Array

_INT32 = 2.0**31 - 2.0


def rounded(
    model: ir.Model,
    recipe: Recipe,
    ranges: Mapping[str, tuple[float, float]],
    left: Collection[str] = (),
) -> ir.Model:
    """A copy whose products, except those named in `left`, read int8 weights through DequantizeLinear.

    Weights that are computed, or no float32, stay as they are.
    """
    copy = clone(model)
    for node in list(copy.graph):
        if node.op_type in HEAVY and node.name not in left and len(node.inputs) > 1:
            _round(copy, node, recipe, ranges)
    for name, value in list(copy.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del copy.graph.initializers[name]
    return copy


def channel_axis(node: ir.Node) -> int:
    """The axis of a product's second operand that counts output channels; -1: the last."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return -1


def initializer(model: ir.Model, name: str, array: Array) -> ir.Value:
    """A new constant of the graph, with the array's own element type."""
    array = np.ascontiguousarray(array)
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.dtype = ir.DataType.from_numpy(array.dtype)
    value.shape = ir.Shape(array.shape)
    model.graph.register_initializer(value)
    return value


def constant(value: ir.Value | None) -> Array | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _round(model: ir.Model, node: ir.Node, recipe: Recipe, ranges: Mapping[str, tuple[float, float]]) -> None:
    exact = constant(node.inputs[1])
    # A transposed convolution in groups counts its output channels over two axes: one scale for all is right there.
    grouped = node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) > 1
    if exact is None or exact.dtype != np.float32 or exact.ndim < 2:
        return
    per_channel = recipe.per_channel and not grouped and (node.op_type != "MatMul" or exact.ndim == 2)
    axis = channel_axis(node) % exact.ndim
    others = tuple(i for i in range(exact.ndim) if i != axis) if per_channel else None
    limit = 64 if recipe.reduce_range else 127
    largest = np.abs(exact).max(axis=others, keepdims=True, initial=0.0).astype(np.float64)
    scale = np.maximum(largest / limit, _least_scale(node, ranges).reshape(-1, *([1] * (exact.ndim - 1 - axis))))
    scale = np.where(scale > 0.0, scale, 1.0) if per_channel else np.max(scale, keepdims=True)
    scale = np.where(scale > 0.0, scale, 1.0).astype(np.float32)
    codes = np.clip(np.rint(exact / scale), -limit, limit).astype(np.int8)
    _read_codes(model, node, codes, scale.reshape(-1) if per_channel else scale.reshape(()), axis)


def _least_scale(node: ir.Node, ranges: Mapping[str, tuple[float, float]]) -> Array:
    """The smallest scale of weights with which the bias fits in 32 bits; one for each channel, or a single zero."""
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.op_type != "MatMul" else None
    entry = node.inputs[0]
    seen = ranges.get(entry.name or "") if entry is not None else None
    if bias is None or bias.ndim != 1 or seen is None:
        return np.zeros(1)
    low, high = seen
    step = (max(high, 0.0) - min(low, 0.0)) / 255.0
    least: Array = np.abs(bias.astype(np.float64)) / (_INT32 * step) if step > 0.0 else np.zeros(1)
    return least


def _read_codes(model: ir.Model, node: ir.Node, codes: Array, scale: Array, axis: int) -> None:
    name = f"{node.name}/weights"
    inputs = [
        initializer(model, f"{name}/codes", codes),
        initializer(model, f"{name}/scale", scale),
        initializer(model, f"{name}/zero_point", np.zeros(scale.shape, np.int8)),
    ]
    output = ir.val(f"{name}/dequantised", ir.DataType.FLOAT, list(codes.shape))
    attributes = {"axis": axis} if scale.ndim else None
    dequantise = ir.node("DequantizeLinear", inputs, attributes, outputs=[output], name=f"{name}/dequantise")
    model.graph.insert_before(node, dequantise)
    node.replace_input_with(1, output)
