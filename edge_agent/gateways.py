"""Which gateways the socket thread has links to: as they were named, and as DNS says from time to time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edge_agent.errands import Found, Resolved
from edge_agent.link import GatewayLink
from protocol import messages as m
from protocol.control.causes import Why
from protocol.control.flights import Instruction
from protocol.control.ladder import Ladder
from protocol.control.session import Event, State
from protocol.errors import InputError

GONE = "it is no longer named in DNS"


class Gateways:
    """Used by the socket thread; others may read `links`. Times are monotonic seconds."""

    def __init__(self, known: Iterable[Found], ladder: Ladder, make: Callable[[Found], GatewayLink]) -> None:
        """`known` from the start. `make` raises InputError if the keys cannot be read."""
        self.links: dict[str, GatewayLink] = {}  # replaced, never changed
        self._ladder = ladder
        self._make = make
        self._named: dict[str, frozenset[str]] = {}  # gateways that each name in DNS stands for
        for found in known:
            self._add(found)

    def resolved(self, resolved: Resolved, *, hello: m.Hello, now: float) -> list[Instruction]:
        """Who is new is added; who is no longer named answers what it holds and leaves."""
        if not resolved.found:
            self._not_found(resolved)
            return []
        names = frozenset(found.name for found in resolved.found)
        before = self._named.get(resolved.source, frozenset())
        self._named[resolved.source] = names
        out: list[Instruction] = []
        for name in before - frozenset().union(*self._named.values()):
            if (link := self.links.get(name)) is not None:
                link.begin_leaving(now=now)
                out += self._ladder.draining(Why.lost(GONE), gateway=name, now=now)
        for found in resolved.found:
            out += self._update(found, hello, now=now)
        return out

    def remove(self, link: GatewayLink, *, now: float) -> list[Instruction]:
        out = self._ladder.gateway_gone(link.name, GONE, now=now)
        self.links = {name: other for name, other in self.links.items() if other is not link}
        link.connection.close()
        return out

    def _add(self, found: Found) -> GatewayLink:
        link = self._make(found)
        self.links = {**self.links, found.name: link}
        self._ladder.gateway_found(found.name, rank=found.rank, weight=found.weight)
        return link

    def _update(self, found: Found, hello: m.Hello, *, now: float) -> list[Instruction]:
        link = self.links.get(found.name)
        if link is None:
            try:
                self._add(found).connection.open(now=now)
            except InputError as error:
                self._ladder.fleet.nobody.link_reason = Why.lost(str(error))
            return []
        self._ladder.gateway_found(found.name, rank=found.rank, weight=found.weight)
        link.move(found.endpoints, now=now)
        if link.leaves_at is None:
            return []
        link.leaves_at = None
        if link.state is not State.READY:
            return []
        link.connection.handle(Event.NEED_HELLO, now=now)  # the Welcome to another greeting opens it again
        out = self._ladder.link_lost(Why.lost("it is named in DNS again"), gateway=link.name, now=now)
        link.greet(hello, now=now)
        return out

    def _not_found(self, resolved: Resolved) -> None:
        """Names may fail to resolve for a while: whoever was found before stays."""
        trouble = Why.lost(resolved.trouble)
        self._ladder.fleet.nobody.link_reason = trouble
        for name in self._named.get(resolved.source, frozenset({resolved.source})) & self.links.keys():
            if not self.links[name].connection.is_open:
                self._ladder.fleet.of(name).link_reason = trouble
