"""The planner where requests follow each other, estimates are doubtful, devices throttle, and other things count."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control.demand import NO_DEMAND, Demand
from protocol.control.link import LinkEstimator
from protocol.control.objectives import Objective
from protocol.control.planner import DWELL_S, HYSTERESIS, LEAST_GAIN, Candidate, Planner
from protocol.control.weighing import SUSTAINED
from protocol.errors import InputError
from protocol.latency import LinkState, PlacementCost, latency_s, leaving_scv, wait_s

EDGE = Candidate("edge-only", PlacementCost(edge_s=0.100, energy_j=0.50))
CUT = Candidate(
    "cut-1", PlacementCost(edge_s=0.030, encode_s=0.002, up_nbytes=10_000, tail_s=0.010, down_nbytes=100, energy_j=0.2)
)
CLOUD = Candidate(
    "full-cloud", PlacementCost(encode_s=0.001, up_nbytes=150_000, tail_s=0.015, down_nbytes=100, energy_j=0.3)
)
ALL = (EDGE, CUT, CLOUD)


def link(mbit: float, rtt_s: float = 0.02, spread: float = 0.0, doubt: float | None = None) -> LinkState:
    rate = mbit * 1e6 / 8
    return LinkState(rate, rtt_s, rate, spread=spread, doubt=doubt)


def chosen(planner: Planner, at: LinkState, demand: Demand = NO_DEMAND, **more: float) -> str:
    decision = planner.decide(at, {}, demand=demand, **more)
    assert decision is not None
    return decision.id


# ---- queues ---------------------------------------------------------------------------------------------------------


def test_poisson_arrivals_wait_as_pollaczek_and_khinchine_say() -> None:
    for rho in (0.1, 0.5, 0.9):
        for scv in (0.0, 0.5, 1.0, 2.0):
            assert wait_s(rho, 0.1, 1.0, scv) == pytest.approx(rho / (1 - rho) * (1 + scv) / 2 * 0.1)


def test_even_frames_that_take_equally_long_never_wait_and_a_full_queue_never_ends() -> None:
    assert wait_s(0.99, 0.1, 0.0, 0.0) == 0.0
    assert wait_s(1.0, 0.1, 0.0, 0.0) == math.inf
    assert wait_s(0.0, 0.1, 1.0, 1.0) == 0.0


@pytest.mark.parametrize(("rho", "gap_scv"), [(0.7, 0.25), (0.9, 0.25), (0.8, 0.5), (0.8, 2.0)])
def test_the_wait_is_near_that_of_a_simulated_queue(rho: float, gap_scv: float) -> None:
    """Gamma gaps, gamma service of scv 0.1: Lindley's recursion."""
    chance = random.Random(11)
    service_scv, waited, total, count = 0.1, 0.0, 0.0, 60_000
    for _ in range(count):
        service = chance.gammavariate(1 / service_scv, service_scv)
        gap = chance.gammavariate(1 / gap_scv, gap_scv / rho)
        waited = max(0.0, waited + service - gap)
        total += waited
    assert wait_s(rho, 1.0, gap_scv, service_scv) == pytest.approx(total / count, rel=0.25)


@given(st.floats(0, 1), st.floats(0, 4), st.floats(0, 4))
def test_what_leaves_a_queue_varies_between_what_came_and_what_served(rho: float, came: float, served: float) -> None:
    assert min(came, served) - 1e-9 <= leaving_scv(rho, came, served) <= max(came, served) + 1e-9


def test_a_device_that_cannot_keep_up_loses_however_fast_it_is_alone() -> None:
    slow = link(0.5)
    assert chosen(Planner(ALL), slow) == "edge-only"
    # 11 a second are 1.1 seconds of edge-only's work a second, 0.35 of cut-1's, and 0.9 of the uplink's.
    assert chosen(Planner(ALL), link(1.0), Demand(11.0)) == "cut-1"
    assert latency_s(CUT.cost, link(1.0)) > EDGE.cost.edge_s


def test_an_uplink_that_cannot_keep_up_loses_as_well() -> None:
    assert chosen(Planner((EDGE, CLOUD)), link(30)) == "full-cloud"
    assert chosen(Planner((EDGE, CLOUD)), link(30), Demand(9.0)) == "full-cloud"
    slow_edge = Candidate("edge-only", PlacementCost(edge_s=0.080))
    assert chosen(Planner((slow_edge, CLOUD)), link(12), Demand(11.0)) == "edge-only"


def test_where_nothing_keeps_up_the_least_overloaded_is_taken() -> None:
    assert chosen(Planner(ALL), link(0.2), Demand(11.0)) == "edge-only"


