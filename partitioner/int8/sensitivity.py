"""Which layers eight bits hurt: the noise that each adds by itself, without running anything but the calibration.

    noise of a product ~ noise of its input / signal of it + noise of its weights / signal of them

to first order, the two being independent; what it does to the outputs is measured by the search, layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from partitioner.graph.split import values_of
from partitioner.graph.topology import Topology
from partitioner.int8.calibration import Histogram, sqnr_db
from partitioner.int8.recipes import HEAVY, Layer
from partitioner.int8.rounding import channel_axis
from protocol.tensors import Array


def layers_of(topology: Topology) -> tuple[Layer, ...]:
    """Every product with the lighter steps that follow it; a step behind two products belongs to the later one.

    What precedes all products belongs to no layer, and neither does what depends on no input.
    """
    after: dict[str, int] = {}
    members: dict[int, list[int]] = {}
    for i in topology.live_steps:
        step = topology.steps[i]
        layer = i if step.op in HEAVY else max((after.get(n, -1) for n in step.inputs), default=-1)
        after.update(dict.fromkeys(step.outputs, layer))
        if layer >= 0:
            members.setdefault(layer, []).append(i)
    steps = topology.steps
    return tuple(
        Layer(steps[i].name, steps[i].op, tuple(steps[j].name for j in group), sum(topology.work[j] for j in group))
        for i, group in sorted(members.items())
    )


def own_noise(model: ir.Model, histograms: Mapping[str, Histogram], *, per_channel: bool = True) -> dict[str, float]:
    """SQNR in dB of each product's operands in eight bits (MinMax), by node name; infinite where none is known."""
    names = {node.name: node for node in model.graph if node.op_type in HEAVY}
    values = values_of(model)
    return {name or "": _product_db(node, values, histograms, per_channel) for name, node in names.items()}


def _product_db(
    node: ir.Node, values: Mapping[str, ir.Value], histograms: Mapping[str, Histogram], per_channel: bool
) -> float:
    powers = []
    for place, value in enumerate(node.inputs[:2]):
        name = "" if value is None else value.name or ""
        if value is None or name not in values:
            continue
        if value.const_value is not None:
            powers.append(
                _weight_noise(value.const_value.numpy(), channel_axis(node) if per_channel and place else None)
            )
        elif name in histograms:
            histogram = histograms[name]
            powers.append(10.0 ** (-sqnr_db(histogram, histogram.low, histogram.high) / 10.0))
    total = sum(powers)
    return -10.0 * math.log10(total) if total > 0.0 else math.inf


def _weight_noise(weight: Array, axis: int | None) -> float:
    """Noise over signal of symmetric int8 weights, with one scale or one for each channel."""
    exact = weight.astype(np.float64)
    others = None if axis is None else tuple(i for i in range(exact.ndim) if i != axis % exact.ndim)
    largest = np.abs(exact).max(axis=others, keepdims=True, initial=0.0)
    step = np.where(largest > 0.0, largest / 127.0, 1.0)
    error = exact - np.rint(exact / step) * step
    signal = float(np.square(exact).sum())
    return float(np.square(error).sum()) / signal if signal > 0.0 else 0.0
