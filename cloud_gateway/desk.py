"""The desk between doors and engine threads: the scheduler under one lock, and one condition for who waits for work.

A door submits from its own thread and is told at once what is refused. An engine thread takes a batch, runs it without
the lock, gives the requests back (`finished`), and only then hands the outcomes to their doors, so that whoever reads
an answer may at once use the credit that it frees.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cloud_gateway.models.lanes import Lane
from cloud_gateway.scheduling.admission import Limits, Verdict
from cloud_gateway.scheduling.lane_queue import LaneQueue
from cloud_gateway.scheduling.scheduler import Dispatch, Scheduler
from cloud_gateway.work import Item, NotComputed, Outcome
from protocol.messages import RejectCode

IDLE_WAIT_S = 60.0  # an idle thread is woken by work, not by the clock
SMALL_S = 0.002  # a door may be deaf for so long; twice that where there is but one engine thread to hand over to
OVERDUE_IVL_S = 0.05
OVERDUE_S = 0.1  # so long a door waits beyond the deadline for what runs where a run may hang
GUEST = -1  # a door's number among the engine threads, while it runs a batch itself


class LaneLook(NamedTuple):
    waiting: int  # requests
    waiting_nbytes: int
    busy: int  # batches that run
    wait_s: float  # of a request that comes now


class Desk:
    """Thread-safe; every call is short. Lanes are opened before their segments are published, closed after."""

    def __init__(self, limits: Limits, *, threads: int) -> None:
        self.threads = threads
        self._small_s = SMALL_S * 2 if threads == 1 else SMALL_S
        self._scheduler: Scheduler[Item] = Scheduler(limits, threads=threads)
        self._lock = threading.Lock()  # the condition's own: entered directly where every microsecond is a request's
        self._work = threading.Condition(self._lock)
        self._idle = 0
        self._stopping = False
        self._paused = False
        self._look_at = 0.0  # for what is overdue
        self._busy_until = 0.0  # read without the lock: when the next engine thread should become free

    @property
    def busy_until(self) -> float:
        """Until when all engine threads should be busy (monotonic seconds); in the past when one is free."""
        return self._busy_until

    # ---- lanes ------------------------------------------------------------------------------------------------------

    def open(self, lane: Lane) -> None:
        rules = lane.rules
        queue: LaneQueue[Item] = LaneQueue(
            lane.curve,
            max_rows=lane.max_rows,
            delay_s=rules.delay_s,
            sizes=rules.sizes,
            ageing_s=rules.ageing_s,
            margin=rules.margin,
            steady=not lane.is_guessed,
            may_hang=lane.may_hang,
        )
        with self._work:
            self._scheduler.open(lane, queue, instances=rules.instances, most_requests=rules.most_requests)

    def bound(self, lane: Lane, max_rows: int) -> None:
        """From now on batches of `lane` hold at most `max_rows` rows."""
        with self._work:
            lane.max_rows = self._scheduler.queue(lane).max_rows = max_rows

    def refit(self, lane: Lane) -> None:
        """Another engine serves the lane: predict and bound batches by what they take on that one."""
        with self._work:
            lane.refit()
            if self._scheduler.is_open(lane):
                queue = self._scheduler.queue(lane)
                queue.curve, queue.max_rows, queue.may_hang = lane.curve, lane.max_rows, lane.may_hang

    def retune(self, lane: Lane, *, delay_s: float, ageing_s: float, margin: float) -> None:
        """Change how a lane is scheduled while it serves; one that is not open is left alone."""
        with self._work:
            if not self._scheduler.is_open(lane):
                return
            queue = self._scheduler.queue(lane)
            queue.delay_s, queue.ageing_s, queue.margin = delay_s, ageing_s, margin
            self._work.notify_all()

    def look(self, lane: Lane, *, now: float) -> LaneLook | None:
        """Where a lane stands at this moment; None if it is not open."""
        with self._work:
            if not self._scheduler.is_open(lane):
                return None
            queue = self._scheduler.queue(lane)
            wait_s, _ = self._scheduler.predict(lane, rows=1, now=now)
            return LaneLook(len(queue), sum(item.nbytes for item in queue), self._scheduler.busy(lane), wait_s)

    def close(self, lane: Lane) -> list[Item]:
        """Close a lane. What still waited is returned and must be given a terminal result by its door."""
        with self._work:
            left = self._scheduler.close(lane)
            self._end(left)
            return left

    # ---- for doors --------------------------------------------------------------------------------------------------

    def submit(self, item: Item, *, wake: bool = True) -> Verdict | None:
        """Queue the request, which arrived just now, or say why not.

        Without `wake` the door promises to call `take_small` soon.
        """
        with self._lock:
            verdict = self._scheduler.offer(item.segment.lane, item, now=item.arrived)
            if verdict is None:
                item.segment.pending += 1
                if wake and self._idle:
                    self._work.notify()
            return verdict

    def take_small(self) -> Dispatch[Item] | None:
        """The next batch, for a door to run itself, if it is small and every engine thread is idle.

        If not, idle engine threads are woken for what waits.
        """
        if not self._scheduler.waiting:
            return None
        with self._lock:
            if not (self._paused or self._stopping or self._scheduler.running):
                dispatch = self._scheduler.take(GUEST, now=time.monotonic(), at_most_s=self._small_s)
                if dispatch is not None:
                    self._end(dispatch.expired)
                    return dispatch
            if self._idle and self._scheduler.waiting:
                self._work.notify(self._scheduler.waiting)
            return None

    @property
    def waiting(self) -> int:
        """Requests that wait for an engine. Read without the lock."""
        return self._scheduler.waiting

    def withdraw(self, chosen: Callable[[Item], bool]) -> list[Item]:
        """Take out waiting requests that nobody wants any more; their doors give them a terminal result."""
        with self._work:
            removed = self._scheduler.remove(chosen)
            self._end(removed)
            return removed

    def wait_s(self, *, now: float) -> float:
        """What a request that comes now would wait, by and large."""
        with self._work:
            return self._scheduler.wait_s(now=now)

    def pending(self) -> tuple[int, int]:
        """Requests and bytes that were admitted and have no result yet."""
        admission = self._scheduler.admission
        return admission.requests, admission.nbytes

    def credit(self, tenant: str) -> int:
        with self._work:
            return self._scheduler.admission.credit(tenant)

    @property
    def is_draining(self) -> bool:
        return self._scheduler.admission.draining

    @property
    def limits(self) -> Limits:
        return self._scheduler.admission.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self._work:
            self._scheduler.admission.limits = limits

    def drain(self) -> None:
        """From now on admit nobody; what is held is finished."""
        with self._work:
            self._scheduler.admission.draining = True

    # ---- for engine threads -----------------------------------------------------------------------------------------

    def take(self, thread: int) -> Dispatch[Item] | None:
        """Wait for the next batch of engine thread `thread`. None: stop, nothing waits any more."""
        with self._work:
            while True:
                now = time.monotonic()
                dispatch = None if self._paused else self._scheduler.take(thread, now=now)
                if dispatch is not None:
                    self._end(dispatch.expired)
                    self._busy_until = now + self._scheduler.first_free_s(now)
                    return dispatch
                wake = None if self._paused else self._scheduler.next_wake(now=now)
                if self._stopping and wake is None:
                    return None
                self._idle += 1
                self._work.wait(IDLE_WAIT_S if wake is None else max(wake - now, 0.0))
                self._idle -= 1

    def overdue(self, *, now: float) -> list[Outcome]:
        """Refusals of requests whose time is over and of which nothing has come, for their doors; each only once.

        What waits behind a run that hangs would else be refused only when that ends, if it ever does. May be called
        again and again: it looks every `OVERDUE_IVL_S`.
        """
        if now < self._look_at:
            return []
        self._look_at = now + OVERDUE_IVL_S
        with self._lock:
            waiting, hanging = self._scheduler.overdue(now=now - OVERDUE_S)
            self._end(waiting)
            hanging = [item for item in hanging if not item.is_given_up]
            for item in hanging:
                item.is_given_up = True
        return [
            *(
                NotComputed(item, RejectCode.DEADLINE, "its time was over before its engine was free")
                for item in waiting
            ),
            *(NotComputed(item, RejectCode.DEADLINE, "its engine has not answered in time") for item in hanging),
        ]

    def finished(self, thread: int, items: Sequence[Item]) -> None:
        """Engine thread `thread` has the outcomes of `items`, which it hands to their doors next.

        From now on it is certain which of them were given up before.
        """
        with self._lock:
            self._scheduler.release(thread)
            self._end(items)
            if self._idle and self._scheduler.waiting:  # what waited for this lane's instance need not wait for us
                self._work.notify()
            self._busy_until = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Engine threads take nothing new meanwhile, so that what is submitted waits together: for drills and tests."""
        with self._work:
            self._paused = True
        try:
            yield
        finally:
            with self._work:
                self._paused = False
                self._work.notify_all()

    def stop(self) -> None:
        """Let every engine thread end once nothing waits."""
        with self._work:
            self._stopping = True
            self._work.notify_all()

    def _end(self, items: Sequence[Item]) -> None:
        for item in items:
            item.segment.pending -= 1
            self._scheduler.leave(item)
