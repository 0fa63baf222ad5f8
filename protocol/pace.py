"""How fast files may leave, so that requests do not notice: a bucket of bytes that fills at a rate. Pure."""

from __future__ import annotations


class Pace:
    """`rate` in bytes a second; at most `burst_nbytes` leave at once after a rest."""

    def __init__(self, *, rate: float, burst_nbytes: int, now: float) -> None:
        self.rate = rate
        self._burst_nbytes = burst_nbytes
        self._held = float(burst_nbytes)
        self._at = now

    def retune(self, rate: float, *, now: float) -> None:
        """Another rate from now on."""
        self._fill(now)
        self.rate = rate

    def take(self, nbytes: int, *, now: float) -> float:
        """Take `nbytes`, which may be more than there is; the seconds to wait before they may leave."""
        self._fill(now)
        self._held -= nbytes
        return max(-self._held / self.rate, 0.0)

    def _fill(self, now: float) -> None:
        self._held = min(self._held + max(now - self._at, 0.0) * self.rate, float(self._burst_nbytes))
        self._at = max(now, self._at)
