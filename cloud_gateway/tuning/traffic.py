"""Requests at random times played through the gateway's own scheduler, with batch durations that were measured. Pure.

Arrivals are Poisson and open-loop: nobody waits for an answer before the next request comes, as with many independent
devices, so that queues build where a closed loop of clients would hide them. Engines take as long as one of the
measured runs took. Doors and network are not in it; they add to every setting alike.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.scheduling.cost_curve import CostCurve
from cloud_gateway.scheduling.lane_queue import LaneQueue
from cloud_gateway.scheduling.scheduler import Scheduler

LANE = "tuned"
_UNBOUNDED = Limits(1_000_000, 1 << 40, 1_000_000, 1 << 40)  # only deadlines refuse: credit is not what is tuned


@dataclass(frozen=True, slots=True, order=True)
class Setting:
    """What is tuned. `delay_ms` is the efficiency delay."""

    threads: int
    instances: int
    max_batch_size: int
    delay_ms: float = 0.0

    @property
    def processors(self) -> int:
        return self.threads * self.instances

    def __str__(self) -> str:
        parts = [f"batch up to {self.max_batch_size}", _counted(self.instances, "instance")]
        parts.append(_counted(self.threads, "thread"))
        return ", ".join(parts) + (f", {self.delay_ms:g} ms of delay" if self.delay_ms else "")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


class Measured:
    """Seconds of single runs by batch size, while as many of them ran side by side as there are instances."""

    def __init__(self, runs: Mapping[int, Sequence[float]]) -> None:
        self.runs = {size: tuple(seconds) for size, seconds in sorted(runs.items()) if seconds}
        self.sizes = list(self.runs)
        self._ordered = {size: sorted(seconds) for size, seconds in self.runs.items()}

    def median_s(self, batch: int) -> float:
        return self.seconds(batch, 0.5)

    def seconds(self, batch: int, share: float) -> float:
        """The quantile `share` (0 to 1) of what a batch took; between measured sizes, in proportion."""
        at = bisect.bisect_left(self.sizes, batch)
        if at == len(self.sizes):
            return self._run(self.sizes[-1], share) * batch / self.sizes[-1]
        high = self.sizes[at]
        if high == batch or at == 0:
            return self._run(high, share)
        low = self.sizes[at - 1]
        low_s, high_s = self._run(low, share), self._run(high, share)
        return low_s + (high_s - low_s) * (batch - low) / (high - low)

    def unrest(self) -> float:
        """How many times the median the slowest tenth of single rows took, at least: 1.1 on a machine left alone."""
        return self.seconds(1, 0.9) / self.median_s(1)

    def ceiling_per_s(self, setting: Setting) -> float:
        """Rows a second if nothing ever waited and every batch were full."""
        sizes = [*(size for size in self.sizes if size < setting.max_batch_size), setting.max_batch_size]
        return setting.instances * max(size / self.median_s(size) for size in sizes)

    def curve(self) -> CostCurve:
        """What the scheduler would have learned from these runs."""
        curve = CostCurve()
        for size, seconds in self.runs.items():
            for each in seconds:
                curve.observe(size, each)
        return curve

    def _run(self, size: int, share: float) -> float:
        runs = self._ordered[size]
        return runs[min(int(share * len(runs)), len(runs) - 1)]


@dataclass(slots=True, eq=False)
class _Request:
    arrived: float
    deadline: float
    rows: int = 1
    priority: int = 4
    layout: object = ()
    tenant: str = "traffic"
    nbytes: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of `offered` requests; mean and quantiles are seconds from arrival to answer, 0 without any."""

    offered: int
    in_time: int
    late: int
    refused: int
    mean_s: float
    p50_s: float
    p99_s: float
    mean_batch: float

    @property
    def share_in_time(self) -> float:
        return self.in_time / self.offered


def play(
    measured: Measured, setting: Setting, *, rate_per_s: float, budget_s: float, requests: int, seed: int
) -> Outcome:
    """`requests` single rows at `rate_per_s`, each with `budget_s`. The same seed brings the same arrivals."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1.0 / rate_per_s, requests)).tolist()
    shares = itertools.cycle(rng.random(requests).tolist())
    scheduler: Scheduler[_Request] = Scheduler(_UNBOUNDED, threads=setting.instances)
    queue: LaneQueue[_Request] = LaneQueue(
        measured.curve(), max_rows=setting.max_batch_size, delay_s=setting.delay_ms / 1e3
    )
    scheduler.open(LANE, queue, instances=setting.instances)
    free = list(range(setting.instances))
    running: list[tuple[float, int, list[_Request]]] = []  # when it ends, thread, batch
    latencies: list[float] = []
    refused = late = batches = 0

    def dispatch(now: float) -> None:
        nonlocal refused, batches
        while free and (taken := scheduler.take(free[-1], now=now)) is not None:
            for item in taken.expired:
                scheduler.leave(item)
            refused += len(taken.expired)
            if taken.batch:
                batches += 1
                took_s = measured.seconds(len(taken.batch), next(shares))
                heapq.heappush(running, (now + took_s, free.pop(), taken.batch))

    coming = iter(arrivals)
    arrival = next(coming, None)
    now = 0.0
    while arrival is not None or running or queue.rows:
        wake = scheduler.next_wake(now=now) if free and setting.delay_ms else None
        now = min(at for at in (arrival, running[0][0] if running else None, wake) if at is not None)
        if running and running[0][0] <= now:
            _, thread, batch = heapq.heappop(running)
            scheduler.release(thread)
            free.append(thread)
            for item in batch:
                scheduler.leave(item)
                latencies.append(now - item.arrived)
                late += now > item.deadline
        elif arrival is not None and arrival <= now:
            item = _Request(now, now + budget_s)
            refused += scheduler.offer(LANE, item, now=now) is not None
            arrival = next(coming, None)
        dispatch(now)
    ordered = sorted(latencies)
    return Outcome(
        offered=requests,
        in_time=len(latencies) - late,
        late=late,
        refused=refused,
        mean_s=sum(ordered) / max(len(ordered), 1),
        p50_s=_quantile(ordered, 0.5),
        p99_s=_quantile(ordered, 0.99),
        mean_batch=len(latencies) / max(batches, 1),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
