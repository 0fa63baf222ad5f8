"""From everything that was measured to what ships: finalists timed side by side, winners kept, the rest explained."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from partitioner.planning import select
from partitioner.planning.clock import Clock
from partitioner.planning.costs import EDGE_ONLY, FULL_CLOUD, Families, costs_of, id_of, with_memory
from partitioner.planning.ends import Ends
from partitioner.planning.explore import Cut, Explorer, Power, Search
from partitioner.planning.workshop import Segment, Variant, Workshop
from partitioner.solver.constraints import Conflict, admit
from protocol.bench import Reporter
from protocol.bundle import Measured
from protocol.errors import InputError
from protocol.latency import PlacementCost
from protocol.plan import PlanConditions, Row, plan_table


@dataclass(frozen=True)
class Findings:
    """The segments to keep by family, in order of depth; what their lines and those of the two ends cost, timed side by
    side, by placement id; every line that was measured; and what is to be told about it.
    """

    kept: dict[str, Segment]
    costs: dict[str, PlacementCost]
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]
    slowdown: float  # of the device against this machine: declared, or as its profile shows


def explore(shop: Workshop, ends: Ends, search: Search, reporter: Reporter) -> Findings:
    """Measure the cuts that can be best while the budget lasts (always at least one) and choose among them."""
    started = time.monotonic()
    explorer = Explorer.open(shop, ends, search.machines, reporter)
    explorer.run(search, reporter, until=started + search.budget_s)
    notes = [summary(explorer, time.monotonic() - started, search.budget_s)]
    notes += [f"cut {cut.name} left out: {why}" for cut, why in explorer.problems.items()]
    if not explorer.segments:
        none = "no cut keeps the constraints" if search.constraints.asked else "the model has no cut"
        why = "every cut failed" if explorer.problems else none
        costs = finish(shop, ends, {}, explorer.clock, search, reporter)
        return findings({}, costs, (), (*notes, f"do not split: {why}"), search.scope, explorer.clock.slowdown)
    return _choose(explorer, search, notes, reporter)


def _choose(explorer: Explorer, search: Search, notes: list[str], reporter: Reporter) -> Findings:
    """Time the finalists side by side, keep those that win somewhere, and say what became of all others."""
    reporter.stage("timing the finalists side by side")
    cuts = {cut.name: cut for cut in explorer.segments}
    rough = explorer.costs()
    promising = _promising(explorer, rough, search, reporter)
    last = {n: explorer.segments[cuts[n]] for n in select.finalists(*_apart(promising), search.scope)}
    costs = finish(explorer.shop, explorer.ends, last, explorer.clock, search, reporter)
    kept, why = _keep(*_apart(costs), search)
    share = {n: explorer.share(cut) for n, cut in cuts.items()}
    ids = {n: f"cut-{i}" for i, n in enumerate(sorted(kept, key=lambda n: share[n]), 1)}
    final = {ids.get(n, n): _renamed(family, n, ids) for n, family in costs.items() if n in ids or n not in cuts}
    by_depth = sorted(cuts, key=lambda n: share[n])
    all_costs = rough | costs
    measured = tuple(
        _as_measured(cuts[n], share[n], segment, variant, all_costs[n].get(id_, cost), ids.get(n, ""))
        for n in by_depth
        for segment in (explorer.segments[cuts[n]],)
        for variant, (id_, cost) in zip(segment.variants, rough[n].items(), strict=True)
    )
    return findings(
        {ids[n]: last[n] for n in ids}, final, measured, (*notes, *why), search.scope, explorer.clock.slowdown
    )


def _promising(explorer: Explorer, rough: Families, search: Search, reporter: Reporter) -> Families:
    """What keeps the constraints by the first measurements: the fastest cuts may not push out those that may ship."""
    if not search.constraints.asked:
        return rough
    segments = {cut.name: segment for cut, segment in explorer.segments.items()}
    by_memory = not {"edge_memory_nbytes", "cloud_memory_nbytes"}.isdisjoint(search.constraints.asked)
    costs = _priced(explorer.shop, explorer.ends, segments, rough, search, reporter, memory=by_memory)
    try:
        return _within(explorer.ends, segments, costs, search)
    except InputError:  # nothing does: what is measured side by side has the last word, and the words
        return rough


def _as_measured(
    cut: Cut, share: float, segment: Segment, variant: Variant, cost: PlacementCost, kept_as: str
) -> Measured:
    rung = " ".join(filter(None, ("decorrelated" if cut.decorrelated else "", variant.rung)))
    return Measured(cut.tensors, share, segment.precision, rung, cost, kept_as)


def finish(
    shop: Workshop, ends: Ends, segments: Mapping[str, Segment], clock: Clock, search: Search, reporter: Reporter
) -> Families:
    """The lines that may ship: timed in turn, with memory and energy, and within the constraints.

    Raises InputError naming the constraints that conflict, and to what each would have to give way.
    """
    costs = costs_of(ends, segments, clock.time(segments), slowdown=clock.slowdown)
    costs = _priced(shop, ends, segments, costs, search, reporter, memory=search.memory)
    if clock.knows_both_sides or search.scope.quantile != 0.5:  # else neither was profiled, and that takes seconds
        edge, tail = clock.spread("edge"), clock.spread("cloud")
        costs = {n: {id_: c.spread(edge=edge, tail=tail) for id_, c in f.items()} for n, f in costs.items()}
    return _within(ends, segments, costs, search) if search.constraints.asked else costs


def _priced(
    shop: Workshop,
    ends: Ends,
    segments: Mapping[str, Segment],
    costs: Families,
    search: Search,
    reporter: Reporter,
    *,
    memory: bool,
) -> Families:
    """The same lines with energy, and with peak memory, which takes two fresh processes a cut."""
    if memory:
        reporter.stage("measuring memory")
        costs = with_memory(shop, ends, segments, costs)
    return {n: {id_: with_energy(c, search.power) for id_, c in family.items()} for n, family in costs.items()}


def with_energy(cost: PlacementCost, power: Power) -> PlacementCost:
    """The cost with the device's energy per request, if its power was declared."""
    if not power.is_known:
        return cost
    joules = power.compute_w * (cost.edge_s + cost.encode_s)
    joules += power.radio_j_per_byte * (cost.up_nbytes + cost.down_nbytes)
    return msgspec.structs.replace(cost, energy_j=joules)


