"""When a stored request may go to the agent: never beside a live one, and not again at once after a refusal. Pure.

    refusal                  the request                 the store
    BAD_REQUEST              ends, for good              goes on
    DEADLINE                 rests, then has twice       waits a little: the link is slow or away
                             the time
    NO_PLACEMENT             waits                       waits longer and longer: nothing can be done here now
    BUSY                     waits                       waits shortly: the agent has too much to do
    CLOSED, and what is new  waits                       waits shortly: the agent is being replaced

Waiting doubles with every refusal in a row and begins anew after an answer; chance (seeded) spreads the devices of a
fleet that have lost the same gateway.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from protocol.control.flights import RefusalCode
from protocol.errors import InputError

_MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Pace:
    """How stored requests are sent. Raises InputError for what makes no sense."""

    in_flight: int = 2  # stored requests in the agent's hands at once
    attempt_s: float = 30.0  # the budget of a first attempt; each that ran out doubles it, up to the request's life
    quiet_s: float = 0.05  # no live request for so long before a stored one is sent
    look_s: float = 0.05  # how often to look whether live requests have ended
    most_unreturned: int = 5  # a process that ended so often with a request in hand was ended by that request

    def __post_init__(self) -> None:
        for name in ("in_flight", "attempt_s", "look_s", "most_unreturned"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the store is {getattr(self, name)}", "give a number above 0")


@dataclass(frozen=True, slots=True)
class _BackOff:
    first_s: float
    most_s: float


_BACK_OFF = {
    RefusalCode.DEADLINE: _BackOff(1.0, 60.0),
    RefusalCode.NO_PLACEMENT: _BackOff(1.0, 30.0),
    RefusalCode.BUSY: _BackOff(0.25, 5.0),
}
_ELSE = _BackOff(0.5, 5.0)
FOR_GOOD = frozenset({RefusalCode.BAD_REQUEST})


@dataclass(frozen=True, slots=True)
class Verdict:
    """Send `room` requests now; look again after `wait_s` seconds (infinite: when something changes)."""

    room: int
    wait_s: float
    why: str = ""


class Pacing:
    """Told of every outcome, asked before every attempt. `now` in monotonic seconds; `chance` draws from 0 to 1."""

    def __init__(self, pace: Pace, chance: Callable[[], float]) -> None:
        self._pace = pace
        self._chance = chance
        self._not_before = -math.inf
        self._why = ""
        self._in_a_row = 0
        self._quiet_from = -math.inf
        self._resting: dict[int, float] = {}  # requests whose budget ran out, and until when

    def decide(self, *, live: int, in_flight: int, now: float) -> Verdict:
        """`live` requests of others are unanswered, `in_flight` of ours."""
        if live > 0:
            self._quiet_from = now + self._pace.quiet_s
            return Verdict(0, self._pace.look_s, "live requests go first")
        if now < self._quiet_from:
            return Verdict(0, min(self._quiet_from - now, self._pace.look_s), "live requests go first")
        if now < self._not_before:
            return Verdict(0, self._not_before - now, self._why)
        room = self._pace.in_flight - in_flight
        return Verdict(max(room, 0), math.inf, "" if room > 0 else "enough are being answered")

    def resting(self, *, now: float) -> dict[int, float]:
        """Requests that are not to be tried yet, by sequence number, and in how many seconds they are."""
        self._resting = {sequence: until for sequence, until in self._resting.items() if until > now}
        return {sequence: until - now for sequence, until in self._resting.items()}

    def budget_s(self, attempts: int, left_s: float) -> float:
        """Of the next attempt of a request that was tried `attempts` times and is of use for `left_s` more."""
        return min(self._pace.attempt_s * 2.0 ** min(attempts, _MOST_DOUBLINGS), left_s)

    def answered(self) -> None:
        self._in_a_row = 0
        self._not_before = -math.inf

    def refused(self, sequence: int, code: RefusalCode, *, now: float) -> float:
        """The seconds that nothing is sent for. A refusal for good says nothing about the next request."""
        if code in FOR_GOOD:
            return 0.0
        back_off = _BACK_OFF.get(code, _ELSE)
        wait_s = min(back_off.first_s * 2.0 ** min(self._in_a_row, _MOST_DOUBLINGS), back_off.most_s)
        wait_s *= 0.5 + 0.5 * self._chance()
        self._in_a_row += 1
        self._not_before = max(self._not_before, now + wait_s)
        self._why = f"the agent refused: {code}"
        if code is RefusalCode.DEADLINE:
            self._resting[sequence] = now + 2 * wait_s  # behind whoever has not failed yet
        return wait_s

    def begin_anew(self) -> None:
        """Something has changed for the better (a gateway came back): nothing waits for the old reason."""
        self._in_a_row = 0
        self._not_before = -math.inf
        self._resting.clear()
