"""The replay: exact by seed, equal to arithmetic where that is possible, an agent's behaviour at steps and outages."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import agent, compute, link, uplink
from partitioner.people import replay, simulate, traces
from partitioner.people.replay import Drive, Simulated
from partitioner.people.simulate import Replay
from partitioner.people.traces import BYTES_PER_MBIT, Trace, steps
from partitioner.people.world import HEADER_NBYTES, MOST_REQUESTS, Outcome, Scene, hindsight, requests
from protocol.control.planner import Candidate
from protocol.errors import InputError
from protocol.latency import LinkState, PlacementCost, latency_s

EDGE = Candidate("edge-only", PlacementCost(edge_s=0.100))
CUT = Candidate("cut-1", PlacementCost(edge_s=0.030, encode_s=0.002, up_nbytes=10_000, tail_s=0.010, down_nbytes=100))
CLOUD = Candidate("full-cloud", PlacementCost(encode_s=0.001, up_nbytes=150_000, tail_s=0.015, down_nbytes=100))
ALL = (EDGE, CUT, CLOUD)
COSTS = {c.id: c.cost for c in ALL}
STEADY = steps("steady", [(30.0, 20.0)])


def scene(trace: Trace = STEADY, candidates: tuple[Candidate, ...] = ALL, **more: float) -> Scene:
    given = {"rtt_s": 0.02, "requests_per_s": 5.0, "deadline_s": 1.0, **more}
    return Scene(trace, candidates, **given)


def played(at: Scene, seed: int = 1) -> list[Outcome]:
    return Replay(at, requests(at, np.random.default_rng(seed))).run()


def known(at: Scene, candidates: tuple[Candidate, ...], seed: int = 1) -> list[Outcome]:
    return hindsight(at, requests(at, np.random.default_rng(seed)), candidates)


def simulated(trace: str = "step", costs: dict[str, PlacementCost] = COSTS, **more: object) -> Simulated:
    return replay.simulate("toy", costs, 0.02, Drive(trace, **more))  # type: ignore[arg-type]


def noisy(candidate: Candidate, spread: float) -> Candidate:
    cost = candidate.cost
    fields = {name: getattr(cost, name) for name in cost.__struct_fields__}
    return Candidate(candidate.id, PlacementCost(**{**fields, "edge_spread": spread, "tail_spread": spread}))


# ---- against arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", ALL, ids=lambda c: c.id)
def test_on_a_steady_idle_link_a_request_takes_what_the_formula_says(candidate: Candidate) -> None:
    at = scene()
    rate = STEADY.bytes_per_s[0]
    header_s = 2 * HEADER_NBYTES / rate if candidate.cost.crosses else 0.0
    expected = latency_s(candidate.cost, LinkState(rate, at.rtt_s, rate)) + header_s
    assert all(o.latency_s == pytest.approx(expected) for o in known(at, (candidate,)))
    replayed = played(replace(at, candidates=(candidate,)))
    # A ping of 60 bytes may be ahead on the link.
    assert all(expected <= o.latency_s + 1e-9 <= expected + 0.02 for o in replayed)
    assert np.median([o.latency_s for o in replayed]) == pytest.approx(expected)


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 200), st.sampled_from(ALL), st.floats(0.05, 0.7), st.floats(0.0, 0.08), st.integers(0, 3))
def test_one_placement_replayed_is_never_faster_than_with_hindsight(
    mbit: float, candidate: Candidate, load: float, rtt_s: float, seed: int
) -> None:
    trace = steps("s", [(5.0, mbit), (5.0, mbit / 3)])
    cost = candidate.cost
    # Without overload: hindsight is greedy, and which requests it gives up may then be an unlucky choice.
    slowest_s = max(cost.edge_s + cost.encode_s, cost.tail_s, cost.up_nbytes * 3 / (mbit * BYTES_PER_MBIT))
    at = scene(trace, (noisy(candidate, 0.1),), requests_per_s=load / slowest_s, rtt_s=rtt_s)
    best, ours = known(at, at.candidates, seed), played(at, seed)
    assert len(ours) == len(best)
    assert sum(o.latency_s for o in ours) >= sum(o.latency_s for o in best) * (1 - 1e-9)


def test_queues_at_the_device_make_later_requests_wait() -> None:
    at = scene(candidates=(EDGE,), requests_per_s=20.0, deadline_s=10.0)
    latencies = [o.latency_s for o in known(at, (EDGE,))[:4]]
    assert latencies == pytest.approx([0.100, 0.150, 0.200, 0.250])
    assert [o.latency_s for o in played(at)[:4]] == pytest.approx(latencies)


def test_what_cannot_be_in_time_is_not_sent_and_counts_with_its_whole_budget() -> None:
    at = scene(steps("slow", [(10.0, 0.5)]), (CLOUD,))
    outcomes = known(at, (CLOUD,))
    assert all(o.late and o.latency_s == at.deadline_s for o in outcomes)
    assert all(o.late and o.latency_s == pytest.approx(at.deadline_s) for o in played(at))


def test_the_oracle_is_at_least_as_good_as_every_fixed_placement_on_an_idle_link() -> None:
    at = scene(traces.lte(np.random.default_rng(3)))
    oracle = known(at, ALL)
    for candidate in ALL:
        fixed = known(at, (candidate,))
        assert all(a.latency_s <= b.latency_s + 1e-9 for a, b in zip(oracle, fixed, strict=True))


# ---- the agent's own code -------------------------------------------------------------------------------------------


def test_whatever_decides_here_is_what_decides_in_the_agent() -> None:
    run = Replay(scene(), ())
    assert type(run.ladder) is agent.Ladder
    assert type(run.planner) is agent.Planner
    assert type(run.estimator) is link.LinkEstimator
    assert type(run.pulse) is link.Pulse
    assert simulate.too_late is compute.too_late
    assert simulate.wake_at is uplink.wake_at


def test_where_nothing_at_all_comes_any_more_one_attempt_is_enough_to_stay_on_the_device() -> None:
    """The link dies in silence: nothing is sent but pings until one is answered."""
    outcomes = played(scene(steps("dies", [(5.0, 20.0), (55.0, 0.0)]), rtt_s=0.01))
    tried = [o for o in outcomes if o.at_s >= 5.0 and o.decided != "edge-only"]
    assert 1 <= len(tried) <= 2, "what was on its way when the first timed out"
    assert not any(o.late for o in outcomes)


def test_after_an_outage_requests_cross_again_as_soon_as_a_ping_does() -> None:
    outcomes = played(scene(steps("gap", [(5.0, 20.0), (2.0, 0.0), (13.0, 20.0)]), rtt_s=0.01))
    after = [o for o in outcomes if o.at_s >= 7.0]
    assert [o.decided for o in after if o.at_s >= 8.2 and o.decided == "edge-only"] == []


def test_what_an_overloaded_gateway_cannot_do_in_time_ends_on_the_device() -> None:
    """Ten a second for a tail of 0.2 s: the gateway's queue grows until budgets no longer suffice."""
    slow_tail = Candidate("cut-1", PlacementCost(edge_s=0.001, up_nbytes=10_000, tail_s=0.200, down_nbytes=100))
    at = scene(candidates=(Candidate("edge-only", PlacementCost(edge_s=0.3)), slow_tail), requests_per_s=10.0)
    outcomes = played(at)
    assert any(o.decided == "cut-1" and o.placement == "edge-only" for o in outcomes)


