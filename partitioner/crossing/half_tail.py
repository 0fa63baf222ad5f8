"""A graph computed in half precision: what TensorRT runs in FP16 is what the graph itself says, in float16.

    tail.onnx (float32) -> convert -> judged on held-out samples like every other precision -> tail in float16

Why here and not on the gateway: whether half precision holds is a question about data, which only the workbench has;
what a gateway runs was hashed and signed before; and the conversion needs `onnx`, which a gateway does not have. Inputs
and outputs keep their element types, so that nothing else changes with it. Operators without a float16 form are left in
float32 between Casts.
"""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from partitioner.judging import verify
from partitioner.judging.data import Samples
from protocol.errors import AccuracyRefusedError, ModelError
from protocol.graphs import external_of

MOST_NBYTES = 2_000_000_000


def in_half(graph: bytes) -> bytes:
    """The graph with its inside in float16, its inputs and outputs as they are. Raises ModelError."""
    proto = _whole(graph)
    try:
        half = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=False)
    except Exception as error:  # it raises bare exceptions of any kind
        raise ModelError(
            f"the graph cannot be computed in float16 ({type(error).__name__}: {str(error)[:200]})", "it stays float32"
        ) from error
    _sort(half.graph)
    data: bytes = half.SerializeToString(deterministic=True)
    return data


def judged_half(graph: bytes, samples: Samples, *, bound: float) -> tuple[bytes, float, str]:
    """A whole model in float16, with what it achieves on the held-out samples, and by which metric.

    Raises AccuracyRefusedError when that is worse than `bound` allows, ModelError when it cannot be converted.
    """
    exact = verify.run_all(graph, samples, samples.held_out)
    stick = verify.yardstick(exact, samples, next(iter(exact[0])), bound)
    half = in_half(graph)
    achieved, holds = stick.judge(verify.run_all(half, samples, samples.held_out))
    if not holds:
        raise AccuracyRefusedError(
            f"in float16 the model has {stick.metric} {achieved:.4f}, and {stick.bound:.4f} is the least to accept",
            "serve it in float32, or raise the bound",
        )
    return half, achieved, stick.metric


def _whole(graph: bytes) -> onnx.ModelProto:
    """The graph with the weights that lie beside it inside: in half precision they take half the room."""
    proto = onnx.load_model_from_string(graph)
    external = external_of(graph)
    if sum(memoryview(data).nbytes for data in external.values()) > MOST_NBYTES:
        raise ModelError("the graph's weights are too large for one protocol buffer", "it stays float32")
    for weight in proto.graph.initializer:
        if weight.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in weight.external_data}
        start = int(entries.get("offset", "0"))
        data = memoryview(external[entries["location"]]).cast("B")[start:]
        weight.raw_data = bytes(data[: int(entries["length"])] if "length" in entries else data)
        del weight.external_data[:]
        weight.data_location = onnx.TensorProto.DEFAULT
    return proto


def _sort(graph: onnx.GraphProto) -> None:
    """Order nodes so that each comes after what it reads: the converter appends its Casts at the end."""
    known = {i.name for i in graph.input} | {w.name for w in graph.initializer} | {""}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    made_here = {name for node in waiting for name in node.output}
    while waiting:
        ready = [n for n in waiting if all(name in known or name not in made_here for name in _reads(n))]
        if not ready:
            raise ModelError("the converted graph has a cycle", "it stays float32")
        for node in ready:
            known.update(node.output)
        taken = {id(node) for node in ready}
        ordered += ready
        waiting = [node for node in waiting if id(node) not in taken]
    del graph.node[:]
    graph.node.extend(ordered)


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, the captures of its bodies too."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            for inner in body.node:
                names |= _reads(inner)
    return names
