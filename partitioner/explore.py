"""--auto: solve for every cut that can be best, build and measure those, correct the costs, solve again until stable.

sizes       every tensor coded under every rung          (sizes.py)
clock       seconds of every step on either side          (clock.py), corrected by what is measured
solve       exact: all placements optimal at some bandwidth, per rung      (parametric.py)
assemble    split, quantise, prove, judge each rung       (assemble.py); what loses too much is not asked again
keep        by measured costs, side by side               (select.py)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from partitioner import select
from partitioner.assemble import Segment, Workshop, assemble
from partitioner.clock import Clock
from partitioner.costs import EDGE_ONLY, FULL_CLOUD, Families, Seconds, costs_of, time_graphs
from partitioner.cuts import separate
from partitioner.ends import Ends
from partitioner.parametric import enumerate_plans
from partitioner.problem import Side, problem_of
from partitioner.sizes import Sizes, measure_sizes, milder
from partitioner.topology import Topology
from protocol.bundle import Measured
from protocol.errors import AccuracyRefusedError, EngineError, InputError, ModelError
from protocol.latency import PlacementCost
from protocol.plan import PlanConditions, seconds_per_byte

MAX_ROUNDS = 6
MAX_CUTS = 16

Cut = tuple[str, ...]


class Reporter(Protocol):
    """Hears what is going on; never asked anything."""

    def stage(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Search:
    """What the search may use: seconds, the declared slow-down of the device, where placements compete."""

    budget_s: float
    slowdown: float
    scope: PlanConditions
    keep_best: bool = False


@dataclass(frozen=True)
class Findings:
    """The segments to keep by family, in order of depth; what their lines and those of the two ends cost, timed side by
    side, by placement id; every cut that was measured; and what is to be told about it.
    """

    kept: dict[str, Segment]
    costs: dict[str, PlacementCost]
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]


@dataclass
class _Found:
    """What the rounds gather, by cut."""

    segments: dict[Cut, Segment] = field(default_factory=dict)
    seconds: dict[Cut, Seconds] = field(default_factory=dict)
    problems: dict[Cut, str] = field(default_factory=dict)
    rounds: int = 0
    min_cuts: int = 0
    stable: bool = False

    @property
    def tried(self) -> int:
        return len(self.segments) + len(self.problems)


def explore(shop: Workshop, ends: Ends, search: Search, reporter: Reporter) -> Findings:
    """Measure the cuts that can be best while the budget lasts (always one round) and choose among them."""
    started = time.monotonic()
    reporter.stage("coding every tensor under every rung")
    sizes = measure_sizes(shop, reporter.progress)
    reporter.stage("timing the whole model")
    clock = Clock(shop, time_graphs(shop, ends, {}))
    found = _rounds(shop, ends, clock, sizes, search, reporter, until=started + search.budget_s)
    notes = [_summary(found, time.monotonic() - started, search)]
    notes += [f"cut {', '.join(cut)} left out: {why}" for cut, why in found.problems.items()]
    if not found.segments:
        why = "every cut failed" if found.problems else "no cut is best at any bandwidth"
        costs = costs_of(ends, {}, clock.whole, slowdown=search.slowdown)
        return findings({}, costs, (), (*notes, f"do not split: {why}"), search.scope)
    return _choose(shop, ends, clock, found, search, notes, reporter)


def _rounds(
    shop: Workshop, ends: Ends, clock: Clock, sizes: Sizes, search: Search, reporter: Reporter, *, until: float
) -> _Found:
    found = _Found()
    while found.rounds < MAX_ROUNDS and not found.stable:
        found.rounds += 1
        reporter.stage(f"round {found.rounds}: solving for every bandwidth")
        best = _solve(shop, clock, sizes, search, found)
        if not best and not found.tried:  # nothing can win, but by how much does the nearest one lose?
            best = _solve(shop, clock, sizes, search, found, pinned=_ends_apart(shop.model.topology))
        fresh = [cut for cut in best if cut not in found.segments and cut not in found.problems]
        found.stable = not fresh
        for done, cut in enumerate(fresh[: MAX_CUTS - found.tried]):
            if time.monotonic() > until and found.segments:
                return found
            reporter.stage(f"round {found.rounds}: measuring {', '.join(cut)}")
            reporter.progress(done, len(fresh))
            _try(shop, ends, cut, clock, sizes, found)
        if found.tried >= MAX_CUTS:
            break
    return found


def _solve(
    shop: Workshop,
    clock: Clock,
    sizes: Sizes,
    search: Search,
    found: _Found,
    pinned: Mapping[str, Side] | None = None,
) -> list[Cut]:
    """The cuts of all placements that are optimal at some bandwidth of the scope, under some rung."""
    topology, scope = shop.model.topology, search.scope
    problems = {
        rung: problem_of(
            topology,
            edge_s=[s * search.slowdown for s in clock.edge_s],
            cloud_s=clock.cloud_s,
            sizes={n: s._replace(encode_s=s.encode_s * search.slowdown) for n, s in tensors.items()},
            pinned=pinned,
        )
        for rung, tensors in sizes.items()
    }
    x_lo, x_hi = seconds_per_byte(scope.fastest_mbit), seconds_per_byte(scope.slowest_mbit)
    try:
        solved = enumerate_plans(problems, x_lo=x_lo, x_hi=x_hi, up_over_down=scope.up_over_down, rtt_s=scope.rtt_s)
    except InputError:  # nothing can cross between what is pinned
        return []
    found.min_cuts += solved.min_cuts
    on_top = {s.plan for s in solved.stretches}
    order = sorted(range(len(solved.plans)), key=lambda i: i not in on_top)  # what wins overall is measured first
    crossings = (solved.plans[i].solution.crossing for i in order)
    return [cut for cut in dict.fromkeys(crossings) if cut and not set(cut) <= set(topology.inputs)]


def _ends_apart(topology: Topology) -> dict[str, Side]:
    """The first step on the device and the last one at the gateway, so that every placement is a cut."""
    placed = [i for i in topology.live_steps if i not in topology.recomputed]
    return {topology.steps[placed[0]].name: "edge", topology.steps[placed[-1]].name: "cloud"} if placed else {}


def _try(shop: Workshop, ends: Ends, cut: Cut, clock: Clock, sizes: Sizes, found: _Found) -> None:
    """Assemble and time one cut; what it shows about time and accuracy corrects the next round."""
    try:
        segment = assemble(shop, cut)
        seconds = clock.compare(time_graphs(shop, ends, {"cut": segment}))["cut"]
    except (ModelError, EngineError, AccuracyRefusedError) as error:
        found.problems[cut] = error.fact
        for tensors in sizes.values():
            for name in cut:
                tensors.pop(name, None)  # it never crosses again: the solver finds what is best without it
        return
    found.segments[cut], found.seconds[cut] = segment, seconds
    clock.observe(separate(shop.model.topology, cut), seconds)
    kept = {variant.rung for variant in segment.variants}
    for rung in sizes:
        if rung and rung not in kept:
            for name in cut:
                sizes[rung][name] = sizes[milder(sizes, rung)][name]


def _choose(
    shop: Workshop, ends: Ends, clock: Clock, found: _Found, search: Search, notes: list[str], reporter: Reporter
) -> Findings:
    """Time the finalists side by side, keep those that win somewhere, and say what became of all others."""
    reporter.stage("timing the finalists side by side")
    segments = {",".join(cut): segment for cut, segment in found.segments.items()}
    seconds = clock.whole | {",".join(cut): s for cut, s in found.seconds.items()}
    rough = costs_of(ends, segments, seconds, slowdown=search.slowdown)
    at_ends, families = _apart(rough)
    last = {n: segments[n] for n in select.finalists(at_ends, families, search.scope)}
    costs = costs_of(ends, last, time_graphs(shop, ends, last), slowdown=search.slowdown)
    at_ends, families = _apart(costs)
    kept, why = _keep(at_ends, families, search)
    share = {n: _share(shop, segment.cut) for n, segment in segments.items()}
    ids = {n: f"cut-{i}" for i, n in enumerate(sorted(kept, key=lambda n: share[n]), 1)}
    final = {FULL_CLOUD: costs[FULL_CLOUD]}
    final |= {ids[n]: {id_.replace(n, ids[n], 1): cost for id_, cost in costs[n].items()} for n in ids}
    final[EDGE_ONLY] = costs[EDGE_ONLY]
    measured = tuple(
        Measured(segments[n].cut, share[n], segments[n].precision, v.rung, (rough | costs)[n][id_], ids.get(n, ""))
        for n in sorted(segments, key=lambda n: share[n])
        for v, id_ in zip(segments[n].variants, rough[n], strict=True)
    )
    return findings({ids[n]: segments[n] for n in ids}, final, measured, (*notes, *why), search.scope)


def findings(
    kept: dict[str, Segment],
    costs: Families,
    measured: tuple[Measured, ...],
    notes: tuple[str, ...],
    scope: PlanConditions,
) -> Findings:
    """What is kept; of each family the lossless coding, and those that are its best somewhere."""
    flat: dict[str, PlacementCost] = {}
    for name, family in costs.items():
        useful = select.useful(family, scope)
        flat |= {id_: cost for id_, cost in family.items() if id_ in useful or id_ == name}
    return Findings(kept, flat, measured, notes)


def _apart(costs: Families) -> tuple[dict[str, PlacementCost], Families]:
    """The lines of both ends together, and those of the cuts by family."""
    cuts = {name: family for name, family in costs.items() if name not in (FULL_CLOUD, EDGE_ONLY)}
    return costs[FULL_CLOUD] | costs[EDGE_ONLY], cuts


def _share(shop: Workshop, cut: Cut) -> float:
    """Of the estimated compute, how much the head does."""
    topology = shop.model.topology
    done = sum(topology.work[i] for i in separate(topology, cut).head_steps)
    return done / (sum(topology.work) or 1.0)


def _keep(
    ends: Mapping[str, PlacementCost], families: Families, search: Search
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cuts to keep, and what is to be said about the others."""
    kept = select.keep(ends, families, search.scope)
    if kept.dropped:
        return kept.cuts, (f"{len(kept.dropped)} more cuts win somewhere but gain less: {'; '.join(kept.dropped)}",)
    if kept.cuts:
        return kept.cuts, ()
    note, best = do_not_split(ends, families, search.scope)
    return ((best,) if search.keep_best else ()), (note,)


def do_not_split(ends: Mapping[str, PlacementCost], families: Families, scope: PlanConditions) -> tuple[str, str]:
    """The explained answer when no cut wins, and the cut that came nearest."""
    winners = " or ".join(dict.fromkeys(s.id for s in select.plan(ends, scope)))
    best, ratio = select.closest(ends, families, scope)
    note = (
        f"do not split: from {scope.slowest_mbit:g} to {scope.fastest_mbit:g} Mbit/s {winners} is always faster; "
        f"the nearest cut, {best}, takes {ratio:.2f} times as long at best"
    )
    return note, best


def _summary(found: _Found, elapsed_s: float, search: Search) -> str:
    end = "stable" if found.stable else "stopped before it was stable"
    return (
        f"solved exactly {found.rounds} times ({found.min_cuts} min-cuts), measured {found.tried} cuts, {end}; "
        f"{elapsed_s:.0f} s of {search.budget_s:.0f} s"
    )
