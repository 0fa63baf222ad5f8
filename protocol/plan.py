"""The plan table: which placement at which bandwidth, and what would have to change for another one. Pure.

One row for each placement (a cut with a codec is a row of its own). Under fixed conditions each row is a line over
x = 1/uplink (`latency`), and the table is their lower envelope: choosing is a bisection, not a search. The round trip
and the queue at the gateway are the same for every row that sends anything, so the envelope of those rows holds for any
of them; rows that send nothing (edge-only) compete as constants.

A placement also has a *winning range* in each condition by itself. Latency is linear in 1/uplink, in the round trip, in
the device's and in the gateway's slowness, so the ends of these ranges (flip points) are quotients, not searches.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec

from protocol.errors import InputError
from protocol.latency import (
    Line,
    LinkState,
    PlacementCost,
    adjusted,
    bottleneck_s,
    latency_s,
    line_of,
    lower_envelope,
)

_BITS_PER_MBIT = 1e6
_SLOWEST_X = 1.0  # seconds per byte: nobody plans for less than 8 bit/s
_SAME_RATIO = 1e-9


class Row(msgspec.Struct, frozen=True):
    """One placement; `attributes` are further numbers that may be asked for, such as the metric achieved."""

    id: str
    cost: PlacementCost
    attributes: dict[str, float] = {}


class PlanConditions(msgspec.Struct, frozen=True):
    """Under which conditions the stretches hold. Factors multiply times, so 2 means half as fast."""

    rtt_s: float
    up_over_down: float = 1.0
    queue_s: float = 0.0
    edge_factor: float = 1.0
    cloud_factor: float = 1.0
    cloud_load: float = 0.0
    quantile: float = 0.5  # of the latency; then bandwidths are to be read as the same quantile of 1/uplink
    fastest_mbit: float = 1000.0
    slowest_mbit: float = 0.1

    def at_quantile(self, quantile: float) -> PlanConditions:
        return msgspec.structs.replace(self, quantile=quantile)


class PlanStretch(msgspec.Struct, frozen=True):
    """`id` is best from `from_mbit` down to `to_mbit` (Mbit/s of uplink)."""

    id: str
    from_mbit: float
    to_mbit: float


class WinningRange(NamedTuple):
    """Where a placement is best in one condition, all others fixed: for values between `low` and `high`.

    `below` and `above` are the placements that take over there, None where nothing ever does. `low > high` means that
    it is best nowhere.
    """

    condition: str
    now: float
    low: float
    high: float
    below: str | None
    above: str | None

    @property
    def exists(self) -> bool:
        return self.low <= self.high

    @property
    def holds_now(self) -> bool:
        return self.low <= self.now <= self.high


class PlanTable(msgspec.Struct, frozen=True, dict=True):
    """Rows, conditions, and who is best where, from the fastest link to the slowest. Made by `plan_table`."""

    rows: tuple[Row, ...]
    conditions: PlanConditions
    stretches: tuple[PlanStretch, ...]

    def best(self, link: LinkState) -> str:
        """The id of the row with the least latency; ties go to the one that sends less.

        Takes microseconds: a bisection if the link's up/down ratio is the table's, else one formula for each row.
        """
        lookup = self._lookup
        if lookup.ids and abs(_ratio(link) - self.conditions.up_over_down) > _SAME_RATIO:
            costs = self._costs
            return min(costs, key=lambda id_: (latency_s(costs[id_], link), costs[id_].up_nbytes))
        if not lookup.ids:
            return lookup.local_id
        x = 1.0 / link.uplink_bytes_per_s
        i = bisect_right(lookup.from_x, x) - 1
        line = lookup.lines[i]
        remote_s = line.intercept_s + link.rtt_s + link.queue_s + line.slope_nbytes * x
        return lookup.local_id if lookup.local_s <= remote_s else lookup.ids[i]

    def latencies_s(self, link: LinkState) -> dict[str, float]:
        """Predicted seconds of every row over this link, under the table's other conditions."""
        return {id_: latency_s(cost, link) for id_, cost in self._costs.items()}

    def flip_points(self, id_: str, link: LinkState) -> tuple[WinningRange, ...]:
        """Where row `id_` is best over this link: in bandwidth (uplink_mbit, the downlink in proportion), round trip
        (rtt_s), slowness of the device (edge_factor) and of the gateway (cloud_factor, relative to now).

        Raises InputError for an unknown row.
        """
        if id_ not in self._costs:
            raise InputError(f"the plan has no placement {id_!r}", f"it has {', '.join(self._costs)}")
        over_x = winning_range(self._lines(link), id_, "uplink_mbit", 1 / link.uplink_bytes_per_s)
        return (
            range_over_mbit(over_x, link.uplink_bytes_per_s * 8 / _BITS_PER_MBIT),
            winning_range(self._by(_round_trip, link.rtt_s, link), id_, "rtt_s", link.rtt_s),
            winning_range(self._by(_edge_slowness, 1.0, link), id_, "edge_factor", 1.0),
            winning_range(self._by(_cloud_slowness, 1.0, link), id_, "cloud_factor", 1.0),
        )

    def values(self, objective: str, link: LinkState) -> dict[str, float]:
        """Every row's value of one of OBJECTIVES or of an attribute. Raises InputError if a row lacks it."""
        measure = OBJECTIVES.get(objective)
        found = {
            row.id: row.attributes.get(objective) if measure is None else measure(self._costs[row.id], link)
            for row in self.rows
        }
        lacking = [id_ for id_, value in found.items() if value is None]
        if lacking:
            raise InputError(
                f"{objective!r} is not known for {', '.join(lacking)}",
                f"measure it first, or ask for some of {', '.join(OBJECTIVES)}",
            )
        return {id_: value for id_, value in found.items() if value is not None}

    def pareto(self, objectives: Sequence[str], link: LinkState, *, greatest: Sequence[str] = ()) -> tuple[str, ...]:
        """The rows that no other row beats in all objectives together; all are to be small but those in `greatest`
        ("per_s" always is). Rows that are equal in everything are all kept. Raises InputError if a row lacks one."""
        signs = [-1.0 if name in greatest or name == "per_s" else 1.0 for name in objectives]
        columns = [self.values(name, link) for name in objectives]
        points = {
            row.id: tuple(sign * column[row.id] for sign, column in zip(signs, columns, strict=True))
            for row in self.rows
        }
        return pareto(points)

    @cached_property
    def _costs(self) -> dict[str, PlacementCost]:
        return {row.id: under(row.cost, self.conditions) for row in self.rows}

    @cached_property
    def _lookup(self) -> _Lookup:
        local = {id_: latency_s(c, LinkState(1.0, 0.0)) for id_, c in self._costs.items() if not c.crosses}
        remote = [id_ for id_, c in self._costs.items() if c.crosses]
        local_id = min(local, key=lambda id_: local[id_], default="")
        if not remote:
            return _Lookup(local_id, local[local_id], (), (), ())
        ratio = self.conditions.up_over_down
        lines = [line_of(self._costs[id_], rtt_s=0.0, up_over_down=ratio) for id_ in remote]
        pieces = lower_envelope(lines, 0.0, _SLOWEST_X)
        return _Lookup(
            local_id,
            local.get(local_id, math.inf),
            tuple(p.from_x for p in pieces),
            tuple(remote[p.line] for p in pieces),
            tuple(lines[p.line] for p in pieces),
        )

    def _lines(self, link: LinkState) -> dict[str, Line]:
        given = {"rtt_s": link.rtt_s, "queue_s": link.queue_s, "up_over_down": _ratio(link)}
        return {id_: line_of(cost, **given) for id_, cost in self._costs.items()}

    def _by(self, slope: Callable[[PlacementCost], float], now: float, link: LinkState) -> dict[str, Line]:
        """Every row as a line over a condition that has the value `now`: its slope, and what remains at zero."""
        return {id_: Line(latency_s(cost, link) - slope(cost) * now, slope(cost)) for id_, cost in self._costs.items()}


