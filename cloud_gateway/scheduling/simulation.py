"""A gateway in simulated time: the real scheduler, and engine threads that only take as long as they are told. Pure.

Discrete events: requests come, batches end, a scheduler asks to be woken. Chance is an argument (a seeded generator),
so a seed is replayed exactly. What is driven is whatever keeps the five promises of `Policy`: the gateway's `Scheduler`
as it stands, or another rule to compare it with. Nothing here knows a clock, and nothing is copied from the desk but
its order: a batch is measured, its thread released, and only then do its requests leave.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.scheduling.cost_curve import CostCurve
from cloud_gateway.scheduling.scheduler import Dispatch
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode

WARM_UP_RUNS = 5
LATE_S = 1e-9  # sums of floats differ by less


@dataclass(slots=True, eq=False)
class Request:
    """One request of `rows` rows for `lane`. A scheduler may move `deadline` (a trial); `due` is what was asked."""

    lane: str
    arrived: float
    budget_s: float = math.inf
    rows: int = 1
    priority: int = 4
    tenant: str = "device"
    nbytes: int = 1
    layout: object = None
    cut: str = ""  # for whoever lets several cuts share a lane
    deadline: float = math.nan

    def __post_init__(self) -> None:
        self.deadline = self.due

    @property
    def due(self) -> float:
        return self.arrived + self.budget_s


class Policy(Protocol):
    """Who enters, and what runs next: `cloud_gateway.scheduling.scheduler.Scheduler`, or what it is compared with."""

    def offer(self, key: str, item: Request, *, now: float) -> Verdict | None: ...
    def take(self, thread: int, *, now: float) -> Dispatch[Request] | None: ...
    def release(self, thread: int) -> None: ...
    def leave(self, item: Request) -> None: ...
    def next_wake(self, *, now: float) -> float | None: ...


class Fate(NamedTuple):
    """What became of a request, and when. `code` is None for an answer."""

    request: Request
    ended: float
    code: RejectCode | None = None
    at_door: bool = False  # refused before it was queued
    batch: int = 0  # rows that it shared a batch with, its own included

    @property
    def late(self) -> bool:
        """An answer that nobody waits for any more."""
        return self.code is None and self.ended > self.request.due + LATE_S


class Engines(Protocol):
    """What batches cost: decides how long one takes, and hears of it when it is done."""

    def duration_s(self, key: str, batch: Sequence[Request]) -> float: ...
    def observe(self, key: str, rows: int, seconds: float) -> None: ...
    def onward(self, key: str, batch: Sequence[Request], *, now: float) -> Sequence[Request]:
        """Those of a finished batch that are done; the others were queued again, for a stage that follows."""
        ...


def simulate(policy: Policy, requests: Iterable[Request], engines: Engines, *, threads: int = 1) -> list[Fate]:
    """Play `requests` (in order of arrival) to the end; one fate for each, in the order in which they ended.

    Raises InvariantViolation if something that was admitted never ends, or the policy breaks its own promises.
    """
    return _Run(policy, engines, threads).play(requests)


class _Run:
    def __init__(self, policy: Policy, engines: Engines, threads: int) -> None:
        self._policy = policy
        self._engines = engines
        self._idle = list(range(threads))
        self._running: list[tuple[float, int, float, Dispatch[Request]]] = []  # until, thread, since
        self._fates: list[Fate] = []
        self._inside = 0

    def play(self, requests: Iterable[Request]) -> list[Fate]:
        now, wake = -math.inf, math.inf
        coming = iter(requests)
        arrival = next(coming, None)
        while True:
            free = self._running[0][0] if self._running else math.inf
            at = min(free, arrival.arrived if arrival else math.inf, wake)
            if at == math.inf:
                break
            if at < now:
                raise InvariantViolation(f"time runs backwards, from {now} to {at}")
            now = at
            while self._running and self._running[0][0] <= now:
                self._finish(now)
            while arrival is not None and arrival.arrived <= now:
                self._offer(arrival, now)
                arrival = next(coming, None)
            wake = self._feed(now)
        if self._inside:
            raise InvariantViolation(f"{self._inside} admitted requests never ended")
        return self._fates

    def _offer(self, request: Request, now: float) -> None:
        verdict = self._policy.offer(request.lane, request, now=now)
        if verdict is None:
            self._inside += 1
        else:
            self._fates.append(Fate(request, now, verdict.code, at_door=True))

    def _feed(self, now: float) -> float:
        """Give every idle thread what it may run; returns when to ask again although nothing happens."""
        while self._idle:
            thread = self._idle[-1]
            dispatch = self._policy.take(thread, now=now)
            if dispatch is None:
                wake = self._policy.next_wake(now=now)
                if wake is not None and wake <= now:
                    raise InvariantViolation("the policy gives nothing, and wants to be asked again at once")
                return math.inf if wake is None else wake
            for item in dispatch.expired:
                self._end(Fate(item, now, RejectCode.DEADLINE))
            if dispatch.batch:
                self._idle.pop()
                until = now + self._engines.duration_s(str(dispatch.key), dispatch.batch)
                heapq.heappush(self._running, (until, thread, now, dispatch))
        return math.inf

    def _finish(self, now: float) -> None:
        _, thread, since, dispatch = heapq.heappop(self._running)
        key, rows = str(dispatch.key), sum(item.rows for item in dispatch.batch)
        self._engines.observe(key, rows, now - since)
        self._policy.release(thread)
        self._idle.append(thread)
        for item in self._engines.onward(key, dispatch.batch, now=now):
            self._end(Fate(item, now, batch=rows))

    def _end(self, fate: Fate) -> None:
        self._policy.leave(fate.request)
        self._inside -= 1
        self._fates.append(fate)


# ---- machines -------------------------------------------------------------------------------------------------------


class Tail(NamedTuple):
    """What a tail really costs: L(b) = `fixed_s` + b * `row_s`."""

    fixed_s: float
    row_s: float

    def cost_s(self, rows: int) -> float:
        return self.fixed_s + rows * self.row_s

    def rows_per_s(self, most: int) -> float:
        """What one engine thread finishes that never rests."""
        return most / self.cost_s(most)


class NoisyEngines:
    """Tails whose every batch takes its cost times lognormal noise of mean 1, and rarely `spike` times that.

    What it took is shown to the lane's curve, as an engine thread does.
    """

    def __init__(
        self,
        tails: Mapping[str, Tail],
        chance: np.random.Generator,
        *,
        noise: float = 0.1,
        spike: float = 1.0,
        spike_chance: float = 0.0,
    ) -> None:
        self.tails = tails
        self.curves = {key: CostCurve() for key in tails}
        self._chance = chance
        self._noise, self._spike, self._spike_chance = noise, spike, spike_chance

    def duration_s(self, key: str, batch: Sequence[Request]) -> float:
        return self.cost_s(key, batch) * self.luck()

    def observe(self, key: str, rows: int, seconds: float) -> None:
        self.curves[key].observe(rows, seconds)

    def onward(self, key: str, batch: Sequence[Request], *, now: float) -> Sequence[Request]:
        return batch

    def cost_s(self, key: str, batch: Sequence[Request]) -> float:
        """What `batch` takes without luck, good or bad."""
        return self.tails[key].cost_s(sum(item.rows for item in batch))

    def luck(self) -> float:
        spiked = self._spike_chance > 0 and self._chance.random() < self._spike_chance
        luck = float(np.exp(self._chance.normal(-0.5 * self._noise**2, self._noise))) if self._noise else 1.0
        return luck * (self._spike if spiked else 1.0)

    def warm_up(self, key: str, most: int) -> int:
        """Measure as a lane does before it is offered anything; returns the batch bound."""
        size = 1
        while size <= most:
            for _ in range(WARM_UP_RUNS):
                self.observe(key, size, self.tails[key].cost_s(size) * self.luck())
            size *= 2
        return self.curves[key].knee(most)


# ---- what to play ---------------------------------------------------------------------------------------------------


def poisson(chance: np.random.Generator, *, rate: float, count: int) -> list[float]:
    """`count` arrival times (s) at `rate` a second, independent of each other."""
    return [float(at) for at in np.cumsum(chance.exponential(1.0 / rate, count))]


def bursts(chance: np.random.Generator, *, rate: float, count: int, size: float, within_s: float) -> list[float]:
    """The same mean rate in bursts of `size` requests on average, each spread over `within_s`."""
    times: list[float] = []
    begin = 0.0
    while len(times) < count:
        begin += float(chance.exponential(size / rate))
        times += [begin + float(gap) for gap in chance.uniform(0.0, within_s, int(chance.geometric(1.0 / size)))]
    return sorted(times[:count])


# ---- what came of it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies (s) are those of answers in time; shares are of 1. Quantities that do not exist are NaN."""

    offered_rows: int
    good_rows: int
    late: int
    refused_at_door: Counter[RejectCode]
    dropped: int  # refused at dispatch
    mean_s: float
    p50_s: float
    p99_s: float
    slack_share: float  # of its budget that a refused request still had, in the mean
    batch: float  # rows of the batch that a request rode in, in the mean
    span_s: float

    @property
    def goodput(self) -> float:
        """Rows answered in time, of those offered."""
        return self.good_rows / self.offered_rows

    def of_capacity(self, rows_per_s: float) -> float:
        """Rows answered in time, of those that engines which never rest would have answered."""
        return self.good_rows / (self.span_s * rows_per_s)


