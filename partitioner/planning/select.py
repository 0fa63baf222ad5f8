"""Which measured placements to keep. Pure: costs in, names out.

A *family* is a cut (or full-cloud) under all of its codings, which share head and tail: whoever keeps one coding has
the others for nothing. Winning means being lowest at some bandwidth of the scope, full-cloud and edge-only competing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from protocol.latency import Line, PlacementCost, line_of
from protocol.plan import PlanConditions, PlanStretch, Row, plan_table, seconds_per_byte, under

MAX_KEPT = 3
MAX_FINALISTS = 6
NEAR = 1.3
MAX_CODINGS = 3
MIN_GAIN = 0.002  # of the latency, averaged over the bandwidths: less is noise
_GRID = 64

Family = Mapping[str, PlacementCost]  # cost by placement id


def grid(scope: PlanConditions) -> list[float]:
    """Seconds per byte at bandwidths spread evenly on a logarithmic scale, fastest first."""
    step = math.log(scope.fastest_mbit / scope.slowest_mbit) / (_GRID - 1)
    return [seconds_per_byte(scope.fastest_mbit * math.exp(-step * i)) for i in range(_GRID)]


def line(cost: PlacementCost, scope: PlanConditions) -> Line:
    return line_of(under(cost, scope), rtt_s=scope.rtt_s, queue_s=scope.queue_s, up_over_down=scope.up_over_down)


def plan(costs: Mapping[str, PlacementCost], scope: PlanConditions) -> tuple[PlanStretch, ...]:
    """Who wins where, fastest link first."""
    return plan_table([Row(id_, cost) for id_, cost in costs.items()], scope).stretches


def finalists(
    ends: Family, families: Mapping[str, Family], scope: PlanConditions, *, limit: int = MAX_FINALISTS
) -> list[str]:
    """The cuts that win, or come so near that measuring them side by side may decide otherwise; best first.

    At least one, at most `limit`: measured minutes apart, two times differ by 10-50 % on a machine that others use.
    """
    ratios = _ratios(ends, families, scope)
    order = sorted(families, key=lambda n: ratios[n])
    return order[:1] + [n for n in order[1:limit] if ratios[n] <= NEAR]


class Kept(NamedTuple):
    """The cuts to keep, best gain first, and those that would have won somewhere as well."""

    cuts: tuple[str, ...]
    dropped: tuple[str, ...]


def keep(ends: Family, families: Mapping[str, Family], scope: PlanConditions, *, limit: int = MAX_KEPT) -> Kept:
    """Choose up to `limit` cuts, one after the other, by the mean relative latency each takes off what is there."""
    everything = dict(ends) | {id_: cost for family in families.values() for id_, cost in family.items()}
    on_top = {s.id for s in plan(everything, scope)}
    winners = {name for name, family in families.items() if not on_top.isdisjoint(family)}
    chosen: list[str] = []
    there = dict(ends)
    while len(chosen) < min(limit, len(winners)):
        gains = {n: gain(there, families[n], scope) for n in families if n in winners and n not in chosen}
        best = max(gains, key=lambda n: gains[n])
        chosen.append(best)
        there |= families[best]
    return Kept(tuple(chosen), tuple(n for n in families if n in winners and n not in chosen))


def useful(family: Family, scope: PlanConditions, *, limit: int = MAX_CODINGS) -> set[str]:
    """The codings of one family worth shipping: the best one, and those that take something off it somewhere."""
    best = min(family, key=lambda id_: sum(math.log(max(line(family[id_], scope).at(x), 1e-12)) for x in grid(scope)))
    chosen = {best: family[best]}
    while len(chosen) < limit:
        gains = {id_: gain(chosen, {id_: cost}, scope) for id_, cost in family.items() if id_ not in chosen}
        more = max(gains, key=lambda id_: gains[id_], default=None)
        if more is None or gains[more] < MIN_GAIN:
            break
        chosen[more] = family[more]
    return set(chosen)


def gain(there: Family, family: Family, scope: PlanConditions) -> float:
    """Mean over bandwidths of the share of latency that one more family saves; 0 where it does not win."""
    lines = [line(c, scope) for c in there.values()]
    more = [line(c, scope) for c in family.values()]
    savings = []
    for x in grid(scope):
        before = min((one.at(x) for one in lines), default=math.inf)
        savings.append(max(0.0, 1.0 - min(one.at(x) for one in more) / before) if before > 0 else 0.0)
    return sum(savings) / len(savings)


def closest(ends: Family, families: Mapping[str, Family], scope: PlanConditions) -> tuple[str, float]:
    """The cut that comes nearest to winning, and its best ratio of latency to the better end (1.1: 10 % slower)."""
    ratios = _ratios(ends, families, scope)
    best = min(ratios, key=lambda n: ratios[n])
    return best, ratios[best]


def _ratios(ends: Family, families: Mapping[str, Family], scope: PlanConditions) -> dict[str, float]:
    """For each cut the least ratio, over all bandwidths, of its latency to the better end's."""
    lines = [line(c, scope) for c in ends.values()]
    floor = {x: max(min((one.at(x) for one in lines), default=math.inf), 1e-12) for x in grid(scope)}
    return {
        name: min(line(cost, scope).at(x) / best for cost in family.values() for x, best in floor.items())
        for name, family in families.items()
    }
