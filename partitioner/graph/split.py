"""Cuts one graph in two with onnx-ir: the head keeps the model's inputs, the tail takes the crossing tensors as inputs.

Each half is a clone of the whole graph that is told what its inputs and outputs are and then loses what it does not
need. Captures of If, Loop and Scan bodies survive that, since a use inside a body is a use like any other, and what
depends on no input lands on both sides (`onnx.utils.extract_model` breaks on the former: measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from partitioner.graph.cuts import Sides
from partitioner.graph.model import LoadedModel, reinfer, serialise, subgraphs_of
from partitioner.graph.topology import TensorInfo, Topology
from protocol.tensors import DTYPES


class Halves(NamedTuple):
    """Head and tail as onnx-ir models, both still in full precision."""

    head: ir.Model
    tail: ir.Model


def split(model: LoadedModel, sides: Sides) -> Halves:
    """Build both halves of a cut that `cuts.separate` accepted; tensors keep their names."""
    crossing_and_outputs = dict.fromkeys([*sides.cut, *sides.head_outputs])
    return Halves(_head(model, sides, list(crossing_and_outputs)), _tail(model, sides))


def clone(model: ir.Model) -> ir.Model:
    """An independent copy of the graph; the weights' bytes are shared."""
    return ir.Model(model.graph.clone(), ir_version=model.ir_version, producer_name="isthmus")


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """The values of the main graph by name."""
    graph = model.graph
    listed = [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]
    return {v.name: v for v in listed if v.name}


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that computes exactly the tensors `names`."""
    copy = clone(model)
    _set_outputs(copy, names)
    return copy


def free_axes(model: ir.Model, axes: dict[str, int]) -> bytes:
    """Serialise with the given axis of each input left free ("N"), and every shape that rested on it inferred anew."""
    copy = clone(model)
    for value in copy.graph.inputs:
        axis = axes.get(value.name or "")
        if axis is not None and value.shape is not None:
            dims = [d if isinstance(d, int) else d.value for d in value.shape]
            value.shape = ir.Shape([*dims[:axis], "N", *dims[axis + 1 :]])
    for node in copy.graph.all_nodes():
        for output in node.outputs:
            output.shape = None
    return reinfer(serialise(copy))


def _head(model: LoadedModel, sides: Sides, outputs: list[str]) -> ir.Model:
    copy = with_outputs(model.graph, outputs)
    _keep_only(copy, {model.topology.steps[i].name for i in sides.head_steps})
    return copy


def _tail(model: LoadedModel, sides: Sides) -> ir.Model:
    copy = clone(model.graph)
    values = values_of(copy)
    _set_outputs(copy, sides.tail_outputs)
    entries = [_entry(values[name], model.topology) for name in sides.cut]
    copy.graph.inputs.extend(entries)
    _keep_only(copy, {model.topology.steps[i].name for i in sides.tail_steps})
    copy.graph.inputs[:] = entries
    return copy


def _entry(value: ir.Value, topology: Topology) -> ir.Value:
    """A graph input that takes the place of `value` under its name; what inference left open was seen in a run."""
    name = value.name or ""
    seen = topology.tensors.get(name, TensorInfo(None, None))
    entry = ir.Value(name=name, type=value.type, shape=value.shape)
    if entry.type is None and seen.dtype is not None:
        entry.dtype = ir.DataType.from_numpy(DTYPES[seen.dtype])
    if entry.shape is None and seen.shape is not None:
        entry.shape = ir.Shape([None] * len(seen.shape))
    value.name = f"{name}/before_cut"
    value.replace_all_uses_with(entry)
    return entry


def _set_outputs(model: ir.Model, names: Sequence[str]) -> None:
    values = values_of(model)
    model.graph.outputs[:] = [values[name] for name in names]


def _keep_only(model: ir.Model, names: set[str]) -> None:
    """Remove all other nodes, last first, and then the initializers that nothing uses."""
    graph = model.graph
    for node in reversed(list(graph)):
        if node.name not in names:
            _release_captures(node)
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _release_captures(node: ir.Node) -> None:
    """A removed If or Loop would go on using what its bodies captured."""
    for attribute in node.attributes.values():
        for subgraph in subgraphs_of(attribute):
            for inner in subgraph.all_nodes():
                for i in range(len(inner.inputs)):
                    inner.replace_input_with(i, None)
