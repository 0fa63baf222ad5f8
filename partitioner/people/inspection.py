"""`partitioner inspect`: what a model takes and gives, and where it could be cut, without building anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from partitioner.graph import inputs
from partitioner.graph.cuts import prefix_candidates
from partitioner.graph.model import LoadedModel, load
from partitioner.judging import data
from partitioner.judging.observe import observed_topology
from protocol.errors import InputError
from protocol.tensors import TensorSpec


class CutLine(msgspec.Struct, frozen=True):
    """One candidate: crossing tensors, estimated share of the compute before it, 8-bit bytes before entropy coding."""

    cut: tuple[str, ...]
    share: float
    wire_nbytes: int | None


class Inspection(msgspec.Struct, frozen=True):
    name: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    input_nbytes: int | None
    cuts: tuple[CutLine, ...]
    notes: tuple[str, ...]


def inspect(path: Path, declared: Sequence[str] = ()) -> Inspection:
    """Load a model, with its `declared` image inputs, and list its candidate cuts. Raises InputError or ModelError."""
    model = load(path, inputs=inputs.parse(declared))
    try:
        samples = data.random(model.inputs, count=1)
        model = replace(model, topology=observed_topology(model, samples))
        input_nbytes: int | None = sum(a.nbytes for a in samples.arrays.values())
    except InputError:  # free dimensions: sizes stay as far known as the file states them
        input_nbytes = None
    return _inspection(model, input_nbytes)


def _inspection(model: LoadedModel, input_nbytes: int | None) -> Inspection:
    return Inspection(
        name=model.name,
        opset=model.opset,
        inputs=model.inputs,
        outputs=model.outputs,
        nodes=len(model.topology.steps),
        input_nbytes=input_nbytes,
        cuts=tuple(CutLine(c.cut, c.share, c.wire_nbytes) for c in prefix_candidates(model.topology)),
        notes=model.notes,
    )
