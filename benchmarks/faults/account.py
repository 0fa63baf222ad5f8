"""What became of every request, as its caller saw it. Times are monotonic seconds, one clock for all processes.

asked --> ended once, with an answer that bears its number, or refused: before its deadline
      '-> gone: its caller was killed, so nobody is left to be told
      '-> lost: neither. The number that must be zero.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

LATE_S = 0.25  # past the deadline: scheduling on a busy machine is no broken promise


@dataclass(frozen=True, slots=True)
class Ask:
    """A request is handed over now."""

    number: int
    at: float
    deadline: float


@dataclass(frozen=True, slots=True)
class End:
    """A caller is told. `by` is gateway, device, or the code of a refusal; `echo` the number that the answer bears."""

    number: int
    at: float
    by: str
    echo: int
    attempts: int = 1
    hedged: bool = False

    @property
    def is_answer(self) -> bool:
        return self.by in ("gateway", "device")


@dataclass(slots=True)
class Account:
    """Thread-safe where it says so; everything else is for when all is over."""

    asks: dict[int, Ask] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    stopped: list[tuple[float, float]] = field(default_factory=list)  # when the caller itself could do nothing
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ended: Counter[int] = field(default_factory=Counter)

    def note(self, event: Ask | End) -> None:
        """From any thread."""
        with self._changed:
            if isinstance(event, Ask):
                self.asks[event.number] = event
            else:
                self.ends.append(event)
                self._ended[event.number] += 1
            self._changed.notify_all()

    def wait(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Whether `true()` before the time is over; it is asked after every event, and may read everything."""
        with self._changed:
            return self._changed.wait_for(true, timeout_s)

    def caller_killed(self) -> None:
        """Whoever asked is no more: what has not ended ends nowhere. From any thread."""
        with self._changed:
            self.gone |= self.open

    def stood_still(self, since: float, until: float) -> None:
        """The caller's process did not run in this time, whatever the reason. From any thread."""
        with self._changed:
            self.stopped.append((since, until))

    @property
    def open(self) -> set[int]:
        """Asked, and nobody was told anything."""
        return {number for number in self.asks if not self._ended[number]} - self.gone

    def answers(self, by: str) -> int:
        return sum(end.by == by for end in self.ends)

    @property
    def refused(self) -> int:
        return sum(not end.is_answer for end in self.ends)

    @property
    def twice(self) -> list[int]:
        """Told more than once."""
        return [number for number, count in self._ended.items() if count > 1]

    @property
    def wrong(self) -> list[int]:
        """Answered with somebody else's answer."""
        return [end.number for end in self.ends if end.is_answer and end.echo != end.number]

    @property
    def late_s(self) -> list[float]:
        """By how much each was late that was, less what its caller was stopped for."""
        over = [
            end.at - self.asks[end.number].deadline - self._stopped_s(self.asks[end.number].at, end.at)
            for end in self.ends
            if end.number in self.asks
        ]
        return [late_s for late_s in over if late_s > LATE_S]

    @property
    def longest_silence_s(self) -> float:
        """Between two answers, while somebody asked."""
        at = sorted(end.at for end in self.ends if end.is_answer)
        return max((after - before for before, after in itertools.pairwise(at)), default=0.0)

    def back_s(self, healed: float) -> float | None:
        """From `healed` to the first answer of a gateway to somebody who asked after it; None: there is none."""
        back = [
            end.at for end in self.ends
            if end.by == "gateway" and end.number in self.asks and self.asks[end.number].at >= healed
        ]  # fmt: skip
        return min(back) - healed if back else None

    def _stopped_s(self, since: float, until: float) -> float:
        return sum(max(0.0, min(until, b) - max(since, a)) for a, b in self.stopped)
