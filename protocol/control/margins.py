"""How long each step of a request may take, so that edge-only can still follow it in time. Pure.

Times are monotonic seconds. Predictions are means; an attempt gets several times its own, travel a quarter more.
`link` is always that of the gateway in question, None while nothing was measured.
"""

from __future__ import annotations

import math

from protocol.control.availability import Device
from protocol.control.flights import Flight
from protocol.control.planner import Planner
from protocol.latency import LinkState

SHORTEST_ATTEMPT_S = 0.25  # below this a garbage collection would look like a lost request
ATTEMPT_FACTOR = 4.0  # an attempt may take this many times its prediction
LOCAL_RESERVE_FACTOR = 1.5
LOCAL_RESERVE_MIN_S = 0.005
TRAVEL_MARGIN = 1.25
HEDGE_RESERVE_FACTOR = 3.0  # a hedge starts when so many times its prediction is left: twice what a step down leaves


class Margins:
    def __init__(self, planner: Planner, device: Device) -> None:
        self._planner = planner
        self._device = device

    def travel_s(self, flight: Flight, link: LinkState | None) -> float:
        """Upload and return of what is prepared: an upper quantile, not the mean. 0 while the link is unknown."""
        return self.crossing_s(flight.nbytes, link)

    def crossing_s(self, nbytes: int, link: LinkState | None) -> float:
        """The same for any number of bytes."""
        if link is None:
            return 0.0
        return (nbytes / link.uplink_bytes_per_s + link.rtt_s) * TRAVEL_MARGIN

    def ahead_s(self, nbytes: int, link: LinkState | None) -> float:
        """How long what was sent before and not yet answered keeps the uplink busy, at worst."""
        return 0.0 if link is None else nbytes / link.uplink_bytes_per_s

    def attempt_until(self, flight: Flight, ahead_s: float, link: LinkState | None, *, now: float) -> float:
        """When an attempt that is sent now, behind `ahead_s` of others, is given up."""
        predicted_s = self._planner.predict(link, flight.gateway, flight.rows)[flight.placement]
        if link is not None:  # the prediction is for what usually crosses
            predicted_s = max(predicted_s, flight.left_nbytes / link.uplink_bytes_per_s + link.rtt_s)
        allowed_s = max(ATTEMPT_FACTOR * predicted_s, SHORTEST_ATTEMPT_S)
        return min(now + ahead_s + allowed_s, max(self._local_start(flight, link), 0.0))

    def hedge_at(self, flight: Flight, ahead_s: float, link: LinkState | None, *, now: float) -> float:
        """When edge-only is started beside an attempt that is sent now; infinity if it cannot be.

        Not while the attempt is still within its prediction: that would cost the device every request twice.
        """
        local = self._device.local
        if local is None or not self.local_can_follow(flight):
            return math.inf
        predicted = self._planner.predict(link, flight.gateway, flight.rows)
        tight_at = flight.deadline - max(HEDGE_RESERVE_FACTOR * predicted[local], LOCAL_RESERVE_MIN_S)
        return max(tight_at, now + ahead_s + predicted[flight.placement])

    def local_can_follow(self, flight: Flight) -> bool:
        """Whether edge-only is there to take over from what the request now does."""
        local = self._device.local
        return not (
            local is None or local == flight.placement or flight.local_hopeless or local in self._device.disabled
        )

    def remote_too_late_at(self, flight: Flight, link: LinkState | None) -> float:
        """From when on sending is in vain: the answer could not be back before edge-only has to start, if it can."""
        if not self.local_can_follow(flight):
            return flight.deadline
        return self._local_start(flight, link) - self.travel_s(flight, link)

    def _local_start(self, flight: Flight, link: LinkState | None) -> float:
        """The latest moment at which edge-only can still start and meet the deadline; the deadline without it."""
        local = self._device.local
        if local is None or not self.local_can_follow(flight):
            return flight.deadline
        predicted_s = self._planner.predict(link, flight.gateway, flight.rows)[local]
        return flight.deadline - max(LOCAL_RESERVE_FACTOR * predicted_s, LOCAL_RESERVE_MIN_S)