# ---- what an agent does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mbit", "best"), [(0.5, "edge-only"), (8.0, "cut-1"), (500.0, "full-cloud")])
def test_on_a_steady_link_all_requests_go_where_the_table_says(mbit: float, best: str) -> None:
    outcomes = played(scene(steps("steady", [(20.0, mbit)])))
    assert {o.placement for o in outcomes[5:]} == {best}


def test_after_a_step_the_new_placement_comes_within_ten_requests() -> None:
    for reaction in simulated("step").reactions:
        assert reaction.requests is not None
        assert reaction.requests <= 10, reaction


def test_noise_does_not_flap() -> None:
    trace = steps("noisy", [(0.3, 8.0 * factor) for factor in (1.0, 1.2, 0.85, 1.1, 0.9) * 20])
    decided = [o.decided for o in played(scene(trace))]
    assert set(decided[5:]) == {"cut-1"}


def test_in_an_outage_the_device_takes_over_and_the_link_is_taken_up_again() -> None:
    outcomes = played(scene(traces.outage(np.random.default_rng(0))))
    assert not any(o.late for o in outcomes)
    dark = [o for o in outcomes if 28.0 <= o.at_s < 38.0]
    assert {o.placement for o in dark} == {"edge-only"}
    assert sum(o.latency_s < 0.15 for o in dark) > 0.6 * len(dark), "most do not even try the link"
    assert {o.placement for o in outcomes if o.at_s > 42.0} == {"cut-1"}


