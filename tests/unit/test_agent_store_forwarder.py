"""The forwarder: from the disk to the agent and back, one end for each request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.outcomes import Outcome, Refusal
from edge_agent.store.client import StoreClient
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.pacing import Pace
from edge_agent.store.tickets import State, Wish
from protocol.control.flights import RefusalCode
from protocol.errors import InputError
from tests.toy_agent import ToyAgent, accepts, answer
from tests.waiting import PATIENCE_S, until

BRISK = Pace(quiet_s=0.0, look_s=0.001)


def refusal(code: RefusalCode) -> Callable[[int], Outcome]:
    return lambda x: Refusal("r", code, "no", 0.0)


def wish(x: int, **options: int) -> Wish:
    return replace(Wish({"x": np.array([x], np.int64)}), **options)  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def agent() -> ToyAgent:
    return ToyAgent()


def test_what_is_stored_is_answered_under_its_own_identity(journal: Journal, agent: ToyAgent) -> None:
    client = StoreClient(journal)
    with Forwarder(journal, lambda: agent, accepts=accepts, pace=BRISK):
        tickets = [client.put(wish(x)) for x in range(5)]
        for x, ticket in enumerate(tickets):
            ended = client.wait(ticket, timeout_s=PATIENCE_S)
            assert ended is not None
            assert ended.answer is not None
            assert ended.answer.outputs["y"][0] == x + 1
    assert sorted(agent.asked) == sorted((ticket, x, 30.0) for x, ticket in enumerate(tickets))


def test_what_was_stored_before_a_restart_is_sent_after_it(tmp_path: Path, agent: ToyAgent) -> None:
    with Journal(tmp_path / "store") as journal:
        tickets = [journal.put(wish(x, priority=9 - x)) for x in range(3)]
    with (
        Journal(tmp_path / "store") as journal,
        Forwarder(journal, lambda: agent, accepts=accepts, pace=Pace(in_flight=1)),
    ):
        until(lambda: journal.totals().tickets[State.ANSWERED] == 3)
    assert [identity for identity, *_ in agent.asked] == tickets[::-1]  # the most important first


def test_an_attempt_that_a_restart_cut_off_is_made_again_under_the_same_identity(tmp_path: Path) -> None:
    first, second = ToyAgent(held=True), ToyAgent()
    with Journal(tmp_path / "store") as journal:
        ticket = journal.put(wish(1))
        with Forwarder(journal, lambda: first, accepts=accepts, pace=BRISK):
            until(lambda: first.asked)
    with Journal(tmp_path / "store") as journal, Forwarder(journal, lambda: second, accepts=accepts, pace=BRISK):
        until(lambda: journal.totals().tickets[State.ANSWERED] == 1)
    assert [asked[0] for asked in first.asked + second.asked] == [ticket, ticket]


def test_live_requests_go_first(journal: Journal, agent: ToyAgent) -> None:
    live, looked = [1], threading.Event()

    def count() -> int:
        looked.set()
        return live[0]

    with Forwarder(journal, lambda: agent, accepts=accepts, live=count, pace=BRISK) as forwarder:
        ticket = journal.put(wish(1))
        for _ in range(3):
            looked.clear()
            assert looked.wait(PATIENCE_S)
        assert not agent.asked
        assert "live" in forwarder.why
        live[0] = 0
        assert StoreClient(journal).wait(ticket, timeout_s=PATIENCE_S) is not None


def test_no_more_are_in_flight_than_the_pace_allows(journal: Journal) -> None:
    agent = ToyAgent(held=True)
    with Forwarder(journal, lambda: agent, accepts=accepts, pace=replace(BRISK, in_flight=2)) as forwarder:
        for x in range(5):
            journal.put(wish(x))
        until(lambda: len(agent.asked) == 2)
        assert forwarder.in_flight == 2
        agent.release()
        until(lambda: len(agent.asked) == 4)


def test_a_request_that_does_not_fit_is_refused_for_good_and_the_others_go_on(
    journal: Journal, agent: ToyAgent
) -> None:
    client = StoreClient(journal)
    with Forwarder(journal, lambda: agent, accepts=accepts, pace=BRISK):
        bad, good = client.put(wish(-1)), client.put(wish(1))
        ended = client.wait(bad, timeout_s=PATIENCE_S)
        assert ended is not None
        assert (ended.state, ended.code) == (State.REFUSED, "BAD_REQUEST")
        assert "negative" in ended.reason
        answered = client.wait(good, timeout_s=PATIENCE_S)
        assert answered is not None
        assert answered.state is State.ANSWERED


def test_an_agent_that_cannot_be_asked_is_no_reason_to_give_a_request_up(journal: Journal) -> None:
    class Stopped(ToyAgent):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Outcome]:
            raise InputError("the agent was not started", "start it")

    told: list[str] = []
    with Forwarder(journal, Stopped, accepts=accepts, pace=BRISK, said=told.append):
        ticket = journal.put(wish(1))
        until(lambda: told)
    found = journal.look(ticket)
    assert found is not None
    assert found.state is State.WAITING
    assert "not started" in told[0]


def test_a_refusal_leaves_the_request_waiting_until_things_get_better(journal: Journal, agent: ToyAgent) -> None:
    agent.outcome = refusal(RefusalCode.NO_PLACEMENT)
    told: list[str] = []
    with Forwarder(journal, lambda: agent, accepts=accepts, pace=BRISK, said=told.append) as forwarder:
        ticket = journal.put(wish(1))
        until(lambda: told)
        found = journal.look(ticket)
        assert found is not None
        assert (found.state, found.attempts, found.unreturned) == (State.WAITING, 1, 0)
        agent.outcome = lambda x: answer(x)
        forwarder.wake()
        assert StoreClient(journal).wait(ticket, timeout_s=PATIENCE_S) is not None


def test_what_was_dropped_while_in_hand_stays_dropped(journal: Journal) -> None:
    agent = ToyAgent(held=True)
    with Forwarder(journal, lambda: agent, accepts=accepts, pace=BRISK) as forwarder:
        ticket = journal.put(wish(1))
        until(lambda: agent.asked)
        journal.drop(ticket)
        agent.release()
        until(lambda: forwarder.in_flight == 0)
        assert journal.entries() == []


def test_requests_for_another_model_wait_for_it(journal: Journal, agent: ToyAgent) -> None:
    serves = ["digits"]
    with Forwarder(journal, lambda: agent, accepts=accepts, serves=lambda: serves[0], pace=BRISK) as forwarder:
        other = journal.put(replace(wish(1), model="faces"))
        mine = journal.put(replace(wish(2), model="digits"))
        assert StoreClient(journal).wait(mine, timeout_s=PATIENCE_S) is not None
        assert [asked[0] for asked in agent.asked] == [mine]
        serves[0] = "faces"
        forwarder.wake()
        assert StoreClient(journal).wait(other, timeout_s=PATIENCE_S) is not None


def test_while_no_model_is_served_everything_waits(journal: Journal, agent: ToyAgent) -> None:
    serves: list[str | None] = [None]
    with Forwarder(journal, lambda: agent, accepts=accepts, serves=lambda: serves[0], pace=BRISK) as forwarder:
        unfit = journal.put(wish(-1))
        until(lambda: forwarder.why == "no model is served")
        found = journal.look(unfit)
        assert found is not None
        assert found.state is State.WAITING
        serves[0] = ""
        forwarder.wake()
        ended = StoreClient(journal).wait(unfit, timeout_s=PATIENCE_S)
        assert ended is not None
        assert ended.state is State.REFUSED


def test_a_model_that_went_away_just_now_is_no_reason_to_refuse(journal: Journal) -> None:
    serves: list[str | None] = [""]

    class Leaving(ToyAgent):
        def submit(self, *args: Any, **kwargs: Any) -> Future[Outcome]:
            serves[0] = None
            raise InputError("no bundle serves", "wait for one")

    told: list[str] = []
    with Forwarder(journal, Leaving, accepts=accepts, serves=lambda: serves[0], pace=BRISK, said=told.append):
        ticket = journal.put(wish(-1))
        until(lambda: told)
    found = journal.look(ticket)
    assert found is not None
    assert found.state is State.WAITING


def test_who_was_in_hand_at_a_crash_goes_alone_and_after_too_many_is_refused(journal: Journal) -> None:
    agent = ToyAgent(held=True)
    poison, suspect, healthy = (journal.put(wish(x)) for x in range(3))
    for _ in range(3):
        journal.begin(poison)
    journal.begin(suspect)
    with Forwarder(
        journal, lambda: agent, accepts=accepts, pace=replace(BRISK, in_flight=4, most_unreturned=3)
    ) as forwarder:
        until(lambda: [asked[0] for asked in agent.asked] == [suspect])
        urgent = journal.put(wish(9, priority=0))
        until(lambda: journal.totals().tickets[State.WAITING] == 3)
        assert len(agent.asked) == 1
        agent.release()
        until(lambda: [asked[0] for asked in agent.asked] == [suspect, urgent, healthy])
        agent.release()
        until(lambda: forwarder.in_flight == 0)
        found = journal.look(poison)
        assert found is not None
        assert (found.state, found.code) == (State.REFUSED, "POISON")


def test_closing_waits_for_answers_as_long_as_it_is_told_to(journal: Journal) -> None:
    agent = ToyAgent(held=True)
    forwarder = Forwarder(journal, lambda: agent, accepts=accepts, pace=BRISK)
    forwarder.start()
    journal.put(wish(1))
    until(lambda: agent.asked)
    closing = threading.Thread(target=forwarder.close, args=(PATIENCE_S,))
    closing.start()
    agent.release()
    closing.join()
    assert journal.totals().tickets[State.ANSWERED] == 1


def test_a_client_is_told_at_once_what_the_model_does_not_take(journal: Journal) -> None:
    with pytest.raises(InputError, match="negative"):
        StoreClient(journal, accepts).put(wish(-1))
    assert journal.entries() == []


def test_a_client_that_waits_in_vain_is_told_nothing(journal: Journal) -> None:
    client = StoreClient(journal)
    assert client.wait(client.put(wish(1)), timeout_s=0.0) is None
