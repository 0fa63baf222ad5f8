"""What float16 makes of every value, computed where there is no float16: for judging a graph, never for shipping one.

    half graph       ... -> Conv -> t (float16) ...            the same, judged on a processor

    its witness      ... -> Conv (float32) -> Cast float16 -> Cast float32 -> t ...

A processor has hardly a kernel in float16, so ONNX Runtime casts to float32, computes, and casts back; and where one
operator's cast back meets the next one's cast, it leaves out both. What is judged then was never rounded and cannot
overflow: 1e5 goes through a float16 graph unharmed (seen in 1.31.1), and becomes infinite on a GPU. Here the rounding
is written down, where nothing takes it out: sums are in float32, as in a GPU's matrix units, and what an operator gives
is rounded. Where a GPU fuses operators it rounds less often.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from protocol.errors import ModelError

# They choose or move values, or clip them at constants that are float16 already: nothing is there to be rounded again.
_EXACT = frozenset({
    "Relu", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Gather",
    "MaxPool", "GlobalMaxPool", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Clip", "Max", "Min", "Neg",
    "Abs", "Where", "If", "Loop", "Scan",
})  # fmt: skip


def rounded(half: bytes) -> bytes:
    """A float32 graph with the same inputs and outputs that answers as `half` does where float16 is computed.

    Raises ModelError for a graph whose element types cannot be inferred.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(half), strict_mode=True)
    except Exception as error:  # of several kinds
        raise ModelError(f"the graph in float16 is not consistent ({str(error)[:200]})", "it stays float32") from error
    _widen(proto.graph, is_main=True)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _widen(graph: onnx.GraphProto, *, is_main: bool) -> None:
    """In place. What was float16 is float32 that holds float16's values; at the model's own ends the type stays."""
    entries = [value for value in graph.input if _is_half(value)]
    exits = [value for value in graph.output if _is_half(value)]
    narrow = {value.name for value in (*graph.value_info, *entries, *exits) if _is_half(value)}
    for weight in graph.initializer:
        _widen_tensor(weight)
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    if is_main:
        for value in entries:
            renamed[value.name] = f"{value.name}/wide"
            nodes.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT))
    for node in graph.node:
        _rename(node, renamed)
        _widen_attributes(node)
        nodes.append(node)
        casts = node.op_type == "Cast" and _to(node) == TensorProto.FLOAT16
        for i, name in enumerate(node.output):
            if casts or (name in narrow and node.op_type not in _EXACT):
                wide = f"{name}/exact"
                node.output[i] = wide
                nodes += [
                    _cast(wide, f"{name}/half", TensorProto.FLOAT16),
                    _cast(f"{name}/half", name, TensorProto.FLOAT),
                ]
        if casts:
            _set_to(node, TensorProto.FLOAT)
    if is_main:
        for value in exits:
            inner = f"{value.name}/widened"
            for node in nodes:
                node.output[:] = [inner if name == value.name else name for name in node.output]
                _rename(node, {value.name: inner})
            nodes.append(_cast(inner, value.name, TensorProto.FLOAT16))
    else:
        for value in (*entries, *exits):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    del graph.node[:]
    graph.node.extend(nodes)


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen_tensor(attribute.t)
        if attribute.name == "dtype" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("g"):
            _widen(attribute.g, is_main=False)
        for body in attribute.graphs:
            _widen(body, is_main=False)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """What the node reads, the captures of its bodies too."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            for inner in body.node:
                _rename(inner, names)


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT16)


def _to(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "to"), 0)


def _set_to(node: onnx.NodeProto, element: int) -> None:
    for attribute in node.attribute:
        if attribute.name == "to":
            attribute.i = element


def _cast(source: str, target: str, element: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=element)