def test_without_edge_only_requests_wait_for_the_link_or_end_at_their_deadline() -> None:
    at = scene(steps("gap", [(5.0, 20.0), (6.0, 0.0), (9.0, 20.0)]), (CUT, CLOUD))
    outcomes = played(at)
    late = [o for o in outcomes if o.late]
    assert late
    assert all(4.5 < o.at_s < 12.0 and o.latency_s == pytest.approx(1.0) for o in late)
    assert not any(o.late for o in outcomes if o.at_s > 13.0)


def test_a_device_slower_than_the_plan_says_is_learned() -> None:
    slow_head = Candidate("cut-1", PlacementCost(edge_s=0.030, up_nbytes=10_000, tail_s=0.010))
    at = scene(candidates=(EDGE, slow_head))
    run = Replay(at, requests(at, np.random.default_rng(1)))
    run.planner.observe_edge("cut-1", 0.300)
    assert run.run()[0].placement == "edge-only"


# ---- the whole command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", sorted(traces.BUILT_IN))
def test_a_seed_replays_exactly_and_every_request_is_counted_once(trace: str) -> None:
    costs = {c.id: noisy(c, 0.1).cost for c in ALL}
    first = simulated(trace, costs, seed=4)
    assert first == simulated(trace, costs, seed=4)
    assert first != simulated(trace, costs, seed=5)
    for run in (first.isthmus, first.oracle, *first.fixed):
        assert run.answered + run.late == first.requests
        assert sum(run.shares.values()) == pytest.approx(run.answered / first.requests)
        assert run.p50_s <= run.p95_s
    assert [run.name for run in first.fixed] == list(COSTS)


def test_regret_and_versus_are_ratios_of_means() -> None:
    seen = simulated("lte")
    assert seen.regret == pytest.approx(seen.isthmus.mean_s / seen.oracle.mean_s - 1)
    assert seen.regret >= 0
    assert seen.versus["edge-only"] == pytest.approx(seen.isthmus.mean_s / seen.fixed[0].mean_s - 1)


def test_no_fixed_placement_beats_the_oracle_not_even_under_overload() -> None:
    """Twenty a second for a device that does 16: greedy hindsight fills its queue, sending everything keeps up."""
    costs = {
        "edge-only": PlacementCost(edge_s=0.0605),
        "full-cloud": PlacementCost(encode_s=0.0246, up_nbytes=23_000, tail_s=0.0255, down_nbytes=4_000),
    }
    seen = simulated("lte", costs, requests_per_s=20.0)
    assert seen.oracle.mean_s <= min(run.mean_s for run in seen.fixed)
    assert seen.regret > -0.1, "whoever knows the future and is greedy can be beaten, but not by much"


def test_many_sizes_of_load_do_not_change_the_trace() -> None:
    assert simulated("lte", requests_per_s=2.0).mean_mbit == simulated("lte", requests_per_s=9.0).mean_mbit


def test_a_trace_of_many_small_steps_has_no_reactions() -> None:
    assert simulated("lte").reactions == ()


def test_a_file_is_a_trace(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t_s,mbit\n0,50\n10,1\n")
    seen = simulated(str(tmp_path / "t.csv"))
    assert (seen.trace, seen.length_s, seen.requests) == ("t.csv", 20.0, 100)
    assert [r.best for r in seen.reactions] == ["edge-only"]


@pytest.mark.parametrize(
    ("order", "part"),
    [
        (Drive("nowhere.csv"), "no trace or file 'nowhere.csv'; give one of step, lte, outage"),
        (Drive("step", seed=-1), "seed"),
        (Drive("step", requests_per_s=0.0), "requests per second"),
        (Drive("step", requests_per_s=math.nan), "requests per second"),
        (Drive("step", deadline_s=math.inf), "deadline"),
        (Drive("step", rtt_s=-1.0), "round trip"),
        (Drive("step", requests_per_s=MOST_REQUESTS), "lower --requests-per-s"),
    ],
)
def test_wrong_orders_are_refused_with_a_remedy(order: Drive, part: str) -> None:
    with pytest.raises(InputError) as caught:
        replay.simulate("toy", COSTS, 0.02, order)
    assert part in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="cannot be read as text"):
        simulated(str(tmp_path / "t.csv"))


def test_nothing_to_simulate_is_refused() -> None:
    with pytest.raises(InputError, match="no placement"):
        simulated(costs={})
