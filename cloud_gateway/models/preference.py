"""Which engine of an order of preference runs a lane, and when one that failed is tried again. Pure.

    rung      event                        becomes    and
    UNTRIED   Begin                        LOADING    Load it
    LOADING   Loaded                       READY      Use it, if no better one is ready
    LOADING   NotLoaded                    RESTING    a while that doubles from failure to failure
    LOADING   NotLoaded, for good          ABSENT     asking again cannot help
    READY     Broke, another is ready      RESTING    Use the best of the others, Drop it
    READY     Broke, no other is ready     READY      nothing better can be done; it is counted
    RESTING   Tick, its rest is over       LOADING    Load it
    ABSENT    -                            ABSENT     this machine lacks it, and it stays so

The best rung that is READY runs; all others that could be loaded stand by, so that a failure costs no loading. A rung
is forgiven its failures after it has served for `FORGIVEN_S`: one that fails every now and then rests ever longer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.errors import InvariantViolation

FIRST_REST_S = 2.0
LONGEST_REST_S = 300.0
FORGIVEN_S = 120.0


class RungState(enum.StrEnum):
    ABSENT = "absent"
    UNTRIED = "untried"
    LOADING = "loading"
    READY = "ready"
    RESTING = "resting"


class Begin(NamedTuple):
    """The lane wants an engine."""


class Loaded(NamedTuple):
    """It runs what it is to run."""

    kind: str


class NotLoaded(NamedTuple):
    """It could not be made, or does not run the graph."""

    kind: str
    reason: str
    for_good: bool = False


class Broke(NamedTuple):
    """It failed a batch that it ought to have run."""

    kind: str
    reason: str


class Tick(NamedTuple):
    """Time has passed."""


Event = Begin | Loaded | NotLoaded | Broke | Tick


class Load(NamedTuple):
    """Make it, run it, and say Loaded or NotLoaded."""

    kind: str


class Use(NamedTuple):
    """Requests are run by it from now on."""

    kind: str


class Drop(NamedTuple):
    """Give back what it holds."""

    kind: str


Instruction = Load | Use | Drop


@dataclass(slots=True)
class Rung:
    """One engine of the order. Times are monotonic seconds."""

    kind: str
    state: RungState = RungState.UNTRIED
    reason: str = ""  # why it does not run: absent, or what it failed with
    failures: int = 0  # since it was forgiven
    rests_until: float = math.inf
    since: float = 0.0  # when it came into this state

    def become(self, state: RungState, *, now: float, reason: str = "") -> None:
        self.state, self.reason, self.since = state, reason, now
        self.rests_until = math.inf

    def rest(self, reason: str, *, now: float, first_s: float, longest_s: float) -> None:
        self.failures += 1
        self.become(RungState.RESTING, now=now, reason=reason)
        # Beyond a thousand doublings a float has no room; the longest rest is reached long before.
        self.rests_until = now + min(first_s * 2.0 ** min(self.failures - 1, 64), longest_s)


@dataclass(slots=True)
class Preference:
    """The rungs of one lane, the preferred first; `absent` says of each kind that this machine lacks why it does."""

    order: Sequence[str]
    absent: dict[str, str] = field(default_factory=dict)
    first_rest_s: float = FIRST_REST_S
    longest_rest_s: float = LONGEST_REST_S
    in_use: str | None = None
    rungs: dict[str, Rung] = field(init=False)

    def __post_init__(self) -> None:
        if not self.order or len(set(self.order)) != len(self.order):
            raise InvariantViolation(f"an order names each engine once, and one at least: {list(self.order)}")
        self.rungs = {kind: Rung(kind) for kind in self.order}
        for kind, reason in self.absent.items():
            if kind in self.rungs:
                self.rungs[kind].become(RungState.ABSENT, now=0.0, reason=reason)

    def handle(self, event: Event, *, now: float) -> list[Instruction]:
        """What is to be done, in this order. Events that come too late to matter change nothing."""
        if isinstance(event, Begin):
            return [self._load(rung, now) for rung in self.rungs.values() if rung.state is RungState.UNTRIED]
        if isinstance(event, Tick):
            resting = [rung for rung in self.rungs.values() if rung.state is RungState.RESTING]
            return [self._load(rung, now) for rung in resting if rung.rests_until <= now]
        rung = self.rungs[event.kind]
        if isinstance(event, Loaded):
            if rung.state is not RungState.LOADING:
                return []
            rung.become(RungState.READY, now=now)
            return self._settle()
        if isinstance(event, NotLoaded):
            if rung.state is not RungState.LOADING:
                return []
            if event.for_good:
                rung.failures += 1
                rung.become(RungState.ABSENT, now=now, reason=event.reason)
            else:
                self._rest(rung, event.reason, now)
            return [Drop(rung.kind)]
        return self._broke(rung, event.reason, now)

    def after(self, kind: str) -> str | None:
        """What runs a batch that `kind` failed: what is in use by now, else the best of the ready rungs below it."""
        if self.in_use is not None and self.is_below(self.in_use, kind):
            return self.in_use
        below = (rung for rung in self.rungs.values() if self.is_below(rung.kind, kind))
        return next((rung.kind for rung in below if rung.state is RungState.READY), None)

    def is_below(self, kind: str, other: str) -> bool:
        """Whether `kind` stands behind `other` in the order."""
        return self._place(kind) > self._place(other)

    def next_wake(self) -> float | None:
        """When a Tick may bring something; None: never, as things stand."""
        at = min((rung.rests_until for rung in self.rungs.values()), default=math.inf)
        return None if at == math.inf else at

    def validate(self) -> None:
        """Raises InvariantViolation if what is in use is not the best that is ready."""
        if self.in_use != self._best():
            raise InvariantViolation(f"{self.in_use} is in use, but the best that is ready is {self._best()}")
        for rung in self.rungs.values():
            if (rung.state is RungState.RESTING) != (rung.rests_until < math.inf):
                raise InvariantViolation(f"{rung.kind} is {rung.state} until {rung.rests_until}")

    def _broke(self, rung: Rung, reason: str, now: float) -> list[Instruction]:
        others = [other for other in self.rungs.values() if other.state is RungState.READY and other is not rung]
        if rung.state is not RungState.READY or not others:
            return []
        self._rest(rung, reason, now)
        return [*self._settle(), Drop(rung.kind)]

    def _rest(self, rung: Rung, reason: str, now: float) -> None:
        if rung.state is RungState.READY and now - rung.since >= FORGIVEN_S:
            rung.failures = 0
        rung.rest(reason, now=now, first_s=self.first_rest_s, longest_s=self.longest_rest_s)

    def _load(self, rung: Rung, now: float) -> Instruction:
        rung.become(RungState.LOADING, now=now, reason=rung.reason)
        return Load(rung.kind)

    def _settle(self) -> list[Instruction]:
        best = self._best()
        if best is None or best == self.in_use:
            return []
        self.in_use = best
        return [Use(best)]

    def _best(self) -> str | None:
        return next((rung.kind for rung in self.rungs.values() if rung.state is RungState.READY), None)

    def _place(self, kind: str) -> int:
        return self.order.index(kind)
