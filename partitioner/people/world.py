"""What a simulated request passes through: device, uplink, gateway, downlink, each first come, first served. Pure.

    device --> uplink --> (half a round trip) --> gateway --> downlink --> (half a round trip)

The link is a `Trace`, integrated exactly, the same in both directions; device and gateway do one request at a time.
Not modelled: batching, loss, TCP's slow start. Times are seconds since the beginning of the trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from partitioner.people.traces import Trace
from protocol.control.planner import Candidate
from protocol.errors import InputError
from protocol.latency import PlacementCost

HEADER_NBYTES = 150  # of every message, beside its payload
P95 = 1.645  # standard deviations from the median of a normal distribution


@dataclass(frozen=True)
class Scene:
    """One simulation's fixed parts. `deadline_s` is every request's budget."""

    trace: Trace
    candidates: tuple[Candidate, ...]
    rtt_s: float
    requests_per_s: float
    deadline_s: float

    def __post_init__(self) -> None:
        for value, name in ((self.requests_per_s, "requests per second"), (self.deadline_s, "deadline")):
            if not 0 < value < math.inf:
                raise InputError(f"the {name} must be a number above 0, not {value:g}", "give another one")
        if not 0 <= self.rtt_s < math.inf:
            raise InputError(f"the round trip must be at least 0, not {self.rtt_s:g} s", "give another one")
        if self.trace.length_s * self.requests_per_s > MOST_REQUESTS:
            raise InputError(
                f"{self.trace.length_s:g} s at {self.requests_per_s:g} requests/s are over {MOST_REQUESTS:,} requests",
                "lower --requests-per-s or shorten the trace",
            )
        if not self.candidates:
            raise InputError("there is no placement to simulate", "rebuild the bundle")


MOST_REQUESTS = 100_000


class Request(NamedTuple):
    """`edge_luck` and `tail_luck` are standard normal draws: how slow the two machines are on this one."""

    seq: int
    at_s: float
    edge_luck: float
    tail_luck: float


def requests(scene: Scene, chance: np.random.Generator) -> list[Request]:
    """One request every 1/rate seconds for one length of the trace, like frames of a camera."""
    count = max(1, int(scene.trace.length_s * scene.requests_per_s))
    luck = chance.standard_normal((count, 2))
    return [Request(i, i / scene.requests_per_s, float(luck[i, 0]), float(luck[i, 1])) for i in range(count)]


def busy_s(cost: PlacementCost, request: Request) -> float:
    """What head and encoding of this request take on the device: log-normal around the median in the cost."""
    return (cost.edge_s + cost.encode_s) * _factor(cost.edge_spread, request.edge_luck)


def served_s(cost: PlacementCost, request: Request) -> float:
    """What decoding and tail of this request take at the gateway."""
    return expected_s(cost) * _factor(cost.tail_spread, request.tail_luck)


def expected_s(cost: PlacementCost) -> float:
    """What a gateway expects decoding and tail to take."""
    return cost.decode_s + cost.tail_s


def _factor(spread: float, luck: float) -> float:
    # The spread is the distance of the 95th percentile from the median.
    return math.exp(math.log1p(max(spread, 0.0)) / P95 * luck)


@dataclass(frozen=True)
class Queues:
    """When each of the four is free again."""

    device_s: float = 0.0
    up_s: float = 0.0
    gateway_s: float = 0.0
    down_s: float = 0.0


def passage(scene: Scene, queues: Queues, request: Request, cost: PlacementCost) -> tuple[float, Queues]:
    """When the answer is there, and the queues then. Used by whoever knows the trace: `inf` if it would be too late.

    What would be too late is not begun, or not sent: it leaves the queues as they are behind it.
    """
    until = request.at_s + scene.deadline_s
    ready_s = max(request.at_s, queues.device_s) + busy_s(cost, request)
    if ready_s > until:
        return math.inf, queues
    worked = replace(queues, device_s=ready_s)
    if not cost.crosses:
        return ready_s, worked
    up_s = scene.trace.arrival_s(max(ready_s, queues.up_s), cost.up_nbytes + HEADER_NBYTES)
    done_s = max(up_s + scene.rtt_s / 2, queues.gateway_s) + served_s(cost, request)
    down_s = scene.trace.arrival_s(max(done_s, queues.down_s), cost.down_nbytes + HEADER_NBYTES)
    answer_s = down_s + scene.rtt_s / 2
    if answer_s > until:
        return math.inf, worked
    return answer_s, Queues(ready_s, up_s, done_s, down_s)


class Outcome(NamedTuple):
    """What became of one request. `decided` was planned, `placement` answered; a late one took its whole budget."""

    at_s: float
    decided: str
    placement: str
    latency_s: float
    late: bool


def hindsight(scene: Scene, asked: Sequence[Request], candidates: Sequence[Candidate]) -> list[Outcome]:
    """Each request with the one of `candidates` that answers it first, the trace and all queues known.

    With one candidate this is a fixed placement, with all of them the oracle. It is greedy: it does not give up a
    request's advantage for a later one's.
    """
    queues, outcomes = Queues(), []
    for request in asked:
        passages = [(passage(scene, queues, request, c.cost), c.id) for c in candidates]
        (answer_s, queues), id_ = min(passages, key=lambda p: p[0][0])
        late = answer_s == math.inf
        latency_s = scene.deadline_s if late else answer_s - request.at_s
        outcomes.append(Outcome(request.at_s, id_, id_, latency_s, late))
    return outcomes
