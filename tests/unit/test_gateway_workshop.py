"""The thread that makes engines ready: nobody who has requests to serve waits for it, and no engine ends it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.workshop import Workshop
from tests.scripted_engines import Scripted
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


def test_a_lane_with_much_to_load_lets_the_others_have_their_turn() -> None:
    order: list[str] = []
    all_are_here = threading.Event()

    class Gate(Turns):
        def turn(self) -> bool:
            return not all_are_here.wait(WITHIN_S)

    class Busy(Turns):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.things = name, 2

        def turn(self) -> bool:
            if self.things:
                self.things -= 1
                order.append(self.name)
                return True
            return False

    workshop = Workshop()
    for engine in (Gate(), Busy("one"), Busy("two")):
        workshop.enter(engine)
    all_are_here.set()
    until(lambda: len(order) == 4, "everything to be loaded", within_s=WITHIN_S)
    assert workshop.stop()
    assert order == ["one", "two"] * 2


def test_a_build_that_began_just_when_the_workshop_stops_is_given_up_as_well() -> None:
    began, given_up = threading.Event(), threading.Event()
    asked = threading.Event()

    class Late(Turns):
        def turn(self) -> bool:
            began.set()
            assert asked.wait(WITHIN_S)
            self.builds = True
            return not given_up.wait(WITHIN_S)

        builds = False

        def give_up(self) -> None:
            asked.set()  # too early: nothing is built yet
            if self.builds:
                given_up.set()

    workshop = Workshop()
    workshop.enter(Late())
    assert began.wait(WITHIN_S)
    assert workshop.stop()
    assert given_up.is_set()


def test_what_ends_the_thread_is_a_bug_and_told_as_one() -> None:
    crashes: list[BaseException] = []
    workshop = Workshop(crashed=crashes.append)

    class Broken(Turns):
        def turn(self) -> bool:
            raise AssertionError("a bug")

    workshop.enter(Broken())
    until(lambda: bool(crashes), "the crash", within_s=WITHIN_S)
    assert workshop.stop()


def test_an_engine_without_a_choice_needs_no_workshop() -> None:
    workshop = Workshop()
    offers = [Offer("gpu", lambda: Scripted("gpu"), absent="no driver"), Offer("cpu", lambda: Scripted("cpu"))]
    with PreferredEngine(offers, label="tail", workshop=workshop):
        assert workshop._thread is None
    assert workshop.stop()


def test_nothing_enters_a_workshop_that_has_stopped() -> None:
    workshop = Workshop()
    assert workshop.stop()
    workshop.enter(Turns())
    assert (workshop._engines, workshop._thread) == ([], None)
