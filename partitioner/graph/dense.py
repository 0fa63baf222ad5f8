"""Sparse constants become dense ones, as every runtime makes them when it loads the model.

The intermediate form knows no sparse tensors: it drops them without a word (measured with onnx-ir 1.1).
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from protocol.errors import ModelError

MOST_DENSE_NBYTES = 1 << 30  # a few bytes can describe any size: checked before memory is allocated


def densify(proto: onnx.ModelProto) -> int:
    """Replace sparse initializers and sparse Constants, in bodies and functions too. Returns how many there were.

    Raises ModelError for one that contradicts itself or would be larger than MOST_DENSE_NBYTES.
    """
    count = _in_graph(proto.graph)
    return count + sum(_in_node(node) for function in proto.functions for node in function.node)


def _in_graph(graph: onnx.GraphProto) -> int:
    count = len(graph.sparse_initializer)
    graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
    del graph.sparse_initializer[:]
    return count + sum(_in_node(node) for node in graph.node)


def _in_node(node: onnx.NodeProto) -> int:
    count = 0
    for attribute in node.attribute:
        if attribute.HasField("sparse_tensor"):
            dense = _dense(attribute.sparse_tensor)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
            count += 1
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            count += _in_graph(body)
    return count


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, shape = sparse.values.name, tuple(sparse.dims)
    try:
        values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        elements = math.prod(shape)
        if min(shape, default=0) < 0 or elements * values.itemsize > MOST_DENSE_NBYTES:
            raise ModelError(f"sparse tensor {name!r} of shape {list(shape)} is too large", "export it dense")
        flat = indices if indices.ndim == 1 else _flat(indices, shape)
        if values.ndim != 1 or len(flat) != len(values) or (len(flat) and not 0 <= flat.min() <= flat.max() < elements):
            raise ModelError(f"sparse tensor {name!r} has indices outside its shape {list(shape)}", "export it dense")
    except (ValueError, TypeError, IndexError) as error:
        raise ModelError(f"sparse tensor {name!r} is damaged ({error})", "export it dense") from error
    dense = np.zeros(elements, values.dtype)
    dense[flat] = values
    return numpy_helper.from_array(dense.reshape(shape), name)


def _flat(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Row-major places of [count, rank] coordinates; what is outside the shape becomes -1."""
    if indices.ndim != 2 or indices.shape[1] != len(shape):
        raise ValueError(f"indices of shape {list(indices.shape)}")
    inside = ((indices >= 0) & (indices < np.array(shape))).all(axis=1)
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    return np.where(inside, indices @ strides, -1)
