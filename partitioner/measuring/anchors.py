"""From a few measured segments to any cut: which cuts to measure, and what the others will take. Pure.

The anchors' cuts divide the steps into intervals. Within an interval the steps keep the proportions of their kernels'
times, and each interval gets one factor, so that heads, tails and the whole model come out as they were measured:

    seconds(S) = overhead + sum of factor[interval(i)] * seconds[i] over the steps i of S + rate * crossing + loose

A least-squares fit weighs every anchor by its own interval and holds the factors together where anchors lie so close
that their difference is mostly noise. The `rate`, one for heads and one for tails, is what it takes to hand over what
crosses: changing the layout, touching fresh memory (SqueezeNet's first head takes 1.0 ms, its kernel 0.4). `loose` is
what steps cost alone that the whole model runs fused into a kernel which the cut left on the other side (a Relu behind
its convolution).

How far to trust it: each anchor is predicted from the others, and their errors, with the anchors' own intervals, are
the interval of a prediction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from partitioner.graph.cuts import Sides, prefix_candidates, separate
from partitioner.graph.topology import TensorInfo, Topology
from protocol.errors import InputError, ModelError
from protocol.profile import Anchor, PlainStep, Profile, Side, StepCost, is_carrier
from protocol.tensors import DTYPES

FIRST_ANCHORS = 7
MOST_ANCHORS = 28
# An error of prediction, each anchor from the others, below which more anchors gain nothing over their noise.
GOOD_ERROR = 0.03
_LEAST_NOISE = 0.01  # relative; no median repeats better than this (measured: 2-8 % on a shared machine)
_LOOSENESS = 0.3  # how far, relatively, an interval's factor may stray from its neighbours' without evidence
_OVERHEAD_S = 2e-5  # of one call of a session, give or take as much
_RATE_S_PER_BYTE = {"head": 1e-10, "tail": 5e-11}  # of what crosses, give or take as much
_LEAST_FACTOR = 0.05


class Estimate(NamedTuple):
    """Seconds, and the interval that holds about 95 % of such predictions."""

    seconds: float
    low: float
    high: float


class _Observation(NamedTuple):
    """One anchor in the model's terms: its steps, what was measured and how precisely (relative)."""

    cut: tuple[str, ...]
    side: Side
    steps: frozenset[int]
    seconds: float
    noise: float
    loose: float
    crossing_nbytes: float


