"""Cuts one graph in two with onnx-ir: the head keeps the model's inputs, the tail takes the crossing tensors as inputs.

Each half is a copy of the steps on its side and of the constants that they read, and costs no more than its own size.
What bodies of If, Loop and Scan capture counts as read by their step, and what depends on no input lands on both sides
(`onnx.utils.extract_model` breaks on the former: measured).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import onnx_ir as ir

from partitioner.graph.cuts import Sides
from partitioner.graph.model import LoadedModel, reinfer, serialise
from partitioner.graph.topology import TensorInfo, Topology
from protocol.tensors import DTYPES


class Halves(NamedTuple):
    """Head and tail as onnx-ir models, both still in full precision."""

    head: ir.Model
    tail: ir.Model


def split(model: LoadedModel, sides: Sides) -> Halves:
    """Build both halves of a cut that `cuts.separate` accepted; tensors keep their names."""
    crossing_and_outputs = list(dict.fromkeys([*sides.cut, *sides.head_outputs]))
    return Halves(_part(model, model.topology.inputs, crossing_and_outputs, sides.head_steps), _tail(model, sides))


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


def with_inputs(
    tail: ir.Model, names: Collection[str], enter: Callable[[ir.Model, str, ir.Value], tuple[ir.Value, ir.Value]]
) -> ir.Model:
    """A copy of the tail whose inputs `names` arrive in another form.

    `enter` is given the copy, the name and the input as it was; it returns what enters under that name instead, and the
    value made of it that the tail goes on with.
    """
    copy = clone(tail)
    for i, entry in enumerate(list(copy.graph.inputs)):
        name = entry.name or ""
        if name in names:
            entry.name = f"{name}/replaced"
            fresh, value = enter(copy, name, entry)
            entry.replace_all_uses_with(value, replace_graph_outputs=True)
            copy.graph.inputs[i] = fresh
    copy.graph.sort()
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


def _tail(model: LoadedModel, sides: Sides) -> ir.Model:
    copy = _part(model, sides.cut, sides.tail_outputs, sides.tail_steps)
    entries = {entry.name: entry for entry in copy.graph.inputs}
    for entry in entries.values():
        _describe(entry, model.topology)
    for value in [o for node in copy.graph for o in node.outputs if o.name in entries]:
        # A step that the tail recomputes for its other output: this one has crossed.
        entry = entries[value.name]
        value.name = f"{entry.name}/before_cut"
        value.replace_all_uses_with(entry)
    return copy


def _part(model: LoadedModel, inputs: Sequence[str], outputs: Sequence[str], steps: Collection[int]) -> ir.Model:
    """A copy of `steps` (indices) alone, from the tensors `inputs` to `outputs`; the bytes of weights are shared."""
    whole, values = model.graph.graph, values_of(model.graph)
    kept = [model.topology.steps[i] for i in steps]
    names, needed = {step.name for step in kept}, {*outputs}.union(*(step.inputs for step in kept))
    view = ir.GraphView(
        [values[name] for name in inputs],
        [values[name] for name in outputs],
        nodes=[node for node in whole if node.name in names],
        initializers=[value for name, value in whole.initializers.items() if name in needed],
        doc_string=whole.doc_string,
        opset_imports=dict(whole.opset_imports),
        name=whole.name,
    )
    return ir.Model(view.clone(), ir_version=model.graph.ir_version, producer_name="isthmus")


def _describe(entry: ir.Value, topology: Topology) -> None:
    """Say what shape inference left open about a tensor that enters the tail: it was seen in a run."""
    seen = topology.tensors.get(entry.name or "", TensorInfo(None, None))
    if entry.type is None and seen.dtype is not None:
        entry.dtype = ir.DataType.from_numpy(DTYPES[seen.dtype])
    if entry.shape is None and seen.shape is not None:
        entry.shape = ir.Shape([None] * len(seen.shape))


def _set_outputs(model: ir.Model, names: Sequence[str]) -> None:
    values = values_of(model)
    model.graph.outputs[:] = [values[name] for name in names]
