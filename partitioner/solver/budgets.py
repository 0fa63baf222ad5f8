"""Placements within constraints: which are best where, how sure that is, or which constraints conflict. Pure.

Every constraint but the accuracy is additive at a given link, and so a budget for `bounded`:

    memory, energy      by unit (energy also by byte on the radio)
    cloud_s             units at the gateway, and decoding
    throughput          four budgets: device, upload, gateway and download may each take one period
    latency             everything, the bytes at that link's seconds per byte, each stage at its quantile

The accuracy is known for each rung of the codecs and shuts out whole rungs. Edge-only sends nothing and pays no round
trip, so it is judged by itself; the round trip is taken off the latency that all others may use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from partitioner.solver.bounded import MOST_MIN_CUTS, Bounded, Budget, items, minimise
from partitioner.solver.constraints import Conflict, Constraints, conflict
from partitioner.solver.hull import Line, corners, lower_hull, x_range
from partitioner.solver.mincut import combine
from partitioner.solver.network import Network, Tally, down_nbytes, whole
from partitioner.solver.parametric import Collected, Plans
from partitioner.solver.problem import Problem, evaluate
from protocol.errors import InputError
from protocol.latency import PlacementCost, adjusted, bottleneck_s, latency_s

_NANO = 1e9
_BISECTIONS = 20  # to a millionth
# For saying how far a constraint that conflicts would have to give way: a refusal should not take minutes.
_MIN_CUTS_TO_RELAX = 1000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """Under what constraints are judged: the round trip and the queue at the gateway, uplink over downlink, and the
    relative distance of the 95th percentile from the median on either side. `accuracy` is the metric by rung."""

    rtt_s: float = 0.0
    queue_s: float = 0.0
    up_over_down: float = 1.0
    edge_spread: float = 0.0
    tail_spread: float = 0.0
    accuracy: Mapping[str, float] = field(default_factory=dict)


def plans_within(
    problems: Mapping[str, Problem],
    constraints: Constraints,
    *,
    x_lo: float,
    x_hi: float,
    setting: Setting | None = None,
    max_min_cuts: int = MOST_MIN_CUTS,
) -> Plans | Conflict:
    """The placements of all rungs within the constraints that are best for some 1/bandwidth in [x_lo, x_hi] (s/byte).

    A range may be a single point. At most `max_min_cuts` are spent on each rung; what is not proven then shows in
    `Plans.gap` (infinite where nothing was found and nothing proven). If no placement keeps all constraints, the answer
    says which conflict and what each would have to be.
    Raises InputError for unknown nodes, a missing accuracy, or if nothing was found before the min-cuts were spent.
    """
    judge = _Judge(problems, setting or Setting(), max_min_cuts)
    collected, min_cuts, gap, unsure = Collected(), 0, 0.0, False
    for rung, bounded in judge.rungs(constraints).items():
        found = _RangeSearch(bounded, *x_range(x_lo, x_hi), max_min_cuts)
        found.run()
        min_cuts += found.min_cuts
        gap, unsure = max(gap, found.gap), unsure or found.unsure
        for on_edge in found.best():
            line = bounded.line(on_edge)
            collected.add(rung, bounded.problem, on_edge, line, optimal=True)
        if bounded.admits_edge_only():
            everything = frozenset(range(bounded.network.count))
            collected.add(rung, bounded.problem, everything, bounded.line(everything), optimal=False)
    if collected.is_empty and unsure:
        raise InputError(f"no placement was found in {min_cuts} min-cuts", "allow more, or loosen a constraint")
    if collected.is_empty:
        return conflict(constraints, judge.possible, judge.nearest)
    rtt_s = judge.setting.rtt_s + judge.setting.queue_s
    return collected.plans(x_lo, x_hi, rtt_s=rtt_s, min_cuts=min_cuts, gap=gap)


class _Rung:
    """One rung's problem with its pins, and the constraints as budgets."""

    def __init__(self, problem: Problem, constraints: Constraints, setting: Setting) -> None:
        self.problem = problem.pinned(constraints.on_device) if constraints.on_device else problem
        self.network = Network(self.problem, up_over_down=setting.up_over_down)
        self.constraints, self.setting = constraints, setting
        self.link = constraints.link(rtt_s=setting.rtt_s, up_over_down=setting.up_over_down, queue_s=setting.queue_s)
        self.budgets = [b for name in constraints.asked for b in self.budgets_of(name)]

    def budgets_of(self, name: str) -> list[Budget]:
        limit = getattr(self.constraints, name)
        if name == "min_per_s":
            period_s = 1 / limit if limit else math.inf
            return [_budget(name, tally, period_s) for tally in self.stages_s()] if limit else []
        if name == "max_latency_s":
            limit -= self.link.rtt_s + self.link.queue_s
        tally = self.spending(name)
        return [] if tally is None else [_budget(name, tally, limit)]

    def spending(self, name: str) -> Floats | None:
        """What each item adds to the number that a constraint is about, in that number's unit; None if not additive."""
        units, count = self.problem.units, self.network.count
        nothing, no_flow = np.zeros(count), np.zeros(len(self.network.flows))
        memory = np.array([float(u.memory_nbytes) for u in units])
        if name == "edge_memory_nbytes":
            return np.concatenate([memory, nothing, no_flow])
        if name == "cloud_memory_nbytes":
            return np.concatenate([nothing, memory, no_flow])
        if name == "energy_j":
            radio = self.problem.radio_j_per_byte
            on_edge = np.array([u.energy_j for u in units])
            return np.concatenate([on_edge, radio * down_nbytes(self.problem), radio * self._up_nbytes()])
        edge, up, cloud, down = self.stages_s()
        if name == "cloud_s":
            return cloud
        if name == "max_latency_s":
            slow = self._in_the_tail(PlacementCost(edge_s=1.0, tail_s=1.0))
            return edge * slow.edge_s + up + cloud * slow.tail_s + down
        return None

    def stages_s(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Seconds of device, upload, gateway and download that each item adds."""
        units, flows = self.problem.units, self.network.flows
        nothing, no_flow = np.zeros(len(units)), np.zeros(len(flows))
        edge_s, cloud_s = np.array([u.edge_s for u in units]), np.array([u.cloud_s for u in units])
        encode_s, decode_s = np.array([f.encode_s for f in flows]), np.array([f.decode_s for f in flows])
        down_s = down_nbytes(self.problem) / self.link.downlink_bytes_per_s
        return (
            np.concatenate([edge_s, nothing, encode_s]),
            np.concatenate([nothing, nothing, self._up_nbytes() / self.link.uplink_bytes_per_s]),
            np.concatenate([nothing, cloud_s, decode_s]),
            np.concatenate([nothing, down_s, no_flow]),
        )

    def _up_nbytes(self) -> Floats:
        return np.array([0.0 if f.up_nbytes == math.inf else f.up_nbytes for f in self.network.flows])

    def _in_the_tail(self, cost: PlacementCost) -> PlacementCost:
        spread = cost.spread(edge=self.setting.edge_spread, tail=self.setting.tail_spread)
        return adjusted(spread, quantile=self.constraints.quantile)

    def line(self, on_edge: frozenset[int]) -> Line:
        paid = items(self.network, self.mask(on_edge))
        return int(self.network.ns[paid].sum()), int(self.network.nbytes[paid].sum())

    def mask(self, on_edge: frozenset[int]) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self.network.count, dtype=bool)
        mask[list(on_edge)] = True
        return mask

    def admits_edge_only(self) -> bool:
        """Whether edge-only keeps the constraints, at its own latency (no round trip)."""
        if not self.network.feasible_prefixes[self.network.count]:
            return False
        cost = evaluate(self.problem, range(self.network.count)).cost
        return all(self.value(name, cost) <= self._limit(name) * (1 + 1e-9) for name in self.constraints.asked)

    def _limit(self, name: str) -> float:
        """The largest value that `value` may have."""
        if name in ("on_device", "min_accuracy"):
            return 0.0
        limit = float(getattr(self.constraints, name))
        if name == "min_per_s":
            return 1 / limit if limit else math.inf
        return limit

    def value(self, name: str, cost: PlacementCost) -> float:
        """The number of a placement that a constraint bounds from above (for throughput: the period)."""
        if name in ("on_device", "min_accuracy"):
            return 0.0  # kept by construction
        if name == "min_per_s":
            return bottleneck_s(cost, self.link)
        if name == "cloud_s":
            return cost.decode_s + cost.tail_s
        if name == "max_latency_s":
            return latency_s(self._in_the_tail(cost), self.link)
        return float(getattr(cost, name))


def _budget(name: str, spending: Floats, limit: float) -> Budget:
    """In whole billionths, so that whole numbers stay exact and others err by less than a nanosecond or nanojoule."""
    if limit == math.inf:
        return Budget(name, np.zeros(len(spending), dtype=np.int64), 0)
    nbytes = name.endswith("nbytes")
    per_unit = 1.0 if nbytes else _NANO
    return Budget(name, whole(spending, per_unit=per_unit), math.floor(limit * per_unit * (1 + 1e-12) + 1e-6))


class _RangeSearch:
    """The corner search of `parametric`, with branch and bound as its oracle."""

    def __init__(self, rung: _Rung, low: Fraction, high: Fraction, max_min_cuts: int) -> None:
        self._rung, self._low, self._high = rung, low, high
        self._left = max_min_cuts
        self._known: dict[frozenset[int], Line] = {}
        self._asked: set[Fraction] = set()
        self.min_cuts, self.gap, self.unsure = 0, 0.0, False

    def run(self) -> None:
        while open_corners := [x for x in self._corners() if x not in self._asked]:
            for x in open_corners:
                self._ask(x)
                if not self._known:
                    return  # what is impossible at one bandwidth is so at all

    def _corners(self) -> list[Fraction]:
        lines = list(self._known.values())
        return corners(lines, self._low, self._high) if lines else [self._low]

    def _ask(self, x: Fraction) -> None:
        self._asked.add(x)
        network = self._rung.network
        below = min((a * x.denominator + b * x.numerator for a, b in self._known.values()), default=None)
        result = minimise(
            network,
            combine(network.ns, network.nbytes, x),
            self._rung.budgets,
            below=below,
            max_min_cuts=max(0, self._left - self.min_cuts),
        )
        self.min_cuts += result.min_cuts
        if result.on_edge is not None:
            self._known[result.on_edge] = self._rung.line(result.on_edge)
        self._note_gap(result, below)

    def _note_gap(self, result: Bounded, below: int | None) -> None:
        best = result.cost if result.cost is not None else below
        if result.bound is None:
            return
        if best is None:
            self.unsure, self.gap = True, math.inf
        elif best > result.bound:
            self.gap = max(self.gap, (best - result.bound) / best)

    def best(self) -> list[frozenset[int]]:
        placements = list(self._known)
        hull = lower_hull(list(self._known.values()), self._low, self._high)
        return [placements[i] for i in hull]


class _Judge:
    """Answers, over all rungs, whether constraints can be kept together and how near one comes to being kept."""

    def __init__(self, problems: Mapping[str, Problem], setting: Setting, max_min_cuts: int) -> None:
        self._problems, self.setting, self._max_min_cuts = problems, setting, max_min_cuts

    def rungs(self, constraints: Constraints) -> dict[str, _Rung]:
        """The rungs that are accurate enough, with their budgets."""
        if constraints.min_accuracy is not None:
            lacking = sorted(self._problems.keys() - self.setting.accuracy.keys())
            if lacking:
                raise InputError(f"the accuracy of {', '.join(lacking)} is not known", "measure it first")
        return {
            rung: _Rung(problem, constraints, self.setting)
            for rung, problem in self._problems.items()
            if constraints.min_accuracy is None or self.setting.accuracy[rung] >= constraints.min_accuracy
        }

    def possible(self, constraints: Constraints) -> bool:
        return any(self._keeps(rung) for rung in self.rungs(constraints).values())

    def _keeps(self, rung: _Rung) -> bool:
        """Whether a placement keeps the constraints; also if that is open, since a conflict is named only if proven."""
        return rung.admits_edge_only() or not self._some(rung).is_infeasible

    def _some(self, rung: _Rung) -> Bounded:
        """Any placement within the budgets."""
        nothing: Tally = np.zeros_like(rung.network.ns)
        return minimise(rung.network, nothing, rung.budgets, below=1, max_min_cuts=self._max_min_cuts)

    def nearest(self, name: str, others: Constraints) -> float | None:
        """The best value of the number behind `name` that a placement within `others` has."""
        rungs = self.rungs(others)
        if name == "min_accuracy":
            return max((self.setting.accuracy[n] for n, rung in rungs.items() if self._keeps(rung)), default=None)
        if name == "min_per_s":
            return self._most_per_s(others)
        values = [v for rung in rungs.values() for v in self._least(rung, name)]
        return min(values, default=None)

    def _least(self, rung: _Rung, name: str) -> Sequence[float]:
        spending = rung.spending(name)
        values = []
        if spending is not None:
            tally = _budget(name, spending, 0.0).tally
            result = minimise(
                rung.network, tally, rung.budgets, max_min_cuts=min(self._max_min_cuts, _MIN_CUTS_TO_RELAX)
            )
            found = [result.on_edge] if result.on_edge is not None else []
            values = [rung.value(name, evaluate(rung.problem, on_edge).cost) for on_edge in found]
        if rung.admits_edge_only():
            values.append(rung.value(name, evaluate(rung.problem, range(rung.network.count)).cost))
        return values

    def _most_per_s(self, others: Constraints) -> float | None:
        """The greatest throughput, by bisection over the period; each answer is a placement's own throughput."""
        best = self._some_per_s(others, 0.0)
        if best == 0.0:
            return None
        low, high = best, 2 * best
        while (faster := self._some_per_s(others, high)) >= high and high < 1e12:
            low, high = faster, 2 * faster
        for _ in range(_BISECTIONS):
            middle = math.sqrt(low * high)
            found = self._some_per_s(others, middle)
            low, high = (found, high) if found >= middle else (low, middle)
        return low

    def _some_per_s(self, others: Constraints, at_least: float) -> float:
        """The throughput of some placement that has at least this much; 0 if there is none."""
        best = 0.0
        for rung in self.rungs(replace(others, min_per_s=at_least)).values():
            candidates = [self._some(rung).on_edge]
            if rung.admits_edge_only():
                candidates.append(frozenset(range(rung.network.count)))
            for on_edge in candidates:
                if on_edge is not None:
                    period_s = bottleneck_s(evaluate(rung.problem, on_edge).cost, rung.link)
                    best = max(best, 1 / period_s if period_s > 0 else math.inf)
        return best