class _Lookup(NamedTuple):
    """What `best` needs: the best row that sends nothing, and the envelope of those that do without the round trip."""

    local_id: str
    local_s: float
    from_x: tuple[float, ...]
    ids: tuple[str, ...]
    lines: tuple[Line, ...]


def plan_table(rows: Sequence[Row], conditions: PlanConditions) -> PlanTable:
    """The table of these rows. Raises InputError for no rows, equal ids or conditions that are none."""
    ids = [row.id for row in rows]
    if not rows or len(set(ids)) < len(ids):
        raise InputError(f"a plan of the placements {ids}", "give at least one, each with an id of its own")
    if not 0 < conditions.slowest_mbit < conditions.fastest_mbit:
        raise InputError(
            f"a plan from {conditions.fastest_mbit} down to {conditions.slowest_mbit} Mbit/s",
            "the slowest link must be slower than the fastest, and faster than nothing",
        )
    _check_conditions(conditions)
    given = {"rtt_s": conditions.rtt_s, "queue_s": conditions.queue_s, "up_over_down": conditions.up_over_down}
    try:
        lines = [line_of(under(row.cost, conditions), **given) for row in rows]
    except ValueError as error:
        raise InputError(str(error)) from error
    pieces = lower_envelope(lines, seconds_per_byte(conditions.fastest_mbit), seconds_per_byte(conditions.slowest_mbit))
    stretches = tuple(PlanStretch(ids[p.line], _mbit(p.from_x), _mbit(p.to_x)) for p in pieces)
    return PlanTable(tuple(rows), conditions, stretches)