def findings(
    kept: dict[str, Segment],
    costs: Families,
    measured: tuple[Measured, ...],
    notes: tuple[str, ...],
    scope: PlanConditions,
    slowdown: float,
) -> Findings:
    """What is kept; of each family the lossless coding, and those that are its best somewhere."""
    flat: dict[str, PlacementCost] = {}
    for name, family in costs.items():
        useful = select.useful(family, scope) if family else set()
        flat |= {id_: cost for id_, cost in family.items() if id_ in useful or id_ == name}
    return Findings(kept, flat, measured, notes, slowdown)


def _within(ends: Ends, segments: Mapping[str, Segment], costs: Families, search: Search) -> Families:
    rows = [
        Row(id_, cost, {"accuracy": _accuracy(ends, segments, name, id_)})
        for name, family in costs.items()
        for id_, cost in family.items()
    ]
    pinned = [row.id for row in rows if row.id not in costs[FULL_CLOUD]]  # the solver put no other cut forward
    admitted = admit(plan_table(rows, search.scope), search.constraints, keep_pins=pinned)
    if isinstance(admitted, Conflict):
        raise InputError(str(admitted), "loosen one of them")
    ids = {row.id for row in admitted.rows}
    return {n: {id_: c for id_, c in family.items() if id_ in ids} for n, family in costs.items()}


def _accuracy(ends: Ends, segments: Mapping[str, Segment], family: str, id_: str) -> float:
    if family == EDGE_ONLY:
        return ends.edge_certificate.achieved
    variants = ends.full_variants if family == FULL_CLOUD else segments[family].variants
    return next(v.certificate.achieved for v in variants if id_of(family, v.rung) == id_)


def _renamed(family: Mapping[str, PlacementCost], name: str, ids: Mapping[str, str]) -> dict[str, PlacementCost]:
    """A family's lines under the placement id that it ships with."""
    return {ids.get(name, name) + id_.removeprefix(name): cost for id_, cost in family.items()}


def _apart(costs: Families) -> tuple[dict[str, PlacementCost], Families]:
    """The lines of both ends together, and those of the cuts by family; a family may have lost all of its lines."""
    cuts = {name: family for name, family in costs.items() if name not in (FULL_CLOUD, EDGE_ONLY) and family}
    return costs[FULL_CLOUD] | costs[EDGE_ONLY], cuts


def _keep(
    ends: Mapping[str, PlacementCost], families: Families, search: Search
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cuts to keep, and what is to be said about the others."""
    if not families:
        return (), ("do not split: no cut keeps the constraints",)
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


def summary(explorer: Explorer, elapsed_s: float, budget_s: float) -> str:
    end = "stable" if explorer.stable else "stopped before it was stable"
    count = len(explorer.segments) + len(explorer.problems)
    gap = f", at most {explorer.gap:.2%} above the optimum" if explorer.gap else ""
    gap = ", not proven best: the min-cuts ran out" if explorer.gap == math.inf else gap
    return (
        f"solved exactly {'once' if explorer.rounds == 1 else f'{explorer.rounds} times'} ({explorer.min_cuts} "
        f"min-cuts{gap}), measured {count} cut{'s' * (count != 1)}, {end}; {elapsed_s:.0f} s of {budget_s:.0f} s"
    )
