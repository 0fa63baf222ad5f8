"""What runs the heads: ONNX Runtime, whose times are measured here, or TensorRT, which this machine need not have.

Heads for TensorRT are judged by the check that the device makes before it builds a plan, so that what would be refused
there does not ship. This machine's times say nothing about them: ONNX Runtime on a processor takes longer for symmetric
int8 than for float32, a GPU a fraction. So their time is estimated by work.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from partitioner.graph.model import serialise
from partitioner.graph.topology import Topology
from partitioner.int8.recipes import HEAVY, HeadEngine
from protocol.engines.trt_graphs import check_graph
from protocol.engines.trt_options import GpuError
from protocol.onnx_outline import Outline
from protocol.wire import Buffer

# Of a product in float32. A GPU's DP4A, the slowest way it has, does four products of eight bits in the place of one.
EIGHT_BITS = 0.25


def refusal(engine: HeadEngine, head: ir.Model | Buffer, whole: Collection[str] = ()) -> str:
    """Why `engine` does not take the head, in one sentence, or "". Inputs in `whole` have no batch axis."""
    if engine == "onnxruntime":
        return ""
    try:
        return _of_unknown_size(check_graph(serialise(head) if isinstance(head, ir.Model) else head), whole)
    except GpuError as error:
        return error.fact


def estimated_ratio(graph: ir.Model, topology: Topology) -> float:
    """Time of a quantised form of the model over its float32 form's: a product in eight bits counts a quarter."""
    eight = {node.name for node in graph.graph if node.op_type in HEAVY and all(map(_is_decoded, node.inputs[:2]))}
    work = {step.name: topology.work[i] for i, step in enumerate(topology.steps)}
    total = sum(work.values()) or 1.0
    return 1.0 - (1.0 - EIGHT_BITS) * sum(work.get(name or "", 0.0) for name in eight) / total


def _of_unknown_size(outline: Outline, whole: Collection[str]) -> str:
    """A plan is laid out for sizes that are known: only the batch, axis 0 and wherever its name stands, may be free."""
    first = {v.name: v.shape[0] for v in outline.inputs if v.shape and v.name not in whole}
    batch = {dim for dim in first.values() if isinstance(dim, str)}
    for value in outline.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim not in batch and (axis or value.name in whole):
                return f"input {value.name!r} has the free dimension {dim or '?'} at axis {axis}, which is no batch"
    return ""


def _is_decoded(value: ir.Value | None) -> bool:
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"
