"""What a placement must keep, who keeps it, and what to say when nobody can. Pure.

A constraint is a bound on one number of a placement (`Bound`): a limit that it may not exceed or not fall below. When
several cannot be kept together, the answer names a *minimal* conflicting subset (without any one of them the others can
be kept) and, for each of these, the nearest value at which the others still hold:

    energy_j <= 0.4 would have to be >= 0.52
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from protocol.errors import InputError
from protocol.latency import LinkState
from protocol.plan import PlanTable, Row, plan_table, seconds_per_byte


@dataclass(frozen=True)
class Constraints:
    """None means that nothing is asked. All per request, at batch 1.

    `at_mbit` is the uplink for which throughput and latency are meant; `quantile` that of the latency, which takes the
    link's bandwidth at the same quantile of 1/uplink.
    """

    edge_memory_nbytes: float | None = None
    cloud_memory_nbytes: float | None = None
    energy_j: float | None = None  # of the device
    cloud_s: float | None = None  # seconds of the gateway
    min_accuracy: float | None = None  # the metric that verification achieved
    min_per_s: float | None = None  # requests per second, pipelined: the slowest stage decides
    max_latency_s: float | None = None
    at_mbit: float | None = None
    quantile: float = 0.5
    on_device: tuple[str, ...] = ()  # nodes that may not leave the device

    def __post_init__(self) -> None:
        for name in BOUNDS:
            limit = getattr(self, name)
            if limit is not None and not limit >= 0:
                raise InputError(f"the constraint {name} is {limit}", "give a number that is 0 or more")
        if self.needs_link and not 0 < (self.at_mbit or 0) < math.inf:
            raise InputError("min_per_s and max_latency_s depend on the link", "say at which uplink: at_mbit")
        if not 0 < self.quantile < 1:
            raise InputError(f"the quantile is {self.quantile}", "give one between 0 and 1, such as 0.95")

    @property
    def needs_link(self) -> bool:
        return self.min_per_s is not None or self.max_latency_s is not None

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of what is asked, pins included."""
        bounds = tuple(name for name in BOUNDS if getattr(self, name) is not None)
        return (*bounds, "on_device") if self.on_device else bounds

    def only(self, names: Collection[str]) -> Constraints:
        """These constraints without the ones that are not named."""
        dropped: dict[str, Any] = {name: None for name in BOUNDS if name not in names}
        return replace(self, **dropped, on_device=self.on_device if "on_device" in names else ())

    def link(self, *, rtt_s: float, up_over_down: float = 1.0, queue_s: float = 0.0) -> LinkState:
        """The link at `at_mbit` (at 1 Mbit/s where nothing depends on it)."""
        uplink = 1 / seconds_per_byte(self.at_mbit or 1.0)
        return LinkState(uplink, rtt_s, uplink / up_over_down if up_over_down > 0 else float("inf"), queue_s)


class Bound(NamedTuple):
    """Which number of a placement a constraint is about: an objective of the plan table or an attribute of its rows."""

    objective: str
    at_least: bool = False


# One for each constraint that is a number.
BOUNDS: Mapping[str, Bound] = {
    "edge_memory_nbytes": Bound("edge_memory_nbytes"),
    "cloud_memory_nbytes": Bound("cloud_memory_nbytes"),
    "energy_j": Bound("energy_j"),
    "cloud_s": Bound("cloud_s"),
    "min_accuracy": Bound("accuracy", at_least=True),
    "min_per_s": Bound("per_s", at_least=True),
    "max_latency_s": Bound("latency_s"),
}


def described(constraints: Constraints) -> tuple[str, ...]:
    """Each constraint that is asked, in words: `energy_j <= 0.4`."""
    found = [
        f"{name} {'>=' if bound.at_least else '<='} {getattr(constraints, name):.6g}"
        for name, bound in BOUNDS.items()
        if getattr(constraints, name) is not None
    ]
    return (*found, *(f"{name} stays on the device" for name in constraints.on_device))


