"""At most once in this gateway's life: a request that comes again is attached or answered again, never rerun. Pure.

unknown     -> run it
in progress -> attach: the answer goes to whoever asked last (the agent has reconnected)
done        -> the same answer again, from a bounded store
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from protocol.errors import InvariantViolation

A = TypeVar("A")
K = TypeVar("K", bound=Hashable)

KEEP_ENTRIES = 4096
KEEP_NBYTES = 32 * 1024 * 1024


class DedupTable(Generic[K, A]):
    """Answers of type A by request. Forgets the oldest *done* entries first, and only those.

    A request is its id together with its segment: sent again with another placement it is other work, since another
    tail has other outputs.
    """

    def __init__(self, *, entries: int = KEEP_ENTRIES, nbytes: int = KEEP_NBYTES) -> None:
        self._entries = entries
        self._limit = nbytes
        self._nbytes = 0
        self._running: dict[K, tuple[bytes, int]] = {}  # -> (route, attempt) to answer
        self._done: OrderedDict[K, tuple[A, int]] = OrderedDict()

    def start(self, request: K, route: bytes, attempt: int) -> None:
        """`request` begins to run; its answer belongs to `route`."""
        if request in self._running or request in self._done:
            raise InvariantViolation(f"request {request} would run twice")
        self._running[request] = (route, attempt)

    def attach(self, request: K, route: bytes, attempt: int) -> bool:
        """Whether `request` is running; if so its answer will go to this route and attempt."""
        if request not in self._running:
            return False
        self._running[request] = (route, attempt)
        return True

    def finished(self, request: K) -> A | None:
        """The stored answer, if there is one."""
        entry = self._done.get(request)
        if entry is None:
            return None
        self._done.move_to_end(request)
        return entry[0]

    def finish(self, request: K, answer: A, nbytes: int) -> tuple[bytes, int]:
        """`request` was answered: store it and return the route and attempt it belongs to."""
        destination = self._running.pop(request)
        if nbytes > self._limit:
            return destination  # keeping it would throw out all others
        self._done[request] = (answer, nbytes)
        self._nbytes += nbytes
        while self._done and (len(self._done) > self._entries or self._nbytes > self._limit):
            _, (_, size) = self._done.popitem(last=False)
            self._nbytes -= size
        return destination

    def abandon(self, request: K) -> tuple[bytes, int] | None:
        """`request` was refused, not answered: a later attempt may run."""
        return self._running.pop(request, None)

    def abandon_all(self) -> list[tuple[K, bytes, int]]:
        """Every request that still runs, with the route and attempt that wait for it: the last act before the end."""
        left = [(request, route, attempt) for request, (route, attempt) in self._running.items()]
        self._running.clear()
        return left

    def __len__(self) -> int:
        return len(self._running)
