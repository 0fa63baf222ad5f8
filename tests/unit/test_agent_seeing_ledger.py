"""The agent's account: sums that add up, quantiles that are exact, labels that stay few."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.outcomes import Outcome, StageTimings
from edge_agent.seeing.figures import Figures
from edge_agent.seeing.ledger import ALL, FOLDED, Ledger, Scope
from protocol.control.flights import RefusalCode
from protocol.seeing.sums import SLACK_BOUNDS_S
from tests.agent_scenes import DIGEST, LOST, answer, refusal

CUT = Scope("digits", "3", "cut-1", "", "int8")
LOCAL = Scope("digits", "3", "edge-only", "", "int8")


def made(*outcomes: Outcome, budget_s: float = 0.1, predicted_s: float | None = None) -> Ledger:
    ledger = Ledger(now=0.0)
    ledger.introduce(DIGEST, "digits", "3")
    for number, outcome in enumerate(outcomes):
        ledger.observe(outcome, budget_s=budget_s, predicted_s=predicted_s, now=float(number))
    return ledger


def scopes(ledger: Ledger, now: float = 9.0) -> dict[Scope, Figures]:
    return {figures.scope: figures for figures in ledger.snapshot(now=now).scopes}


def test_answers_are_counted_where_they_were_made() -> None:
    found = scopes(made(answer(), answer(), answer(kind="edge-only", degraded=(LOST,))))
    assert (found[CUT].counters.answered, found[LOCAL].counters.answered) == (2, 1)
    assert found[CUT].counters.up_nbytes == 24_000
    assert found[LOCAL].counters.up_nbytes == 0
    assert found[LOCAL].network is None, "nothing crossed"
    assert (found[LOCAL].counters.degraded, found[LOCAL].counters.causes) == (1, {"link": 1})
    assert found[CUT].counters.causes == {}


def test_the_stages_of_an_answer_and_its_waiting_make_its_total() -> None:
    c = scopes(made(answer(total_s=0.02)))[CUT].counters
    assert c.waited_s == pytest.approx(0.0025)
    stages = (c.edge_s, c.encode_s, c.network_s, c.queue_s, c.decode_s, c.compute_s, c.waited_s)
    assert sum(stages) == pytest.approx(c.total_s) == pytest.approx(0.02)


def test_clocks_that_disagree_by_a_little_give_no_negative_waiting() -> None:
    quick = replace(answer(), timings=StageTimings(edge_s=0.02, total_s=0.0199))
    assert scopes(made(quick))[CUT].counters.waited_s == 0.0


def test_refusals_are_counted_by_code_with_what_they_left() -> None:
    ledger = made(refusal(slack_s=0.03), refusal(slack_s=0.0), refusal(code=RefusalCode.NO_PLACEMENT, slack_s=0.1))
    c = ledger.snapshot(now=9.0).total.counters
    assert c.refused == {"DEADLINE": 2, "NO_PLACEMENT": 1}
    assert c.slack[SLACK_BOUNDS_S.index(0.0)] == 1
    assert c.slack[SLACK_BOUNDS_S.index(0.05)] == 1
    assert (c.slack_budgeted, c.slack_share) == (3, pytest.approx(1.3))


def test_a_late_answer_counts_but_is_not_in_time() -> None:
    figures = scopes(made(answer(total_s=0.2), answer(total_s=0.05)))[CUT]
    assert (figures.counters.late, sum(figures.in_time)) == (1, 1)


def test_without_a_budget_nothing_is_late() -> None:
    c = scopes(made(answer(total_s=9.0), budget_s=float("inf")))[CUT].counters
    assert (c.late, c.budgeted) == (0, 0)


def test_predictions_are_set_against_what_happened() -> None:
    ledger = made(answer(total_s=0.02), answer(total_s=0.04), predicted_s=0.03)
    figures = scopes(ledger)[CUT]
    assert figures.predicted_over_actual == pytest.approx(1.0)
    assert figures.prediction_error == pytest.approx((0.5 + 0.25) / 2)
    ledger.observe(answer(total_s=5.0), budget_s=0.1, predicted_s=None, now=9.0)
    assert scopes(ledger)[CUT].counters.predicted == 2, "an answer without a prediction says nothing of predictions"


@given(st.lists(st.floats(0.001, 2.0), min_size=1, max_size=80))
def test_quantiles_are_those_of_the_samples_themselves(totals: list[float]) -> None:
    ledger = made(*(answer(total_s=total_s) for total_s in totals[:40]))
    for total_s in totals[40:]:
        ledger.observe(answer(kind="edge-only", total_s=total_s), budget_s=0.1, predicted_s=None, now=40.0)
    found = ledger.snapshot(now=41.0).total.total
    assert found is not None
    assert found.samples == len(totals)
    for told, share in ((found.p50_s, 0.5), (found.p90_s, 0.9), (found.p99_s, 0.99)):
        assert told == np.quantile(totals, share, method="inverted_cdf")


def test_a_minute_later_the_quantiles_are_gone_and_the_counters_are_not() -> None:
    ledger = made(answer(), answer())
    figures = scopes(ledger, now=100.0)[CUT]
    assert (figures.total, figures.qps, figures.counters.answered) == (None, 0.0, 2)


def test_what_no_scope_has_is_counted_by_name() -> None:
    ledger = made()
    ledger.counted("bundles_switched")
    ledger.counted("stored", by=3)
    assert ledger.snapshot(now=9.0).events == {"bundles_switched": 1, "stored": 3}


def test_scopes_beyond_the_bound_are_added_up_under_other() -> None:
    ledger = Ledger(now=0.0, most_scopes=3)
    for number in range(20):
        ledger.observe(replace(answer(), placement=f"cut-{number}"), budget_s=0.1, predicted_s=None, now=0.0)
    found = scopes(ledger)
    assert len(found) == 4
    assert found[FOLDED].counters.answered == 17
    assert ledger.snapshot(now=1.0).total.counters.answered == 20


def test_an_answer_of_the_bundle_before_is_counted_under_its_own_version() -> None:
    ledger = made(answer())
    ledger.introduce("cd" * 32, "digits", "4")
    ledger.observe(answer(), budget_s=0.1, predicted_s=None, now=1.0)
    ledger.observe(replace(answer(), bundle="cd" * 32), budget_s=0.1, predicted_s=None, now=2.0)
    found = scopes(ledger)
    assert found[CUT].counters.answered == 2
    assert found[CUT._replace(version="4")].counters.answered == 1


def test_an_account_of_nothing_is_whole_too() -> None:
    total = Ledger(now=0.0).snapshot(now=1.0).total
    assert (total.scope, total.qps, total.total, total.counters.answered) == (ALL, 0.0, None, 0)


def test_threads_that_finish_at_once_lose_nothing() -> None:
    ledger = made()

    def finish(number: int) -> None:
        for i in range(500):
            outcome = refusal(i) if i % 5 == 0 else answer(i, kind="edge-only" if number % 2 else "cut")
            ledger.observe(outcome, budget_s=0.1, predicted_s=0.02, now=1.0)

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        ledger.snapshot(now=1.0)
    for thread in threads:
        thread.join(30)
    c = ledger.snapshot(now=1.0).total.counters
    assert (c.answered, c.refusals, c.predicted) == (1600, 400, 1600)
