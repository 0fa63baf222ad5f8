"""The thread that makes engines ready: nobody who has requests to serve waits for it, and no engine ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cloud_gateway.models.workshop import Workshop
from tests.waiting import until

WITHIN_S = 30.0


class Turns:
    """A lane's engine as the workshop sees it."""

    def __init__(self, *, next_wake: Callable[[], float | None] = lambda: None) -> None:
        self.turns = 0
        self.given_up = 0
        self.next_wake = next_wake

    def turn(self) -> bool:
        self.turns += 1
        return False

    def give_up(self) -> None:
        self.given_up += 1


def test_who_counts_what_happened_never_waits_for_an_engine_that_is_asked_when_it_is_due() -> None:
    """An engine that fails counts its move while it holds its own lock, which `next_wake` wants as well."""
    workshop = Workshop()
    asked, counted = threading.Event(), threading.Event()
    waited: list[bool] = []

    def next_wake() -> None:
        if not asked.is_set():
            asked.set()
            waited.append(counted.wait(WITHIN_S))

    def count() -> None:
        assert asked.wait(WITHIN_S)
        workshop.moved("gpu", "cpu")
        counted.set()

    counting = threading.Thread(target=count)
    counting.start()
    workshop.enter(Turns(next_wake=next_wake))
    counting.join()
    assert workshop.stop()
    assert waited == [True]


def test_what_is_said_while_the_workshop_looks_what_is_due_is_not_missed() -> None:
    workshop = Workshop()
    engine = Turns()
    woken: list[bool] = []

    def next_wake() -> None:
        if not woken:
            woken.append(True)
            workshop.wake()

    engine.next_wake = next_wake
    workshop.enter(engine)
    until(lambda: engine.turns >= 2, "the second round", within_s=WITHIN_S)
    assert workshop.stop()
    assert engine.given_up == 1