def summarise(fates: Sequence[Fate], *, skip: float = 0.1) -> Summary:
    """Count what became of requests, without the first `skip` of them: a gateway begins empty."""
    ordered = sorted(fates, key=lambda fate: fate.request.arrived)
    counted = ordered[int(len(ordered) * skip) :]
    good = [fate for fate in counted if fate.code is None and not fate.late]
    refused = [fate for fate in counted if fate.code is not None]
    waits = np.array([fate.ended - fate.request.arrived for fate in good] or [math.nan])
    slack = [(fate.request.due - fate.ended) / fate.request.budget_s for fate in refused]
    return Summary(
        offered_rows=sum(fate.request.rows for fate in counted),
        good_rows=sum(fate.request.rows for fate in good),
        late=sum(fate.late for fate in counted),
        refused_at_door=Counter(fate.code for fate in refused if fate.at_door and fate.code is not None),
        dropped=sum(not fate.at_door for fate in refused),
        mean_s=float(waits.mean()),
        p50_s=float(np.quantile(waits, 0.5)),
        p99_s=float(np.quantile(waits, 0.99)),
        slack_share=float(np.mean(slack)) if slack else math.nan,
        batch=float(np.mean([fate.batch for fate in good])) if good else math.nan,
        span_s=counted[-1].request.arrived - counted[0].request.arrived,
    )
