"""The store against a model of it: puts, attempts, answers, takes, drops, time and kills in any order, on a real file.

A kill is a copy of the folder as it lies on the disk at that moment, opened again: only what was committed is in it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from edge_agent.store.journal import Journal
from edge_agent.store.tickets import Caps, Full, Moment, State, StoreFullError, Wish
from tests.toy_agent import answer

MOST = 4


@dataclass
class Expected:
    """What the model knows of a ticket."""

    x: int
    priority: int
    state: State = State.WAITING
    attempts: int = 0
    unreturned: int = 0
    until: float = 0.0


class StoreMachine(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    @initialize(full=st.sampled_from(Full))
    def begin(self, full: Full) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.lives = 0
        self.now_s = 1000.0
        self.caps = Caps(most_tickets=MOST, life_s=100.0, keep_s=50.0, full=full)
        self.known: dict[str, Expected] = {}
        self.taken: set[str] = set()
        self.ever: set[str] = set()
        self.journal = self.opened(self.root / "0")

    def opened(self, folder: Path) -> Journal:
        def clock() -> Moment:
            return Moment("boot", self.now_s, self.now_s)

        journal = Journal(folder, self.caps, clock=clock, say=pytest.fail)
        journal.open()
        return journal

    @rule(target=tickets, x=st.integers(0, 99), priority=st.integers(0, 3))
    def put(self, x: int, priority: int) -> object:
        held = [e for e in self.known.values() if e.state in (State.WAITING, State.ANSWERED)]
        try:
            ticket = self.journal.put(Wish({"x": np.array([x], np.int64)}, priority=priority))
        except StoreFullError:
            assert len(self.live()) >= MOST or len(held) >= MOST
            victims = [e for e in self.live() if e.state is State.WAITING and e.priority >= priority]
            assert self.caps.full is Full.REFUSE or not victims
            self.sweep_model()
            return multiple()
        assert ticket not in self.ever
        if len(held) >= MOST:  # somebody made room
            self.sweep_model()
            if len(self.live()) >= MOST:
                waiting = [(e, t) for t, e in self.known.items() if e.state is State.WAITING]
                victim = min(waiting, key=lambda found: (-found[0].priority, int(found[1].partition("-")[2])))[0]
                assert self.caps.full is Full.DROP_OLDEST
                assert victim.priority >= priority
                self.end(victim, State.REFUSED)
        self.ever.add(ticket)
        self.known[ticket] = Expected(x, priority, until=self.now_s + self.caps.life_s)
        return ticket

    def live(self) -> list[Expected]:
        """What still counts when what is overdue has been swept."""
        return [e for e in self.known.values() if e.until > self.now_s and e.state in (State.WAITING, State.ANSWERED)]

    def end(self, expected: Expected, state: State) -> None:
        expected.state, expected.until, expected.unreturned = state, self.now_s + self.caps.keep_s, 0

    def sweep_model(self) -> None:
        for ticket, expected in list(self.known.items()):
            if expected.until > self.now_s:
                continue
            if expected.state is State.WAITING:
                self.end(expected, State.EXPIRED)
            else:
                del self.known[ticket]
        ended = sorted(
            (int(t.partition("-")[2]), t) for t, e in self.known.items() if e.state in (State.EXPIRED, State.REFUSED)
        )
        for _, ticket in ended[: max(len(ended) - MOST, 0)]:
            del self.known[ticket]

    @rule(ticket=tickets)
    def attempt(self, ticket: str) -> None:
        expected = self.known.get(ticket)
        begun = self.journal.begin(ticket)
        if expected is None or expected.state is not State.WAITING:
            assert begun is None
            return
        assert begun is not None
        identity, inputs = begun
        assert (str(identity), inputs["x"].tolist()) == (ticket, [expected.x])
        expected.attempts += 1
        expected.unreturned += 1

    @rule(ticket=tickets)
    def come_back(self, ticket: str) -> None:
        self.journal.came_back(ticket)
        if ticket in self.known:
            self.known[ticket].unreturned = max(self.known[ticket].unreturned - 1, 0)

    @rule(ticket=tickets, good=st.booleans())
    def finish(self, ticket: str, good: bool) -> None:
        expected = self.known.get(ticket)
        is_waiting = expected is not None and expected.state is State.WAITING
        if good:
            ended = self.journal.answer(ticket, answer(expected.x + 1 if expected else 0))
        else:
            ended = self.journal.refuse(ticket, "NO", "no")
        assert ended == is_waiting
        if expected is not None and ended:
            self.end(expected, State.ANSWERED if good else State.REFUSED)

    @rule(ticket=tickets)
    def take(self, ticket: str) -> None:
        if ticket in self.known and self.known[ticket].until <= self.now_s:
            self.overdue(ticket)
        expected = self.known.get(ticket)
        found = self.journal.take(ticket)
        if expected is None:
            assert found is None
            return
        assert found is not None
        assert (found.state, found.attempts, found.unreturned) == (
            expected.state,
            expected.attempts,
            expected.unreturned,
        )
        if expected.state is State.ANSWERED:
            assert found.answer is not None
            assert found.answer.outputs["y"].tolist() == [expected.x + 1]
            assert ticket not in self.taken  # nobody gets an answer twice
            self.taken.add(ticket)
        if expected.state is not State.WAITING:
            del self.known[ticket]

    def overdue(self, ticket: str) -> None:
        expected = self.known[ticket]
        if expected.state is State.WAITING:
            self.end(expected, State.EXPIRED)
        else:
            del self.known[ticket]

    @rule(ticket=consumes(tickets))
    def drop(self, ticket: str) -> None:
        if ticket in self.known and self.known[ticket].until <= self.now_s:
            self.overdue(ticket)
        assert (self.journal.drop(ticket) is None) == (self.known.pop(ticket, None) is None)

    @rule(seconds=st.sampled_from([1.0, 40.0, 60.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def sweep(self) -> None:
        self.journal.sweep()
        self.sweep_model()

    @rule()
    def kill(self) -> None:
        self.lives += 1
        copy = self.root / str(self.lives)
        shutil.copytree(self.journal.folder, copy)
        self.journal.close()
        shutil.rmtree(self.journal.folder)
        self.journal = self.opened(copy)

    @invariant()
    def what_is_known_is_what_lies_there(self) -> None:
        rows = {t.id: t for t in self.journal.entries()}
        assert {id_: t.state for id_, t in rows.items()} == {id_: e.state for id_, e in self.known.items()}
        totals = self.journal.totals()
        assert totals.held <= MOST
        assert totals.nbytes == sum(t.nbytes for t in rows.values())
        waiting = [t.id for t in self.journal.waiting(99)]
        turns = sorted(
            (e.priority, int(id_.partition("-")[2]), id_)
            for id_, e in self.known.items()
            if e.state is State.WAITING and e.until > self.now_s
        )
        assert waiting == [id_ for *_, id_ in turns]

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.root)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=10, stateful_step_count=25, deadline=None, derandomize=True)
