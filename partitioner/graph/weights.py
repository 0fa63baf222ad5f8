"""Large weights are kept out of protocol buffers, which hold at most 2 GB: they lie beside a small graph.

A model whose weights together exceed a limit has its large ones *set aside* while the graph is checked, converted and
normalised, a graph input standing in for each. They come back as `Weight`s: tensors of the intermediate form like any
other, shared by every copy of the graph, except that `serialise` writes them as files named after their content.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir

from partitioner.graph.external import Place, external_tensors, place_of
from protocol.graphs import Graph, weight_file
from protocol.tensors import Array

MOST_INLINE_NBYTES = 1 << 30  # half of what a protocol buffer can hold: tools on the way double some of it
_LEAST_WEIGHT_NBYTES = 1 << 16  # of a model that exceeds it; smaller tensors stay in the graph


class Weight(ir.Tensor[Array]):
    """A large constant of the main graph. Its bytes are hashed once, however many graphs it is part of."""

    def __init__(self, content: Array, dtype: ir.DataType, shape: tuple[int, ...], name: str) -> None:
        super().__init__(content.view(dtype.numpy()).reshape(shape), dtype, shape=ir.Shape(shape), name=name)
        self.content = content
        self.sizes = shape

    @cached_property
    def location(self) -> str:
        return weight_file(hashlib.sha256(self.content.data).hexdigest())


def set_aside(
    proto: onnx.ModelProto, contents: Mapping[Place, Array], *, most_inline_nbytes: int = MOST_INLINE_NBYTES
) -> dict[str, Weight]:
    """Give external tensors their `contents` and take the large weights out, if all together exceed the limit.

    Changes `proto` in place: in the place of each weight there is then an input of its name.
    """
    total = sum(_nbytes(t) for t in proto.graph.initializer)
    least = min(_LEAST_WEIGHT_NBYTES, most_inline_nbytes)
    large = [t for t in proto.graph.initializer if total > most_inline_nbytes and _can_leave(t, least)]
    weights = {t.name: _weight(t, contents) for t in large}
    if weights:
        kept = [t for t in proto.graph.initializer if t.name not in weights]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        listed = {value.name for value in proto.graph.input}
        types = [onnx.helper.make_tensor_value_info(n, w.dtype.value, w.sizes) for n, w in weights.items()]
        proto.graph.input.extend(t for t in types if t.name not in listed)
    for tensor in external_tensors(proto):
        content = contents[place_of(tensor)]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = content.tobytes()
    return weights


def bring_back(model: ir.Model, weights: Mapping[str, Weight]) -> None:
    """Undo `set_aside` on the normalised model, in place."""
    graph = model.graph
    stand_ins = {v.name: v for v in graph.inputs if v.name in weights}
    graph.inputs[:] = [v for v in graph.inputs if v.name not in weights]
    for name, value in stand_ins.items():
        if value.uses() or value.is_graph_output():
            value.const_value = weights[name or ""]
            graph.register_initializer(value)


def serialise(model: ir.Model) -> bytes:
    """The bytes of a graph; a `protocol.graphs.Graph` where it has large weights."""
    outside = {n: v.const_value for n, v in model.graph.initializers.items() if isinstance(v.const_value, Weight)}
    if not outside:
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    initializers = model.graph.initializers
    try:
        for name, weight in outside.items():
            initializers[name].const_value = _reference(weight, name)
        data = ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for name, weight in outside.items():
            initializers[name].const_value = weight
    return Graph(data, {weight.location: weight.content.data for weight in outside.values()})


def with_weights(proto: onnx.ModelProto, weights: Mapping[str, Weight]) -> bytes:
    """The bytes of a model from which `weights` were set aside, with references in their place."""
    if not weights:
        return bytes(proto.SerializeToString())
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = [v for v in copy.graph.input if v.name not in weights]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(ir.to_proto(_reference(weight, name)) for name, weight in weights.items())
    copy.ir_version = max(copy.ir_version, 4)  # from 4 on initializers need not be inputs
    return Graph(copy.SerializeToString(), {weight.location: weight.content.data for weight in weights.values()})


def _reference(weight: Weight, name: str) -> ir.ExternalTensor:
    shape = ir.Shape(weight.sizes)
    return ir.ExternalTensor(weight.location, 0, weight.content.nbytes, weight.dtype, shape=shape, name=name)


def _can_leave(tensor: onnx.TensorProto, least_nbytes: int) -> bool:
    kind = ir.DataType(tensor.data_type)
    return kind != ir.DataType.STRING and kind.bitwidth % 8 == 0 and _nbytes(tensor) >= least_nbytes


def _weight(tensor: onnx.TensorProto, contents: Mapping[Place, Array]) -> Weight:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        content = contents[place_of(tensor)]
    elif tensor.HasField("raw_data"):
        content = np.frombuffer(tensor.raw_data, np.uint8)
    else:
        content = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).view(np.uint8).reshape(-1)
    return Weight(content, ir.DataType(tensor.data_type), tuple(tensor.dims), tensor.name)


def _nbytes(tensor: onnx.TensorProto) -> int:
    kind = ir.DataType(tensor.data_type)
    return 0 if kind in (ir.DataType.STRING, ir.DataType.UNDEFINED) else math.prod(tensor.dims) * kind.bitwidth // 8
