"""An open loop: requests come when they are due, whether or not earlier ones were answered.

Law: every time counts from when a request was due, so that a client held up by the server cannot hide it. What the
client itself was late is reported, since beyond a few milliseconds it is the client that was measured.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.peers.http_client import OK, HttpClient
from benchmarks.peers.questions import COUNT
from benchmarks.peers.zmq_client import AgentClient
from protocol import messages as m

GRACE_S = 2.0  # for answers that come late
LONGEST_POLL_S = 0.1
SHORTEST_POLL_S = 0.001
SHORTEST_SLEEP_S = 0.0002


class Reply(NamedTuple):
    """A terminal answer to request `number`; `code` is "" for a result, `slack_s` what a refusal says is left."""

    number: int
    code: str = ""
    slack_s: float | None = None
    kept: bool = True  # by the server's own account: it took no longer than it was told it had


class Asker(Protocol):
    """Asks and listens, and never waits for an answer before asking again."""

    def ask(self, number: int, budget_us: int) -> bool:
        """Whether it was asked; False while every connection is taken."""
        ...

    def replies(self, timeout_s: float) -> Sequence[Reply]:
        """What has arrived; waits for at most `timeout_s`, and less rather than more."""
        ...


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one stretch: offered = in_time + late + refused + dropped + unanswered."""

    offered: int
    in_time: int = 0
    late: int = 0
    overrun: int = 0  # of those, by the server's own account; the rest was late on the way
    refused: Counter[str] = field(default_factory=Counter)
    dropped: int = 0  # waited out their budget before a connection was free
    unanswered: int = 0
    slack: list[float] = field(default_factory=list)  # shares of the budget left to refused callers, as they are told
    seen_slack: list[float] = field(default_factory=list)  # and by their own clock
    lags_s: list[float] = field(default_factory=list)  # how late we asked

    @property
    def lag_p99_s(self) -> float:
        return float(np.percentile(self.lags_s, 99)) if self.lags_s else 0.0


def poisson(rate_per_s: float, window_s: float, *, seed: str) -> list[float]:
    """Times, in seconds from the beginning, of a Poisson process; the same for the same seed."""
    rng = random.Random(seed)
    due, at = [], rng.expovariate(rate_per_s)
    while at < window_s:
        due.append(at)
        at += rng.expovariate(rate_per_s)
    return due


def offer(
    asker: Asker,
    due: Sequence[float],
    *,
    budget_s: float,
    margin_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Ask at the times in `due` (seconds from now, ascending), take the answers, and say what became of each.

    The server is told what is left of the budget less `margin_s`, the caller's allowance for the way there and back.
    """
    outcome = Outcome(len(due))
    out: set[int] = set()
    waiting: deque[int] = deque()
    coming = 0
    begun = clock()
    while coming < len(due) or out or waiting:
        now = clock() - begun
        while coming < len(due) and due[coming] <= now:
            waiting.append(coming)
            coming += 1
        _ask(asker, waiting, out, outcome, due, now, budget_s, margin_s)
        if coming == len(due) and now > due[-1] + budget_s + GRACE_S:
            break
        pause_s = due[coming] - (clock() - begun) if coming < len(due) else LONGEST_POLL_S
        for reply in asker.replies(min(max(pause_s, 0.0), LONGEST_POLL_S)):
            if reply.number in out:
                out.remove(reply.number)
                _settle(outcome, reply, due[reply.number] + budget_s - (clock() - begun), budget_s)
    outcome.unanswered = len(out) + len(waiting)
    return outcome


def _ask(
    asker: Asker,
    waiting: deque[int],
    out: set[int],
    outcome: Outcome,
    due: Sequence[float],
    now: float,
    budget_s: float,
    margin_s: float,
) -> None:
    while waiting:
        number = waiting[0]
        left_s = due[number] + budget_s - now - margin_s
        if left_s <= 0:
            outcome.dropped += 1
        elif asker.ask(number, int(left_s * 1e6)):
            out.add(number)
            outcome.lags_s.append(now - due[number])
        else:
            return
        waiting.popleft()


def _settle(outcome: Outcome, reply: Reply, left_s: float, budget_s: float) -> None:
    if reply.code:
        outcome.refused[reply.code] += 1
        outcome.seen_slack.append(left_s / budget_s)
        if reply.slack_s is not None:
            outcome.slack.append(reply.slack_s / budget_s)
    elif left_s >= 0:
        outcome.in_time += 1
    else:
        outcome.late += 1
        outcome.overrun += not reply.kept


class Agents:
    """Our own protocol: requests are spread over the agents, each of which may have many out."""

    def __init__(self, client: AgentClient) -> None:
        self._client = client
        self._out: dict[int, tuple[int, int]] = {}  # sequence -> number, budget in microseconds

    def ask(self, number: int, budget_us: int) -> bool:
        slot = number % len(self._client.sockets)
        self._out[self._client.ask(slot, number % COUNT, budget_us)] = (number, budget_us)
        return True

    def replies(self, timeout_s: float) -> list[Reply]:
        found = []
        # ZeroMQ waits for whole milliseconds. What is less is slept through in pieces: its own threads need the core.
        if timeout_s < SHORTEST_POLL_S:
            time.sleep(min(timeout_s, SHORTEST_SLEEP_S))
            timeout_s = 0.0
        for slot in self._client.ready(math.floor(timeout_s * 1e3) / 1e3):
            message, _ = self._client.answer(slot)
            if isinstance(message, m.Result):
                number, budget_us = self._out.pop(message.request.sequence)
                found.append(Reply(number, kept=message.timings.residence_us <= budget_us))
            elif isinstance(message, m.Reject):
                number, _ = self._out.pop(message.request.sequence)
                found.append(Reply(number, message.code.value, message.slack_us / 1e6))
        return found


class Connections:
    """HTTP: one request at a time on each connection. The server is told of no deadline; the caller has one."""

    def __init__(self, client: HttpClient, slots: int) -> None:
        self._client = client
        self._free = list(range(slots))
        self._numbers: dict[int, int] = {}  # slot -> number

    def ask(self, number: int, budget_us: int) -> bool:
        if not self._free:
            return False
        slot = self._free.pop()
        self._numbers[slot] = number
        self._client.send(slot, number % COUNT)
        return True

    def replies(self, timeout_s: float) -> list[Reply]:
        found = []
        for slot, answer in self._client.answered(timeout_s):
            self._free.append(slot)
            found.append(Reply(self._numbers.pop(slot), "" if answer.status == OK else f"HTTP {answer.status}"))
        return found
