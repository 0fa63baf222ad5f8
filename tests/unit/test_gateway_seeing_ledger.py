"""The account: every request counted once and under its own name, labels bounded, sums that never fall."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.seeing.figures import LARGEST_BATCH, Figures
from cloud_gateway.seeing.ledger import FOLDED, MOST_EVENTS, MOST_SCOPES, UNKNOWN, Ledger, LedgerSnapshot, Scope
from protocol.seeing.sums import MOST_CODES, SLACK_BOUNDS_S

CUT = Scope("digits", "1", "cut-1")
WHOLE = Scope("digits", "1", "full-cloud")


def of(snapshot: LedgerSnapshot, scope: Scope) -> Figures:
    (found,) = (figures for figures in snapshot.scopes if figures.scope == scope)
    return found


def answer(ledger: Ledger, scope: Scope = CUT, *, residence_s: float = 0.004, late: bool = False, now: float) -> None:
    ledger.answered(scope, queue_s=0.001, residence_s=residence_s, budget_s=0.05, late=late, now=now)


def execute(ledger: Ledger, scope: Scope = CUT, *, rows: int = 1, compute_s: float = 0.004, now: float = 0.0) -> None:
    ledger.executed(
        scope, rows=rows, requests=rows, decode_s=0.001, compute_s=compute_s, predicted_s=0.005, engine="fake", now=now
    )


def test_a_request_is_counted_at_every_step_under_its_own_scope() -> None:
    ledger = Ledger(now=0.0)
    ledger.offered(CUT)
    execute(ledger, now=1.0)
    answer(ledger, now=1.0)
    snapshot = ledger.snapshot(now=2.0)
    seen = of(snapshot, CUT)
    assert (seen.counters.offered, seen.counters.executions, seen.counters.answered) == (1, 1, 1)
    assert seen.engine == "fake"
    assert seen.residence is not None
    assert seen.residence.p99_s == 0.004
    assert seen.queue is not None
    assert seen.queue.p50_s == 0.001
    assert seen.compute is not None
    assert seen.compute.p90_s == 0.004
    assert of(snapshot, UNKNOWN).counters.offered == 0


def test_every_refusal_is_counted_with_its_reason_and_the_slack_left() -> None:
    ledger = Ledger(now=0.0)
    ledger.refused(CUT, "BUSY", slack_s=0.03, budget_s=0.05)
    ledger.refused(CUT, "DEADLINE", slack_s=0.05, budget_s=0.05)
    ledger.refused(CUT, "DEADLINE", slack_s=-0.001, budget_s=0.05)
    seen = of(ledger.snapshot(now=1.0), CUT).counters
    assert seen.refused == {"BUSY": 1, "DEADLINE": 2}
    assert seen.slack_share / seen.slack_budgeted == pytest.approx((0.6 + 1.0 + 0.0) / 3)
    assert seen.slack[0] == 1, "what came too late left nothing"
    assert seen.slack[SLACK_BOUNDS_S.index(0.05)] == 2, "a bound includes what equals it"


def test_a_request_that_named_nothing_we_hold_is_counted_as_unknown() -> None:
    ledger = Ledger(now=0.0)
    ledger.offered(None)
    ledger.refused(None, "UNKNOWN_SEGMENT", slack_s=0.0, budget_s=0.0)
    seen = of(ledger.snapshot(now=1.0), UNKNOWN).counters
    assert (seen.offered, seen.refusals, seen.slack_budgeted) == (1, 1, 0)


def test_a_request_without_a_budget_says_nothing_about_budgets() -> None:
    ledger = Ledger(now=0.0)
    ledger.refused(CUT, "BUSY", slack_s=math.inf, budget_s=math.inf)
    ledger.answered(CUT, queue_s=0.0, residence_s=1.0, budget_s=math.inf, late=False, now=0.0)
    seen = of(ledger.snapshot(now=1.0), CUT).counters
    assert (seen.slack_budgeted, seen.budgeted, seen.budget_used, sum(seen.slack)) == (0, 0, 0.0, 0)


def test_goodput_leaves_out_what_came_late() -> None:
    ledger = Ledger(now=0.0)
    for i in range(40):
        answer(ledger, late=i % 4 == 0, now=i * 0.1)
    seen = of(ledger.snapshot(now=4.0), CUT)
    assert seen.qps == pytest.approx(10.0)
    assert seen.goodput == pytest.approx(7.5)
    assert seen.counters.late == 10


def test_after_a_quiet_minute_there_are_no_rates_and_no_quantiles() -> None:
    ledger = Ledger(now=0.0)
    execute(ledger, now=1.0)
    answer(ledger, now=1.0)
    seen = of(ledger.snapshot(now=100.0), CUT)
    assert (seen.qps, seen.goodput) == (0.0, 0.0)
    assert (seen.residence, seen.queue, seen.compute, seen.predicted_over_actual) == (None, None, None, None)
    assert seen.counters.answered == 1


def test_a_run_counts_its_time_for_every_request_and_once_for_the_engine() -> None:
    ledger = Ledger(now=0.0)
    execute(ledger, rows=4, compute_s=0.010)
    seen = of(ledger.snapshot(now=1.0), CUT).counters
    assert seen.compute_s == pytest.approx(0.040)
    assert seen.busy_s == pytest.approx(0.010)
    assert (seen.rows, seen.executed, seen.executions, seen.batch_sizes) == (4, 4, 1, {4: 1})


def test_the_prediction_is_compared_with_what_runs_really_took() -> None:
    ledger = Ledger(now=0.0)
    execute(ledger, compute_s=0.004)
    execute(ledger, compute_s=0.006)
    seen = of(ledger.snapshot(now=1.0), CUT)
    assert seen.predicted_over_actual == pytest.approx(1.0)


def test_batch_sizes_and_codes_are_bounded() -> None:
    ledger = Ledger(now=0.0)
    for i in range(1, 1000):
        execute(ledger, rows=i)
        ledger.refused(CUT, f"CODE_{i}", slack_s=0.0, budget_s=0.0)
    seen = of(ledger.snapshot(now=1.0), CUT).counters
    assert max(seen.batch_sizes) == LARGEST_BATCH
    assert sum(seen.batch_sizes.values()) == seen.refusals == 999
    assert len(seen.refused) == MOST_CODES + 1


def test_scopes_beyond_the_bound_are_added_up_as_other() -> None:
    ledger = Ledger(now=0.0)
    for i in range(500):
        ledger.offered(Scope(f"model-{i}", "1", "cut-1"))
    snapshot = ledger.snapshot(now=1.0)
    assert len(snapshot.scopes) <= MOST_SCOPES + 1
    assert snapshot.total.counters.offered == 500
    assert of(snapshot, FOLDED).counters.offered > 400


def test_how_many_scopes_are_told_apart_is_a_setting() -> None:
    ledger = Ledger(now=0.0, most_scopes=3)
    for i in range(9):
        ledger.offered(Scope(f"model-{i}", "1", "cut-1"))
    assert {f.scope.model for f in ledger.snapshot(now=1.0).scopes} == {"unknown", "model-0", "model-1", "other"}


def test_events_are_counted_and_bounded() -> None:
    ledger = Ledger(now=0.0)
    ledger.counted("cache_hits", 3)
    for i in range(1000):
        ledger.counted(f"event-{i}")
    events = ledger.snapshot(now=0.0).events
    assert events["cache_hits"] == 3
    assert sum(events.values()) == 1003
    assert len(events) == MOST_EVENTS + 1


def test_an_unloaded_version_leaves_room_and_its_counts() -> None:
    ledger = Ledger(now=0.0)
    ledger.offered(CUT)
    ledger.refused(CUT, "BUSY", slack_s=0.01, budget_s=0.05)
    execute(ledger, rows=2)
    ledger.forget(CUT)
    ledger.forget(CUT)
    ledger.forget(UNKNOWN)
    snapshot = ledger.snapshot(now=1.0)
    assert {f.scope for f in snapshot.scopes} == {UNKNOWN, FOLDED}
    seen = of(snapshot, FOLDED).counters
    assert (seen.offered, seen.refused, seen.batch_sizes, sum(seen.slack)) == (1, {"BUSY": 1}, {2: 1}, 1)


def test_the_total_is_over_all_scopes_and_its_quantiles_over_all_samples() -> None:
    ledger = Ledger(now=0.0)
    for i in range(1, 101):
        answer(ledger, CUT if i <= 50 else WHOLE, residence_s=i / 1000, now=1.0)
    total = ledger.snapshot(now=2.0).total
    assert total.counters.answered == 100
    assert total.residence is not None
    assert (total.residence.p50_s, total.residence.p90_s, total.residence.p99_s) == (0.050, 0.090, 0.099)
    assert total.qps == pytest.approx(50.0)


calls = st.lists(
    st.tuples(st.sampled_from(["offered", "refused", "answered", "forget"]), st.integers(0, 80)), max_size=200
)


@given(calls)
def test_no_count_is_ever_lost_whatever_is_folded_or_forgotten(made: list[tuple[str, int]]) -> None:
    ledger, before = Ledger(now=0.0), (0, 0, 0)
    for i, (what, which) in enumerate(made):
        scope = Scope(f"model-{which}", "1", "cut-1")
        match what:
            case "offered":
                ledger.offered(scope)
            case "refused":
                ledger.refused(scope, "BUSY", slack_s=0.1, budget_s=0.2)
            case "answered":
                answer(ledger, scope, now=float(i))
            case _:
                ledger.forget(scope)
        if i % 20 == 19 or i == len(made) - 1:
            total = ledger.snapshot(now=float(i)).total.counters
            now = (total.offered, total.refusals, total.answered)
            assert all(a >= b for a, b in zip(now, before, strict=True))
            before = now
    names = [what for what, _ in made]
    assert before == (names.count("offered"), names.count("refused"), names.count("answered"))


def test_threads_that_count_at_once_lose_nothing() -> None:
    ledger, each = Ledger(now=0.0), 3000

    def work() -> None:
        for i in range(each):
            ledger.offered(CUT)
            answer(ledger, now=i * 1e-3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ledger.snapshot(now=3.0)
    for thread in threads:
        thread.join()
    seen = of(ledger.snapshot(now=3.0), CUT).counters
    assert (seen.offered, seen.answered) == (4 * each, 4 * each)
