"""Rounded weights shift the mean of what they make; the shift is measured on calibration samples, the bias mended.

    y = W x + b        y' = Wq x + b'        b' = b - mean((Wq - W) x)

(Nagel, van Baalen, Blankevoort, Welling 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
with the mean measured instead of derived.) It costs nothing at run time. Measured on MobileNetV2: logits 14.8 -> 20.6
dB, top-1 agreement with fp32 0.960 -> 0.980.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from partitioner.graph.model import serialise
from partitioner.graph.split import clone
from partitioner.int8.rounding import constant, initializer
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array, Tensors

_POOLED = ("Conv", "ConvTranspose")


def dequantised_weights(quantised: ir.Model) -> dict[str, Array]:
    """Node name -> the float32 weights that its eight bits stand for, where these are constants of a QDQ graph."""
    found: dict[str, Array] = {}
    for node in quantised.graph:
        weight = node.inputs[1] if node.op_type in (*_POOLED, "Gemm") else None
        maker = None if weight is None else weight.producer()
        if maker is not None and maker.op_type == "DequantizeLinear" and _constants(maker):
            found[node.name or ""] = _dequantise(maker)
    return found


def mean_shifts(
    model: ir.Model, weights: Mapping[str, Array], feeds: Iterable[Tensors], *, threads: int = 1
) -> dict[str, Array]:
    """Node name -> float32 [C], by how much the mean of each output channel grows when the node's weights become
    `weights`, its input staying exact. `feeds` are calibration samples.
    """
    twins, names = _differences(model, weights)
    if not names:
        return {}
    sums: dict[str, Array] = {}
    count = 0
    with OrtEngine(serialise(twins), label="bias correction", threads=threads) as engine:
        for feed in feeds:
            made = engine.infer(feed)
            count += 1
            for node, output in names.items():
                sums[node] = sums.get(node, 0.0) + made[output].reshape(-1, made[output].shape[1]).mean(axis=0)
    return {n: (s / count).astype(np.float32) for n, s in sums.items() if np.isfinite(s).all()}


def corrected(model: ir.Model, shifts: Mapping[str, Array], left: Collection[str] = ()) -> ir.Model:
    """A copy whose biases make up for the shifts, except those of the nodes in `left`."""
    copy = clone(model)
    for node in copy.graph:
        shift = shifts.get(node.name or "")
        if shift is not None and node.name not in left:
            _shift_bias(copy, node, shift)
    return copy


def _differences(model: ir.Model, weights: Mapping[str, Array]) -> tuple[ir.Model, dict[str, str]]:
    """A graph that computes (Wq - W) x for every node, averaged over positions; and its output for each node."""
    copy = clone(model)
    outputs: dict[str, ir.Value] = {}
    for node in list(copy.graph):
        exact = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        quantised = weights.get(node.name or "")
        if exact is None or quantised is None or exact.shape != quantised.shape:
            continue
        change = initializer(copy, f"{node.name}/change", (quantised - exact).astype(np.float32))
        value = ir.val(f"{node.name}/changed", ir.DataType.FLOAT)
        copy.graph.append(ir.node(node.op_type, [node.inputs[0], change], node.attributes, outputs=[value]))
        if node.op_type in _POOLED:
            mean = ir.val(f"{node.name}/shift", ir.DataType.FLOAT)
            copy.graph.append(ir.node("GlobalAveragePool", [value], outputs=[mean]))
            value = mean
        outputs[node.name or ""] = value
    copy.graph.outputs[:] = list(outputs.values())
    return copy, {node: value.name or "" for node, value in outputs.items()}


def _shift_bias(model: ir.Model, node: ir.Node, shift: Array) -> None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    exact = np.zeros(len(shift), np.float32) if bias is None else constant(bias)
    scale = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" and bias is not None else 1.0
    if exact is None or exact.shape != shift.shape or not scale:
        return  # a computed or broadcast bias: left as it is
    value = initializer(model, f"{node.name}/corrected_bias", (exact - shift / scale).astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)
    if bias is not None and bias.is_initializer() and not bias.uses() and not bias.is_graph_output():
        del model.graph.initializers[bias.name or ""]


def _constants(dequantise: ir.Node) -> bool:
    return all(v is None or constant(v) is not None for v in dequantise.inputs)


def _dequantise(node: ir.Node) -> Array:
    codes, scale = (np.asarray(constant(v), np.float32) for v in node.inputs[:2])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros(1, np.float32) if zero is None else zero.astype(np.float32)
    if scale.size > 1:
        sides = [1] * codes.ndim
        sides[node.attributes.get_int("axis", 1)] = scale.size
        scale, zero = scale.reshape(sides), np.broadcast_to(zero, scale.shape).reshape(sides)
    weights: Array = (codes - zero.astype(np.float32)) * scale
    return weights