def test_near_saturation_the_expected_wait_decides() -> None:
    both = (Candidate("a", PlacementCost(edge_s=0.090)), Candidate("b", PlacementCost(edge_s=0.010, up_nbytes=12_000)))
    assert chosen(Planner(both), link(1.0, 0.0)) == "a"
    assert chosen(Planner(both), link(1.0, 0.0), Demand(9.0, 0.0)) == "a", "even frames do not wait"
    assert chosen(Planner(both), link(1.0, 0.0), Demand(9.0, 1.0)) == "b" or SUSTAINED < 0.9 * 1.2
    assert chosen(Planner(both), link(1.2, 0.0), Demand(9.0, 1.0)) == "b", "bursts do: 0.36 s on average"


def test_what_is_queued_on_the_uplink_now_counts_beyond_the_devices_own_time() -> None:
    planner = Planner(ALL)
    free = planner.explain(link(10), {}).of("cut-1")
    behind = planner.explain(link(10), {}, demand=Demand(uplink_s=0.050)).of("cut-1")
    assert behind.expected_s == pytest.approx(free.expected_s + 0.050 - 0.032)
    waits = planner.explain(link(10), {}, demand=Demand(device_s=0.040))
    assert waits.of("edge-only").expected_s == pytest.approx(0.140)
    assert waits.of("cut-1").expected_s == pytest.approx(free.expected_s + 0.040)


def test_an_overload_at_its_edge_does_not_flap() -> None:
    planner, chance = Planner(ALL), random.Random(4)
    seen = [chosen(planner, link(1.2), Demand(10.0 * chance.uniform(0.98, 1.02)), now=i * 0.1) for i in range(300)]
    assert sum(a != b for a, b in pairwise(seen)) <= 3


def test_a_request_whose_budget_the_current_one_exceeds_gets_the_fastest_for_itself_alone() -> None:
    planner = Planner(ALL, Objective.parse("bytes=10/MB"))
    assert chosen(planner, link(20)) == "edge-only"
    assert chosen(planner, link(20), budget_s=0.080) == "cut-1"
    assert planner.current == "edge-only"
    assert chosen(planner, link(20), budget_s=0.001) == "edge-only", "nothing is in time: then no detour"


# ---- doubt ----------------------------------------------------------------------------------------------------------


def gain_at_which_it_moves(doubt: float | None) -> float:
    """The share of the current one's latency by which another must be better, found by bisection over the rate."""
    a, b = Candidate("a", PlacementCost(edge_s=0.100)), Candidate("b", PlacementCost(encode_s=0.05, up_nbytes=5_000))
    low, high = 0.0, 0.49
    for _ in range(40):
        gain = (low + high) / 2
        planner = Planner((a, b))
        planner.decide(LinkState(1.0, 0.0), {})
        at = LinkState(5_000 / ((1 - gain) * 0.100 - 0.05), 0.0, doubt=doubt)
        planner.decide(at, {})
        low, high = (low, gain) if planner.current == "b" else (gain, high)
    return high


def test_the_gain_that_is_needed_grows_with_the_doubt_about_the_link() -> None:
    assert gain_at_which_it_moves(None) == pytest.approx(HYSTERESIS, abs=1e-6)
    assert gain_at_which_it_moves(0.0) == pytest.approx(LEAST_GAIN, abs=1e-6)
    # 3 standard errors of an upload of what is left of 100 ms beyond the 50 ms of encoding.
    gain = gain_at_which_it_moves(0.1)
    assert gain == pytest.approx(3 * 0.1 * (0.5 - gain), rel=1e-3)


def test_lines_of_one_slope_differ_by_what_the_link_cannot_blur() -> None:
    one = Candidate("one", PlacementCost(edge_s=0.050, up_nbytes=50_000))
    other = Candidate("other", PlacementCost(edge_s=0.010, up_nbytes=50_000))
    planner = Planner((one, other))
    planner.decide(link(10), {"other": "not yet"})
    planner.current = "one"
    assert chosen(planner, link(10, doubt=0.5)) == "other"


def test_within_the_dwell_time_only_a_large_gain_moves_it() -> None:
    planner = Planner(ALL)
    assert chosen(planner, link(10, doubt=0.0), now=0.0) == "cut-1"
    assert chosen(planner, link(1.8, doubt=0.0), now=0.1) == "cut-1", "edge-only is 7 % better"
    assert chosen(planner, link(0.5, doubt=0.0), now=0.2) == "edge-only", "now it is 56 % better"
    assert chosen(planner, link(2.5, doubt=0.0), now=0.3) == "edge-only"
    assert chosen(planner, link(2.5, doubt=0.0), now=0.3 + DWELL_S) == "cut-1"
    assert planner.switches == 2


