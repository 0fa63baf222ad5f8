"""Why the current placement, why none of the others, and what would change that: facts, for sentences and JSON. Pure.

Scores are linear in 1/uplink, in the round trip, in the wait at the gateway and in how slow device and gateway are, as
latencies are (`plan`): where another placement takes over is a quotient. Waits in the device's own queues and the
probability to be late are not linear; they are kept as they are now while one condition moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from protocol.control.demand import Demand
from protocol.control.objectives import Objective
from protocol.latency import Line, LinkState, PlacementCost
from protocol.plan import range_over_mbit, winning_range
from protocol.stages import Condition, Flip, Stages, stages_of

BITS_PER_MBIT = 1e6
FARTHEST = 100.0  # a flip that takes a machine so many times slower or faster is no advice
_SENSIBLE: Mapping[Condition, tuple[float, float]] = {
    "uplink_mbit": (0.05, 10_000.0),
    "rtt_s": (0.0, 5.0),
    "edge_factor": (1 / FARTHEST, FARTHEST),
    "cloud_factor": (1 / FARTHEST, FARTHEST),
    "queue_s": (0.0, 5.0),
}

Verdict = Literal["current", "unavailable", "overloaded", "worse", "not clearly better", "next"]


class Reckoned(NamedTuple):
    """What the planner knows of one placement: its cost with all that was learned, seconds until the answer, score."""

    id: str
    cost: PlacementCost
    expected_s: float
    score: float
    utilisation: float
    overloaded: bool


class Considered(msgspec.Struct, frozen=True):
    """One placement as the next request would meet it. `stages` hold for a request alone, `wait_s` is the time in the
    queues of device and uplink, `utilisation` the busiest one's share of its time (0: the rate is not known).

    The verdict: it is the current one; it cannot be used, for `reason`; requests come faster than it can take them; its
    score is worse; it is better, but by less than the estimates can tell; the next request makes it the current one.
    """

    id: str
    verdict: Verdict
    reason: str
    stages: Stages
    wait_s: float
    expected_s: float
    score: float
    utilisation: float


class Explanation(msgspec.Struct, frozen=True):
    """The facts. `current` is what the planner holds to, `using` what the next request gets: another one while the
    current one cannot be used. `doubt` is the relative standard error of the measured rate, `gain_needed_s` by how much
    (in seconds-equivalents) another one must be better to take over.
    """

    objective: str
    measured: bool  # False: no link was measured, and an ordinary one is assumed
    mbit: float
    rtt_s: float
    queue_s: float
    doubt: float | None
    requests_per_s: float  # 0: not known, or callers wait for their answers
    device_backlog_s: float
    uplink_backlog_s: float
    edge_factor: float  # how many times slower than planned the device is
    budget_s: float | None
    current: str | None
    using: str | None
    gain_needed_s: float
    placements: tuple[Considered, ...]  # best score first
    flips: tuple[Flip, ...]  # what would make another one better than `using`

    def of(self, id_: str) -> Considered:
        """Raises KeyError for a placement that the bundle does not have."""
        for placement in self.placements:
            if placement.id == id_:
                return placement
        raise KeyError(id_)


class Circumstances(NamedTuple):
    """All that was not learned about placements."""

    objective: Objective
    link: LinkState
    measured: bool
    demand: Demand
    budget_s: float | None
    edge_factor: float
    gain_needed: float


def explained(
    reckoned: Sequence[Reckoned], current: str | None, unavailable: Mapping[str, str], seen: Circumstances
) -> Explanation:
    """Put what the planner reckoned into words that a machine can read."""
    ordered = sorted(reckoned, key=lambda r: (r.score, r.cost.up_nbytes))
    by_id = {r.id: r for r in ordered}
    held = by_id[current] if current is not None else ordered[0]
    clearly = ordered[0].score < held.score - seen.gain_needed
    wanted = ordered[0].id if clearly else held.id
    using = wanted if wanted not in unavailable else next((r.id for r in ordered if r.id not in unavailable), None)
    link = seen.link
    return Explanation(
        objective=str(seen.objective),
        measured=seen.measured,
        mbit=link.uplink_bytes_per_s * 8 / BITS_PER_MBIT,
        rtt_s=link.rtt_s,
        queue_s=link.queue_s,
        doubt=link.doubt,
        requests_per_s=seen.demand.per_s,
        device_backlog_s=seen.demand.device_s,
        uplink_backlog_s=seen.demand.uplink_s,
        edge_factor=seen.edge_factor,
        budget_s=seen.budget_s,
        current=current,
        using=using,
        gain_needed_s=seen.gain_needed,
        placements=tuple(_considered(r, current, wanted, held, unavailable, link) for r in ordered),
        flips=() if using is None else tuple(_flips(by_id[using], ordered, unavailable, seen)),
    )


def _considered(
    one: Reckoned, current: str | None, wanted: str, held: Reckoned, unavailable: Mapping[str, str], link: LinkState
) -> Considered:
    verdict: Verdict = "worse"
    if one.id in unavailable:
        verdict = "unavailable"
    elif one.id == current:
        verdict = "current"
    elif one.id == wanted:
        verdict = "next"
    elif one.overloaded:
        verdict = "overloaded"
    elif one.score < held.score:
        verdict = "not clearly better"
    stages = stages_of(one.cost, link)
    wait_s = max(one.expected_s - stages.total_s, 0.0)
    reason = unavailable.get(one.id, "")
    return Considered(one.id, verdict, reason, stages, wait_s, one.expected_s, one.score, one.utilisation)


def _flips(
    best: Reckoned, all_of_them: Sequence[Reckoned], unavailable: Mapping[str, str], seen: Circumstances
) -> Iterable[Flip]:
    """Where another placement that could be used takes over, at most one on either side of each condition."""
    rivals = [r for r in all_of_them if r.id == best.id or (r.id not in unavailable and not r.overloaded)]
    link, latency, cloud = seen.link, seen.objective.latency, seen.objective.cloud
    x, ratio = 1 / link.uplink_bytes_per_s, link.uplink_bytes_per_s / link.downlink_bytes_per_s

    def remote_s(cost: PlacementCost) -> float:
        return cost.decode_s + cost.tail_s if cost.crosses else 0.0

    conditions: dict[Condition, tuple[float, dict[str, float]]] = {
        "uplink_mbit": (x, {r.id: latency * (r.cost.up_nbytes + ratio * r.cost.down_nbytes) for r in rivals}),
        "rtt_s": (link.rtt_s, {r.id: latency * r.cost.crosses for r in rivals}),
        "edge_factor": (1.0, {r.id: latency * (r.cost.edge_s + r.cost.encode_s) for r in rivals}),
        "cloud_factor": (1.0, {r.id: (latency + cloud) * remote_s(r.cost) for r in rivals}),
        "queue_s": (link.queue_s, {r.id: latency * r.cost.crosses for r in rivals}),
    }
    for condition, (here, slopes) in conditions.items():
        lines = {r.id: Line(_finite(r) - slopes[r.id] * here, slopes[r.id]) for r in rivals}
        found = winning_range(lines, best.id, condition, here)
        if condition == "uplink_mbit":
            found = range_over_mbit(found, link.uplink_bytes_per_s * 8 / BITS_PER_MBIT)
        low, high = _SENSIBLE[condition]
        if found.below is not None and low < found.low <= found.now:
            yield Flip(condition, "below", found.low, found.below)
        if found.above is not None and found.now <= found.high < high:
            yield Flip(condition, "above", found.high, found.above)


def _finite(one: Reckoned) -> float:
    """What a placement in use is compared with: where it is overloaded its score is no time."""
    return one.expected_s if one.overloaded else one.score
