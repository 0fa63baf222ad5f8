"""Pacing: stored requests never go beside live ones, and refusals make them wait by their cause."""

from __future__ import annotations

import math
import random

import pytest

from edge_agent.store.pacing import Pace, Pacing
from protocol.control.flights import RefusalCode
from protocol.errors import InputError


def pacing(**options: float) -> Pacing:
    return Pacing(Pace(**options), random.Random(1).random)  # type: ignore[arg-type]


def test_nothing_is_sent_beside_a_live_request_nor_right_behind_it() -> None:
    machine = pacing(quiet_s=0.1, look_s=0.03)
    assert machine.decide(live=0, in_flight=0, now=9.0).room == 2
    verdict = machine.decide(live=1, in_flight=0, now=10.0)
    assert (verdict.room, verdict.wait_s) == (0, 0.03)
    assert machine.decide(live=0, in_flight=0, now=10.05).room == 0
    late = machine.decide(live=0, in_flight=0, now=10.09)
    assert late.room == 0
    assert late.wait_s == pytest.approx(0.01)
    assert machine.decide(live=0, in_flight=0, now=10.1).room == 2


def test_only_so_many_are_in_flight() -> None:
    machine = pacing(in_flight=3)
    assert [machine.decide(live=0, in_flight=n, now=0.0).room for n in range(5)] == [3, 2, 1, 0, 0]
    assert math.isinf(machine.decide(live=0, in_flight=3, now=0.0).wait_s)


@pytest.mark.parametrize(
    ("code", "first_s", "most_s"),
    [
        (RefusalCode.DEADLINE, 1.0, 60.0),
        (RefusalCode.NO_PLACEMENT, 1.0, 30.0),
        (RefusalCode.BUSY, 0.25, 5.0),
        (RefusalCode.CLOSED, 0.5, 5.0),
    ],
)
def test_waiting_doubles_with_each_refusal_up_to_a_bound(code: RefusalCode, first_s: float, most_s: float) -> None:
    machine = pacing()
    for n in range(40):
        wait_s = machine.refused(1, code, now=0.0)
        bound_s = min(first_s * 2.0**n, most_s)
        assert 0.5 * bound_s <= wait_s <= bound_s


def test_after_a_refusal_nothing_is_sent_until_its_time_and_the_reason_is_told() -> None:
    machine = pacing()
    wait_s = machine.refused(1, RefusalCode.NO_PLACEMENT, now=5.0)
    verdict = machine.decide(live=0, in_flight=0, now=5.0)
    assert verdict.room == 0
    assert verdict.wait_s == pytest.approx(wait_s)
    assert "NO_PLACEMENT" in verdict.why
    assert machine.decide(live=0, in_flight=0, now=5.0 + wait_s).room == 2


def test_an_answer_ends_all_waiting_and_so_does_a_gateway_that_comes_back() -> None:
    for better in (Pacing.answered, Pacing.begin_anew):
        machine = pacing()
        for _ in range(5):
            machine.refused(1, RefusalCode.BUSY, now=0.0)
        better(machine)
        assert machine.decide(live=0, in_flight=0, now=0.0).room == 2
        assert machine.refused(1, RefusalCode.BUSY, now=0.0) <= 0.25


def test_a_request_whose_budget_ran_out_rests_longer_than_the_others() -> None:
    machine = pacing()
    wait_s = machine.refused(7, RefusalCode.DEADLINE, now=0.0)
    assert machine.resting(now=wait_s).keys() == {7}
    assert machine.decide(live=0, in_flight=0, now=wait_s).room == 2
    assert machine.resting(now=2 * wait_s) == {}


def test_a_refusal_for_good_says_nothing_about_the_next_request() -> None:
    machine = pacing()
    assert machine.refused(1, RefusalCode.BAD_REQUEST, now=0.0) == 0.0
    assert machine.decide(live=0, in_flight=0, now=0.0).room == 2


def test_each_attempt_has_twice_the_time_of_the_one_before_and_never_more_than_is_left() -> None:
    machine = pacing(attempt_s=10.0)
    assert [machine.budget_s(n, 1000.0) for n in range(4)] == [10.0, 20.0, 40.0, 80.0]
    assert machine.budget_s(500, 123.0) == 123.0
    assert machine.budget_s(0, 3.0) == 3.0


def test_a_pace_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="in_flight"):
        Pace(in_flight=0)