class Predictor:
    """Times of heads and tails at any cut of `topology`, from a profile of the same model.

    Raises InputError when the profile names other steps or has no anchor in `precision`.
    """

    def __init__(self, profile: Profile, topology: Topology, *, precision: str = "fp32") -> None:
        self._topology = topology
        self._live = frozenset(topology.live_steps)
        self._steps = _steps_of(profile, topology)
        self._members = _members(topology, self._steps)
        self._anchors = {(a.cut, a.side): a for a in profile.anchors if a.precision == precision}
        if not self._anchors:
            raise InputError(f"the profile has no anchor in {precision}", f"it has {', '.join(profile.precisions)}")
        self._seen = [o for a in self._anchors.values() if (o := self._observe(a)) is not None]
        self._fit = _fit(self._seen, self._steps, self._live)
        self.errors = self._leave_one_out()

    @property
    def error(self) -> float:
        """Root mean square of the relative errors when each anchor is predicted from the others."""
        errors = list(self.errors.values())
        return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else _LOOSENESS

    @property
    def overhead_s(self) -> float:
        """What any segment costs besides its steps."""
        return self._fit.overhead_s

    def step_seconds(self) -> tuple[float, ...]:
        """Seconds of every step of the topology (0 for what depends on no input), such that sums meet the anchors."""
        return tuple(self._fit.seconds(i, self._steps[i]) for i in range(len(self._topology.steps)))

    def head_s(self, sides: Sides) -> Estimate:
        return self._estimate(sides.cut, "head", sides.head_steps)

    def tail_s(self, sides: Sides) -> Estimate:
        return self._estimate(sides.cut, "tail", sides.tail_steps)

    def whole_s(self) -> Estimate:
        return self._estimate((), "whole", self._live)

    def tail_batches(self, sides: Sides) -> tuple[tuple[int, float], ...]:
        """Pairs of batch size and seconds, shaped like the measured segment that is nearest in time.

        Empty where nothing was shown to take batches.
        """
        measured = [a for a in self._anchors.values() if a.batches]
        if not measured:
            return ()
        seconds = self.tail_s(sides).seconds
        nearest = min(measured, key=lambda a: abs(math.log(max(a.time.median_s, 1e-9) / max(seconds, 1e-9))))
        return tuple((batch, seconds * s / nearest.batches[0][1]) for batch, s in nearest.batches)

    def peak_memory_nbytes(self, sides: Sides, side: Side) -> int | None:
        """Peak memory of a segment, from the anchors' peaks: linear in the bytes of weights and largest activations.

        None where no anchor of this side has a measured peak.
        """
        known = [
            (o, self._anchors[(o.cut, o.side)].peak_memory_nbytes) for o in self._seen if o.side in (side, "whole")
        ]
        points = sorted((_static_nbytes(self._topology, o.steps), float(peak)) for o, peak in known if peak is not None)
        if not points:
            return None
        steps = sides.head_steps if side == "head" else sides.tail_steps
        wanted = _static_nbytes(self._topology, steps)
        if wanted >= points[-1][0]:
            return round(points[-1][1] * wanted / max(points[-1][0], 1.0))
        xs, ys = zip(*[(0.0, min(y for _, y in points) / 2.0), *points], strict=True)
        return round(float(np.interp(wanted, xs, ys)))

    def _observe(self, anchor: Anchor) -> _Observation | None:
        time = anchor.time
        noise = max((time.high_s - time.low_s) / 2.0 / max(time.median_s, 1e-12), _LEAST_NOISE)
        if anchor.side == "whole":
            return _Observation((), "whole", self._live, time.median_s, noise, 0.0, 0.0)
        try:
            sides = separate(self._topology, anchor.cut)
        except (ModelError, InputError):
            return None  # the cut of an older build; the other anchors still hold
        steps = (sides.head_steps if anchor.side == "head" else sides.tail_steps) & self._live
        crossing_nbytes = self._crossing_nbytes(anchor.cut)
        return _Observation(anchor.cut, anchor.side, steps, time.median_s, noise, self._loose(steps), crossing_nbytes)

    def _crossing_nbytes(self, cut: Iterable[str]) -> float:
        tensors = self._topology.tensors
        return float(sum(_nbytes(tensors[name]) for name in cut if name in tensors))

    def _loose(self, steps: Collection[int]) -> float:
        """What the parts of fused groups cost whose carrier is on the other side."""
        here = frozenset(steps)
        total = 0.0
        for group in {self._steps[i].kernel for i in here & self._live}:
            members, carriers = self._members[group]
            if carriers and not members <= here and carriers.isdisjoint(here):
                total += sum(self._steps[i].alone_s for i in members & here)
        return total

    def _estimate(self, cut: tuple[str, ...], side: Side, steps: frozenset[int]) -> Estimate:
        measured = self._anchors.get((cut, side))
        if measured is not None:
            return Estimate(measured.time.median_s, measured.time.low_s, measured.time.high_s)
        crossing_s = self._fit.rates.get(side, 0.0) * self._crossing_nbytes(cut)
        seconds = self._fit.total(steps & self._live, self._steps) + crossing_s + self._loose(steps)
        noise = float(np.median([o.noise for o in self._seen]))
        half = 1.96 * math.hypot(self.error, noise) * seconds
        return Estimate(seconds, max(seconds - half, 0.0), seconds + half)

    def _leave_one_out(self) -> dict[tuple[tuple[str, ...], Side], float]:
        """Relative error of every anchor but the whole model when it is predicted from all others."""
        errors: dict[tuple[tuple[str, ...], Side], float] = {}
        for o in self._seen:
            if o.side != "whole" and len(self._seen) > 1:
                fit = _fit([other for other in self._seen if other.cut != o.cut], self._steps, self._live)
                crossing_s = fit.rates.get(o.side, 0.0) * o.crossing_nbytes
                predicted = fit.total(o.steps, self._steps) + crossing_s + o.loose
                errors[(o.cut, o.side)] = predicted / o.seconds - 1.0
        return errors


