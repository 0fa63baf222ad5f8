"""Why this placement, and what would have to change for another one: facts as a structure, for sentences and --json.

The plan table says who wins where, and at which value of each condition that ends. This room asks it under the
conditions that a person gives, takes each latency apart into its stages, and finds the cut that comes nearest when none
wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from protocol.bundle import Manifest, Measured, ParityCertificate, PlacementEntry
from protocol.errors import InputError
from protocol.latency import LinkState, PlacementCost, latency_s
from protocol.messages import PlacementKind
from protocol.plan import PlanConditions, PlanTable, Row, plan_table, under
from protocol.stages import Condition, Flip, Stage, Stages, stages_of

LEAST_MBIT, MOST_MBIT = 0.05, 10_000.0  # where "anywhere" ends: below a modem, beyond what a device is attached to
FARTHEST = 100.0  # a flip that takes a machine so many times slower or faster is no advice
LONGEST_RTT_S = 5.0
ENDED_EARLY = "stopped before it was stable"  # as the note of a search says (`planning/choose.py`)


class Question(NamedTuple):
    """Under which conditions to explain. None: as the bundle declares. `cloud_load` is the share of the time for which
    the gateway is busy with others; `quantile` that of the machines' times.
    """

    mbit: float = 10.0
    rtt_s: float | None = None
    edge_slowdown: float | None = None
    cloud_load: float = 0.0
    quantile: float = 0.5


class Ranked(msgspec.Struct, frozen=True):
    """One placement under the conditions asked about. `ratio` is its latency over the best one's."""

    id: str
    family: str
    kind: PlacementKind
    crossing: tuple[str, ...]  # the tensors of the cut; empty for edge-only
    codecs: tuple[str, ...]
    total_s: float
    ratio: float
    stages: Stages
    cost: PlacementCost


class Stretch(msgspec.Struct, frozen=True):
    """`id` is best from `from_mbit` to `to_mbit`; None is open: as far as anyone would ask."""

    id: str
    from_mbit: float | None
    to_mbit: float | None


class NoSplit(msgspec.Struct, frozen=True):
    """Why not to split: here, or at any bandwidth at all.

    `nearest` is the cut that loses least, at `mbit`, with `ratio` times the latency of `against`; `blame` is where it
    spends most more than that one, `lost_s` how much. `shrink`: how many times smaller its payload would have to be to
    draw level there; None if no codec could do it. `compared` cuts were looked at: the bundle's, or all that were
    measured for it. `ended_early`: the search for cuts was stopped before it was stable.
    """

    anywhere: bool
    nearest: str | None
    crossing: tuple[str, ...]  # its tensors
    against: str
    mbit: float
    ratio: float
    behind_s: float
    blame: Stage | None
    lost_s: float
    shrink: float | None
    compared: int = 0
    ended_early: bool = False


class Explanation(msgspec.Struct, frozen=True):
    """The facts. `ranking` is every placement, fastest first; `runner_up` is the best of another family."""

    model: str
    mbit: float
    rtt_s: float
    edge_slowdown: float
    declared_slowdown: float
    cloud_load: float
    quantile: float
    best: Ranked
    runner_up: Ranked | None
    ranking: tuple[Ranked, ...]
    stretches: tuple[Stretch, ...]  # slowest link first
    flips: tuple[Flip, ...]
    no_split: NoSplit | None
    certificate: ParityCertificate | None  # of the best
    notes: tuple[str, ...]
    half: ParityCertificate | None = None  # of the best with its tail in float16, where there is one


def explain(manifest: Manifest, question: Question) -> Explanation:
    """Explain the bundle's plan under `question`. Raises InputError for conditions that no link or machine has."""
    _check(question)
    declared = manifest.conditions.edge_slowdown
    slowdown = declared if question.edge_slowdown is None else question.edge_slowdown
    rtt_s = manifest.conditions.rtt_s if question.rtt_s is None else question.rtt_s
    table = table_of(manifest, question)
    ranking = _ranking(manifest.placements, table, link_of(question.mbit, rtt_s))
    best = ranking[0]
    stretches = _stretches(table)
    return Explanation(
        model=manifest.model.name,
        mbit=question.mbit,
        rtt_s=rtt_s,
        edge_slowdown=slowdown,
        declared_slowdown=declared,
        cloud_load=question.cloud_load,
        quantile=question.quantile,
        best=best,
        runner_up=next((r for r in ranking if r.family != best.family), None),
        ranking=tuple(ranking),
        stretches=tuple(stretches),
        flips=tuple(_flips(table, best.id, link_of(question.mbit, rtt_s))),
        no_split=_no_split(manifest, table, ranking, stretches, question.mbit),
        certificate=next(p.certificate for p in manifest.placements if p.id == best.id),
        notes=manifest.notes,
        half=next(p.half.certificate if p.half else None for p in manifest.placements if p.id == best.id),
    )


