"""The scheduler in simulated time: the order of the rules and the rough shape of their figures, from one seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.policies import OURS, RULES, Scene, harder, ours, play
from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.scheduling.scheduler import Dispatch
from cloud_gateway.scheduling.simulation import (
    NoisyEngines,
    Request,
    Summary,
    Tail,
    bursts,
    poisson,
    simulate,
    summarise,
)
from protocol.errors import InvariantViolation
from protocol.messages import RejectCode

COUNT = 2500
BUDGET_S = 0.050
STEADY = Tail(fixed_s=0.002, row_s=0.001)


def overload(rule: str, load: float) -> tuple[Summary, float]:
    """What came of it, and goodput as a share of capacity."""
    scene = Scene(load, BUDGET_S, count=COUNT)
    summary = play(rule, scene, seed=1)
    return summary, summary.of_capacity(scene.rows_per_s)


# ---- the comparison -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [0.02, 0.3, 0.6, 0.9])
def test_a_timer_never_wins_on_latency_and_one_that_restarts_loses_most(load: float) -> None:
    scene = Scene(load, count=COUNT)
    mine, timer, restarting = (
        play(rule, scene, seed=1).mean_s for rule in (OURS, "10 ms timer", "timer that restarts")
    )
    assert mine < timer < restarting


def test_at_low_load_nobody_waits_for_company() -> None:
    summary = play(OURS, Scene(0.02, count=COUNT), seed=1)
    assert summary.mean_s < 0.0040  # a row alone takes 3.3 ms
    assert play("10 ms timer", Scene(0.02, count=COUNT), seed=1).mean_s > 0.0115


def test_under_overload_rules_without_prediction_answer_almost_nobody_in_time() -> None:
    shares = {rule: overload(rule, 1.2)[1] for rule in RULES}
    assert max(shares[rule] for rule in ("greedy", "10 ms timer", "timer that restarts")) < 0.05
    assert shares["greedy"] <= shares["drop expired"] < 0.35
    assert shares["EDF, shrinking"] < 0.35
    assert 0.7 < shares["predictive drop"] < shares[OURS]


@pytest.mark.parametrize(("load", "least"), [(1.2, 0.9), (1.5, 0.9), (2.0, 0.9)])
def test_overload_costs_no_throughput_nobody_is_answered_late_and_who_is_refused_can_still_act(
    load: float, least: float
) -> None:
    summary, share = overload(OURS, load)
    assert share >= least
    assert summary.late == 0
    assert summary.slack_share >= 0.9
    assert set(summary.refused_at_door) == {RejectCode.DEADLINE}
    assert summary.dropped <= 0.01 * COUNT


@pytest.mark.parametrize("name", sorted(harder()))
def test_harder_overloads_keep_most_of_the_capacity_and_of_the_slack(name: str) -> None:
    scene = harder(COUNT)[name]
    summary = play(OURS, scene, seed=1)
    assert summary.of_capacity(scene.rows_per_s) >= 0.7
    assert summary.late <= 0.01 * COUNT
    assert summary.dropped <= 0.03 * COUNT
    assert summary.slack_share >= 0.4


def test_rare_slow_batches_do_not_lock_a_lane_that_is_hardly_used() -> None:
    scene = Scene(0.3, BUDGET_S, spike=20.0, spike_chance=0.01, count=COUNT)
    played = [play(OURS, scene, seed=seed) for seed in range(3)]
    assert min(summary.goodput for summary in played) >= 0.8
    assert sum(summary.refused_at_door.total() for summary in played) <= 0.05 * 3 * COUNT


def test_a_seed_is_replayed_exactly() -> None:
    scene = Scene(1.2, BUDGET_S, noise=0.3, burst=5.0, tenants=3, priorities=(0, 4, 9), count=800)
    assert play(OURS, scene, seed=7) == play(OURS, scene, seed=7)
    assert play(OURS, scene, seed=7) != play(OURS, scene, seed=8)


# ---- the instrument -------------------------------------------------------------------------------------------------


def engines_of(tail: Tail, *, noise: float = 0.0) -> NoisyEngines:
    return NoisyEngines({"tail": tail}, np.random.default_rng(0), noise=noise)


def scheduled(times: Sequence[float], budget_s: float = 1.0) -> list[Request]:
    return [Request("tail", at, budget_s) for at in times]


def test_a_request_alone_takes_what_its_batch_takes_and_late_comers_share_the_next_one() -> None:
    scene = Scene(1.0, tails={"tail": STEADY}, noise=0.0)
    engines = engines_of(STEADY)
    fates = simulate(ours(scene, engines), scheduled([0.0, 0.001, 0.0015]), engines)
    assert [fate.ended for fate in fates] == pytest.approx([0.003, 0.007, 0.007])
    assert [fate.batch for fate in fates] == [1, 2, 2]


def test_as_many_batches_run_at_once_as_there_are_threads() -> None:
    scene = Scene(1.0, tails={"tail": STEADY}, noise=0.0, threads=2)
    engines = engines_of(STEADY)
    fates = simulate(ours(scene, engines), scheduled([0.0, 0.001, 0.002]), engines, threads=2)
    assert [fate.ended for fate in fates] == pytest.approx([0.003, 0.004, 0.006])


def test_the_curve_learns_what_batches_really_take() -> None:
    engines = engines_of(STEADY)
    simulate(ours(Scene(1.0, tails={"tail": STEADY}), engines), scheduled([0.0]), engines)
    assert engines.curves["tail"].predict(1) == pytest.approx(0.003)


class Forgetful:
    """Admits everybody and runs nobody."""

    def offer(self, key: str, item: Request, *, now: float) -> Verdict | None:
        return None

    def take(self, thread: int, *, now: float) -> Dispatch[Request] | None:
        return None

    def release(self, thread: int) -> None: ...

    def leave(self, item: Request) -> None: ...

    def next_wake(self, *, now: float) -> float | None:
        return None


def test_a_policy_that_loses_a_request_is_found_out() -> None:
    with pytest.raises(InvariantViolation, match="2 admitted requests never ended"):
        simulate(Forgetful(), scheduled([0.0, 0.1]), engines_of(STEADY))


class Impatient(Forgetful):
    def next_wake(self, *, now: float) -> float | None:
        return now


def test_a_policy_that_would_spin_is_found_out() -> None:
    with pytest.raises(InvariantViolation, match="asked again at once"):
        simulate(Impatient(), scheduled([0.0]), engines_of(STEADY))


def test_arrivals_keep_the_rate_that_was_asked_for_alone_or_in_bursts() -> None:
    chance = np.random.default_rng(3)
    alone = poisson(chance, rate=200.0, count=20_000)
    together = bursts(chance, rate=200.0, count=20_000, size=10.0, within_s=0.001)
    for times in (alone, together):
        assert times == sorted(times)
        assert 20_000 / times[-1] == pytest.approx(200.0, rel=0.1)
    assert np.mean(np.diff(together) < 0.001) > 0.8 > np.mean(np.diff(alone) < 0.001)


def test_noise_has_the_mean_that_it_is_laid_upon() -> None:
    engines = engines_of(STEADY, noise=0.3)
    assert np.mean([engines.luck() for _ in range(5000)]) == pytest.approx(1.0, abs=0.02)


def test_a_summary_counts_rows_in_time_late_answers_and_what_was_left_to_the_refused() -> None:
    engines = engines_of(STEADY)
    requests = [Request("tail", 0.0, 1.0, rows=2), Request("tail", 0.001, 0.0035), Request("tail", 0.002, 0.001)]
    scene = Scene(1.0, tails={"tail": STEADY}, noise=0.0)
    summary = summarise(simulate(ours(scene, engines), requests, engines), skip=0.0)
    assert (summary.offered_rows, summary.late) == (4, 0)
    assert summary.refused_at_door.total() + summary.dropped == 2
    assert summary.good_rows == 2
    assert 0.0 <= summary.slack_share <= 1.0
    assert summary.goodput == 0.5
