"""The demo's arithmetic: what is lost, what counts twice, and what accuracy means. Lines in, statistics out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.demo.record import STAGES, Record, Truth, measured, quantile, statistics, top1

TRUTH = Truth(right=(3, 1, 4), reference=(True, True, True), labelled=True)


def answered(index: int, found: int = 3, placement: str = "cut-1", **changes: Any) -> dict[str, Any]:
    timings = {"edge": 1.0, "encode": 0.5, "network": 4.0, "queue": 0.25, "decode": 0.25, "compute": 2.0}
    line = {"index": index, "status": "answered", "placement": placement, "kind": "cut", "degraded": []}
    line |= {"latency_ms": 8.0, "timings_ms": timings, "up_bytes": 100}
    return line | {"outputs": {"logits": {"argmax": [found]}}} | changes


def refused(index: int) -> dict[str, Any]:
    return {"index": index, "status": "refused", "code": "DEADLINE", "reason": "too late", "degraded": []}


def stopped(submitted: int) -> dict[str, Any]:
    return {"event": "stopped", "counts": {"submitted": submitted}}


def record(*lines: dict[str, Any], truth: Truth = TRUTH) -> Record:
    filled = Record(truth)
    filled.begin("first", 0.0)
    for at, line in enumerate(lines):
        filled.add(line, float(at))
    return filled


def test_every_request_that_ended_once_is_accounted_for() -> None:
    seen = record(answered(0), refused(1), answered(2, 4), stopped(3))
    assert (seen.submitted, seen.lost, seen.duplicates) == (3, 0, 0)
    assert seen.verdict() == []


def test_a_request_that_never_ended_is_lost_even_if_it_was_the_last() -> None:
    seen = record(answered(0), stopped(2))
    assert seen.lost == 1
    assert "1 of 2 requests were lost" in seen.verdict()[0]


def test_a_gap_in_the_lines_is_lost_in_the_phase_where_it_shows() -> None:
    seen = record(answered(0))
    seen.begin("second", 5.0)
    seen.add(answered(3), 6.0)
    assert [seen.phase(0).lost, seen.phase(1).lost] == [0, 2]


def test_a_request_that_ended_twice_is_a_duplicate_and_no_loss() -> None:
    seen = record(answered(0), answered(0), stopped(1))
    assert (seen.lost, seen.duplicates) == (0, 1)
    assert "more than once" in seen.verdict()[0]


def test_without_the_agents_own_counts_nothing_is_claimed() -> None:
    assert "unknown" in record(answered(0)).verdict()[0]


def test_refusing_everything_is_not_keeping_the_promise() -> None:
    assert record(refused(0), stopped(1)).verdict() == ["no request was answered"]


def test_samples_come_round_again_when_the_source_is_exhausted() -> None:
    seen = record(answered(0, 3), answered(1, 1), answered(2, 4), answered(3, 3), answered(4, 0), stopped(5))
    assert seen.total().accuracy == pytest.approx(4 / 5)


def test_accuracy_is_held_against_the_whole_model_on_the_same_requests() -> None:
    truth = Truth(right=(3, 1), reference=(True, False), labelled=True)
    kept = record(answered(0, 3), answered(1, 7), stopped(2), truth=truth)
    assert (kept.total().accuracy, kept.total().reference) == (0.5, 0.5)
    assert kept.verdict() == []
    fallen = record(answered(0, 9), answered(1, 7), stopped(2), truth=truth)
    assert "more than one point below" in fallen.verdict()[0]


def test_without_labels_accuracy_is_agreement_of_at_least_99_percent() -> None:
    truth = Truth(right=(3,), reference=(True,), labelled=False)
    assert truth.word == "agreement"
    kept = [answered(i, 3) for i in range(99)] + [answered(99, 0), stopped(100)]
    assert record(*kept, truth=truth).verdict() == []
    fallen = [answered(i, 3) for i in range(98)] + [answered(98, 0), answered(99, 0), stopped(100)]
    assert "agreement was 98.00%" in record(*fallen, truth=truth).verdict()[0]


def test_a_phase_tells_shares_quantiles_and_reasons_largest_first() -> None:
    late = [answered(i, degraded=["gateway gone"], placement="edge-only", latency_ms=20.0, up_bytes=0) for i in (1, 2)]
    stats = record(answered(0), *late, refused(3)).phase(0)
    assert list(stats.shares) == ["edge-only", "cut-1"]
    assert (stats.p50_ms, stats.p95_ms, stats.up_nbytes) == (20.0, 20.0, pytest.approx(100 / 3))
    assert stats.reasons == {"gateway gone": 2, "refused: DEADLINE too late": 1}


def test_an_empty_phase_has_no_figures_instead_of_wrong_ones() -> None:
    stats = statistics("empty", [], [], 0)
    assert stats.shares == {}
    assert all(math.isnan(v) for v in (stats.p50_ms, stats.p95_ms, stats.up_nbytes, stats.accuracy))


def test_decoding_at_the_gateway_counts_as_its_queue() -> None:
    answer = record(answered(0)).answers[0]
    assert dict(zip(STAGES, answer.stages_ms, strict=True))["queue"] == 0.5


def test_measured_costs_come_from_comparable_phases_only() -> None:
    seen = record(answered(0), answered(1, latency_ms=10.0))
    seen.begin("broken", 5.0)
    seen.add(answered(2, latency_ms=500.0), 6.0)
    (only,) = measured(seen, {"first": 100.0})
    assert (only.placement, only.rate_mbit, only.count, only.latency_ms) == ("cut-1", 100.0, 2, 9.0)


def test_lines_that_are_neither_requests_nor_events_are_ignored() -> None:
    seen = record({"event": "ready", "endpoint": "tcp://127.0.0.1:1"}, {"event": "news"}, stopped(0))
    assert (seen.endpoint, seen.submitted, seen.lost) == ("tcp://127.0.0.1:1", 0, 0)


def test_a_request_before_the_first_phase_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="before the first phase"):
        Record(TRUTH).add(answered(0), 0.0)


def test_an_output_without_classes_has_no_top_one() -> None:
    assert top1({"mask": {"dtype": "float32", "shape": []}}) is None
    assert top1({}) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_a_value_that_occurred_with_that_share_at_or_below_it(values: list[float], q: float) -> None:
    found = quantile(sorted(values), q)
    assert found in values
    assert sum(v <= found for v in values) >= q * len(values) - 1e-9