def _check_conditions(conditions: PlanConditions) -> None:
    for name in ("rtt_s", "queue_s", "up_over_down"):
        value = getattr(conditions, name)
        if not 0 <= value < math.inf:
            raise InputError(f"a plan for {name} = {value}", "give a finite number that is 0 or more")


def under(cost: PlacementCost, conditions: PlanConditions) -> PlacementCost:
    """What a placement costs under these conditions."""
    return adjusted(
        cost,
        edge_factor=conditions.edge_factor,
        cloud_factor=conditions.cloud_factor,
        cloud_load=conditions.cloud_load,
        quantile=conditions.quantile,
    )


def seconds_per_byte(mbit: float) -> float:
    return 8.0 / (mbit * _BITS_PER_MBIT)


def _mbit(seconds_per_byte_: float) -> float:
    return 8.0 / seconds_per_byte_ / _BITS_PER_MBIT if seconds_per_byte_ > 0 else math.inf


def range_over_mbit(over_x: WinningRange, now_mbit: float) -> WinningRange:
    """A range of seconds per byte as one of Mbit/s, where the ends change places; one that is empty stays empty."""
    low, high = (_mbit(over_x.high), _mbit(over_x.low)) if over_x.exists else (math.inf, -math.inf)
    return over_x._replace(now=now_mbit, low=low, high=high, below=over_x.above, above=over_x.below)


def _ratio(link: LinkState) -> float:
    return link.uplink_bytes_per_s / link.downlink_bytes_per_s


def _round_trip(cost: PlacementCost) -> float:
    return 1.0 if cost.crosses else 0.0


def _edge_slowness(cost: PlacementCost) -> float:
    return cost.edge_s + cost.encode_s


def _cloud_slowness(cost: PlacementCost) -> float:
    return cost.decode_s + cost.tail_s if cost.crosses else 0.0


# Objectives of a row over a link; all but "per_s" (requests per second, pipelined) are better when small.
OBJECTIVES: Mapping[str, Callable[[PlacementCost, LinkState], float | None]] = {
    "latency_s": latency_s,
    "energy_j": lambda cost, _: cost.energy_j,
    "up_nbytes": lambda cost, _: cost.up_nbytes,
    "cloud_s": lambda cost, _: _cloud_slowness(cost),
    "edge_memory_nbytes": lambda cost, _: cost.edge_memory_nbytes,
    "cloud_memory_nbytes": lambda cost, _: cost.cloud_memory_nbytes,
    "per_s": lambda cost, link: 1 / bottleneck if (bottleneck := bottleneck_s(cost, link)) > 0 else math.inf,
}


def pareto(points: Mapping[str, tuple[float, ...]]) -> tuple[str, ...]:
    """The points that no other is at least as small as in every coordinate and smaller in one."""

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return tuple(id_ for id_, point in points.items() if not any(beats(other, point) for other in points.values()))


def winning_range(lines: Mapping[str, Line], id_: str, condition: str, now: float) -> WinningRange:
    """For which values >= 0 of the lines' variable `id_` is lowest (equal counts as lowest)."""
    mine = lines[id_]
    low, high, below, above = 0.0, math.inf, None, None
    for other, line in lines.items():
        if other == id_:
            continue
        rise = mine.slope_nbytes - line.slope_nbytes
        head_start = line.intercept_s - mine.intercept_s
        if rise == 0:
            # Parallel: the lower one is lower everywhere.
            if head_start < 0:
                low, high, below, above = math.inf, -math.inf, other, other
        elif rise > 0 and head_start / rise < high:
            high, above = head_start / rise, other
        elif rise < 0 and head_start / rise > low:
            low, below = head_start / rise, other
    return WinningRange(condition, now, low, high, below, above)
