"""One scheduler over all lanes and all engine threads, pure: who may enter, and what a free engine thread runs next.

Work-conserving: a free thread takes the lane whose most urgent waiting item is the most urgent of all (priority with
ageing, then arrival), unless as many threads as the lane has engine instances already run it. Nothing is bound to a
thread, so a burst on one lane uses every thread, and a quiet lane costs nothing. But lanes whose engines may hang, on a
GPU, never have all threads while there are others: where one hangs the others mostly do, and the rest is to be served.

    offer(lane, item) -> None or a Verdict            the door refuses what cannot finish
    take(thread) -> Dispatch or None                  a batch to run, and what has become hopeless
    release(thread), leave(item)                      the thread is free again; the request has its terminal result

The predicted wait of a newcomer is what is left of the batch that ends first, plus everything that waits before it on
any lane, shared by all threads; on its own lane at least what its instances have to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cloud_gateway.scheduling.admission import Admission, Limits, Verdict
from cloud_gateway.scheduling.lane_queue import LaneQueue, Queued
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode

TRIAL_IVL_S = 0.2  # at least, between requests that an idle lane takes although it was slow
TRIAL_SHARE = 0.1  # of an engine thread's time, at most, for such requests of one lane
TRIAL_MARGIN = 1.5  # such a request's deadline, in predicted service times


class Admitted(Queued, Protocol):
    """What the scheduler must know of an item, besides what its queue must know."""

    deadline: float

    @property
    def nbytes(self) -> int: ...


I = TypeVar("I", bound=Admitted)  # noqa: E741 - the item
Key = Hashable


@dataclass(frozen=True, slots=True)
class Dispatch(Generic[I]):
    """Run `batch` (it may be empty) on lane `key` for about `predicted_s`, and refuse `expired`."""

    key: Key
    batch: list[I]
    expired: list[I]
    predicted_s: float


@dataclass(slots=True)
class _Lane(Generic[I]):
    queue: LaneQueue[I]
    instances: int
    most_requests: int | None
    running: int = 0
    tried_at: float = -math.inf  # when a request was last let in only to measure again


@dataclass(slots=True)
class _Running(Generic[I]):
    lane: _Lane[I]  # and not its key: that may be closed and opened again meanwhile
    until: float
    batch: list[I]
    may_hang: bool


class Scheduler(Generic[I]):
    """All lanes, all engine threads and the door in front of them. Times are monotonic seconds."""

    def __init__(self, limits: Limits, *, threads: int) -> None:
        self.admission = Admission(limits)
        self.threads = threads
        self.waiting = 0  # requests, on all lanes
        self._lanes: dict[Key, _Lane[I]] = {}
        self._running: dict[int, _Running[I]] = {}

    # ---- lanes ------------------------------------------------------------------------------------------------------

    def open(self, key: Key, queue: LaneQueue[I], *, instances: int = 1, most_requests: int | None = None) -> None:
        """From now on `key` may be offered items; at most `instances` of its batches run at the same time."""
        if key in self._lanes:
            raise InvariantViolation(f"lane {key} is open already")
        self._lanes[key] = _Lane(queue, instances, most_requests)

    def close(self, key: Key) -> list[I]:
        """Close a lane; what still waited is returned, and must be given a terminal result and `leave`."""
        left = self._lanes.pop(key).queue.remove(lambda _: True)
        self.waiting -= len(left)
        return left

    def is_open(self, key: Key) -> bool:
        return key in self._lanes

    def queue(self, key: Key) -> LaneQueue[I]:
        return self._lanes[key].queue

    # ---- the door ---------------------------------------------------------------------------------------------------

    def offer(self, key: Key, item: I, *, now: float) -> Verdict | None:
        """Admit `item` and queue it, or say why not. Its `deadline` is moved only when it is let in as a trial."""
        lane = self._lanes.get(key)
        if lane is None:  # closed between whoever found it and this call
            return Verdict(RejectCode.UNKNOWN_SEGMENT, "it was unloaded in this moment", 0.0)
        wait_s, service_s = self.predict(key, rows=item.rows, priority=item.priority, now=now)
        budget_s = item.deadline - now
        # What was slow once would else be refused, and so never measured again, for good.
        trial = self._is_trial(lane, service_s, budget_s, now)
        if trial:
            budget_s = service_s * TRIAL_MARGIN
        verdict = self.admission.decide(
            tenant=item.tenant, nbytes=item.nbytes, budget_s=budget_s, wait_s=wait_s, service_s=service_s
        )
        if verdict is None and lane.most_requests is not None and len(lane.queue) >= lane.most_requests:
            verdict = Verdict(
                RejectCode.BUSY,
                f"{len(lane.queue)} requests wait for this model",
                max(wait_s, 0.01),
                self.admission.credit(item.tenant),
            )
        if verdict is None:
            self.admission.enter(item.tenant, item.nbytes)
            self.waiting += 1
            if trial:
                lane.tried_at, item.deadline = now, now + budget_s
            lane.queue.offer(item, now=now)
        return verdict

    def predict(self, key: Key, *, rows: int, priority: int = 9, now: float) -> tuple[float, float]:
        """Seconds that `rows` more rows would wait before their batch starts, and that their batch would take.

        On an idle gateway that is what a batch typically takes and no high quantile: to refuse would help nobody.
        """
        lane = self._lanes[key]
        if self._is_idle(lane):
            return 0.0, lane.queue.typical_s(rows)
        before_s, service_s = lane.queue.service_s(rows, priority)
        others_s = sum(other.queue.backlog_s(priority) for k, other in self._lanes.items() if k != key)
        wait_s = self.first_free_s(now) + (before_s + others_s) / self.threads
        if lane.running >= lane.instances:
            own_s = min(r.until for r in self._running.values() if r.lane is lane) - now
            wait_s = max(wait_s, max(own_s, 0.0) + before_s / lane.instances)
        return wait_s, service_s

    def wait_s(self, *, now: float) -> float:
        """What a request that comes now would wait on the busiest lane, by and large."""
        return self.first_free_s(now) + sum(lane.queue.backlog_s() for lane in self._lanes.values()) / self.threads

    def first_free_s(self, now: float) -> float:
        """Seconds until some engine thread should be free; 0 when one is."""
        if len(self._running) < self.threads:
            return 0.0
        return max(min(running.until for running in self._running.values()) - now, 0.0)

    # ---- engine threads ---------------------------------------------------------------------------------------------

    def take(self, thread: int, *, now: float, at_most_s: float = math.inf) -> Dispatch[I] | None:
        """What the free `thread` does next; None when nothing is ready. Call `release` when the batch is done.

        With `at_most_s` only a batch that is known to take no longer.
        """
        if not self.waiting or (key := self._most_urgent(now)) is None:
            return None
        lane = self._lanes[key]
        queue = lane.queue
        if at_most_s < math.inf:
            cost_s = queue.cost_s(min(queue.rows, queue.max_rows))
            if queue.may_hang or not (queue.steady and 0.0 < cost_s <= at_most_s):
                return None
        taken = queue.take(now=now)
        self.waiting -= len(taken.batch) + len(taken.expired)
        if not taken.batch:
            return Dispatch(key, [], taken.expired, 0.0)
        predicted_s = queue.cost_s(sum(item.rows for item in taken.batch))
        lane.running += 1
        self._running[thread] = _Running(lane, now + predicted_s, taken.batch, queue.may_hang)
        return Dispatch(key, taken.batch, taken.expired, predicted_s)

    def busy(self, key: Key) -> int:
        """Batches of that lane that run now."""
        return self._lanes[key].running

    @property
    def running(self) -> int:
        """Batches that run now."""
        return len(self._running)

    def release(self, thread: int) -> None:
        """`thread` has finished its batch. Without one this does nothing."""
        running = self._running.pop(thread, None)
        if running is not None:
            running.lane.running -= 1

    def leave(self, item: I) -> None:
        """`item` has its terminal result; once for every item that was admitted."""
        self.admission.leave(item.tenant, item.nbytes)

    def next_wake(self, *, now: float) -> float | None:
        """When `take` may have something although nothing happens; None: only an offer or a release can bring it."""
        at = min((lane.queue.ready_at(now=now) for _, lane in self._free_lanes()), default=math.inf)
        return None if at == math.inf else at

    def remove(self, chosen: Callable[[I], bool]) -> list[I]:
        """Take waiting items out of all lanes; each must be given a terminal result and `leave`."""
        removed = [item for lane in self._lanes.values() for item in lane.queue.remove(chosen)]
        self.waiting -= len(removed)
        return removed

    def overdue(self, *, now: float) -> tuple[list[I], list[I]]:
        """Whose deadline is over: those that wait, taken out now, and those that run where a run may hang."""
        waiting: list[I] = []
        if self.waiting and any(lane.queue.earliest < now for lane in self._lanes.values()):
            waiting = self.remove(lambda item: item.deadline < now)
        hanging = [r.batch for r in self._running.values() if r.may_hang]
        return waiting, [item for batch in hanging for item in batch if item.deadline < now]

    def validate(self) -> None:
        """Raises InvariantViolation if the counts contradict each other."""
        waiting = 0
        for key, lane in self._lanes.items():
            lane.queue.validate()
            waiting += len(lane.queue)
            if lane.running != sum(r.lane is lane for r in self._running.values()) or lane.running > lane.instances:
                raise InvariantViolation(f"lane {key} says that {lane.running} of its batches run")
        if waiting != self.waiting:
            raise InvariantViolation(f"{waiting} items wait but {self.waiting} were counted")
        if waiting > self.admission.requests:
            raise InvariantViolation(f"{waiting} items wait but {self.admission.requests} were admitted")

    def _is_idle(self, lane: _Lane[I]) -> bool:
        return not self.waiting and len(self._running) < self.threads and lane.running < lane.instances

    def _is_trial(self, lane: _Lane[I], service_s: float, budget_s: float, now: float) -> bool:
        rested_s = max(TRIAL_IVL_S, service_s / TRIAL_SHARE)
        return self._is_idle(lane) and service_s > budget_s > 0 and now - lane.tried_at > rested_s

    def _most_urgent(self, now: float) -> Key | None:
        ready = [(key, lane) for key, lane in self._free_lanes() if lane.queue.ready_at(now=now) <= now]
        if len(ready) <= 1:
            return ready[0][0] if ready else None
        return min(ready, key=lambda pair: pair[1].queue.head(now=now))[0]

    def _free_lanes(self) -> list[tuple[Key, _Lane[I]]]:
        """Lanes whose requests a free thread may run."""
        free = [pair for pair in self._lanes.items() if pair[1].queue.rows and pair[1].running < pair[1].instances]
        if not free or self.threads < 2 or sum(r.may_hang for r in self._running.values()) < self.threads - 1:
            return free
        others = [pair for pair in free if not pair[1].queue.may_hang]
        return others if any(not lane.queue.may_hang for lane in self._lanes.values()) else free
