"""Threads that run what may never return, so that whoever waits for it can give up. No library can be told to stop.

A caller hands its work over and waits for so long. A deputy that does not come back is given up with what it holds;
the next caller has another. Handing over and back costs some tens of microseconds, so nothing that always ends is run
this way.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Task(Generic[T]):
    """A plain lock is the fastest way to be woken that Python has."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Lock()
        self._done.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None

    is_done = False

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # the caller's, on its own thread
            self._error = error
        self.is_done = True
        self._done.release()

    def wait(self, timeout_s: float) -> T:
        if not self._done.acquire(timeout=timeout_s):
            raise TimeoutError(f"it has not come back within {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it ran


class Deputies:
    """As many threads as there are callers at a time. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = f"isthmus-deputy-{name}"[:60]
        self._lock = threading.Lock()
        self._idle: list[queue.SimpleQueue[_Task[Any] | None]] = []
        self._stopped = False

    def run(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """What `work` returns, or raises; TimeoutError if it has done neither by then, and may never."""
        with self._lock:
            tasks = self._idle.pop() if self._idle else None
        if tasks is None:
            tasks = queue.SimpleQueue()
            threading.Thread(target=_main, args=(tasks,), name=self._name, daemon=True).start()
        task = _Task(work)
        tasks.put(task)
        try:
            result = task.wait(timeout_s)
        finally:
            if task.is_done:
                self._rest(tasks)
            else:
                tasks.put(None)  # should it come back after all, it ends
        return result

    def stop(self) -> None:
        """End those that are idle; the others end when they have done their work."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
        for tasks in idle:
            tasks.put(None)

    def start(self) -> None:
        """Keep threads again for the next work. A new one does so from the beginning."""
        with self._lock:
            self._stopped = False

    def _rest(self, tasks: queue.SimpleQueue[_Task[Any] | None]) -> None:
        with self._lock:
            if not self._stopped:
                self._idle.append(tasks)
                return
        tasks.put(None)


def _main(tasks: queue.SimpleQueue[_Task[Any] | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # what it holds is not ours while we wait
