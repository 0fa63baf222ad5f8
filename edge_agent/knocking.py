"""When a device that is turned away knocks again. Pure: time and chance are given.

    turned away                      again after 2 to 3.5 s: who is let in again is back soon, and who was turned away
                                     together does not come back together
    for five minutes by now          the pause doubles, up to half a minute
    its own key files are changed    at once, and as in the beginning

A knock costs the gateway a connection, a handshake and a look into a table: `python -m benchmarks knocks`.
"""

from __future__ import annotations

from typing import Protocol

KNOCK_S = (2.0, 3.5)  # and a gateway may need a second to see that its roster was changed: together less than 5 s
LONG_S = 300.0
LONGEST_S = 30.0


class Chance(Protocol):
    """What is needed of a `random.Random`."""

    def uniform(self, low: float, high: float, /) -> float: ...


class Knocking:
    """One gateway's door. Times are monotonic seconds, `now` always given."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance
        self._since: float | None = None  # it has been turned away without a break
        self._longest_s = KNOCK_S[1]

    def begin_anew(self) -> None:
        """It was let in, or has other keys: what was said before says nothing now."""
        self._since = None

    def turned_away(self, *, now: float) -> float:
        """When to knock next."""
        if self._since is None:
            self._since, self._longest_s = now, KNOCK_S[1]
        if now - self._since < LONG_S:
            return now + self._chance.uniform(*KNOCK_S)
        self._longest_s = min(2 * self._longest_s, LONGEST_S)
        return now + self._chance.uniform(self._longest_s / 2, self._longest_s)