class _Fit(NamedTuple):
    """The factor of every interval, and which interval a step lies in."""

    factors: tuple[float, ...]
    interval: Mapping[int, int]
    overhead_s: float
    rates: Mapping[str, float]  # seconds per crossing byte by side

    def seconds(self, index: int, step: StepCost) -> float:
        return self.factors[self.interval[index]] * step.seconds if index in self.interval else 0.0

    def total(self, steps: Iterable[int], costs: Sequence[StepCost]) -> float:
        return self.overhead_s + sum(self.seconds(i, costs[i]) for i in steps)


def _fit(seen: Sequence[_Observation], costs: Sequence[StepCost], live: frozenset[int]) -> _Fit:
    """Least squares: one row for each anchor, and one that holds each unknown near what is usual.

    The unknowns are each interval's factor, the overhead, and the rates of heads and tails.
    """
    interval, count = _intervals(seen, costs, live)
    common = _common_factor(seen, costs)
    sides = tuple(_RATE_S_PER_BYTE)
    usual = np.array([*[common] * count, _OVERHEAD_S, *_RATE_S_PER_BYTE.values()])
    loosely = usual * np.array([*[_LOOSENESS] * count, *[1.0] * (1 + len(sides))])
    rows, wanted = [], []
    for o in seen:
        row = np.zeros(len(usual))
        for i in o.steps:
            row[interval[i]] += costs[i].seconds
        row[count] = 1.0
        if o.side in sides:
            row[count + 1 + sides.index(o.side)] = o.crossing_nbytes
        scale = o.noise * o.seconds
        rows.append(row / scale)
        wanted.append((o.seconds - o.loose) / scale)
    system = np.vstack([*rows, np.diag(1.0 / loosely)])
    solved, *_ = np.linalg.lstsq(system, np.concatenate([wanted, usual / loosely]), rcond=None)
    factors = tuple(max(float(f), _LEAST_FACTOR * common) for f in solved[:count])
    overhead, *rates = (max(float(v), 0.0) for v in solved[count:])
    return _Fit(factors, interval, overhead, dict(zip(sides, rates, strict=True)))


def _intervals(
    seen: Sequence[_Observation], costs: Sequence[StepCost], live: frozenset[int]
) -> tuple[dict[int, int], int]:
    """The interval of every live step: the first anchor, in order of depth, whose head holds it; else the last one."""
    heads = {o.cut: (live - o.steps if o.side == "tail" else o.steps) for o in seen if o.side != "whole"}
    ordered = sorted(heads.values(), key=lambda steps: sum(costs[i].seconds for i in steps))
    interval = dict.fromkeys(live, len(ordered))
    for k, steps in reversed(list(enumerate(ordered))):
        interval.update(dict.fromkeys(steps, k))
    return interval, len(ordered) + 1


def _common_factor(seen: Sequence[_Observation], costs: Sequence[StepCost]) -> float:
    """Measured over summed, of the longest segment."""
    longest = max(seen, key=lambda o: o.seconds)
    return longest.seconds / (sum(costs[i].seconds for i in longest.steps) or 1.0)


def refine(profile: Profile, measured: Iterable[Anchor]) -> Profile:
    """The profile with more anchors, so that what was measured after planning counts when the plan is solved again."""
    return profile.refined(measured)


