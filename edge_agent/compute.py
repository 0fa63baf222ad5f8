"""The device's one compute thread: preparations in, results out through the uplink's mailbox.

One thread, because a device's cores already work inside the engine; the head of request n+1 overlaps with the transfer
of request n, since sending is another thread's work.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.heads import Heads, Prepared, ValuesError
from edge_agent.references import References
from protocol.control.overload import too_late
from protocol.errors import IsthmusError
from protocol.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Job:
    seq: int
    generation: int
    placement: str
    inputs: Tensors
    deadline: float
    priority: int = 4  # 0 first
    gateway: str | None = None  # where it will be sent and frames of it are known; None: nothing is to be referred to


@dataclass(frozen=True, slots=True)
class Done:
    seq: int
    generation: int
    placement: str
    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Failed:
    seq: int
    generation: int
    reason: str
    sound: bool  # the head itself works: only this request's values failed


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A known question for one head. It takes the way of a request through both threads, and is none."""

    placement: str
    inputs: Tensors
    future: Future[Prepared]


@dataclass(frozen=True, slots=True)
class Rehearsed:
    rehearsal: Rehearsal
    made: Prepared | IsthmusError


@dataclass(frozen=True, slots=True)
class Crashed:
    """A bug on this thread; the uplink ends what is pending and the process."""

    error: BaseException


class _Turn(NamedTuple):
    """Most urgent first, then first come, first served: numbers differ, so jobs are never compared."""

    priority: int
    number: int
    job: Job | Rehearsal | None


class Compute:
    def __init__(
        self,
        heads: Heads,
        references: References,
        post: Callable[[Done | Failed | Rehearsed | Crashed], None],
        wanted: Callable[[int, int], bool],
    ) -> None:
        self._heads = heads
        self._references = references
        self._wanted = wanted
        self._post = post
        self._stopping = False
        self._took: dict[str, float] = {}
        self._jobs: queue.PriorityQueue[_Turn] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="isthmus-compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job | Rehearsal) -> None:
        priority = job.priority if isinstance(job, Job) else 0
        self._jobs.put(_Turn(priority, next(self._numbers), job))

    def stop(self) -> None:
        """End after the current job. Safe to call twice."""
        self._stopping = True
        self._jobs.put(_Turn(-1, next(self._numbers), None))
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get().job) is not None:
                if isinstance(job, Rehearsal):
                    self._post(self._rehearse(job))
                    continue
                # Under overload requests expire while they wait; working for them would make the next ones late too.
                wanted = not self._stopping and self._wanted(job.seq, job.generation)
                if wanted and (made := self._do(job)) is not None:
                    self._post(made)
        except BaseException as error:  # the top of the thread
            self._post(Crashed(error))

    def _rehearse(self, rehearsal: Rehearsal) -> Rehearsed:
        try:
            return Rehearsed(rehearsal, self._heads.prepare(rehearsal.placement, rehearsal.inputs))
        except IsthmusError as error:
            return Rehearsed(rehearsal, error)

    def _do(self, job: Job) -> Done | Failed | None:
        start = time.monotonic()
        usual_s = self._took.get(job.placement, 0.0)
        if too_late(job.deadline, usual_s, others=self._jobs.qsize(), now=start):
            return None
        try:
            before = {} if job.gateway is None else self._references.of(job.gateway, job.placement)
            made = self._heads.prepare(job.placement, job.inputs, before)
            self._took[job.placement] = time.monotonic() - start
            return Done(job.seq, job.generation, job.placement, made)
        except IsthmusError as error:
            return Failed(job.seq, job.generation, str(error), isinstance(error, ValuesError))