class Relaxation(NamedTuple):
    """To what a constraint would have to give way if the other ones of its conflict are kept; None for pins, which
    would have to go, and where nothing helps."""

    constraint: str
    asked: float | None
    needed: float | None

    def __str__(self) -> str:
        if self.asked is None:
            return f"{self.constraint} would have to be given up"
        sign, other = (">=", "<=") if BOUNDS[self.constraint].at_least else ("<=", ">=")
        if self.needed is None:
            return f"{self.constraint} {sign} {self.asked:.6g} would have to be given up"
        return f"{self.constraint} {sign} {self.asked:.6g} would have to be {other} {self.needed:.6g}"


class Conflict(NamedTuple):
    """Constraints that no placement keeps together, as few as possible, and what would mend it."""

    constraints: tuple[str, ...]
    relaxations: tuple[Relaxation, ...]

    def __str__(self) -> str:
        if not self.constraints:
            return "no placement is possible, whatever is asked"
        one = len(self.constraints) == 1
        head = f"no placement keeps {' and '.join(self.constraints)}{'' if one else ' together'}"
        return f"{head}: {'; or '.join(str(r) for r in self.relaxations)}"


def conflict(
    constraints: Constraints,
    possible: Callable[[Constraints], bool],
    nearest: Callable[[str, Constraints], float | None],
) -> Conflict:
    """A minimal subset of constraints that are not `possible` together, by leaving out one after the other.

    `nearest(name, others)` is the best value of the constraint's number among placements that keep the others.
    Asks `possible` once for each constraint, `nearest` once for each of the conflict.
    """
    names = list(constraints.asked)
    for name in constraints.asked:
        without = [n for n in names if n != name]
        if not possible(constraints.only(without)):
            names = without
    return Conflict(tuple(names), tuple(_relaxation(constraints, name, names, nearest) for name in names))


def _relaxation(
    constraints: Constraints,
    name: str,
    names: Sequence[str],
    nearest: Callable[[str, Constraints], float | None],
) -> Relaxation:
    if name == "on_device":
        return Relaxation(name, None, None)
    others = constraints.only([n for n in names if n != name])
    return Relaxation(name, getattr(constraints, name), nearest(name, others))


class Admitted(NamedTuple):
    """The rows that keep all constraints, and for every other one what it breaks."""

    rows: tuple[Row, ...]
    refused: Mapping[str, tuple[str, ...]]


def admit(table: PlanTable, constraints: Constraints, *, keep_pins: Collection[str] = ()) -> Admitted | Conflict:
    """The rows of a table that keep the constraints, under the table's conditions and the link at `at_mbit`.

    `keep_pins` are the ids of the rows that keep the pinned nodes on the device, for rows know no nodes. A number is
    kept within a billionth of its limit. Raises InputError if a number was not measured.
    """
    numbers = _numbers(table, constraints)
    pinned = set(keep_pins)

    def broken(row: Row, asked: Constraints) -> tuple[str, ...]:
        found = [name for name in asked.asked if name in BOUNDS and not _keeps(asked, name, numbers[name][row.id])]
        return tuple([*found, "on_device"] if asked.on_device and row.id not in pinned else found)

    def keeping(asked: Constraints) -> list[Row]:
        return [row for row in table.rows if not broken(row, asked)]

    def nearest(name: str, others: Constraints) -> float | None:
        values = [numbers[name][row.id] for row in keeping(others)]
        return (max if BOUNDS[name].at_least else min)(values, default=None)

    rows = keeping(constraints)
    if not rows:
        return conflict(constraints, lambda asked: bool(keeping(asked)), nearest)
    return Admitted(tuple(rows), {r.id: b for r in table.rows if (b := broken(r, constraints))})


def _numbers(table: PlanTable, constraints: Constraints) -> dict[str, dict[str, float]]:
    """For each constraint that is asked, the number it is about, of every row."""
    in_the_tail = plan_table(table.rows, table.conditions.at_quantile(constraints.quantile))
    link = constraints.link(
        rtt_s=table.conditions.rtt_s, up_over_down=table.conditions.up_over_down, queue_s=table.conditions.queue_s
    )
    return {
        name: (in_the_tail if name == "max_latency_s" else table).values(BOUNDS[name].objective, link)
        for name in constraints.asked
        if name in BOUNDS
    }


def _keeps(constraints: Constraints, name: str, value: float) -> bool:
    limit = getattr(constraints, name)
    slack = 1e-9 * abs(limit)
    return bool(value >= limit - slack if BOUNDS[name].at_least else value <= limit + slack)
