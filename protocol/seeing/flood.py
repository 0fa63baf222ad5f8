"""How often one event may be written: the first few, then one for each interval with a count of the rest. Pure.

A flood of bad frames must neither fill the disk nor hide what else happens. Nothing is lost silently: what was held
back is told with the next of its kind, or when its interval has passed (`overdue`).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

BURST = 5  # of one event, written before the first is held back
INTERVAL_S = 10.0
MOST_EVENTS = 512  # kinds that are told apart; the one seen longest ago makes room


@dataclass(slots=True)
class _Seen:
    since: float
    written: int = 0
    held_back: int = 0


class Flood:
    """One for all events; `key` is the event's name and whatever makes it another, never what a peer sent."""

    def __init__(self, *, burst: int = BURST, interval_s: float = INTERVAL_S) -> None:
        self._burst = burst
        self.interval_s = interval_s
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def offer(self, key: str, *, now: float) -> int | None:
        """None: hold it back. Else write it, and say that so many like it were held back before."""
        seen = self._seen.get(key)
        if seen is None or now - seen.since >= self.interval_s:
            held_back = seen.held_back if seen is not None else 0
            self._seen[key] = _Seen(now, written=1)
            self._seen.move_to_end(key)
            return held_back
        if seen.written < self._burst and not seen.held_back:
            seen.written += 1
            return 0
        seen.held_back += 1
        return None

    def overdue(self, *, now: float) -> list[tuple[str, int]]:
        """Events whose interval has passed, and more than `MOST_EVENTS`: how many of each were held back, told once."""
        told = []
        while self._seen:
            key, seen = next(iter(self._seen.items()))
            if now - seen.since < self.interval_s and len(self._seen) <= MOST_EVENTS:
                break
            del self._seen[key]
            if seen.held_back:
                told.append((key, seen.held_back))
        return told
