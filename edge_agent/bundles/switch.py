"""Which agent serves, and how another takes its place: beside it, then at once, and nobody's request is lost.

    start the new one (seconds) -> swap the reference (microseconds) -> the old one ends its last request -> close it

A request belongs to the agent that it was handed to until it is answered: they are counted, so that an agent is closed
only when it has none. Memory: while both are there, both bundles' heads are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from protocol.errors import InputError

LAST_REQUEST_S = 60.0  # callers set deadlines: this is for one that has set none to speak of


class Serves(Protocol):
    """What is needed of an agent."""

    def start(self) -> None: ...

    def close(self) -> None: ...


A = TypeVar("A", bound=Serves)


@dataclass(frozen=True, slots=True)
class Swap:
    """What a switch took: starting the new one, the moment in which nobody could be told who serves, ending the old."""

    start_s: float
    swap_s: float
    end_s: float
    left_nobody: bool  # the old one had no request left when it was closed


class Stage(Generic[A]):
    """The agent that serves, or none. Thread-safe."""

    def __init__(self, agent: A | None = None) -> None:
        """`agent` is started already, or will be by whoever made it."""
        self._lock = threading.Lock()
        self._agent = agent
        self._held: dict[int, int] = {}  # by identity of the agent
        self._ended = threading.Condition(self._lock)

    @property
    def agent(self) -> A | None:
        """Who serves now. Hand requests in by `hold`, or it may be closed in between."""
        return self._agent

    @contextmanager
    def hold(self) -> Iterator[A]:
        """The agent that serves; it is not closed before the block ends. Raises InputError if none does."""
        agent = self._enter()
        try:
            yield agent
        finally:
            self._leave(agent)

    def submit(self, inputs: Any, **more: Any) -> Future[Any]:
        """`Agent.submit` of whoever serves, which is not closed before the future is done. Raises as that does."""
        agent = self._enter()
        try:
            future: Future[Any] = agent.submit(inputs, **more)  # type: ignore[attr-defined]
        except BaseException:
            self._leave(agent)
            raise
        future.add_done_callback(lambda _: self._leave(agent))
        return future

    def swap(self, fresh: A | None, *, patience_s: float = LAST_REQUEST_S) -> Swap:
        """Start `fresh` and let it serve instead. Returns when the old one is closed.

        Raises what its `start` raises: then nothing has changed. Not for a thread that futures end on.
        """
        began = time.perf_counter()
        if fresh is not None:
            try:
                fresh.start()
            except BaseException:
                fresh.close()
                raise
        started = time.perf_counter()
        with self._lock:
            old, self._agent = self._agent, fresh
        swapped = time.perf_counter()
        left_nobody = True
        if old is not None:
            with self._ended:
                left_nobody = self._ended.wait_for(lambda: id(old) not in self._held, timeout=patience_s)
            old.close()
        return Swap(started - began, swapped - started, time.perf_counter() - swapped, left_nobody)

    def _enter(self) -> A:
        with self._lock:
            agent = self._agent
            if agent is None:
                raise InputError("no bundle serves on this device", "install one with `edge-agent bundles install DIR`")
            self._held[id(agent)] = self._held.get(id(agent), 0) + 1
            return agent

    def _leave(self, agent: A) -> None:
        with self._ended:
            left = self._held[id(agent)] - 1
            if left:
                self._held[id(agent)] = left
            else:
                del self._held[id(agent)]
                self._ended.notify_all()
