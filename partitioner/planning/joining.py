"""Tails that end alike, each in two graphs: a bridge of its own, and one suffix to which all bridges lead.

    tail of an early cut   t (codes) -> decode -> its own layers -> s/joined  ~~>  s/joined -> common layers -> outputs
    tail of the latest     s (codes) -> decode ------------------> s/joined  ~~>  the same

The suffix begins at what the latest cut sends, as the whole model computes it, and is its tail before anything was
coded. A gateway may so run the common layers once for requests of several cuts. Whether that pays is for the gateway to
measure; here it is shown that suffix after bridge is the tail, and that both take batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from partitioner.graph.cuts import separate
from partitioner.graph.split import clone, free_axes, split, values_of, with_inputs
from partitioner.judging import batch, verify
from partitioner.judging.verify import Outputs
from partitioner.planning.workshop import Segment, Workshop
from protocol.engines.ort import OrtEngine

JOINED = "/joined"


class Joined(NamedTuple):
    """The bridges by the name of their cut, and the suffix; axes by tensor, `difference` from the tails."""

    bridges: Mapping[str, bytes]
    suffix: bytes
    batch_axes: dict[str, int]
    output_axes: dict[str, int]
    difference: float


class _Half(NamedTuple):
    """One cut: its bridge, what crossed and what its tail answers, for a few samples of one size."""

    bridge: bytes
    joined: list[Outputs]
    answers: list[Outputs]


def join(shop: Workshop, segments: Mapping[str, Segment]) -> Joined | str:
    """The common suffix of two or more of the segments, or in words why there is none."""
    named = {name: s for name, s in segments.items() if s.batch.batchable}
    sides = {name: separate(shop.model.topology, s.cut, on_device=shop.on_device) for name, s in named.items()}
    if len(named) < 2:
        return "fewer than two cuts take batches"
    last = min(sides, key=lambda name: len(sides[name].tail_steps))
    at, tails = sides[last].cut, {name: split(shop.model, side).tail for name, side in sides.items()}
    alike = [
        name
        for name, tail in tails.items()
        if sides[name].tail_outputs == sides[last].tail_outputs and set(at) <= values_of(tail).keys()
    ]
    if len(alike) < 2:
        return f"no other cut reaches {', '.join(at)} on its way to the same outputs"
    axes = {f"{b.spec.name}{JOINED}": b.batch_axis for b in named[last].variants[0].boundary}
    halves: dict[str, _Half] = {}
    for name in alike:
        half = _half(shop, named[name], _until(tails[name], at), axes)
        if isinstance(half, str):
            return f"{name}: {half}"
        halves[name] = half
    suffix, proof = batch.proven_batch(_from(tails[last], at), halves[last].joined, axes)
    if not proof.batchable:
        return f"the suffix takes no batches: {proof.reason}"
    known = {name: axis for name, axis in axes.items() if axis is not None}
    seen = _difference(suffix, halves, known, proof.output_axes)
    if not seen.within:
        return f"suffix after bridge differs from the tails by {seen.seen:.3g}, allowed {seen.allowed:.3g}"
    return Joined({n: half.bridge for n, half in halves.items()}, suffix, known, proof.output_axes, seen.seen)


def _until(tail: ir.Model, at: Sequence[str]) -> ir.Model:
    """What a tail in full precision computes of the tensors `at`."""
    copy = clone(tail)
    values = values_of(copy)
    outputs = []
    for name in at:
        output = ir.val(f"{name}{JOINED}", values[name].dtype, values[name].shape)
        copy.graph.append(ir.node("Identity", [values[name]], outputs=[output], name=output.name))
        outputs.append(output)
    copy.graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(copy)
    return copy


def _from(tail: ir.Model, at: Sequence[str]) -> ir.Model:
    """The tail of the latest cut under the names that bridges give."""

    def enter(_: ir.Model, name: str, entry: ir.Value) -> tuple[ir.Value, ir.Value]:
        fresh = ir.val(f"{name}{JOINED}", entry.dtype, entry.shape)
        return fresh, fresh

    return with_inputs(tail, at, enter)


def _half(shop: Workshop, segment: Segment, way: ir.Model, axes: batch.Axes) -> _Half | str:
    """The bridge that takes what crosses, with the proof that it takes batches; or why it does not, in words."""
    entering = {b.spec.name: b.batch_axis for b in segment.variants[0].boundary if b.batch_axis is not None}
    bridge = free_axes(segment.taking(way), entering)
    with (
        OrtEngine(segment.head, label="head") as head,
        OrtEngine(bridge, label="bridge", optimise=False) as first,
        OrtEngine(segment.tail, label="tail", optimise=False) as tail,
    ):
        made = [head.infer(feed) for feed in batch.alike(shop.samples)]
        crossing = [{name: each[name] for name in segment.cut} for each in made]
        joined, answers = [first.infer(each) for each in crossing], [tail.infer(each) for each in crossing]
    proof = batch.prove(bridge, crossing, entering)
    if not proof.batchable:
        return f"its bridge takes no batches: {proof.reason}"
    return _Half(bridge, joined, answers) if proof.output_axes == axes else "its batch has another axis"


def _difference(
    suffix: bytes, halves: Mapping[str, _Half], axes: Mapping[str, int], output_axes: Mapping[str, int]
) -> verify.Difference:
    """How far suffix after bridge lies from the tails: each request alone, and one of each cut in one batch."""
    with OrtEngine(suffix, label="suffix", optimise=False) as engine:
        alone = [(half.answers, [engine.infer(each) for each in half.joined]) for half in halves.values()]
        firsts = [half.joined[0] for half in halves.values()]
        if any(len({each[name].shape for each in firsts}) > 1 for name in axes):
            return verify.Difference(float("inf"), verify.PARITY_BOUND)
        together = engine.infer({n: np.concatenate([each[n] for each in firsts], axis) for n, axis in axes.items()})
    parts = {n: np.split(array, len(firsts), axis=output_axes[n]) for n, array in together.items()}
    mixed = [{n: parts[n][i] for n in parts} for i in range(len(firsts))]
    alone.append(([half.answers[0] for half in halves.values()], mixed))
    return max((verify.difference(*pair) for pair in alone), key=lambda d: d.seen / d.allowed)
