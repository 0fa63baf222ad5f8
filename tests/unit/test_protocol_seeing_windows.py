"""The last minute: exact quantiles, bounded samples, sums by the second."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.seeing.windows import MOST_SAMPLES, WINDOW_S, SampleWindow, Seconds, quantiles

durations = st.lists(st.floats(0.0, 10.0), min_size=1, max_size=300)


@given(durations)
def test_quantiles_are_the_samples_at_the_nearest_rank(values: list[float]) -> None:
    found = quantiles(np.array(values), 60.0)
    assert found is not None
    ordered = sorted(values)
    for percent, value in ((50, found.p50_s), (90, found.p90_s), (99, found.p99_s)):
        assert value == ordered[math.ceil(percent * len(values) / 100 - 1e-9) - 1]
        assert sum(v <= value for v in values) >= percent * len(values) / 100
    assert found.samples == len(values)


def test_nothing_has_no_quantiles() -> None:
    assert quantiles(np.array([]), 60.0) is None


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 1.0)), max_size=60))
def test_a_window_holds_exactly_what_came_in_the_last_minute(steps: list[tuple[float, float]]) -> None:
    window, now, came = SampleWindow(), 0.0, []
    for step, value in steps:
        now += step
        window.add(value, -value, now)
        came.append((now, value))
    first, second = window.copy(now).kinds
    assert first.tolist() == [value for at, value in came if at >= now - WINDOW_S]
    assert second.tolist() == (-first).tolist()


def test_a_busy_window_is_bounded_and_says_what_it_covers() -> None:
    window, rate = SampleWindow(), 1000
    for i in range(rate * 100):
        window.add(float(i), 0.0, i / rate)
    recent = window.copy(100.0)
    assert recent.kinds[0].tolist() == [float(i) for i in range(rate * 100 - MOST_SAMPLES, rate * 100)]
    assert recent.window_s == pytest.approx(MOST_SAMPLES / rate)


def test_a_quiet_window_covers_the_whole_minute_again() -> None:
    window = SampleWindow()
    for i in range(MOST_SAMPLES * 2):
        window.add(0.0, 0.0, i * 1e-4)
    window.add(1.0, 0.0, 1000.0)
    recent = window.copy(1000.0)
    assert recent.kinds[0].tolist() == [1.0]
    assert recent.window_s == WINDOW_S


def test_a_copy_can_be_read_while_more_comes_in() -> None:
    window = SampleWindow()
    window.add(1.0, 2.0, 0.0)
    recent = window.copy(0.0)
    for _ in range(5000):
        window.add(3.0, 4.0, 0.0)
    assert recent.kinds[0].tolist() == [1.0]


@given(st.lists(st.tuples(st.floats(0.0, 90.0), st.integers(0, 5)), max_size=60))
def test_seconds_add_up_what_came_in_the_last_sixty_of_them(steps: list[tuple[float, int]]) -> None:
    seconds, now, came = Seconds(now=0.0), 0.0, []
    for step, amount in steps:
        now += step
        seconds.add(amount, 2 * amount, now)
        came.append((int(now), amount))
    rates = seconds.copy(now)
    wanted = [sum(a for s, a in came if s == int(now) - age) for age in range(WINDOW_S - 1, -1, -1)]
    assert list(rates.kinds[0]) == wanted
    assert list(rates.kinds[1]) == [2 * amount for amount in wanted]


def test_a_rate_is_over_the_time_that_has_passed_when_that_is_less_than_a_minute() -> None:
    seconds = Seconds(now=100.0)
    assert seconds.copy(104.0).span_s == pytest.approx(4.0)
    assert seconds.copy(500.25).span_s == pytest.approx(59.25)


def test_times_slightly_out_of_order_are_counted_where_they_belong() -> None:
    seconds = Seconds(now=0.0)
    seconds.add(1, 0, 5.01)
    seconds.add(1, 0, 4.99)
    assert seconds.copy(5.5).kinds[0][-2:] == (1, 1)