def choose(
    topology: Topology, costs: Mapping[str, StepCost], count: int, *, taken: Collection[tuple[str, ...]] = ()
) -> list[tuple[str, ...]]:
    """`count` cuts spread from input to output, denser towards both ends, where segments are short; `taken` count too.

    Cuts of few tensors that break no fused kernel are preferred.
    """
    steps = [costs.get(s.name, StepCost(0.0, 0.0, s.name)) for s in topology.steps]
    total = sum(s.seconds for s in steps) or 1.0
    members = _members(topology, steps)
    places = []
    for candidate in prefix_candidates(topology):
        try:
            head = separate(topology, candidate.cut).head_steps
        except ModelError:
            continue
        broken = any(not members[steps[i].kernel][0] <= head for i in head if i in topology.live_steps)
        share = sum(steps[i].seconds for i in head) / total
        places.append((share, 0.01 * (len(candidate.cut) - 1) + 0.02 * broken, candidate.cut))
    chosen = [p for p in places if p[2] in taken]
    for wanted in _targets(count):
        free = [p for p in places if p not in chosen]
        if not free:
            break
        best = min(free, key=lambda p: abs(p[0] - wanted) + p[1])
        # A target that an anchor meets already needs no second one.
        if not any(abs(p[0] - wanted) <= abs(best[0] - wanted) for p in chosen):
            chosen.append(best)
    return [p[2] for p in chosen if p[2] not in taken]


def _targets(count: int) -> list[float]:
    """Shares of the time, spread evenly on a logistic scale from 0.7 % to 99.3 %: errors are relative, and the shortest
    tail (a Softmax) tells the overhead.
    """
    reach = 5.0 if count > 1 else 0.0
    return [1.0 / (1.0 + math.exp(reach - 2.0 * reach * k / max(count - 1, 1))) for k in range(count)]


def plain_steps(topology: Topology) -> tuple[PlainStep, ...]:
    """The live steps as a device needs them to attribute kernels."""
    live = topology.live
    return tuple(
        PlainStep(s.name, s.op, tuple(n for n in s.inputs if n in live), s.outputs)
        for s in (topology.steps[i] for i in topology.live_steps)
    )


def _steps_of(profile: Profile, topology: Topology) -> list[StepCost]:
    names = {topology.steps[i].name for i in topology.live_steps}
    missing = names - profile.steps.keys()
    if missing:
        raise InputError(
            f"the profile of {profile.model} knows nothing of step {min(missing)!r}", "profile this very model"
        )
    return [profile.steps[s.name] if s.name in names else StepCost(0.0, 0.0, s.name) for s in topology.steps]


def _members(topology: Topology, steps: Sequence[StepCost]) -> dict[str, tuple[frozenset[int], frozenset[int]]]:
    """Steps of every fused kernel, and those of them that carry its time."""
    members = defaultdict[str, set[int]](set)
    for i in topology.live_steps:
        members[steps[i].kernel].add(i)
    return {
        kernel: (frozenset(m), frozenset(i for i in m if is_carrier(topology.steps[i].op)))
        for kernel, m in members.items()
    }


def _static_nbytes(topology: Topology, steps: Iterable[int]) -> float:
    """Bytes of the weights that steps read, and of the largest tensors around one step."""
    weights, largest = dict[str, int](), 0
    for i in steps:
        step = topology.steps[i]
        around = 0
        for name in (*step.inputs, *step.outputs):
            info = topology.tensors.get(name)
            nbytes = _nbytes(info) if info is not None else 0
            if name in topology.live:
                around += nbytes
            else:
                weights[name] = nbytes
        largest = max(largest, around)
    return float(sum(weights.values()) + largest)


def _nbytes(info: TensorInfo) -> int:
    size = DTYPES[info.dtype].itemsize if info.dtype in DTYPES else 4
    return size * (info.elements or 0)
