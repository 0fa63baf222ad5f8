"""The circuit breaker's table, row by row, and what a pause that the other side asked for adds to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control.breaker import Breaker, BreakerState


def opened(*, now: float, threshold: int = 3, wait_s: float = 1.0, longest_wait_s: float = 10.0) -> Breaker:
    """A breaker that has just failed often enough to open."""
    breaker = Breaker(threshold=threshold, wait_s=wait_s, longest_wait_s=longest_wait_s)
    for _ in range(threshold):
        breaker.failed("it broke", now=now)
    return breaker


def fail_trial(breaker: Breaker, *, now: float) -> None:
    assert not breaker.refuses(now=now), "a trial must be allowed here"
    breaker.passing(now=now)
    assert breaker.state is BreakerState.HALF_OPEN
    breaker.failed("it broke again", now=now)


def test_a_new_breaker_is_closed_and_refuses_nothing() -> None:
    breaker = Breaker()
    assert breaker.state is BreakerState.CLOSED
    assert not breaker.refuses(now=0.0)
    assert breaker.reason is None


def test_fewer_failures_than_the_threshold_keep_it_closed() -> None:
    breaker = Breaker(threshold=3)
    breaker.failed("once", now=1.0)
    breaker.failed("twice", now=1.0)
    assert breaker.state is BreakerState.CLOSED
    assert not breaker.refuses(now=1.0)


def test_as_many_failures_in_a_row_as_the_threshold_open_it_and_the_reason_is_kept() -> None:
    breaker = opened(now=1.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.refuses(now=1.0)
    assert breaker.reason == "it broke"


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(threshold=3)
    breaker.failed("once", now=1.0)
    breaker.failed("twice", now=1.0)
    breaker.succeeded()
    breaker.failed("once", now=1.0)
    breaker.failed("twice", now=1.0)
    assert breaker.state is BreakerState.CLOSED


def test_a_threshold_of_one_opens_at_the_first_failure() -> None:
    assert opened(now=0.0, threshold=1).refuses(now=0.5)


def test_an_open_breaker_refuses_until_its_wait_is_over() -> None:
    breaker = opened(now=5.0, wait_s=1.0)
    assert breaker.refuses(now=5.999)
    assert not breaker.refuses(now=6.0)


def test_asking_changes_nothing() -> None:
    breaker = opened(now=5.0, wait_s=1.0)
    assert not any(breaker.refuses(now=6.0) for _ in range(5))
    assert breaker.state is BreakerState.OPEN


def test_half_open_lets_one_trial_pass_and_holds_back_the_rest() -> None:
    breaker = opened(now=5.0, wait_s=1.0)
    breaker.passing(now=6.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.refuses(now=6.0)
    assert breaker.refuses(now=6.5)


def test_a_successful_trial_closes_it_and_forgets_the_reason() -> None:
    breaker = opened(now=5.0, wait_s=1.0)
    breaker.passing(now=6.0)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    assert not breaker.refuses(now=6.0)
    assert breaker.reason is None


def test_a_failed_trial_opens_it_at_once_for_twice_the_wait() -> None:
    breaker = opened(now=0.0, wait_s=1.0)
    fail_trial(breaker, now=1.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.refuses(now=2.999)
    assert not breaker.refuses(now=3.0)


def test_waits_double_from_trial_to_trial_up_to_the_longest() -> None:
    breaker = opened(now=0.0, wait_s=1.0, longest_wait_s=10.0)
    now, waits = 1.0, []
    for _ in range(6):
        fail_trial(breaker, now=now)
        wait_s = next(w for w in (1.0, 2.0, 4.0, 8.0, 10.0, 16.0) if not breaker.refuses(now=now + w))
        waits.append(wait_s)
        now += wait_s
    assert waits == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_after_a_success_the_wait_is_the_first_one_again() -> None:
    breaker = opened(now=0.0, wait_s=1.0)
    fail_trial(breaker, now=1.0)
    breaker.passing(now=3.0)
    breaker.succeeded()
    for _ in range(3):
        breaker.failed("it broke", now=10.0)
    assert breaker.refuses(now=10.999)
    assert not breaker.refuses(now=11.0)


def test_a_trial_that_never_reports_back_does_not_block_the_way_for_good() -> None:
    breaker = opened(now=0.0, wait_s=1.0, longest_wait_s=10.0)
    breaker.passing(now=1.0)
    assert breaker.refuses(now=10.9)
    assert not breaker.refuses(now=11.0)


def test_a_pause_that_was_asked_for_opens_at_once_and_for_as_long_as_asked() -> None:
    breaker = Breaker(threshold=3, wait_s=1.0)
    breaker.hold_off("busy", 0.25, now=2.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.reason == "busy"
    assert breaker.refuses(now=2.249)
    assert not breaker.refuses(now=2.25)


def test_a_pause_counts_no_failure() -> None:
    breaker = Breaker(threshold=2)
    breaker.hold_off("busy", 0.25, now=0.0)
    breaker.passing(now=1.0)
    breaker.succeeded()
    breaker.failed("once", now=1.0)
    assert breaker.state is BreakerState.CLOSED


def test_a_pause_does_not_double_the_wait() -> None:
    breaker = opened(now=0.0, wait_s=1.0)
    breaker.passing(now=1.0)
    breaker.hold_off("busy", 0.5, now=1.0)
    fail_trial(breaker, now=1.5)
    assert breaker.refuses(now=3.499)
    assert not breaker.refuses(now=3.5)


def test_a_shorter_pause_does_not_cut_a_longer_one_short() -> None:
    breaker = Breaker()
    breaker.hold_off("busy", 5.0, now=0.0)
    breaker.hold_off("busy", 0.1, now=0.0)
    assert breaker.refuses(now=4.9)


def test_failures_during_a_pause_do_not_cut_it_short() -> None:
    breaker = Breaker(threshold=3, wait_s=1.0)
    breaker.hold_off("busy", 5.0, now=0.0)
    for _ in range(3):
        breaker.failed("it does not answer", now=0.5)
    assert breaker.refuses(now=4.9)


def test_a_success_during_a_pause_does_not_lift_it() -> None:
    """An overloaded gateway still answers what it took earlier: that is no invitation to send more."""
    breaker = Breaker()
    breaker.hold_off("busy", 1.0, now=0.0)
    breaker.succeeded()
    assert breaker.refuses(now=0.5)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.refuses(now=1.0)


def test_after_a_pause_one_trial_decides() -> None:
    breaker = Breaker()
    breaker.hold_off("busy", 1.0, now=0.0)
    breaker.passing(now=1.0)
    assert breaker.refuses(now=1.0)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


@given(
    events=st.lists(st.tuples(st.sampled_from(["pass", "ok", "fail", "pause"]), st.floats(0, 3)), max_size=40),
    threshold=st.integers(1, 4),
)
def test_it_never_refuses_for_longer_than_its_longest_wait_or_the_pause_asked_for(
    events: list[tuple[str, float]], threshold: int
) -> None:
    breaker = Breaker(threshold=threshold, wait_s=0.5, longest_wait_s=4.0)
    now = 0.0
    for event, step in events:
        now += step
        match event:
            case "pass" if not breaker.refuses(now=now):
                breaker.passing(now=now)
            case "ok":
                breaker.succeeded()
            case "fail":
                breaker.failed("why", now=now)
            case "pause":
                breaker.hold_off("pause", 2.0, now=now)
        if breaker.state is BreakerState.CLOSED:
            assert not breaker.refuses(now=now)
        assert not breaker.refuses(now=now + 4.0)
        assert breaker.reason or not breaker.refuses(now=now), "what is refused is refused for a reason"


@pytest.mark.parametrize("state", list(BreakerState))
def test_states_are_called_what_the_table_calls_them(state: BreakerState) -> None:
    assert str(state) in {"closed", "open", "half-open"}
