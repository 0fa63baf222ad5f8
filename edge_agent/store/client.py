"""Late answers within one process: put a request, go on, come back for its answer, be it after a restart.

    with Journal(state_dir / "store") as journal, Agent(config) as agent:
        with Forwarder(journal, lambda: agent):
            client = StoreClient(journal, accepts=lambda model, inputs: check_inputs(specs, inputs))
            ticket = client.put(Wish({"image": frame}))          # on the disk: the process may be killed from here on
            ...
            ended = client.wait(ticket, timeout_s=60)            # None: not yet

When the agent itself is killed, only what was put here survives; `Agent.submit` and `Client.infer` keep nothing.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from edge_agent.store.journal import Journal
from edge_agent.store.tickets import Accepts, State, Ticket, Totals, Wish


class StoreClient:
    """Safe for several threads. What `accepts` refuses is not stored."""

    def __init__(self, journal: Journal, accepts: Accepts = lambda model, inputs: None) -> None:
        self._journal = journal
        self._accepts = accepts
        self._changed = threading.Condition()
        self._changes = 0
        journal.listen(self._on_change)

    def put(self, wish: Wish) -> str:
        """The ticket of a request that is on the disk now. Raises InputError, StoreFullError or StoreError."""
        return self.offer(wish).result()

    def offer(self, wish: Wish) -> Future[str]:
        """The same without waiting for the disk. Raises InputError."""
        self._accepts(wish.model, wish.inputs)
        return self._journal.offer(wish)

    def look(self, ticket: str) -> Ticket | None:
        """What has become of it, with its answer, which stays; None if it is not known (any more)."""
        return self._journal.look(ticket)

    def take(self, ticket: str) -> Ticket | None:
        """The same, and what has ended is removed from the disk first: an answer is given out at most once."""
        return self._journal.take(ticket)

    def drop(self, ticket: str) -> bool:
        """Forget it, whether it waits or has ended; whether it was known."""
        return self._journal.drop(ticket) is not None

    def wait(self, ticket: str, *, timeout_s: float) -> Ticket | None:
        """Take it as soon as it has ended; None if it has not within `timeout_s`, or is not known.

        A request that waits longer than it may is expired by the forwarder, within its `SWEEP_S` seconds.
        """
        until = time.monotonic() + timeout_s
        while True:
            with self._changed:
                seen = self._changes
            found = self._journal.take(ticket)
            if found is None or found.state is not State.WAITING:
                return found
            with self._changed:
                left_s = until - time.monotonic()
                if left_s <= 0 or not self._changed.wait_for(lambda: self._changes != seen, left_s):  # noqa: B023
                    return None

    def totals(self) -> Totals:
        return self._journal.totals()

    def _on_change(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()
