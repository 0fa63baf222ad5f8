"""Selection among costs: pure numbers, no model."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner import select
from partitioner.cuts import Candidate
from protocol.latency import LinkState, PlacementCost, latency_s

RTT_S = 0.01
ENDS = {
    "full-cloud": PlacementCost(tail_s=0.004, up_nbytes=150_000),
    "edge-only": PlacementCost(edge_s=0.200),
}


def cut(edge_ms: float, nbytes: float, tail_ms: float = 2.0) -> PlacementCost:
    return PlacementCost(edge_s=edge_ms / 1e3, up_nbytes=nbytes, tail_s=tail_ms / 1e3)


def test_the_plan_runs_from_the_fastest_link_to_the_slowest_without_gaps() -> None:
    plan = select.plan({**ENDS, "middle": cut(20, 30_000)}, rtt_s=RTT_S)
    assert [s.id for s in plan] == ["full-cloud", "middle", "edge-only"]
    assert plan[0].from_mbit == pytest.approx(200)
    assert plan[-1].to_mbit == pytest.approx(1)
    assert all(a.to_mbit == pytest.approx(b.from_mbit) for a, b in pairwise(plan))


def test_a_cut_that_wins_nowhere_is_not_kept() -> None:
    kept = select.keep(ENDS, {"bad": cut(300, 200_000)}, rtt_s=RTT_S)
    assert kept == select.Kept((), ())


def test_at_most_three_are_kept_and_the_others_are_named() -> None:
    costs = {f"c{i}": cut(5 * 2**i, 100_000 / 4**i) for i in range(5)}
    winners = {s.id for s in select.plan({**ENDS, **costs}, rtt_s=RTT_S)} & set(costs)
    assert len(winners) > 3
    kept = select.keep(ENDS, costs, rtt_s=RTT_S)
    assert len(kept.cuts) == 3
    assert set(kept.cuts) | set(kept.dropped) == winners


def test_the_nearest_loser_is_named_with_its_ratio() -> None:
    ends = {"edge-only": PlacementCost(edge_s=0.010)}
    name, ratio = select.closest(ends, {"far": cut(90, 10), "near": cut(10, 10)}, rtt_s=RTT_S)
    assert name == "near"
    assert ratio == pytest.approx(2.2, rel=0.05)


costs = st.builds(
    PlacementCost,
    edge_s=st.floats(0, 1),
    up_nbytes=st.floats(1, 1e6),
    tail_s=st.floats(0, 0.1),
    down_nbytes=st.floats(0, 1e4),
)


@given(st.lists(costs, min_size=1, max_size=8), st.floats(1.0, 200.0))
def test_the_plan_names_the_fastest_placement_at_every_bandwidth(found: list[PlacementCost], mbit: float) -> None:
    everything = {**ENDS, **{f"c{i}": c for i, c in enumerate(found)}}
    plan = select.plan(everything, rtt_s=RTT_S)
    chosen = next(s.id for s in plan if s.to_mbit * (1 - 1e-9) <= mbit <= s.from_mbit * (1 + 1e-9))
    rate = mbit * 1e6 / 8
    link = LinkState(rate, RTT_S, downlink_bytes_per_s=rate)
    best = min(latency_s(c, link) for c in everything.values())
    assert latency_s(everything[chosen], link) <= best * (1 + 1e-6)


def candidates(count: int, nbytes: int = 1000) -> list[Candidate]:
    return [Candidate((f"t{i}",), (i + 1) / (count + 1), nbytes + i) for i in range(count)]


GUESS = select.Guess(model_s=0.02, input_nbytes=10_000, edge_slowdown=8.0, rtt_s=RTT_S)


def test_the_shortlist_is_bounded_distinct_and_reaches_over_the_depth() -> None:
    listed = select.shortlist(candidates(200), GUESS)
    assert len(listed) == len({c.cut for c in listed}) == select.MAX_MEASURED
    assert min(c.share for c in listed) < 0.2
    assert max(c.share for c in listed) > 0.7


def test_a_short_model_is_listed_whole() -> None:
    assert len(select.shortlist(candidates(5), GUESS)) == 5
    assert select.shortlist([], GUESS) == []


def test_cuts_much_larger_than_the_input_are_not_measured() -> None:
    assert select.shortlist(candidates(5, nbytes=41_000), GUESS) == []


def test_of_a_convolution_and_its_activation_only_the_activation_is_measured() -> None:
    pair = [Candidate(("conv",), 0.300, 500), Candidate(("relu",), 0.301, 500), Candidate(("deep",), 0.8, 500)]
    assert {c.cut for c in select.shortlist(pair, GUESS)} == {("relu",), ("deep",)}
