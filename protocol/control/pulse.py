"""When to ping a gateway, how large, how long it may stay silent, and when the loop wakes. Pure.

A plain ping keeps the smallest round trip fresh; a padded one right after it measures the bandwidth where ordinary
traffic does not. An idle device must not pay for its link: without requests nothing is probed.
"""

from __future__ import annotations

from protocol.control.link import LinkEstimator
from protocol.latency import LinkState

PING_IVL_S = 1.0
LOCAL_PING_IVL_S = 0.5  # while requests are answered without the link: it is to be noticed soon when that changes
ACTIVE_S = 3.0  # without a request for this long no probe is sent
CONFIRM_IVL_S = 0.05  # between probes while they contradict the estimate
SILENCE_S = 4.0  # no message at all for this long, with pings out: the gateway is hung or the link half-open
IDLE_WAIT_S = 0.5
BUSY_WAIT_S = 0.05  # breakers and credit have no alarm of their own


class Pulse:
    """Times are monotonic seconds. `measured`: whether this connection's link has been measured at least once."""

    def __init__(self) -> None:
        self.next_at = 0.0
        self._active_until = 0.0

    def requested(self, *, now: float) -> None:
        """A request came."""
        self._active_until = now + ACTIVE_S

    def welcomed(self, *, now: float) -> None:
        """A gateway takes requests: measure the way to it at once."""
        self.next_at = now

    def paddings(self, estimator: LinkEstimator, *, idle: bool, measured: bool, now: float) -> tuple[int, ...]:
        """The bytes to pad each ping with that is to be sent now; `idle`: nothing is unanswered."""
        padding = estimator.probe_nbytes(now) if idle and self._active(measured, now) else 0
        self.next_at = now + (LOCAL_PING_IVL_S if padding else PING_IVL_S)
        return (0, padding) if padding else (0,)

    def answered(self, estimator: LinkEstimator, *, measured: bool, now: float) -> None:
        """A ping came back, and the estimator knows."""
        if estimator.wants_confirmation and self._active(measured, now):
            self.next_at = min(self.next_at, now + CONFIRM_IVL_S)

    def _active(self, measured: bool, now: float) -> bool:
        return now < self._active_until or not measured


def patience_s(ahead_nbytes: float, link: LinkState | None) -> float:
    """How long a gateway may be silent while `ahead_nbytes` are on their way to it, at twice the expected time."""
    return SILENCE_S + (2 * ahead_nbytes / link.uplink_bytes_per_s if link else 0.0)


def wake_at(deadline: float | None, next_ping: float | None, *, busy: bool, now: float) -> float:
    """When to look again if nothing happens: `deadline` is the ladder's, `busy`: requests are pending."""
    wake = now + (BUSY_WAIT_S if busy else IDLE_WAIT_S)
    return min(at for at in (wake, deadline, next_ping) if at is not None)
