"""Which engine serves, and how long one that failed rests: single steps."""

from __future__ import annotations

import pytest

from cloud_gateway.models.preference import (
    FIRST_REST_S,
    FORGIVEN_S,
    LONGEST_REST_S,
    Begin,
    Broke,
    Drop,
    Load,
    Loaded,
    NotLoaded,
    Preference,
    Tick,
    Use,
)
from protocol.errors import InvariantViolation


def ready(*kinds: str) -> Preference:
    room = Preference(kinds)
    room.handle(Begin(), now=0.0)
    for kind in kinds:
        room.handle(Loaded(kind), now=0.0)
    return room


def test_all_are_loaded_and_the_best_of_those_that_are_ready_serves() -> None:
    room = Preference(("a", "b", "c"), {"b": "no driver"})
    assert room.handle(Begin(), now=0.0) == [Load("a"), Load("c")]
    assert room.handle(Loaded("c"), now=1.0) == [Use("c")]
    assert room.handle(Loaded("a"), now=2.0) == [Use("a")]
    assert room.rungs["b"].reason == "no driver"
    room.validate()


def test_a_failure_gives_the_lane_to_the_next_and_the_failed_one_back() -> None:
    room = ready("a", "b")
    assert room.handle(Broke("a", "lost"), now=5.0) == [Use("b"), Drop("a")]
    assert room.next_wake() == 5.0 + FIRST_REST_S
    assert room.handle(Tick(), now=5.0 + FIRST_REST_S) == [Load("a")]
    assert room.handle(Loaded("a"), now=9.0) == [Use("a")]


def test_a_rest_doubles_up_to_the_longest() -> None:
    room, now, rests = ready("a", "b"), 0.0, []
    room.handle(Broke("a", "lost"), now=now)
    for _ in range(12):
        wake = room.next_wake()
        assert wake is not None
        rests.append(wake - now)
        now = wake
        assert room.handle(Tick(), now=now) == [Load("a")]
        assert room.handle(NotLoaded("a", "still lost"), now=now) == [Drop("a")]
    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S


@pytest.mark.parametrize(("served_s", "rest_s"), [(1.0, 2 * FIRST_REST_S), (FORGIVEN_S, FIRST_REST_S)])
def test_only_one_that_served_for_long_is_forgiven(served_s: float, rest_s: float) -> None:
    room = ready("a", "b")
    room.handle(Broke("a", "lost"), now=0.0)
    room.handle(Tick(), now=FIRST_REST_S)
    room.handle(Loaded("a"), now=10.0)
    room.handle(Broke("a", "lost"), now=10.0 + served_s)
    assert room.next_wake() == 10.0 + served_s + rest_s


def test_one_that_stands_by_may_fail_too_and_what_serves_goes_on() -> None:
    room = ready("a", "b")
    assert room.handle(Broke("b", "lost"), now=1.0) == [Drop("b")]
    assert room.in_use == "a"


def test_what_can_never_be_loaded_here_is_not_tried_again() -> None:
    room = Preference(("a", "b"))
    room.handle(Begin(), now=0.0)
    room.handle(Loaded("b"), now=0.0)
    assert room.handle(NotLoaded("a", "its graph is not taken", for_good=True), now=1.0) == [Drop("a")]
    assert (room.rungs["a"].state, room.rungs["a"].failures, room.next_wake()) == ("absent", 1, None)


def test_events_that_come_too_late_change_nothing() -> None:
    room = ready("a", "b")
    assert room.handle(Loaded("a"), now=1.0) == []
    assert room.handle(NotLoaded("a", "?"), now=1.0) == []
    room.handle(Broke("a", "lost"), now=1.0)
    assert room.handle(Broke("a", "lost"), now=1.0) == []
    assert room.rungs["a"].failures == 1


@pytest.mark.parametrize("order", [(), ("a", "a")])
def test_an_order_names_each_once_and_one_at_least(order: tuple[str, ...]) -> None:
    with pytest.raises(InvariantViolation, match="each engine once"):
        Preference(order)


def test_an_engine_that_rests_is_not_made_ready_by_what_comes_late() -> None:
    room = ready("a", "b")
    room.handle(Broke("a", "lost"), now=1.0)
    wake = room.next_wake()
    assert room.handle(Loaded("a"), now=1.5) == []
    assert (room.rungs["a"].state, room.in_use, room.next_wake()) == ("resting", "b", wake)
    room.validate()


def test_a_build_that_takes_long_and_fails_each_time_is_forgiven_nothing() -> None:
    """Forgiveness is for having served: minutes of building are no service."""
    room, now, rests = Preference(("a", "b")), 0.0, []
    room.handle(Begin(), now=now)
    room.handle(Loaded("b"), now=now)
    for _ in range(3):
        now += 10 * FORGIVEN_S
        assert room.handle(NotLoaded("a", "no plan"), now=now) == [Drop("a")]
        wake = room.next_wake()
        assert wake is not None
        rests.append(wake - now)
        now = wake
        assert room.handle(Tick(), now=now) == [Load("a")]
    assert rests == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
