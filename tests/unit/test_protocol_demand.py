"""What is asked: rates only of callers who do not wait for their answers, steps and pauses, what is still queued."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control.demand import NO_DEMAND, Demand, DemandMeter


def fed(gaps: Iterable[float], *, pending: int = 1, meter: DemandMeter | None = None) -> tuple[DemandMeter, float]:
    meter, now = meter or DemandMeter(), 100.0
    for gap in gaps:
        now += gap
        meter.arrived(pending=pending, now=now)
    return meter, now


def read(gaps: Iterable[float], *, pending: int = 1) -> Demand:
    meter, now = fed(gaps, pending=pending)
    return meter.read(preparing=False, sent=False, now=now)


def test_frames_of_a_camera_have_a_rate_and_no_variability() -> None:
    seen = read([0.05] * 20)
    assert seen.per_s == pytest.approx(20)
    assert seen.gaps_scv == pytest.approx(0, abs=1e-9)


def test_poisson_arrivals_vary_as_much_as_their_mean() -> None:
    chance = random.Random(1)
    meter, now, seen = DemandMeter(), 0.0, []
    for _ in range(2_000):
        now += chance.expovariate(10.0)
        meter.arrived(pending=1, now=now)
        seen.append(meter.read(preparing=False, sent=False, now=now))
    assert sum(s.gaps_scv for s in seen) / len(seen) == pytest.approx(1.0, abs=0.25)
    assert 1 / (sum(1 / s.per_s for s in seen if s.per_s) / len(seen)) == pytest.approx(10.0, rel=0.15)


def test_a_caller_who_waits_for_each_answer_has_no_rate() -> None:
    assert read([0.1] * 30, pending=0) == NO_DEMAND


def test_two_that_did_not_wait_among_sixteen_are_enough() -> None:
    meter, now = fed([0.1] * 14, pending=0)
    for _ in range(2):
        now += 0.1
        meter.arrived(pending=1, now=now)
    assert meter.read(preparing=False, sent=False, now=now).per_s == pytest.approx(10)


def test_before_a_few_gaps_no_rate_is_claimed() -> None:
    assert read([0.1] * 4).per_s == 0
    assert read([0.1] * 5).per_s == pytest.approx(10)


@pytest.mark.parametrize("after", [0.01, 0.04, 0.25, 2.0])
def test_a_new_rate_is_believed_within_ten_requests(after: float) -> None:
    meter, now = fed([0.1] * 30)
    count = 0
    while meter.read(preparing=False, sent=False, now=now).per_s != pytest.approx(1 / after, rel=0.1):
        now += after
        meter.arrived(pending=1, now=now)
        count += 1
        assert count <= 10


def test_a_pause_changes_nothing() -> None:
    meter, now = fed([0.1] * 30)
    meter.arrived(pending=1, now=now + 60.0)
    meter.arrived(pending=1, now=now + 60.1)
    assert meter.read(preparing=False, sent=False, now=now + 60.1).per_s == pytest.approx(10)


def test_what_is_queued_runs_down_with_time_and_ends_when_nothing_is_at_work() -> None:
    meter = DemandMeter()
    meter.preparing(0.3, now=1.0)
    meter.preparing(0.2, now=1.1)
    meter.sent(0.4, now=1.2)
    assert meter.read(preparing=True, sent=True, now=1.2) == pytest.approx(Demand(0, 0, 0.3, 0.4))
    assert meter.read(preparing=True, sent=True, now=9.0) == NO_DEMAND
    meter.preparing(5.0, now=10.0)
    meter.sent(5.0, now=10.0)
    assert meter.read(preparing=False, sent=False, now=10.0) == NO_DEMAND, "predictions may be wrong, ends are facts"
    assert meter.read(preparing=True, sent=True, now=10.0) == NO_DEMAND


@given(st.lists(st.floats(0, 100), max_size=60), st.integers(0, 3))
def test_whatever_comes_rates_are_finite_and_variability_bounded(gaps: list[float], pending: int) -> None:
    seen = read(gaps, pending=pending)
    assert seen.per_s >= 0
    assert 0 <= seen.gaps_scv <= 4
