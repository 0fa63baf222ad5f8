"""Which placements can be used now, and why the others cannot: the device's heads here, one gateway each there. Pure.

Placements that differ only in the codec share head and tail, and with them the breakers: what breaks one breaks all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from protocol.control.breaker import Breaker
from protocol.control.causes import Cause, Why
from protocol.control.flights import Row
from protocol.latency import LinkState
from protocol.messages import PlacementKind

LONGEST_DEVICE_WAIT_S = 3.0  # trying a head again costs one local failure and no round trip
SHORTEST_CAP_S = 1.0  # so long what a gateway granted less than its credit holds at least
SERVICE_LEARNING = 0.2
SHORTEST_SILENCE_S = 0.2  # a caller's deadline may be shorter than what a gateway takes
NO_ANSWER = Why(Cause.SILENCE, "the gateway does not answer")
# Holds until something comes: a ping is a cheaper trial than a request.
SILENT = Why(Cause.SILENCE, "nothing comes from the gateway")
# Beyond the bandwidth-delay product: what the loop and the other side's threads may take to react.
WINDOW_SLACK_S = 0.01


class Device:
    """The device's share of every placement. Times are monotonic seconds, `now` always given."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.id: row for row in rows}
        self.local = next((r.id for r in self.rows.values() if r.kind is PlacementKind.EDGE_ONLY), None)
        heads = {r.head or r.id: Breaker[Why](longest_wait_s=LONGEST_DEVICE_WAIT_S) for r in self.rows.values()}
        self.breakers = {r.id: heads[r.head or r.id] for r in self.rows.values()}
        self.disabled: dict[str, Why] = {}  # for good: what is on the device does not load

    def reason(self, row: Row, *, now: float) -> Why | None:
        """Why the device's share of this placement cannot be done now."""
        if row.id in self.disabled:
            return self.disabled[row.id]
        breaker = self.breakers[row.id]
        return breaker.reason if breaker.refuses(now=now) else None

    def sharing(self, id_: str, *, head: bool = False) -> set[str]:
        """Placements with the same tail, or the same head, under whatever codec."""
        own = self.rows[id_].head if head else self.rows[id_].tail
        return {r.id for r in self.rows.values() if own is not None and own == (r.head if head else r.tail)}


class Remote:
    """One gateway as the ladder knows it: link, breakers, what it holds, its credit. Times are monotonic seconds."""

    def __init__(self, name: str, rows: Iterable[Row], *, rank: int = 0) -> None:
        """Of several gateways those of the lowest `rank` are used as long as any of them can be."""
        self.name = name
        self.rank = rank
        self.weight = 0  # its share in a draw among those of its rank
        self.rows = {row.id: row for row in rows if row.kind is not PlacementKind.EDGE_ONLY}
        tails = {r.tail or r.id: Breaker[Why]() for r in self.rows.values()}
        self.tails = {r.id: tails[r.tail or r.id] for r in self.rows.values()}
        self.breaker = Breaker[Why]()
        self.link: LinkState | None = None  # as last measured
        self.link_reason: Why | None = Why.lost("no gateway has answered yet")
        self._heard_at: float | None = None
        self.broken: dict[str, Why] = {}  # not at this gateway; forgotten with the next Welcome
        self.held: frozenset[bytes] = frozenset()
        self.service_s = 0.0  # what a request's compute there usually takes
        self.credit_requests = 0
        self.credit_nbytes = 0
        self.chunk_nbytes = 0  # the largest chunk that it takes; 0: none
        self._cap_requests = math.inf  # less than the credit, because the gateway said so
        self._cap_until = 0.0

    def welcomed(self, held: frozenset[bytes], credit_requests: int, credit_nbytes: int) -> None:
        """What its last life could not do says nothing about this one."""
        self.link_reason = None
        self.broken.clear()
        self.breaker = Breaker[Why]()
        self._cap_requests = math.inf
        self.refreshed(held, credit_requests, credit_nbytes)

    def refreshed(self, held: frozenset[bytes], credit_requests: int, credit_nbytes: int) -> None:
        """The same life says anew what it holds and grants."""
        self.held = held
        self.credit_requests, self.credit_nbytes = credit_requests, credit_nbytes

    def heard(self, *, now: float) -> None:
        """Anything came from it, be it the answer to a ping."""
        self._heard_at = now
        if self.is_silent:
            self.link_reason = None

    def timed_out(self, sent_at: float, deadline: float, *, now: float) -> bool:
        """An attempt that was sent at `sent_at` was not answered in time. Whether nothing else has come since, so that
        what is sent after it would end the same way: then nothing is, until something comes. Else it counts as a
        failure, and so it does for those who never tell what they hear.
        """
        soon = now >= deadline and now - sent_at < SHORTEST_SILENCE_S
        if self._heard_at is not None and self._heard_at < sent_at and not soon:
            self.breaker.released()
            if self.link_reason is None:
                self.link_reason = SILENT
                return True
        else:
            self.breaker.failed(NO_ANSWER, now=now)
        return False

    @property
    def is_silent(self) -> bool:
        return self.link_reason == SILENT

    def granted(self, in_flight: int, more: int, wait_s: float, *, now: float) -> None:
        """It takes only `more` requests beyond the `in_flight` that it has of us; holds while it lets us wait."""
        self._cap_requests = in_flight + more
        self._cap_until = now + max(wait_s, SHORTEST_CAP_S)

    def served(self, compute_s: float) -> None:
        """An answer: it has room for one more, and its speed shows."""
        self._cap_requests += 1
        self.service_s += (SERVICE_LEARNING if self.service_s else 1.0) * (compute_s - self.service_s)

    def most_requests(self, *, now: float) -> float:
        """How many requests may be unanswered there."""
        return min(self.credit_requests, self._cap_requests if now < self._cap_until else math.inf)

    @property
    def window_nbytes(self) -> float:
        """With more than this unanswered, another request would only wait in the kernel, where it can be neither
        taken back nor overtaken. The bandwidth-delay product; the delay holds what the gateway itself takes."""
        if self.link is None:
            return math.inf
        delay_s = self.link.rtt_s + self.link.queue_s + self.service_s + WINDOW_SLACK_S
        return self.link.uplink_bytes_per_s * delay_s

    def wait_s(self, requests: int, nbytes: int) -> float:
        """What a request that is sent now waits before its own work begins, with so much of ours there already."""
        if self.link is None:
            return math.inf
        ahead_s = nbytes / self.link.uplink_bytes_per_s + requests * self.service_s
        return self.link.rtt_s + self.link.queue_s + ahead_s

    def reason(self, row: Row, *, now: float) -> Why | None:
        """Why this gateway's share of the placement cannot be done now."""
        if self.link_reason is not None:
            return self.link_reason
        if row.id in self.broken:
            return self.broken[row.id]
        if row.segment not in self.held:
            return Why(Cause.NOT_HELD, f"the gateway does not hold {row.id}")
        for breaker in (self.breaker, self.tails[row.id]):
            if breaker.refuses(now=now):
                return breaker.reason
        return None

    def may_return(self, row: Row, *, now: float) -> bool:
        """Whether nothing but link or gateway, which may come back in a moment, is in this placement's way."""
        if row.id in self.broken:
            return False
        if self.link_reason is not None:
            return True
        return row.segment in self.held and self.breaker.refuses(now=now)
