"""Which sets of tensors separate input from output, and what then lies on either side. Pure: names in, names out.

    head = the steps that the crossing tensors need, and outputs that no crossing tensor feeds
    tail = the steps that the remaining outputs need, walking backwards and stopping at the crossing tensors

A cut is right when that backward walk meets nothing else that is live and made by the head. Steps that depend on no
input are on both sides, and so are recomputed ones (see topology) where both need them: the walk passes through them
to what they rest on. An input of the model may cross (an attention mask), and then what follows from it is recomputed.

Candidates are met in one pass from input to output: at each place between two live steps the tensors that were made
before it and are read behind it cross. Recomputed steps are no places: each runs as soon as what it rests on is there,
and its result crosses only if that is smaller than what it rests on. The pass is linear in the steps.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from partitioner.graph.topology import TensorInfo, Topology
from protocol.errors import InputError, ModelError

# More tensors than this in one cut was never worth sending on the networks measured, and every one costs a header.
MAX_CROSSING = 4
# A head may take up to this share of the model's estimated work on itself to finish an output that needs more than
# what crosses (a detector's early output); beyond that the cut is refused and the missing tensors are named.
MAX_FINISHING_SHARE = 0.01
# A mask or token ids of this size are a packet or three, and code to almost nothing: sent rather than what follows.
_SMALL_NBYTES = 4096
_MOST_NAMES_COMPARED = 2000  # comparing takes 0.1 ms a name
# Proving a candidate takes a walk over the graph, and one is needed where outputs are made on the way. So many steps
# may be walked altogether (about ten seconds); of more candidates an even sample is taken.
_MOST_STEPS_WALKED = 20_000_000


class Sides(NamedTuple):
    """A cut that separates. Step indices; `head_outputs` are model outputs that are made before the cut.

    `head_steps` and `tail_steps` may share steps that depend on no input and recomputed ones.
    """

    cut: tuple[str, ...]
    head_steps: frozenset[int]
    tail_steps: frozenset[int]
    head_outputs: tuple[str, ...]
    tail_outputs: tuple[str, ...]


class LeakyCutError(ModelError):
    """The tensors named do not separate input from output: `missing` cross as well."""

    def __init__(self, cut: Sequence[str], missing: Sequence[str]) -> None:
        word = "crosses" if len(missing) == 1 else "cross"
        super().__init__(
            f"cut {_quoted(cut)} does not separate input from output: {_quoted(missing)} also {word}",
            f"use --cut {','.join([*cut, *missing])}",
        )
        self.missing = tuple(missing)


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
            raise InputError(f"the model has no tensor or node {name!r}", nearest(name, [*topology.producer, *nodes]))
    return tuple(dict.fromkeys(found))


def nearest(name: str, known: Sequence[str]) -> str:
    if len(known) > _MOST_NAMES_COMPARED:
        known = sorted(known, key=lambda n: (n[:3] != name[:3], abs(len(n) - len(name))))[:_MOST_NAMES_COMPARED]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    listing = "`partitioner inspect MODEL` lists the candidates"
    return f"did you mean {near[0]!r}? {listing}" if near else listing


def separate(topology: Topology, cut: Sequence[str], *, on_device: Collection[int] = ()) -> Sides:
    """Split the steps at `cut` (tensor names). Raises ModelError naming the tensors that make it no cut.

    Outputs that need a step of `on_device` (indices) behind the cut are made by the head, all others by the tail if
    what crosses suffices.
    """
    _check_crossing(topology, cut)
    head_steps = _needed(topology, cut)
    walk = _Walk(topology, frozenset(cut), head_steps)
    pinned = frozenset(on_device) - topology.recomputed
    head_outputs, leaking, ways = list[str](), list[str](), dict[str, _Way]()
    for output in dict.fromkeys(topology.outputs):
        way = walk.back_from(output)
        # A crossing tensor that is also a model output is simply returned by the head.
        if output in cut or not way.met or not pinned.isdisjoint(way.steps):
            head_outputs.append(output)
        else:
            leaking += [output] if way.leaks else []
            ways[output] = way
    tail_outputs = [o for o in topology.outputs if o in ways and o not in leaking]
    tail_steps = {i for o in tail_outputs for i in ways[o].steps}
    if leaking:
        _check_finishing(topology, cut, [ways[o] for o in leaking], head_steps, tail_steps)
        head_outputs += leaking
    _check_all_used(topology, cut, tail_steps, tail_outputs)
    head_steps |= _needed(topology, head_outputs)
    ordered = tuple(o for o in topology.outputs if o in head_outputs)
    return Sides(tuple(cut), frozenset(head_steps), frozenset(tail_steps), ordered, tuple(tail_outputs))


def complete(topology: Topology, cut: Sequence[str]) -> Sides:
    """Separate at `cut` together with whatever else must cross. Raises ModelError where that is no cut either."""
    names = list(cut)
    while True:
        try:
            return separate(topology, names)
        except LeakyCutError as error:
            names += error.missing  # never empty and never in `names`: this ends


def separates(topology: Topology, cut: Sequence[str]) -> bool:
    try:
        separate(topology, cut)
    except ModelError:
        return False
    return True


def prefix_candidates(topology: Topology, *, max_crossing: int = MAX_CROSSING) -> list[Candidate]:
    """The distinct cuts between consecutive live steps, from input to output.

    Cuts of more than `max_crossing` tensors are left out, and so are those with a tensor that cannot cross and the two
    ends: full-cloud and edge-only are placements of every bundle anyway.
    """
    barred = {name for name, info in topology.tensors.items() if info.barred}
    seen: set[tuple[str, ...]] = set()
    found: list[tuple[Candidate, bool]] = []
    for cut, share, early in _places(topology, max_crossing):
        if not 0 < len(cut) <= max_crossing or cut in seen or not barred.isdisjoint(cut):
            continue
        seen.add(cut)
        if not set(cut) <= set(topology.inputs):
            found.append((Candidate(cut, share, _sum(topology.wire_nbytes(n) for n in cut)), early))
    return [c for c, early in _sample(found, len(topology.steps)) if not early or separates(topology, c.cut)]


def _places(topology: Topology, max_crossing: int) -> Iterator[tuple[tuple[str, ...], float, bool]]:
    """For each place the tensors that cross, the share of compute before it, and whether an output was made already."""
    total = sum(topology.work) or 1.0
    ready, last_read = _schedule(topology)
    opened, closed = defaultdict[int, list[str]](list), defaultdict[int, list[str]](list)
    for name, at in ready.items():
        if last_read.get(name, -1) > at:
            opened[at].append(name)
            closed[last_read[name]].append(name)
    outputs = set(topology.outputs) & ready.keys()
    first_output = min((ready[n] for n in outputs), default=len(topology.steps))
    crossing = _Open(topology)
    crossing.move(opened[-1], ())
    done = 0.0
    for i in topology.live_steps:
        done += topology.work[i]
        if i in topology.recomputed:
            continue
        crossing.move(opened[i], closed[i])
        if len(crossing.made) <= max_crossing:
            yield crossing.least(), done / total, first_output <= i


class _Open:
    """The tensors that were made and will be read: those made by ordinary steps, and recomputed ones by their bases."""

    def __init__(self, topology: Topology) -> None:
        self.made: dict[str, None] = {}
        self._topology = topology
        self._following: dict[frozenset[str], dict[str, None]] = {}

    def move(self, opened: Iterable[str], closed: Iterable[str]) -> None:
        for name in closed:
            self._home(name).pop(name, None)
        for name in opened:
            self._home(name)[name] = None

    def least(self) -> tuple[str, ...]:
        return least_crossing(self._topology, self.made, self._following)

    def _home(self, name: str) -> dict[str, None]:
        bases = self._topology.bases.get(name)
        return self.made if bases is None else self._following.setdefault(bases, {})


def _schedule(topology: Topology) -> tuple[dict[str, int], dict[str, int]]:
    """When each live tensor is there, and when it is read last, as indices of steps that are not recomputed (-1: from
    the start).
    """
    ready = dict.fromkeys(topology.inputs, -1)
    last_read: dict[str, int] = {}
    for i in topology.live_steps:
        step = topology.steps[i]
        at = i
        if i in topology.recomputed:
            at = max((ready[n] for n in step.inputs if n in ready), default=-1)
        ready.update(dict.fromkeys(step.outputs, at))
        for name in step.inputs:
            if name in ready:
                last_read[name] = max(last_read.get(name, -1), at)
    return ready, last_read


def _sample(found: list[tuple[Candidate, bool]], steps: int) -> list[tuple[Candidate, bool]]:
    to_prove = sum(early for _, early in found)
    stride = -(-to_prove * steps // _MOST_STEPS_WALKED)
    return found if stride <= 1 else found[::stride]


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = list(sizes)
    return None if None in known else sum(n for n in known if n is not None)


def least_crossing(
    topology: Topology, made: Iterable[str], following: Mapping[frozenset[str], Iterable[str]]
) -> tuple[str, ...]:
    """What must cross when a tail reads the tensors `made` and recomputed ones, `following` from their bases.

    A recomputed tensor follows from what it rests on or crosses itself, whichever is smaller; tensors that rest on the
    same ones are decided together. Unknown sizes count as large, small inputs of the model as nothing.
    """
    crossing = dict.fromkeys(made)
    groups: list[tuple[frozenset[str], list[str]]] = []  # what is missing, and what would follow from it
    for bases, listed in following.items():
        missing, names = bases - crossing.keys(), list(listed)
        if not missing or not names:
            continue
        for group in [g for g in groups if g[0] & missing]:
            groups.remove(group)
            missing, names = missing | group[0], [*group[1], *names]
        groups.append((missing, names))
    for missing, names in groups:
        crossing.update(dict.fromkeys(missing if _rather_send(topology, missing, names) else names))
    return tuple(sorted(crossing, key=topology.rank.__getitem__))


def _rather_send(topology: Topology, bases: frozenset[str], names: Collection[str]) -> bool:
    """Whether the bases cross rather than what follows from them: if they are not larger, or small inputs anyway."""
    few = _SMALL_NBYTES if bases <= set(topology.inputs) else 0
    return _size(topology, bases) <= max(_size(topology, names), few)


def _size(topology: Topology, names: Collection[str]) -> float:
    sizes = [topology.wire_nbytes(n) for n in names]
    return sum(float("inf") if size is None else size for size in sizes)


def _check_crossing(topology: Topology, cut: Sequence[str]) -> None:
    if not cut:
        raise InputError("the cut names no tensor", "write --cut TENSOR[,TENSOR...]")
    for name in cut:
        if name not in topology.live:
            raise ModelError(
                f"tensor {name!r} does not depend on the model's input", "it is on both sides already; leave it out"
            )
        barred = topology.tensors.get(name, TensorInfo(None, None)).barred
        if barred:
            raise ModelError(f"tensor {name!r}{_made_by(topology, name)} is {barred} and cannot cross", "cut elsewhere")
    if set(cut) <= set(topology.inputs):
        raise ModelError(
            f"cut {_quoted(cut)} is the model's input, and that placement (full-cloud) is in every bundle",
            "cut behind at least one node",
        )


def _made_by(topology: Topology, name: str) -> str:
    i = topology.producer.get(name)
    return "" if i is None else f", made by node {topology.steps[i].name!r} ({topology.steps[i].op}),"


def _check_finishing(
    topology: Topology, cut: Sequence[str], leaking: Sequence[_Way], head_steps: set[int], tail_steps: set[int]
) -> None:
    """Refuse what leaks, unless the head can finish those outputs almost for free and the tail has others to make."""
    extra = {i for way in leaking for i in way.steps} - head_steps - topology.recomputed
    alive = {i for i in extra if not topology.live.isdisjoint(topology.steps[i].outputs)}
    work = sum(topology.work[i] for i in alive)
    if tail_steps and not alive & tail_steps and work <= MAX_FINISHING_SHARE * sum(topology.work):
        return
    leaks = {name for way in leaking for name in way.leaks}
    raise LeakyCutError(cut, _fewest_missing(topology, cut, leaks, [name for way in leaking for name in way.passed]))


def _fewest_missing(topology: Topology, cut: Sequence[str], leaks: set[str], passed: Sequence[str]) -> list[str]:
    """What to add to the cut: what leaked, or instead of it the recomputed tensors that were `passed`, if smaller."""
    following: dict[frozenset[str], list[str]] = {}
    for name in dict.fromkeys(passed):
        following.setdefault(topology.bases[name], []).append(name)
    direct = leaks - {base for bases in following for base in bases}
    least = [n for n in least_crossing(topology, {*cut, *direct}, following) if n not in cut]
    if least and separates(topology, [*cut, *least]):
        return least
    return sorted(leaks, key=topology.rank.__getitem__)


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


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(n) for n in names)


def _needed(topology: Topology, names: Iterable[str]) -> set[int]:
    """Indices of all steps needed to compute `names`."""
    needed: set[int] = set()
    pending = list(names)
    while pending:
        i = topology.producer.get(pending.pop())
        if i is not None and i not in needed:
            needed.add(i)
            pending.extend(topology.steps[i].inputs)
    return needed


class _Way(NamedTuple):
    """What a walk back from an output met: steps, crossing tensors, what leaked, and the recomputed tensors through
    which the walk came to it.
    """

    steps: frozenset[int]
    met: frozenset[str]
    leaks: frozenset[str]
    passed: frozenset[str]


class _Walk:
    """Walks back from an output; what is live and was made before the cut, or is a model input, has leaked."""

    def __init__(self, topology: Topology, cut: frozenset[str], head_steps: set[int]) -> None:
        self._topology = topology
        self._cut = cut
        made_before = {n for i in head_steps - topology.recomputed for n in topology.steps[i].outputs}
        self._leaky = ((made_before & topology.live) | set(topology.inputs)) - cut

    def back_from(self, output: str) -> _Way:
        steps: set[int] = set()
        met, leaks = set[str](), set[str]()
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
        return _Way(frozenset(steps), frozenset(met), frozenset(leaks), self._passed(steps, leaks))

    def _passed(self, steps: set[int], leaks: set[str]) -> frozenset[str]:
        if not leaks:
            return frozenset()
        bases, recomputed = self._topology.bases, self._topology.recomputed
        read = {n for i in steps - recomputed for n in self._topology.steps[i].inputs}
        available = self._leaky | self._cut | set(self._topology.inputs)
        return frozenset(n for n in read if n in bases and bases[n] <= available and not bases[n].isdisjoint(leaks))
