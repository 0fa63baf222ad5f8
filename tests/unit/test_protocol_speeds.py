"""One learned factor: it follows, it ignores outliers, and it steps when something stepped."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control.speeds import STEP_SAMPLES, Speed


def test_the_first_measurement_beats_any_prior() -> None:
    speed = Speed()
    assert speed.learn(7.0) == 1.0
    assert speed.value == 7.0


def test_one_outlier_moves_what_is_known_by_a_fifth_of_a_doubling_at_most() -> None:
    speed = Speed(1.0, worth=4)
    speed.learn(1_000.0)
    assert speed.value == pytest.approx(1.2)
    speed.learn(1.2)
    speed.learn(1e-9)
    assert speed.value == pytest.approx(1.08)


@pytest.mark.parametrize("after", [0.25, 0.5, 2.0, 4.0])
def test_a_step_is_believed_after_three_in_a_row(after: float) -> None:
    speed, chance = Speed(1.0, worth=4), random.Random(2)
    steps = [speed.learn(after * chance.uniform(0.97, 1.03)) for _ in range(STEP_SAMPLES)]
    assert steps[:-1] == [1.0, 1.0]
    assert speed.value == pytest.approx(after, rel=0.05)
    assert steps[-1] == pytest.approx(after, rel=0.05), "against what was before the first of them"


def test_outliers_to_both_sides_are_no_step() -> None:
    speed = Speed(1.0)
    for i in range(300):
        assert speed.learn((3.0, 0.3)[i % 2]) == 1.0


def test_a_hiccup_between_two_usual_ones_starts_the_count_anew() -> None:
    speed = Speed(1.0)
    assert [speed.learn(seen) for seen in (5.0, 5.0, 1.0, 5.0, 5.0, 1.0)] == [1.0] * 6


def test_what_shares_the_cause_steps_with_it_and_what_is_unknown_stays_so() -> None:
    known, unknown = Speed(2.0), Speed()
    known.scale(3.0)
    unknown.scale(3.0)
    assert (known.value, unknown.value) == (6.0, None)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=100))
def test_it_stays_within_what_was_seen(seen: list[float]) -> None:
    speed = Speed()
    for one in seen:
        speed.learn(one)
        assert speed.value is not None
        assert min(seen) * 0.999 <= speed.value <= max(seen) * 1.001


def test_the_less_is_known_the_more_a_measurement_says() -> None:
    known = [Speed(1.0, worth=worth) for worth in (1, 2, 4, 100)]
    for speed in known:
        speed.learn(1.3)
    assert [speed.value for speed in known] == pytest.approx([1.15, 1.10, 1.06, 1.06])


def test_what_was_not_measured_for_a_while_is_doubted() -> None:
    speed = Speed(1.0, worth=100)
    speed.doubt()
    speed.learn(1.3)
    assert speed.value == pytest.approx(1.15)


def test_after_a_step_up_it_is_hoped_to_come_down_again() -> None:
    speed = Speed(1.0, worth=4)
    for _ in range(STEP_SAMPLES):
        speed.learn(3.0)
    assert speed.value == pytest.approx(3.0)
    assert speed.hoped == pytest.approx(1.0, rel=0.1)
    assert not speed.recovers
    speed.learn(1.0)
    recovers = [speed.recovers]
    for _ in range(STEP_SAMPLES - 1):
        speed.learn(1.0)
        recovers.append(speed.recovers)
    assert recovers == [True, True, False]
    assert speed.value == speed.hoped == pytest.approx(1.0)


def test_hope_fades_where_it_stays_slow() -> None:
    speed = Speed(1.0, worth=4)
    for _ in range(100):
        speed.learn(3.0)
    assert speed.hoped is not None
    assert speed.hoped > 2.9
