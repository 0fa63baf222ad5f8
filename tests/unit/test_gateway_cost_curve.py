"""L(b): a high quantile of what was seen, growing with b, and the batch size up to which batching pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.scheduling.cost_curve import MOST_MARGIN, QUANTILE, WINDOW, CostCurve

seconds = st.floats(1e-6, 10.0)
observations = st.lists(st.tuples(st.integers(1, 64), seconds), max_size=80)


def curve_of(costs: dict[int, float]) -> CostCurve:
    curve = CostCurve()
    for batch, cost_s in costs.items():
        curve.observe(batch, cost_s)
    return curve


def test_nothing_measured_predicts_nothing() -> None:
    assert CostCurve().predict(1) == 0.0
    assert CostCurve().predict(16) == 0.0


def test_what_was_measured_is_predicted() -> None:
    curve = curve_of({1: 0.010, 2: 0.012, 4: 0.020})
    assert [curve.predict(b) for b in (1, 2, 4)] == [0.010, 0.012, 0.020]


def test_between_measured_sizes_it_interpolates_linearly() -> None:
    curve = curve_of({4: 0.020, 8: 0.040})
    assert curve.predict(5) == pytest.approx(0.025)
    assert curve.predict(6) == pytest.approx(0.030)


def test_a_size_that_was_not_measured_is_bridged() -> None:
    assert curve_of({1: 0.010, 8: 0.080}).predict(4) == pytest.approx(0.040)


def test_beyond_what_was_measured_no_gain_from_batching_is_assumed() -> None:
    curve = curve_of({1: 0.010, 4: 0.016})
    assert curve.predict(8) == pytest.approx(0.032)
    assert curve.predict(40) == pytest.approx(0.160)


def test_below_what_was_measured_it_is_not_quicker_than_the_smallest_size() -> None:
    assert curve_of({8: 0.040}).predict(1) == pytest.approx(0.040)


def test_a_larger_batch_that_happened_to_be_quicker_does_not_make_the_curve_fall() -> None:
    curve = curve_of({1: 0.020, 2: 0.010})
    assert curve.predict(2) == curve.predict(1) == 0.020


def test_it_predicts_a_high_quantile_and_not_the_mean() -> None:
    curve = CostCurve()
    for i in range(50):
        curve.observe(1, 0.010 if i % 5 else 0.050)
    assert curve.predict(1) == pytest.approx(0.050 * MOST_MARGIN)
    assert curve.typical(1) == 0.010


def test_one_outlier_among_many_does_not_move_it() -> None:
    curve = CostCurve()
    for _ in range(40):
        curve.observe(1, 0.010)
    curve.observe(1, 9.0)
    assert curve.predict(1) == 0.010


def test_old_samples_are_forgotten() -> None:
    curve = CostCurve()
    for _ in range(WINDOW):
        curve.observe(1, 1.0)
    for _ in range(WINDOW):
        curve.observe(1, 0.010)
    assert curve.predict(1) == 0.010


def test_a_correction_is_seen_at_once() -> None:
    curve = curve_of({1: 0.010})
    assert curve.predict(1) == 0.010
    curve.observe(1, 0.030)
    assert curve.predict(1) == 0.030


@given(st.lists(seconds, min_size=1, max_size=WINDOW))
def test_the_prediction_covers_its_share_of_the_samples_and_its_margin_is_bounded(samples: list[float]) -> None:
    curve = CostCurve()
    for sample in samples:
        curve.observe(4, sample)
    predicted = curve.predict(4)
    assert predicted <= max(samples) * MOST_MARGIN * (1 + 1e-9)
    assert sum(s <= predicted * (1 + 1e-9) for s in samples) >= QUANTILE * len(samples)
    assert curve.typical(4) in samples
    assert curve.typical(4) <= predicted * (1 + 1e-9)


def test_where_nothing_varies_the_margin_is_nothing() -> None:
    assert curve_of({1: 0.010, 8: 0.020}).predict(8) == 0.020


def test_one_slow_run_of_a_size_that_was_seen_seldom_does_not_keep_it_from_being_run_again() -> None:
    curve = CostCurve()
    for size in (1, 2, 4, 8, 16):
        for _ in range(5):
            curve.observe(size, 0.001 * size)
    curve.observe(16, 0.500)
    assert curve.predict(16) == pytest.approx(0.016)
    for _ in range(6):
        curve.observe(16, 0.500)
    assert curve.predict(16) == pytest.approx(0.500), "it was no accident"


@given(observations, st.integers(1, 200), st.integers(0, 200))
def test_it_never_falls_with_the_batch(seen: list[tuple[int, float]], batch: int, more: int) -> None:
    curve = CostCurve()
    for size, cost_s in seen:
        curve.observe(size, cost_s)
    assert curve.predict(batch) <= curve.predict(batch + more) * (1 + 1e-12)


@given(seconds, seconds)
def test_what_was_seen_of_a_size_is_not_promised_to_be_quicker(four_s: float, more_s: float) -> None:
    """A batch of five is kept with those of eight; the curve must not promise it sooner than it was ever seen."""
    curve = curve_of({4: four_s, 5: four_s + more_s})
    assert curve.predict(5) >= (four_s + more_s) * (1 - 1e-9)


def test_the_knee_is_the_bound_where_batching_pays_five_times() -> None:
    curve = curve_of({b: 0.008 + 0.002 * b for b in (1, 2, 4, 8, 16)})  # 1 row 10 ms, 16 rows 40 ms
    assert curve.knee(16) == 16


def test_the_knee_is_one_where_batching_pays_nothing() -> None:
    curve = curve_of({b: 0.010 * b for b in (1, 2, 4, 8, 16)})
    assert curve.knee(16) == 1


def test_the_knee_lies_where_the_curve_turns_linear() -> None:
    curve = curve_of({1: 0.010, 2: 0.011, 4: 0.013, 8: 0.026, 16: 0.052})
    assert curve.knee(16) == 4


def test_a_gain_that_is_too_small_does_not_count() -> None:
    assert curve_of({1: 0.0100, 2: 0.0196}).knee(2) == 1  # 2 % more throughput for twice the wait


def test_the_knee_never_exceeds_the_bound_asked_for() -> None:
    curve = curve_of(dict.fromkeys((1, 2, 4, 8, 16), 0.010))
    assert curve.knee(8) == 8
    assert curve.knee(6) == 4
    assert curve.knee(1) == 1


def test_sizes_that_were_never_measured_are_not_trusted() -> None:
    assert curve_of({1: 0.010, 2: 0.010}).knee(16) == 2
    assert CostCurve().knee(16) == 1


def test_a_tail_too_quick_to_be_measured_has_a_knee_all_the_same() -> None:
    assert curve_of(dict.fromkeys((1, 2, 4), 0.0)).knee(4) in (1, 2, 4)


@given(observations, st.integers(1, 64))
def test_the_knee_is_a_batch_that_may_be_run(seen: list[tuple[int, float]], most: int) -> None:
    curve = CostCurve()
    for size, cost_s in seen:
        curve.observe(size, cost_s)
    assert 1 <= curve.knee(most) <= most
