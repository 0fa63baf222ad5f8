"""Which sets of tensors separate input from output, and what then lies on either side. Pure: names in, names out.

    head = the steps that the crossing tensors need, and outputs that no crossing tensor feeds
    tail = the steps that the remaining outputs need, walking backwards and stopping at the crossing tensors

A cut is right when that backward walk meets nothing else that is live. Steps that depend on no input are on both sides.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from partitioner.topology import Topology
from protocol.errors import InputError, ModelError

# More tensors than this in one cut was never worth sending on the networks measured, and every one costs a header.
MAX_CROSSING = 4


class Sides(NamedTuple):
    """A cut that separates. Step indices; `head_outputs` are model outputs that are made before the cut."""

    cut: tuple[str, ...]
    head_steps: frozenset[int]
    tail_steps: frozenset[int]
    head_outputs: tuple[str, ...]
    tail_outputs: tuple[str, ...]


class Candidate(NamedTuple):
    """A cut met on the way from input to output; `share` of the estimated compute lies before it."""

    cut: tuple[str, ...]
    share: float
    wire_nbytes: int | None


def resolve(topology: Topology, names: Iterable[str]) -> tuple[str, ...]:
    """Tensor names for what a person wrote: a tensor's name first, else a node's name (then all its outputs).

    Raises InputError for an unknown name, naming the nearest.
    """
    nodes = {step.name: step.outputs for step in topology.steps}
    found: list[str] = []
    for name in (n.strip() for n in names):
        if name in topology.producer or name in topology.inputs:
            found.append(name)
        elif name in nodes:
            found.extend(o for o in nodes[name] if o)
        else:
            raise InputError(f"the model has no tensor or node {name!r}", _nearest(name, [*topology.producer, *nodes]))
    return tuple(dict.fromkeys(found))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    listing = "`partitioner inspect MODEL` lists the candidates"
    return f"did you mean {near[0]!r}? {listing}" if near else listing


def separate(topology: Topology, cut: Sequence[str]) -> Sides:
    """Split the steps at `cut` (tensor names). Raises ModelError naming the tensors that make it no cut."""
    _check_crossing(topology, cut)
    head_steps = _needed(topology, cut, stop=frozenset())
    made_before = {name for i in head_steps for name in topology.steps[i].outputs} & topology.live
    walk = _Walk(topology, frozenset(cut), made_before)
    head_outputs, tail_outputs, tail_steps = [], [], set[int]()
    for output in topology.outputs:
        steps, met, leaks = walk.back_from(output)
        # A crossing tensor that is also a model output is simply returned by the head.
        if output in cut or not met:
            head_outputs.append(output)
        elif leaks:
            _refuse_leaks(cut, leaks)
        else:
            tail_outputs.append(output)
            tail_steps |= steps
    _check_all_used(topology, cut, tail_steps, tail_outputs)
    head_steps |= _needed(topology, head_outputs, stop=frozenset())
    return Sides(tuple(cut), frozenset(head_steps), frozenset(tail_steps), tuple(head_outputs), tuple(tail_outputs))


def prefix_candidates(topology: Topology, *, max_crossing: int = MAX_CROSSING) -> list[Candidate]:
    """The distinct cuts between consecutive live steps, from input to output.

    Cuts of more than `max_crossing` tensors are left out, and so are the two ends: full-cloud and edge-only are
    placements of every bundle anyway.
    """
    steps = topology.steps
    last_use = {name: i for i, step in enumerate(steps) for name in step.inputs}
    total = sum(topology.work) or 1.0
    open_names = [n for n in topology.inputs if n in last_use]
    done = 0.0
    seen: set[tuple[str, ...]] = set()
    found: list[Candidate] = []
    for i in topology.live_steps:
        done += topology.work[i]
        open_names = [n for n in [*open_names, *steps[i].outputs] if last_use.get(n, -1) > i and n in topology.live]
        cut = tuple(open_names)
        if 0 < len(cut) <= max_crossing and cut not in seen and not set(cut) <= set(topology.inputs):
            seen.add(cut)
            found.append(Candidate(cut, done / total, _sum(topology.wire_nbytes(n) for n in cut)))
    return [c for c in found if _separates(topology, c.cut)]


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(n for n in known if n is not None)


def _separates(topology: Topology, cut: tuple[str, ...]) -> bool:
    try:
        separate(topology, cut)
    except ModelError:
        return False
    return True


def _check_crossing(topology: Topology, cut: Sequence[str]) -> None:
    if not cut:
        raise InputError("the cut names no tensor", "write --cut TENSOR[,TENSOR...]")
    for name in cut:
        if name not in topology.live:
            raise ModelError(
                f"tensor {name!r} does not depend on the model's input", "it is on both sides already; leave it out"
            )
    if set(cut) <= set(topology.inputs):
        raise ModelError(
            f"cut {_quoted(cut)} is the model's input, and that placement (full-cloud) is in every bundle",
            "cut behind at least one node",
        )


def _check_all_used(topology: Topology, cut: Sequence[str], tail_steps: set[int], tail_outputs: list[str]) -> None:
    if not tail_outputs:
        raise ModelError(
            f"no output is computed from {_quoted(cut)} alone, so the tail would be empty",
            "that placement (edge-only) is in every bundle; cut earlier",
        )
    read = {name for i in tail_steps for name in topology.steps[i].inputs}
    unused = [name for name in cut if name not in read]
    if unused:
        raise ModelError(f"the tail does not use {_quoted(unused)}", "leave it out of --cut")


def _refuse_leaks(cut: Sequence[str], leaks: list[str]) -> None:
    word = "crosses" if len(leaks) == 1 else "cross"
    raise ModelError(
        f"cut {_quoted(cut)} does not separate input from output: {_quoted(leaks)} also {word}",
        f"use --cut {','.join([*cut, *leaks])}",
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(n) for n in names)


def _needed(topology: Topology, names: Iterable[str], *, stop: frozenset[str]) -> set[int]:
    """Indices of all steps needed to compute `names`, not looking behind `stop`."""
    needed: set[int] = set()
    pending = [n for n in names if n not in stop]
    while pending:
        i = topology.producer.get(pending.pop())
        if i is not None and i not in needed:
            needed.add(i)
            pending.extend(n for n in topology.steps[i].inputs if n not in stop)
    return needed


class _Walk:
    """Walks back from an output; what is live and was made before the cut, or is a model input, has leaked."""

    def __init__(self, topology: Topology, cut: frozenset[str], made_before: set[str]) -> None:
        self._topology = topology
        self._cut = cut
        self._leaky = (made_before | set(topology.inputs)) - cut

    def back_from(self, output: str) -> tuple[set[int], set[str], list[str]]:
        """Steps walked, crossing tensors met, and what leaked (in the order of the graph)."""
        steps: set[int] = set()
        met: set[str] = set()
        leaks: set[str] = set()
        pending, seen = [output], {output}
        while pending:
            name = pending.pop()
            if name in self._cut:
                met.add(name)
            elif name in self._leaky:
                leaks.add(name)
            elif (i := self._topology.producer.get(name)) is not None:
                steps.add(i)
                fresh = [n for n in self._topology.steps[i].inputs if n not in seen]
                seen.update(fresh)
                pending.extend(fresh)
        order = {n: i for i, n in enumerate([*self._topology.inputs, *self._topology.producer])}
        return steps, met, sorted(leaks, key=order.__getitem__)
