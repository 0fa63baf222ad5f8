"""The device's one compute thread: preparations in, results out through the uplink's mailbox.

One thread, because a device's cores already work inside the engine; the head of request n+1 overlaps with the transfer
of request n, since sending is another thread's work.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.heads import Heads, Prepared
from protocol.errors import IsthmusError
from protocol.tensors import Tensors


@dataclass(frozen=True, slots=True)
class Job:
    seq: int
    generation: int
    placement: str
    inputs: Tensors


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


@dataclass(frozen=True, slots=True)
class Crashed:
    """A bug on this thread; the uplink ends what is pending and the process."""

    error: BaseException


class Compute:
    def __init__(
        self, heads: Heads, post: Callable[[Done | Failed | Crashed], None], wanted: Callable[[int, int], bool]
    ) -> None:
        self._heads = heads
        self._wanted = wanted
        self._post = post
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="isthmus-compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def stop(self) -> None:
        """End after the current job. Safe to call twice."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                # Under overload requests expire while they wait; working for them would make the next ones late too.
                if self._wanted(job.seq, job.generation):
                    self._post(self._do(job))
        except BaseException as error:  # the top of the thread
            self._post(Crashed(error))

    def _do(self, job: Job) -> Done | Failed:
        try:
            return Done(job.seq, job.generation, job.placement, self._heads.prepare(job.placement, job.inputs))
        except IsthmusError as error:
            return Failed(job.seq, job.generation, str(error))
