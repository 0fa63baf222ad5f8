"""One lane's queue, pure: items in, batches out, nothing lost. Work-conserving: no timer, ever.

A batch is whatever waits when the engine becomes free, oldest of the most urgent priority first, up to the bound. At
low load that is one item without delay; at high load batches grow by themselves (a timer never wins on latency). Items
are batched only with items of the same layout. What can no longer finish by its deadline is dropped at dispatch, not
run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cloud_gateway.scheduling.cost_curve import CostCurve
from protocol.errors import InvariantViolation

AGEING_S = 0.5  # a waiting item gains one priority step per this many seconds, so that nothing starves


class Queued(Protocol):
    """What the batcher must know of an item."""

    @property
    def rows(self) -> int: ...
    @property
    def deadline(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def layout(self) -> object: ...


I = TypeVar("I", bound=Queued)  # noqa: E741 - the item


@dataclass(frozen=True, slots=True)
class Taken(Generic[I]):
    """`batch` is to be run now; `expired` can no longer finish in time and is to be refused."""

    batch: list[I]
    expired: list[I]


class Batcher(Generic[I]):
    """`offer` and `take`; times are monotonic seconds."""

    def __init__(self, curve: CostCurve, *, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rows = 0
        self._curve = curve
        self._queues: dict[int, deque[tuple[float, I]]] = {}
        # Bounds over the waiting items, so that most calls need not look at each: loose after some have left.
        self._earliest = math.inf
        self._largest = 1

    def __len__(self) -> int:
        return sum(len(q) for q in self._queues.values())

    def offer(self, item: I, *, now: float) -> None:
        """Queue an admitted item."""
        self._queues.setdefault(item.priority, deque()).append((now, item))
        self.rows += item.rows
        self._earliest = min(self._earliest, item.deadline)
        self._largest = max(self._largest, item.rows)

    def take(self, *, now: float) -> Taken[I]:
        """Form a batch for an engine that is free now."""
        expired = self._drop_hopeless(now)
        batch: list[I] = []
        rows = 0
        for priority in self._order(now):
            for entry in list(self._queues[priority]):
                item = entry[1]
                if batch and (item.layout != batch[0].layout or rows + item.rows > self.max_rows):
                    continue
                # Joining must not make anyone late, the newcomer included.
                finish = now + self._curve.predict(rows + item.rows)
                if batch and finish > min(item.deadline, *(i.deadline for i in batch)):
                    continue
                self._queues[priority].remove(entry)
                batch.append(item)
                rows += item.rows
                if rows >= self.max_rows:
                    break
            if rows >= self.max_rows:
                break
        self.rows -= rows
        return Taken(batch, expired)

    def remove(self, chosen: Callable[[I], bool]) -> list[I]:
        """Take out the items that `chosen` picks (cancelled ones, or all at shutdown)."""
        removed: list[I] = []
        for queue in self._queues.values():
            for entry in [e for e in queue if chosen(e[1])]:
                queue.remove(entry)
                removed.append(entry[1])
        self.rows -= sum(item.rows for item in removed)
        return removed

    def wait_s(self) -> float:
        """How long an item offered now would wait behind the others, at the measured cost of full batches."""
        if not self.rows:
            return 0.0
        full, rest = divmod(self.rows, self.max_rows)
        return full * self._curve.predict(self.max_rows) + (self._curve.predict(rest) if rest else 0.0)

    def next_deadline(self) -> float | None:
        """The earliest deadline that waits here; None when nothing waits."""
        return min((item.deadline for q in self._queues.values() for _, item in q), default=None)

    def validate(self) -> None:
        if self.rows != sum(item.rows for q in self._queues.values() for _, item in q):
            raise InvariantViolation("the batcher's row count is not the sum of its queues")

    def _drop_hopeless(self, now: float) -> list[I]:
        if now + self._curve.predict(self._largest) <= self._earliest:
            return []
        expired = self.remove(lambda item: item.deadline < now + self._curve.predict(item.rows))
        waiting = [item for queue in self._queues.values() for _, item in queue]
        self._earliest = min((item.deadline for item in waiting), default=math.inf)
        self._largest = max((item.rows for item in waiting), default=1)
        return expired

    def _order(self, now: float) -> list[int]:
        """Priorities by urgency, the head of each queue aged by its waiting time."""
        heads = {p: q[0][0] for p, q in self._queues.items() if q}
        return sorted(heads, key=lambda p: (p - int((now - heads[p]) / AGEING_S), p))
