"""SIGKILL in the middle of everything, again and again, and then the account: what was promised, what came of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.store_worker import CAPS, PACE, Adder
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.tickets import State

_FIRST_LINES, _MOST_LINES = 5, 150
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Account:
    """Of all rounds. What is `lost` or `twice` names its tickets."""

    acknowledged: dict[str, int] = field(default_factory=dict)  # ticket: x
    taken: dict[str, list[int]] = field(default_factory=dict)  # ticket: values handed out
    cut_off: set[str] = field(default_factory=set)  # being taken when the process was killed: at most once, maybe never
    sent: dict[str, int] = field(default_factory=dict)  # ticket: attempts
    ready_s: list[float] = field(default_factory=list)  # of each start
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended_otherwise: int = 0  # expired or refused

    def count_sent(self, ticket: str) -> None:
        self.sent[ticket] = self.sent.get(ticket, 0) + 1

    @property
    def sent_again(self) -> int:
        return sum(count > 1 for count in self.sent.values())


def kill_again_and_again(folder: Path, rounds: int, *, seed: int) -> Account:
    """`rounds` kills of a worker on one store, then everything that is left is answered and taken here."""
    chance, account = random.Random(seed), Account()
    for _ in range(rounds):
        _round(folder, chance.randint(_FIRST_LINES, _MOST_LINES), chance.random() * 0.01, account)
    adder = Adder(lambda line: account.count_sent(line.split()[1]))
    with Journal(folder, CAPS) as journal:
        with Forwarder(journal, lambda: adder, accepts=lambda model, inputs: None, pace=PACE):
            until = time.monotonic() + _PATIENCE_S
            while journal.totals().tickets[State.WAITING] and time.monotonic() < until:
                time.sleep(0.01)
        _settle(journal, account)
    return account


def _round(folder: Path, lines: int, later_s: float, account: Account) -> None:
    began = time.monotonic()
    worker = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.store_worker", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert worker.stdout is not None
    being_taken = ""
    try:
        for number, line in enumerate(worker.stdout):
            if number == 0:
                account.ready_s.append(time.monotonic() - began)
            if number == lines:
                time.sleep(later_s)  # not always right behind a line
                os.kill(worker.pid, signal.SIGKILL)
            what, *rest = line.split()
            being_taken = _note(what, rest, being_taken, account)
    finally:
        worker.kill()
        worker.wait()
    if being_taken:
        account.cut_off.add(being_taken)


def _note(what: str, rest: list[str], being_taken: str, account: Account) -> str:
    """Write one line down; which ticket is being taken now."""
    if what == "put":
        account.acknowledged[rest[0]] = int(rest[1])
    elif what == "sent":
        account.count_sent(rest[0])
    elif what == "taking":
        return rest[0]
    elif what == "took":
        account.taken.setdefault(rest[0], []).append(int(rest[1]))
        return ""
    return being_taken


def _settle(journal: Journal, account: Account) -> None:
    while found := journal.entries(most=1000):
        for ticket in found:
            taken = journal.take(ticket.id)
            if taken is not None and taken.answer is not None:
                account.taken.setdefault(ticket.id, []).append(int(taken.answer.outputs["y"][0]))
            else:
                account.ended_otherwise += 1
                journal.drop(ticket.id)
    for name, x in account.acknowledged.items():
        values = account.taken.get(name, [])
        if not values and name not in account.cut_off:
            account.lost.append(name)
        if values and values[0] != x + 1:
            account.wrong.append(name)
    account.twice.extend(name for name, values in account.taken.items() if len(values) > 1)