def table_of(manifest: Manifest, question: Question) -> PlanTable:
    """The bundle's rows under the conditions asked about, from LEAST_MBIT to MOST_MBIT.

    Times of head and encoding in a bundle hold for its declared slow-down: another one rescales them exactly.
    """
    declared = manifest.conditions.edge_slowdown
    conditions = PlanConditions(
        rtt_s=manifest.conditions.rtt_s if question.rtt_s is None else question.rtt_s,
        edge_factor=1.0 if question.edge_slowdown is None else question.edge_slowdown / declared,
        cloud_load=question.cloud_load,
        quantile=question.quantile,
        fastest_mbit=MOST_MBIT,
        slowest_mbit=LEAST_MBIT,
    )
    return plan_table([Row(p.id, p.cost) for p in manifest.placements], conditions)


def family_of(id_: str) -> str:
    """What placements that differ only in their codec share: the part of the id before the first dot."""
    return id_.partition(".")[0]


def link_of(mbit: float, rtt_s: float) -> LinkState:
    """As fast down as up."""
    rate = mbit * 1e6 / 8
    return LinkState(rate, rtt_s, rate)


def _check(question: Question) -> None:
    for name, value in (("--mbit", question.mbit), ("--edge-slowdown", question.edge_slowdown)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be a number above 0, not {value:g}", "give another one")
    if question.rtt_s is not None and not 0 <= question.rtt_s < math.inf:
        raise InputError(f"--rtt-ms must be 0 or more, not {question.rtt_s * 1e3:g}", "give another one")
    if not 0 <= question.cloud_load < 1:
        remedy = "it is the share of the time for which the gateway is busy: 0.5 doubles its times"
        raise InputError(f"--cloud-load must be from 0 to below 1, not {question.cloud_load:g}", remedy)
    if not 0 < question.quantile < 1:
        raise InputError(f"--quantile must lie between 0 and 1, not {question.quantile:g}", "0.5 is the median")


def _costs(table: PlanTable) -> dict[str, PlacementCost]:
    return {row.id: under(row.cost, table.conditions) for row in table.rows}


def _ranking(placements: Sequence[PlacementEntry], table: PlanTable, link: LinkState) -> list[Ranked]:
    totals, costs = table.latencies_s(link), _costs(table)
    least = min(totals.values()) or 1.0
    ranked = [
        Ranked(
            id=p.id,
            family=family_of(p.id),
            kind=p.kind,
            crossing=p.cut if p.segment is not None else (),
            codecs=tuple(dict.fromkeys(t.codec for t in p.boundary)),
            total_s=totals[p.id],
            ratio=totals[p.id] / least,
            stages=stages_of(costs[p.id], link),
            cost=costs[p.id],
        )
        for p in placements
    ]
    return sorted(ranked, key=lambda r: (r.total_s, r.cost.up_nbytes))


def _stretches(table: PlanTable) -> list[Stretch]:
    """Slowest link first, the two ends open."""
    ordered = table.stretches[::-1]
    last = len(ordered) - 1
    return [
        Stretch(s.id, None if i == 0 else s.to_mbit, None if i == last else s.from_mbit) for i, s in enumerate(ordered)
    ]


# Beyond these values a flip is no advice.
_SENSIBLE: dict[Condition, tuple[float, float]] = {
    "uplink_mbit": (LEAST_MBIT, MOST_MBIT),
    "rtt_s": (0.0, LONGEST_RTT_S),
    "edge_factor": (1 / FARTHEST, FARTHEST),
    "cloud_factor": (1 / FARTHEST, FARTHEST),
}


def _flips(table: PlanTable, best: str, link: LinkState) -> Iterable[Flip]:
    """Where another placement takes over from `best`, at most one on either side of each condition."""
    ranges = {r.condition: r for r in table.flip_points(best, link)}
    for condition, (low, high) in _SENSIBLE.items():
        seen = ranges[condition]
        if seen.below is not None and low < seen.low <= seen.now:
            yield Flip(condition, "below", seen.low, seen.below)
        if seen.above is not None and seen.now <= seen.high < high:
            yield Flip(condition, "above", seen.high, seen.above)


# ---- do not split ---------------------------------------------------------------------------------------------------


def _no_split(
    manifest: Manifest, table: PlanTable, ranking: Sequence[Ranked], stretches: Sequence[Stretch], mbit: float
) -> NoSplit | None:
    if ranking[0].kind is PlacementKind.CUT:
        return None
    costs = _costs(table)
    cuts = {p.id: costs[p.id] for p in manifest.placements if p.kind is PlacementKind.CUT}
    anywhere = not any(s.id in cuts for s in stretches)
    crossing = {p.id: p.cut for p in manifest.placements if p.kind is PlacementKind.CUT}
    if not cuts:
        # A bundle keeps no cut that never wins, but it remembers those that were measured.
        cuts = {_named(m): under(m.cost, table.conditions) for m in manifest.measured}
        crossing = {_named(m): m.cut for m in manifest.measured}
    if not cuts:
        return NoSplit(anywhere, None, (), ranking[0].id, mbit, 1.0, 0.0, None, 0.0, None)
    if anywhere:
        mbit = _nearest_mbit(cuts, table)
    link = link_of(mbit, table.conditions.rtt_s)
    nearest = min(cuts, key=lambda id_: latency_s(cuts[id_], link))
    against = min(costs, key=lambda id_: latency_s(costs[id_], link))
    found = _behind(nearest, cuts[nearest], against, costs[against], link, anywhere=anywhere)
    return msgspec.structs.replace(
        found,
        crossing=crossing[nearest],
        compared=len({*crossing.values(), *(m.cut for m in manifest.measured)}),
        ended_early=any(ENDED_EARLY in note for note in manifest.notes),
    )


def _named(seen: Measured) -> str:
    return ", ".join(seen.cut) + (f" as {seen.rung}" if seen.rung else "")


def _nearest_mbit(cuts: Mapping[str, PlacementCost], table: PlanTable) -> float:
    """Where the best cut is relatively nearest to the best of all.

    A ratio of two lines has no extremum within a stretch, so that only the corners need be looked at: those of the
    table, and those of the envelope of the cuts alone.
    """
    alone = plan_table(
        [Row(id_, cost) for id_, cost in cuts.items()],
        PlanConditions(rtt_s=table.conditions.rtt_s, fastest_mbit=MOST_MBIT, slowest_mbit=LEAST_MBIT),
    )
    corners = [s.to_mbit for s in (*table.stretches, *alone.stretches)]

    def ratio(mbit: float) -> float:
        link = link_of(mbit, table.conditions.rtt_s)
        return min(latency_s(c, link) for c in cuts.values()) / min(table.latencies_s(link).values())

    return min([MOST_MBIT, *corners], key=ratio)


def _behind(
    nearest: str, cost: PlacementCost, against: str, least: PlacementCost, link: LinkState, *, anywhere: bool
) -> NoSplit:
    mine, theirs = (stages_of(c, link).named() for c in (cost, least))
    blame = max(mine, key=lambda stage: mine[stage] - theirs[stage])
    total_s, least_s = sum(mine.values()), sum(theirs.values())
    left_s = mine["upload"] - (total_s - least_s)  # for the upload, if both are to take equally long
    return NoSplit(
        anywhere=anywhere,
        nearest=nearest,
        crossing=(),
        against=against,
        mbit=link.uplink_bytes_per_s * 8 / 1e6,
        ratio=total_s / least_s if least_s else math.inf,
        behind_s=total_s - least_s,
        blame=blame,
        lost_s=mine[blame] - theirs[blame],
        shrink=mine["upload"] / left_s if left_s > 0 else None,
    )
