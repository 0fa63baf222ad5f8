"""Where requests without a deadline wait when their tenant's credit is used up: first come, first served.

Agents know their credit and a caller with a deadline wants to hear at once that it should go elsewhere; clients of the
standard protocol that state no deadline know neither, and expect to wait. How many can wait is bounded by the doors'
own limits on connections and bytes. Lives on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable


class Turns:
    """`enter` and `leave` around each request that is in flight; every `leave` gives the next of its tenant a turn."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def may_wait(self, tenant: str) -> bool:
        """Whether a turn will come: something of the tenant is in flight."""
        return self._held[tenant] > 0

    def is_queued(self, tenant: str) -> bool:
        return bool(self._waiting.get(tenant))

    def enter(self, tenant: str) -> None:
        self._held[tenant] += 1

    def leave(self, tenant: str) -> None:
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._next(tenant)

    async def wait(self, tenant: str, *, first: bool) -> None:
        """Until it is this request's turn; `first` puts it in front, where it has stood already."""
        turn = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(tenant, deque())
        if first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a turn in this very moment: the next may have it
                self.pass_on(tenant)
            raise
        finally:
            if turn in queue:
                queue.remove(turn)
            if not queue:
                self._waiting.pop(tenant, None)

    def pass_on(self, tenant: str) -> None:
        """Whose turn it was cannot use it."""
        self._next(tenant)

    def give_up(self, error: Callable[[], Exception]) -> None:
        for queue in self._waiting.values():
            for turn in queue:
                if not turn.done():
                    turn.set_exception(error())

    def _next(self, tenant: str) -> None:
        queue = self._waiting.get(tenant)
        while queue:
            turn = queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
