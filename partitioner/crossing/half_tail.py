"""A graph computed in half precision: what TensorRT runs in FP16 is what the graph itself says, in float16.

    tail.onnx (float32) -> convert -> judged on held-out samples like every other precision -> tail in float16

    t (uint8) -> Cast -> Sub -> Mul -> Cast -> ... layers in float16 ... -> Cast -> outputs
                 `--- in float32 ---'

Why here and not on the gateway: whether half precision holds is a question about data, which only the workbench has;
what a gateway runs was hashed and signed before; and the conversion needs `onnx`, which a gateway does not have. Inputs
and outputs keep their element types, so that nothing else changes with it. Operators without a float16 form are left in
float32 between Casts. So is what decodes integers at an input: a scale rounded to 11 bits would move every value of a
channel the same way, and one below 6e-5 would lose more bits still; codes decoded exactly are rounded once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from partitioner.crossing.half_rounding import rounded
from partitioner.judging import verify
from partitioner.judging.data import Samples
from protocol.errors import AccuracyRefusedError, ModelError
from protocol.graphs import external_of

MOST_NBYTES = 2_000_000_000
_Proto = TypeVar("_Proto", onnx.ValueInfoProto, onnx.NodeProto, onnx.TensorProto)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


def in_half(graph: bytes) -> bytes:
    """The graph with its inside in float16, its inputs and outputs as they are. Raises ModelError."""
    proto = _whole(graph)
    try:
        proto = onnx.shape_inference.infer_shapes(proto)
        decodes = [_taken_off(proto.graph, decode) for decode in _decodes(proto.graph)]
        half = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=False)
        for decode in decodes:
            _put_back(half.graph, decode)
        _sort(half.graph)
        del half.graph.value_info[:]  # what it notes of types is not right everywhere
        data: bytes = onnx.shape_inference.infer_shapes(half).SerializeToString(deterministic=True)
    except ModelError:
        raise
    except Exception as error:  # they raise bare exceptions of any kind
        raise ModelError(
            f"the graph cannot be computed in float16 ({type(error).__name__}: {str(error)[:200]})", "it stays float32"
        ) from error
    return data


def judged_half(graph: bytes, samples: Samples, *, bound: float) -> tuple[bytes, float, str]:
    """A whole model in float16, with what it achieves on the held-out samples, and by which metric.

    Raises AccuracyRefusedError when that is worse than `bound` allows, ModelError when it cannot be converted.
    """
    exact = verify.run_all(graph, samples, samples.held_out)
    stick = verify.yardstick(exact, samples, next(iter(exact[0])), bound)
    half = in_half(graph)
    achieved, holds = stick.judge(verify.run_all(rounded(half), samples, samples.held_out))
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


# ---- what decodes integers, which stays float32 ---------------------------------------------------------------------


class _Decode(NamedTuple):
    """The nodes from an integer input to the floats that it stands for."""

    at: int  # which input of the graph
    entry: onnx.ValueInfoProto
    nodes: list[onnx.NodeProto]
    weights: list[onnx.TensorProto]


def _decodes(graph: onnx.GraphProto) -> list[_Decode]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in _reads(node):
            readers[name].append(node)
    weights = {w.name: w for w in graph.initializer}
    outputs = {value.name for value in graph.output}
    found = []
    for at, entry in enumerate(graph.input):
        nodes: list[onnx.NodeProto] = []
        name = entry.name
        while name not in outputs and len(readers[name]) == 1 and _decodes_on(readers[name][0], name, weights, nodes):
            nodes.append(readers[name][0])
            name = nodes[-1].output[0]
        if nodes and name not in outputs:
            constants = [weights[n] for node in nodes for n in dict.fromkeys(node.input) if n in weights]
            found.append(_Decode(at, entry, nodes, constants))
    return found


def _decodes_on(
    node: onnx.NodeProto, name: str, weights: dict[str, onnx.TensorProto], so_far: Sequence[object]
) -> bool:
    """Whether `node` is the next step from an integer to what it stands for."""
    if not so_far:
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        return node.op_type == "Cast" and to == onnx.TensorProto.FLOAT
    return node.op_type in _ARITHMETIC and all(other == name or other in weights for other in node.input)


def _taken_off(graph: onnx.GraphProto, decode: _Decode) -> _Decode:
    """Let the graph begin with the decoded floats. Returns the decode, safe from what becomes of the graph."""
    kept = _Decode(decode.at, _copy(decode.entry), [_copy(n) for n in decode.nodes], [_copy(w) for w in decode.weights])
    known = {value.name: value for value in graph.value_info}
    floats = known.get(decode.nodes[-1].output[0], decode.entry)
    entry = graph.input[decode.at]
    entry.type.CopyFrom(floats.type)
    entry.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    entry.name = decode.nodes[-1].output[0]
    own = {node.output[0] for node in decode.nodes} | {weight.name for weight in decode.weights}
    left = [value for value in graph.value_info if value.name not in own]  # else the converter calls them float16
    del graph.value_info[:]
    graph.value_info.extend(left)
    for node in decode.nodes:
        graph.node.remove(node)
    return kept


def _put_back(graph: onnx.GraphProto, decode: _Decode) -> None:
    graph.input[decode.at].CopyFrom(decode.entry)
    read = {name for node in graph.node for name in _reads(node)}
    left = [weight for weight in graph.initializer if weight.name in read]
    named = {}
    for weight in decode.weights:  # what others read as well is float16 by now
        named[weight.name] = f"{weight.name}/exact" if weight.name in read else weight.name
        weight.name = named[weight.name]
    for node in decode.nodes:
        node.input[:] = [named.get(name, name) for name in node.input]
    del graph.initializer[:]
    graph.initializer.extend([*left, *{weight.name: weight for weight in decode.weights}.values()])
    graph.node.extend(decode.nodes)


def _copy(message: _Proto) -> _Proto:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


# ---- order ----------------------------------------------------------------------------------------------------------


def _sort(graph: onnx.GraphProto) -> None:
    """Order nodes so that each comes once, after what it reads: the converter appends its Casts at the end."""
    known = {i.name for i in graph.input} | {w.name for w in graph.initializer} | {""}
    # It also casts a tensor once for each operator that stays in float32 and reads it, under one name.
    waiting = list({(node.op_type, *node.output): node for node in graph.node}.values())
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