@pytest.mark.parametrize("seed", range(6))
def test_noise_of_twenty_per_cent_exactly_at_a_breakpoint_does_not_flap(seed: int) -> None:
    # cut-1 and edge-only cost the same where 10,100 bytes take 38 ms: 2.126 Mbit/s.
    chance, estimator, planner = random.Random(seed), LinkEstimator(), Planner(ALL)
    now, seen = 0.0, []
    for i in range(320):
        now += 0.2
        estimator.observe(nbytes=60, round_trip_s=0.02, residence_s=0.0, now=now)
        transfer_s = 10_100 * 8 / (2.126e6 * chance.uniform(0.8, 1.2))
        estimator.observe(nbytes=10_100, round_trip_s=0.02 + transfer_s, residence_s=0.0, now=now)
        decision = planner.decide(estimator.estimate(now), {}, now=now)
        assert decision is not None
        seen += [decision.id] if i >= 20 else []
    assert sum(a != b for a, b in pairwise(seen)) <= 3


@pytest.mark.parametrize(
    ("before", "after", "best"), [(100, 10, "cut-1"), (10, 1, "edge-only"), (1, 10, "cut-1"), (5, 400, "full-cloud")]
)
@pytest.mark.parametrize("seed", range(3))
def test_after_a_step_a_new_placement_comes_within_ten_requests_despite_noise(
    before: float, after: float, best: str, seed: int
) -> None:
    chance, estimator, planner = random.Random(seed), LinkEstimator(), Planner(ALL)
    now, count = 0.0, 0

    def ask(mbit: float) -> str:
        nonlocal now
        now += 0.2
        estimator.observe(nbytes=60, round_trip_s=0.02, residence_s=0.0, now=now)
        transfer_s = 40_000 * 8 / (mbit * 1e6 * chance.uniform(0.8, 1.2))
        estimator.observe(nbytes=40_000, round_trip_s=0.02 + transfer_s, residence_s=0.0, now=now)
        decision = planner.decide(estimator.estimate(now), {}, now=now)
        assert decision is not None
        return decision.id

    for _ in range(20):
        ask(before)
    while ask(after) != best:
        count += 1
        assert count < 10


# ---- speeds ---------------------------------------------------------------------------------------------------------


def test_a_device_that_throttles_moves_the_cut_within_ten_requests_and_back() -> None:
    planner, at = Planner(ALL), link(2.0, doubt=0.0)
    assert chosen(planner, at) == "edge-only"

    def requests_until(best: str, slowness: float) -> int:
        for i in range(60):
            id_ = chosen(planner, at)
            if id_ == best:
                return i
            planned = {c.id: c.cost.edge_s + c.cost.encode_s for c in ALL}[id_]
            planner.observe_edge(id_, planned * slowness)
        raise AssertionError(f"still {id_}")

    for _ in range(20):
        planner.observe_edge("edge-only", 0.100)
    assert requests_until("cut-1", 3.0) <= 3
    for _ in range(20):
        planner.observe_edge("cut-1", 3 * 0.032)
    assert requests_until("edge-only", 1.0) <= 4, "what throttling taught about edge-only is taken back with it"


# ---- objectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("latency", "cut-1"),
        ("energy", "cut-1"),
        ("bytes", "edge-only"),
        ("cloud", "edge-only"),
        ("energy=1,bytes=0.01/MB", "cut-1"),
        ("latency=1,bytes=10/MB", "edge-only"),
    ],
)
def test_what_counts_decides(text: str, best: str) -> None:
    assert chosen(Planner(ALL, Objective.parse(text)), link(20)) == best


def test_under_deadline_the_surer_one_beats_the_faster_one() -> None:
    sure = Candidate("sure", PlacementCost(edge_s=0.100, edge_spread=0.02))
    fast = Candidate("fast", PlacementCost(edge_s=0.001, up_nbytes=80_000, tail_s=0.001))
    at = link(10, spread=0.4)
    assert chosen(Planner((sure, fast)), at) == "fast"
    deadline = Objective.parse("deadline")
    assert chosen(Planner((sure, fast), deadline), at, budget_s=0.115) == "sure"
    assert chosen(Planner((sure, fast), deadline), at, budget_s=0.095) == "fast", "the sure one surely comes too late"
    assert chosen(Planner((sure, fast), deadline), at, budget_s=2.0) == "fast", "both are in time: then the faster one"


def test_energy_that_nobody_measured_cannot_be_weighed() -> None:
    with pytest.raises(InputError, match="does not know that of other"):
        Planner((EDGE, Candidate("other", PlacementCost(edge_s=0.1))), Objective.parse("energy"))
