"""How long each step of a request may take, so that edge-only can still follow it in time. Pure.

Times are monotonic seconds. Predictions are means; an attempt gets several times its own, travel a quarter more.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.control.availability import Availability
from protocol.control.flights import Flight
from protocol.control.planner import Planner
from protocol.latency import LinkState

SHORTEST_ATTEMPT_S = 0.25  # below this a garbage collection would look like a lost request
ATTEMPT_FACTOR = 4.0  # an attempt may take this many times its prediction
LOCAL_RESERVE_FACTOR = 1.5
LOCAL_RESERVE_MIN_S = 0.005
TRAVEL_MARGIN = 1.25


class Margins:
    """`link` is the latest measurement, None while there is none."""

    def __init__(self, planner: Planner, usable: Availability) -> None:
        self.link: LinkState | None = None
        self._planner = planner
        self._usable = usable

    def travel_s(self, flight: Flight) -> float:
        """Upload and return of what is prepared: an upper quantile, not the mean. 0 while the link is unknown."""
        if self.link is None:
            return 0.0
        return (flight.nbytes / self.link.uplink_bytes_per_s + self.link.rtt_s) * TRAVEL_MARGIN

    def ahead_s(self, sent: Iterable[Flight]) -> float:
        """How long what was sent before and not yet answered keeps the uplink busy, at worst."""
        if self.link is None:
            return 0.0
        return sum(f.nbytes for f in sent) / self.link.uplink_bytes_per_s

    def attempt_until(self, flight: Flight, ahead_s: float, *, now: float) -> float:
        """When an attempt that is sent now, behind `ahead_s` of others, is given up."""
        predicted_s = self._planner.predict(self.link)[flight.placement]
        allowed_s = max(ATTEMPT_FACTOR * predicted_s, SHORTEST_ATTEMPT_S)
        return min(now + ahead_s + allowed_s, max(self._local_start(flight), 0.0))

    def local_can_follow(self, flight: Flight) -> bool:
        """Whether edge-only is there to take over from what the request now does."""
        local = self._usable.local
        return not (
            local is None or local == flight.placement or flight.local_hopeless or local in self._usable.disabled
        )

    def remote_too_late_at(self, flight: Flight) -> float:
        """From when on sending is in vain: the answer could not be back before edge-only has to start, if it can."""
        if not self.local_can_follow(flight):
            return flight.deadline
        return self._local_start(flight) - self.travel_s(flight)

    def _local_start(self, flight: Flight) -> float:
        """The latest moment at which edge-only can still start and meet the deadline; the deadline without it."""
        local = self._usable.local
        if local is None or not self.local_can_follow(flight):
            return flight.deadline
        predicted_s = self._planner.predict(self.link)[local]
        return flight.deadline - max(LOCAL_RESERVE_FACTOR * predicted_s, LOCAL_RESERVE_MIN_S)
