"""When a front that is a process is started, killed and started again: a table and its clock. Pure.

    state      event                     next       instruction
    RESTING    start                     STARTING   Spawn
    STARTING   ready                     SERVING
    SERVING    heard                     SERVING                 (any sign of life puts off the next alarm)
    STARTING   not ready after start_s   ENDING     Kill
    SERVING    silent for silence_s      ENDING     Kill
    *          exited                    WAITING                 (after pause_s, doubled for every short life)
    WAITING    pause is over             STARTING   Spawn
    *          stop                      STOPPING   Part         (from WAITING and RESTING: ENDED at once)
    STOPPING   still there after part_s  STOPPING   Kill
    STOPPING   exited                    ENDED
    *          exited, once too often    ENDED      GiveUp       (only with a bound on restarts)

What the table does not list changes nothing: a process may say `ready` while it is being killed.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from protocol.errors import InvariantViolation

STEADY_S = 10.0  # who has served for so long was well: the next pause is a short one again


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds, and bounds. One line of documentation per field."""

    pause_s: float = 0.2  # before a restart
    most_pause_s: float = 5.0  # where doubling ends
    start_s: float = 20.0  # from its start until it must be ready
    silence_s: float = 10.0  # it says something every second: after this it hangs
    part_s: float = 5.0  # for its farewell
    max_restarts: int | None = None  # more than these within window_s, and it is given up; None never gives up
    window_s: float = 60.0


class State(enum.StrEnum):
    RESTING = "resting"
    STARTING = "starting"
    SERVING = "serving"
    ENDING = "ending"
    WAITING = "waiting"
    STOPPING = "stopping"
    ENDED = "ended"


class Event(enum.StrEnum):
    START = "start"
    READY = "ready"
    HEARD = "heard"
    EXITED = "exited"
    STOP = "stop"
    TICK = "tick"  # look at the clock


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process; `life` counts from 1."""

    life: int


@dataclass(frozen=True, slots=True)
class Kill:
    why: str


@dataclass(frozen=True, slots=True)
class Part:
    """Let the process end by itself."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    why: str


Instruction = Spawn | Kill | Part | GiveUp


class Supervision:
    """Events in, instructions out. `now` is monotonic seconds; call again with TICK at `next_deadline()`."""

    def __init__(self, policy: Policy) -> None:
        self.state = State.RESTING
        self.lives = 0
        self._policy = policy
        self._due: float | None = None
        self._began = 0.0
        self._short_lives = 0
        self._ends: deque[float] = deque()  # of the last window

    @property
    def restarts(self) -> int:
        return max(self.lives - 1, 0)

    def next_deadline(self) -> float | None:
        """When something must happen although nothing has been heard; None: never."""
        return self._due

    def handle(self, event: Event, *, now: float) -> list[Instruction]:
        """Move on. Raises InvariantViolation if a process ends that was never started."""
        match self.state, event:
            case State.RESTING, Event.START:
                return self._spawn(now)
            case State.STARTING, Event.READY:
                self._enter(State.SERVING, now + self._policy.silence_s)
            case State.SERVING, Event.HEARD:
                self._due = now + self._policy.silence_s
            case ((State.RESTING | State.WAITING | State.ENDED), Event.EXITED):
                raise InvariantViolation(f"a front ended that was {self.state}")
            case State.STOPPING, Event.EXITED:
                self._enter(State.ENDED, None)
            case _, Event.EXITED:
                return self._lost(now)
            case ((State.RESTING | State.WAITING), Event.STOP):
                self._enter(State.ENDED, None)
            case ((State.STARTING | State.SERVING | State.ENDING), Event.STOP):
                self._enter(State.STOPPING, now + self._policy.part_s)
                return [Part()]
            case _, Event.TICK if self._due is not None and now >= self._due:
                return self._overdue(now)
        return []

    def _overdue(self, now: float) -> list[Instruction]:
        if self.state is State.WAITING:
            return self._spawn(now)
        why = {
            State.STARTING: f"it was not ready after {self._policy.start_s:g} s",
            State.SERVING: f"it has been silent for {self._policy.silence_s:g} s",
            State.STOPPING: f"it did not end within {self._policy.part_s:g} s",
        }[self.state]
        self._enter(State.STOPPING if self.state is State.STOPPING else State.ENDING, None)
        return [Kill(why)]

    def _spawn(self, now: float) -> list[Instruction]:
        self.lives += 1
        self._began = now
        self._enter(State.STARTING, now + self._policy.start_s)
        return [Spawn(self.lives)]

    def _lost(self, now: float) -> list[Instruction]:
        policy = self._policy
        self._ends.append(now)
        while self._ends[0] < now - policy.window_s:
            self._ends.popleft()
        if policy.max_restarts is not None and len(self._ends) > policy.max_restarts:
            self._enter(State.ENDED, None)
            return [GiveUp(f"it has ended {len(self._ends)} times within {policy.window_s:g} s")]
        self._short_lives = 0 if now - self._began >= STEADY_S else self._short_lives + 1
        pause_s = policy.pause_s * 2 ** min(max(self._short_lives - 1, 0), 30)
        self._enter(State.WAITING, now + min(pause_s, policy.most_pause_s))
        return []

    def _enter(self, state: State, due: float | None) -> None:
        self.state, self._due = state, due
