"""Connections behind which no known agent has shown itself yet. Pure.

While somebody is invited any stranger's connection is let in, and libzmq keeps it for as long as it likes to be silent.
So a connection is given a while to say one thing that only a known agent may say. A guest has shown its token by then,
was answered, and comes back as somebody who is known; whoever else is still there holds a place that agents need.

    accepted --known--> (whoever it is, it may stay) --ended-->
       |
       +--PATIENCE_S--> must go
"""

from __future__ import annotations

from collections import OrderedDict

PATIENCE_S = 60.0  # an agent greets at once; its greeting may come over a link of a few bytes a second


class Newcomers:
    """Connections by their file descriptors, with the peer's address: a number may be used again. Monotonic seconds."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._since: OrderedDict[int, tuple[float, str]] = OrderedDict()  # oldest first
        self._early: set[int] = set()  # known since the last look: the news of a connection may come after its message

    def __len__(self) -> int:
        return len(self._since)

    def accepted(self, descriptor: int, address: str, *, now: float) -> None:
        self._since.pop(descriptor, None)  # the system uses a number again only after it is closed
        if descriptor in self._early:
            self._early.discard(descriptor)  # it was spoken on once, and says nothing of whoever gets the number next
        else:
            self._since[descriptor] = now, address

    def known(self, descriptor: int) -> None:
        """A known agent has said something there."""
        self._since.pop(descriptor, None)
        self._early.add(descriptor)

    def ended(self, descriptor: int) -> None:
        """If somebody known has the number again already, it says so with its next word."""
        self._since.pop(descriptor, None)
        self._early.discard(descriptor)

    def overdue(self, *, now: float) -> list[tuple[int, str]]:
        """Who must go, told once: descriptor and address. To be asked when all news of connections were told."""
        self._early.clear()
        found = []
        while self._since:
            descriptor, (since, address) = next(iter(self._since.items()))
            if now - since < self._patience_s:
                break
            del self._since[descriptor]
            found.append((descriptor, address))
        return found
