"""--auto: measure a bounded sample of the possible cuts and keep those that win somewhere between 1 and 200 Mbit/s."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from partitioner import select
from partitioner.assemble import Segment, Workshop, assemble
from partitioner.costs import FULL_CLOUD, time_placements
from partitioner.cuts import Candidate, prefix_candidates
from partitioner.measure import Coding
from protocol.errors import AccuracyRefusedError, EngineError, ModelError
from protocol.latency import PlacementCost


class Reporter(Protocol):
    """Hears what is going on; never asked anything."""

    def stage(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


class Measured(msgspec.Struct, frozen=True):
    """A cut that was split, proven and timed, whether or not it was kept."""

    cut: tuple[str, ...]
    share: float  # of the estimated compute, before the cut
    precision: str
    cost: PlacementCost


@dataclass(frozen=True)
class Search:
    """What the search may use: seconds, the declared slow-down of the device, the round trip."""

    budget_s: float
    slowdown: float
    rtt_s: float
    keep_best: bool = False


@dataclass(frozen=True)
class Findings:
    """The segments to keep by placement id, in order of depth; what they and the two ends cost, timed side by side;
    every cut that was measured; and what is to be told about it.
    """

    kept: dict[str, Segment]
    costs: dict[str, PlacementCost]
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Ends:
    """The graphs at the model's two ends, between which every cut competes."""

    full: bytes
    coding: Coding
    edge: bytes


def explore(shop: Workshop, ends: Ends, search: Search, reporter: Reporter) -> Findings:
    """Measure the most promising cuts while the budget lasts (always at least one) and choose among them."""
    rough = _time(shop, ends, {}, search)
    candidates = prefix_candidates(shop.model.topology)
    input_nbytes = sum(a.nbytes for a in shop.samples.feed(0).values())
    listed = select.shortlist(
        candidates, select.Guess(rough[FULL_CLOUD].tail_s, input_nbytes, search.slowdown, search.rtt_s)
    )
    found = _measure_all(shop, ends, listed, search, reporter)
    tried = len(found.measured) + len(found.problems)
    note = (
        f"measured {tried} of {len(listed)} shortlisted cuts (the model has {len(candidates)}), "
        f"{found.elapsed_s:.0f} s of {search.budget_s:.0f} s"
    )
    by_depth = tuple(sorted(found.measured.values(), key=lambda m: m.share))
    if not found.measured:
        why = "do not split: the model has no cut worth measuring" if not listed else "do not split: every cut failed"
        return Findings({}, rough, (), (note, *found.problems, why))
    reporter.stage("timing the finalists side by side")
    names = select.finalists(rough, {n: m.cost for n, m in found.measured.items()}, rtt_s=search.rtt_s)
    costs = _time(shop, ends, {n: found.segments[n] for n in names}, search)
    kept, why_kept = _choose({n: costs[n] for n in rough}, {n: costs[n] for n in names}, search)
    ids = {n: f"cut-{i}" for i, n in enumerate(sorted(kept, key=lambda n: found.measured[n].share), 1)}
    return Findings(
        {ids[n]: found.segments[n] for n in ids},
        {ids.get(n, n): c for n, c in costs.items() if n in ids or n in rough},
        by_depth,
        (note, *found.problems, *why_kept),
    )


@dataclass
class _Found:
    """What the loop over the shortlist gathers, by the cut's tensors joined with commas."""

    segments: dict[str, Segment]
    measured: dict[str, Measured]
    problems: list[str]
    elapsed_s: float = 0.0


def _measure_all(shop: Workshop, ends: Ends, listed: Sequence[Candidate], search: Search, reporter: Reporter) -> _Found:
    found = _Found({}, {}, [])
    started = time.monotonic()
    for done, candidate in enumerate(listed):
        found.elapsed_s = time.monotonic() - started
        # The next one will take about as long as those before it.
        if done and found.elapsed_s * (done + 1) / done > search.budget_s:
            break
        reporter.stage(f"measuring cut {done + 1} of {len(listed)}: {', '.join(candidate.cut)}")
        name = ",".join(candidate.cut)
        try:
            segment = assemble(shop, candidate.cut)
            cost = _time(shop, ends, {name: segment}, search)[name]
        except (ModelError, EngineError, AccuracyRefusedError) as error:
            found.problems.append(f"cut {name} left out: {error.fact}")
        else:
            found.segments[name] = segment
            found.measured[name] = Measured(candidate.cut, candidate.share, segment.precision, cost)
        reporter.progress(done + 1, len(listed))
        found.elapsed_s = time.monotonic() - started
    return found


def _time(shop: Workshop, ends: Ends, segments: Mapping[str, Segment], search: Search) -> dict[str, PlacementCost]:
    return time_placements(shop, ends.full, ends.coding, ends.edge, segments, slowdown=search.slowdown)


def _choose(
    ends: Mapping[str, PlacementCost], costs: Mapping[str, PlacementCost], search: Search
) -> tuple[tuple[str, ...], list[str]]:
    kept = select.keep(ends, costs, rtt_s=search.rtt_s)
    if kept.dropped:
        return kept.cuts, [f"{len(kept.dropped)} more cuts win somewhere but gain less: {'; '.join(kept.dropped)}"]
    if kept.cuts:
        return kept.cuts, []
    note, best = do_not_split(ends, costs, rtt_s=search.rtt_s)
    return ((best,) if search.keep_best else ()), [note]


def do_not_split(
    ends: Mapping[str, PlacementCost], costs: Mapping[str, PlacementCost], *, rtt_s: float
) -> tuple[str, str]:
    """The explained answer when no cut wins, and the cut that came nearest."""
    winners = " or ".join(dict.fromkeys(s.id for s in select.plan(ends, rtt_s=rtt_s)))
    best, ratio = select.closest(ends, costs, rtt_s=rtt_s)
    note = (
        f"do not split: from {select.SLOWEST_MBIT:.0f} to {select.FASTEST_MBIT:.0f} Mbit/s {winners} is always faster; "
        f"the nearest cut, {best}, takes {ratio:.2f} times as long at best"
    )
    return note, best
