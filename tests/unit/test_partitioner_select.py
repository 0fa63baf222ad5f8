"""Selection among costs: pure numbers, no model."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.planning import select
from protocol.latency import LinkState, PlacementCost, latency_s
from protocol.plan import PlanConditions

RTT_S = 0.01
SCOPE = PlanConditions(RTT_S, slowest_mbit=1.0, fastest_mbit=200.0)
ENDS = {
    "full-cloud": PlacementCost(tail_s=0.004, up_nbytes=150_000),
    "edge-only": PlacementCost(edge_s=0.200),
}


def cut(edge_ms: float, nbytes: float, tail_ms: float = 2.0) -> PlacementCost:
    return PlacementCost(edge_s=edge_ms / 1e3, up_nbytes=nbytes, tail_s=tail_ms / 1e3)


def families(costs: dict[str, PlacementCost]) -> dict[str, dict[str, PlacementCost]]:
    """Each cost as a cut with one coding."""
    return {name: {name: cost} for name, cost in costs.items()}


def test_the_plan_runs_from_the_fastest_link_to_the_slowest_without_gaps() -> None:
    plan = select.plan({**ENDS, "middle": cut(20, 30_000)}, SCOPE)
    assert [s.id for s in plan] == ["full-cloud", "middle", "edge-only"]
    assert plan[0].from_mbit == pytest.approx(200)
    assert plan[-1].to_mbit == pytest.approx(1)
    assert all(a.to_mbit == pytest.approx(b.from_mbit) for a, b in pairwise(plan))


def test_a_cut_that_wins_nowhere_is_not_kept() -> None:
    kept = select.keep(ENDS, families({"bad": cut(300, 200_000)}), SCOPE)
    assert kept == select.Kept((), ())


def test_at_most_three_are_kept_and_the_others_are_named() -> None:
    costs = {f"c{i}": cut(5 * 2**i, 100_000 / 4**i) for i in range(5)}
    winners = {s.id for s in select.plan({**ENDS, **costs}, SCOPE)} & set(costs)
    assert len(winners) > 3
    kept = select.keep(ENDS, families(costs), SCOPE)
    assert len(kept.cuts) == 3
    assert set(kept.cuts) | set(kept.dropped) == winners


def test_the_nearest_loser_is_named_with_its_ratio() -> None:
    ends = {"edge-only": PlacementCost(edge_s=0.010)}
    name, ratio = select.closest(ends, families({"far": cut(90, 10), "near": cut(10, 10)}), SCOPE)
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
    plan = select.plan(everything, SCOPE)
    chosen = next(s.id for s in plan if s.to_mbit * (1 - 1e-9) <= mbit <= s.from_mbit * (1 + 1e-9))
    rate = mbit * 1e6 / 8
    link = LinkState(rate, RTT_S, downlink_bytes_per_s=rate)
    best = min(latency_s(c, link) for c in everything.values())
    assert latency_s(everything[chosen], link) <= best * (1 + 1e-6)


FAMILY = {"c": cut(10, 30_000), "c.snr17": cut(30, 15_000), "c.snr12": cut(31, 16_000)}


def test_a_family_is_kept_for_the_best_of_its_codings() -> None:
    """Without loss the cut never wins; under its second coding it does."""
    assert select.keep(ENDS, {"c": {"c": cut(20, 140_000)}}, SCOPE) == select.Kept((), ())
    assert select.keep(ENDS, {"c": {"c": cut(20, 140_000), "c.snr17": cut(20, 9_000)}}, SCOPE).cuts == ("c",)


def test_a_coding_that_is_never_its_familys_best_is_not_useful() -> None:
    assert select.useful(FAMILY, SCOPE) == {"c", "c.snr17"}


def test_a_wider_scope_finds_more_winners() -> None:
    slow = {"deep": {"deep": cut(150, 300)}}
    assert select.keep(ENDS, slow, SCOPE).cuts == ("deep",)
    assert select.keep(ENDS, slow, PlanConditions(RTT_S, slowest_mbit=50.0, fastest_mbit=200.0)).cuts == ()
