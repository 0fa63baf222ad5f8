"""Which placements can be used now, and why the others cannot: breakers, the link, what the gateway holds. Pure.

Placements that differ only in the codec share head and tail, and with them the breakers: what breaks one breaks all.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.control.breaker import Breaker
from protocol.control.flights import Row
from protocol.messages import PlacementKind

LONGEST_DEVICE_WAIT_S = 3.0  # trying a head again costs one local failure and no round trip


class Availability:
    """Times are monotonic seconds, `now` always given."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.id: row for row in rows}
        self.local = next((r.id for r in self.rows.values() if r.kind is PlacementKind.EDGE_ONLY), None)
        heads = {r.head or r.id: Breaker(longest_wait_s=LONGEST_DEVICE_WAIT_S) for r in self.rows.values()}
        tails = {r.tail or r.id: Breaker() for r in self.rows.values()}
        self.device = {r.id: heads[r.head or r.id] for r in self.rows.values()}
        self.tails = {r.id: tails[r.tail or r.id] for r in self.rows.values()}
        self.gateway = Breaker()
        self.link_reason: str | None = "no gateway has answered yet"
        self.disabled: dict[str, str] = {}  # for good: what is on the device does not load
        self.broken: dict[str, str] = {}  # not at this gateway; forgotten with the next Welcome
        self._held: frozenset[bytes] = frozenset()

    def welcomed(self, held: frozenset[bytes]) -> None:
        """A gateway that holds these segments: what the last one could not do says nothing about it."""
        self.link_reason = None
        self._held = held
        self.broken.clear()
        self.gateway = Breaker()

    def device_reason(self, row: Row, *, now: float) -> str | None:
        """Why the device's share of this placement cannot be done now."""
        if row.id in self.disabled:
            return self.disabled[row.id]
        device = self.device[row.id]
        return device.reason if device.refuses(now=now) else None

    def reason(self, row: Row, *, now: float) -> str | None:
        """Why this placement cannot be used now, or None if it can."""
        reason = self.device_reason(row, now=now)
        if reason is not None:
            return reason
        if row.kind is PlacementKind.EDGE_ONLY:
            return None
        if self.link_reason is not None:
            return self.link_reason
        if row.id in self.broken:
            return self.broken[row.id]
        if row.segment not in self._held:
            return f"the gateway does not hold {row.id}"
        for breaker in (self.gateway, self.tails[row.id]):
            if breaker.refuses(now=now):
                return breaker.reason
        return None

    def reasons(self, *, now: float) -> dict[str, str]:
        """For every placement that cannot be used now, why."""
        reasons = ((row.id, self.reason(row, now=now)) for row in self.rows.values())
        return {id_: why for id_, why in reasons if why is not None}

    def waits_for_gateway(self, row: Row, *, now: float) -> bool:
        """Whether nothing but link or gateway, which may come back in a moment, is in this placement's way."""
        if row.kind is PlacementKind.EDGE_ONLY or row.id in self.broken:
            return False
        known = self.link_reason is not None or row.segment in self._held
        return known and self.device_reason(row, now=now) is None

    def sharing(self, id_: str, *, head: bool = False) -> set[str]:
        """Placements with the same tail, or the same head, under whatever codec."""
        own = self.rows[id_].head if head else self.rows[id_].tail
        return {r.id for r in self.rows.values() if own is not None and own == (r.head if head else r.tail)}
