"""A circuit breaker with an injected clock. Pure.

CLOSED --`threshold` failures in a row--> OPEN --after `wait`--> HALF_OPEN --success--> CLOSED
   ^                                       ^                        |
   |                                       `------- failure --------'   (wait doubles up to `longest_wait_s`)
   `---------------- success ------------------------- one trial at a time in HALF_OPEN
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

Reason = TypeVar("Reason")  # whatever its owner tells as the reason


class BreakerState(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker(Generic[Reason]):
    """Says whether something that failed may be tried again. All times are monotonic seconds."""

    def __init__(self, *, threshold: int = 3, wait_s: float = 1.0, longest_wait_s: float = 10.0) -> None:
        self.state = BreakerState.CLOSED
        self.reason: Reason | None = None
        self._threshold = threshold
        self._first_wait_s = wait_s
        self._longest_wait_s = longest_wait_s
        self._wait_s = wait_s
        self._failures = 0
        self._opens_until = 0.0
        self._paused = False  # open because the other side asked for it
        self._trial_since: float | None = None

    def refuses(self, *, now: float) -> bool:
        """Whether a request may not pass now. Asking changes nothing."""
        if self.state is BreakerState.CLOSED:
            return False
        if self.state is BreakerState.OPEN:
            return now < self._opens_until
        # A trial that never reported back must not block the way for good.
        return self._trial_since is not None and now < self._trial_since + self._longest_wait_s

    def passing(self, *, now: float) -> None:
        """A request passes: in a breaker that was open, this is its one trial."""
        if self.state is BreakerState.OPEN and now >= self._opens_until:
            self.state = BreakerState.HALF_OPEN
            self._paused = False
        if self.state is BreakerState.HALF_OPEN:
            self._trial_since = now

    def succeeded(self) -> None:
        self._failures = 0
        self._wait_s = self._first_wait_s
        self._trial_since = None
        if self._paused:
            return  # an answer to something older is no invitation to come back before the pause is over
        self.state = BreakerState.CLOSED
        self.reason = None
        self._opens_until = 0.0

    def released(self) -> None:
        """The trial ended without saying anything about what this breaker watches: another may follow."""
        self._trial_since = None

    def failed(self, reason: Reason, *, now: float) -> None:
        self._failures += 1
        self.reason = reason
        self._trial_since = None
        if self.state is BreakerState.HALF_OPEN:
            self._wait_s = min(self._wait_s * 2, self._longest_wait_s)
        elif self._failures < self._threshold:
            return
        self.state = BreakerState.OPEN
        self._opens_until = max(self._opens_until, now + self._wait_s)

    def hold_off(self, reason: Reason, wait_s: float, *, now: float) -> None:
        """The other side asked for a pause: open at once for `wait_s`, without counting a failure."""
        self.reason = reason
        self.state = BreakerState.OPEN
        self._paused = True
        self._trial_since = None
        self._opens_until = max(self._opens_until, now + wait_s)
