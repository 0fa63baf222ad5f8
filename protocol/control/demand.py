"""What is asked of device and uplink: how often requests come, how evenly, and what is still queued. Pure.

A rate is a claim about requests that come whether or not the ones before were answered. A caller who waits for each
answer asks as often as it is answered: his rate says how fast the placement is, and whatever placement is in use looks
saturated by it. So a rate counts only where requests come while others are pending (PENDING_SHARE of the last ones).
Nothing is lost by that: if none is pending when the next one comes, the placement in use takes less than a gap, and so
does the work that any faster one has for the device.

The rate is that of the last WINDOW gaps. As with the link, several in a row that differ from it by a factor in the same
direction are a new rate, and what was before is dropped; a single very long gap is a pause and says nothing.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

WINDOW = 16  # gaps
LEAST_GAPS = 4
STEP_FACTOR = 2.0
STEP_GAPS = 6  # of Poisson arrivals that many in a row are shorter than half the mean once in 300
PAUSES = 3
PAUSE_FACTOR = 8.0  # Poisson arrivals do this once in 3,000 gaps
PENDING_SHARE = 0.125  # two of sixteen: a device that is busy a quarter of the time shows it
MOST_SCV = 4.0  # burstier than this is a pause between two bursts


class Demand(NamedTuple):
    """Requests per second (0: not known, or callers wait for their answers), the squared coefficient of variation of
    their gaps, and for how long device and uplink are busy with what came before."""

    per_s: float = 0.0
    gaps_scv: float = 0.0
    device_s: float = 0.0
    uplink_s: float = 0.0


NO_DEMAND = Demand()


class DemandMeter:
    """Told of every arrival, preparation and upload. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=WINDOW)
        self._found: deque[bool] = deque(maxlen=WINDOW)  # for each arrival, whether others were pending
        self._last_at: float | None = None
        self._paused: list[float] = []
        self._device_free_at = self._uplink_free_at = float("-inf")

    def arrived(self, *, pending: int, now: float) -> None:
        """A request came while `pending` others had no answer yet."""
        self._found.append(pending > 0)
        if self._last_at is not None:
            self._gap(max(now - self._last_at, 0.0))
        self._last_at = now

    def preparing(self, device_s: float, *, now: float) -> None:
        """The device was given work that is predicted to take `device_s`."""
        self._device_free_at = max(self._device_free_at, now) + device_s

    def sent(self, uplink_s: float, *, now: float) -> None:
        """The uplink was given bytes that are predicted to take `uplink_s`."""
        self._uplink_free_at = max(self._uplink_free_at, now) + uplink_s

    def read(self, *, preparing: bool, sent: bool, now: float) -> Demand:
        """What the next request meets; whether anything is at work on the device, and sent and not answered: without
        that nothing is queued, whatever was predicted."""
        if not preparing:
            self._device_free_at = now
        if not sent:
            self._uplink_free_at = now
        per_s, scv = self._rate()
        return Demand(per_s, scv, max(self._device_free_at - now, 0.0), max(self._uplink_free_at - now, 0.0))

    def _rate(self) -> tuple[float, float]:
        count = len(self._gaps)
        if count < LEAST_GAPS or sum(self._found) < PENDING_SHARE * len(self._found):
            return 0.0, 0.0
        mean = sum(self._gaps) / count
        if mean <= 0:
            return 0.0, 0.0
        variance = sum((gap - mean) ** 2 for gap in self._gaps) / (count - 1)
        return 1 / mean, min(variance / mean**2, MOST_SCV)

    def _gap(self, gap: float) -> None:
        mean = sum(self._gaps) / len(self._gaps) if len(self._gaps) >= LEAST_GAPS else None
        if mean is not None and gap > PAUSE_FACTOR * mean:
            self._paused.append(gap)
            if len(self._paused) < PAUSES:
                return
            self._gaps.clear()  # no pause but a slower rate
            self._gaps.extend(self._paused)
            self._paused.clear()
            return
        self._paused.clear()
        self._gaps.append(gap)
        gaps = list(self._gaps)
        before, recent = gaps[:-STEP_GAPS], gaps[-STEP_GAPS:]
        if len(before) < LEAST_GAPS:
            return
        usual = sum(before) / len(before)
        if max(recent) * STEP_FACTOR < usual or min(recent) > usual * STEP_FACTOR:
            self._gaps.clear()
            self._gaps.extend(recent)
