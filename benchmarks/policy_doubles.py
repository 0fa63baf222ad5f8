"""Other servers' rules for forming batches, each in a few lines, to set beside the gateway's scheduler in a simulation.

Law: a double keeps the promises of `simulation.Policy` and nothing else: one lane, first come first served unless its
name says otherwise, no bound on the queue unless the server it stands for has one. They know L(b) exactly where their
rule needs it, which is more than the scheduler knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.scheduling.scheduler import Dispatch
from cloud_gateway.scheduling.simulation import Request

Cost = Callable[[int], float]


class Greedy:
    """Work-conserving: whatever waits, when the worker is free; nobody is refused and nothing is dropped."""

    def __init__(self, cost: Cost, *, most: int) -> None:
        self.cost = cost
        self.most = most
        self.waiting: list[Request] = []

    def offer(self, key: str, item: Request, *, now: float) -> Verdict | None:
        self.waiting.append(item)
        return None

    def take(self, thread: int, *, now: float) -> Dispatch[Request] | None:
        """Waiting requests are dropped by `expired` first; then `ready` says whether a batch goes."""
        expired = self.expired(now)
        if not self.waiting or not self.ready(now):
            return Dispatch("", [], expired, 0.0) if expired else None
        batch = self.waiting[: self.size(now)]
        del self.waiting[: len(batch)]
        return Dispatch(batch[0].lane, batch, expired, 0.0)

    def release(self, thread: int) -> None:
        pass

    def leave(self, item: Request) -> None:
        pass

    def next_wake(self, *, now: float) -> float | None:
        return None

    def expired(self, now: float) -> list[Request]:
        return []

    def ready(self, now: float) -> bool:
        return True

    def size(self, now: float) -> int:
        return self.most

    def drop(self, hopeless: Callable[[Request], bool]) -> list[Request]:
        gone = [item for item in self.waiting if hopeless(item)]
        self.waiting = [item for item in self.waiting if not hopeless(item)]
        return gone


class Timer(Greedy):
    """A batch goes when it is full, or its oldest request has waited `delay_s` (Triton's queue delay)."""

    def __init__(self, cost: Cost, *, most: int, delay_s: float) -> None:
        super().__init__(cost, most=most)
        self.delay_s = delay_s

    def ready(self, now: float) -> bool:
        return len(self.waiting) >= self.most or now >= self._begun() + self.delay_s

    def next_wake(self, *, now: float) -> float | None:
        return self._begun() + self.delay_s if self.waiting else None

    def _begun(self) -> float:
        return self.waiting[0].arrived


class RestartingTimer(Timer):
    """The timer runs only while a worker listens, earlier waiting does not count (mosec, LitServe, TorchServe)."""

    def __init__(self, cost: Cost, *, most: int, delay_s: float) -> None:
        super().__init__(cost, most=most, delay_s=delay_s)
        self._freed: float | None = None

    def take(self, thread: int, *, now: float) -> Dispatch[Request] | None:
        if self._freed is None:
            self._freed = now
        dispatch = super().take(thread, now=now)
        if dispatch is not None and dispatch.batch:
            self._freed = None
        return dispatch

    def _begun(self) -> float:
        return max(self.waiting[0].arrived, -math.inf if self._freed is None else self._freed)


class DropExpired(Greedy):
    """What is past its deadline is not run."""

    def expired(self, now: float) -> list[Request]:
        return self.drop(lambda item: item.deadline <= now)


class ShrinkingEdf(Greedy):
    """Earliest deadline first, in a batch so small that its most urgent request is in time; else it is dropped."""

    def expired(self, now: float) -> list[Request]:
        return self.drop(lambda item: now + self.cost(1) > item.deadline)

    def take(self, thread: int, *, now: float) -> Dispatch[Request] | None:
        self.waiting.sort(key=lambda item: item.deadline)
        return super().take(thread, now=now)

    def size(self, now: float) -> int:
        size = min(self.most, len(self.waiting))
        while size > 1 and now + self.cost(size) > self.waiting[0].deadline:
            size -= 1
        return size


class Predictive(Greedy):
    """What cannot finish in the batch that would go now is dropped (Clockwork's rule, with the mean of L)."""

    def expired(self, now: float) -> list[Request]:
        return self.drop(lambda item: now + self.cost(min(self.most, len(self.waiting))) > item.deadline)
