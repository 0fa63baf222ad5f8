"""The planner explains itself: what it says of each placement is what it would decide, and flips are where it flips."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from protocol.control.demand import Demand
from protocol.control.explanation import Explanation
from protocol.control.objectives import Objective
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost
from protocol.stages import Condition

EDGE = Candidate("edge-only", PlacementCost(edge_s=0.100, energy_j=0.5))
CUT = Candidate(
    "cut-1", PlacementCost(edge_s=0.030, encode_s=0.002, up_nbytes=10_000, tail_s=0.010, down_nbytes=100, energy_j=0.2)
)
CLOUD = Candidate(
    "full-cloud", PlacementCost(encode_s=0.001, up_nbytes=150_000, tail_s=0.015, down_nbytes=100, energy_j=0.1)
)
ALL = (EDGE, CUT, CLOUD)


def link(mbit: float, rtt_s: float = 0.02, queue_s: float = 0.0, doubt: float | None = 0.0) -> LinkState:
    rate = mbit * 1e6 / 8
    return LinkState(rate, rtt_s, rate, queue_s, doubt=doubt)


def verdicts(seen: Explanation) -> dict[str, str]:
    return {p.id: p.verdict for p in seen.placements}


def test_before_the_first_request_it_says_what_would_be_chosen_and_changes_nothing() -> None:
    planner = Planner(ALL)
    seen = planner.explain(link(10), {})
    assert (seen.current, seen.using) == (None, "cut-1")
    assert planner.current is None
    assert not planner.explain(None, {}).measured


def test_stages_are_those_of_the_formula_with_what_was_learned() -> None:
    planner = Planner(ALL)
    planner.observe_edge("cut-1", 3 * 0.032)
    seen = planner.explain(link(8, queue_s=0.004), {})
    stages = seen.of("cut-1").stages
    assert (stages.device_s, stages.encoding_s, stages.upload_s) == pytest.approx((0.09, 0.006, 0.01))
    assert (stages.round_trip_s, stages.cloud_s) == pytest.approx((0.02, 0.014))
    assert seen.of("cut-1").expected_s == pytest.approx(stages.total_s)
    assert seen.edge_factor == pytest.approx(3.0)


def test_every_placement_has_its_reason() -> None:
    planner = Planner(ALL)
    planner.decide(link(10), {})
    assert verdicts(planner.explain(link(10), {"full-cloud": "not held"})) == {
        "cut-1": "current",
        "edge-only": "worse",
        "full-cloud": "unavailable",
    }
    busy = planner.explain(link(10), {}, demand=Demand(per_s=12.0))
    assert verdicts(busy)["edge-only"] == "overloaded"
    assert busy.of("edge-only").utilisation == pytest.approx(1.2)
    assert verdicts(planner.explain(link(0.5), {})) == {"edge-only": "next", "cut-1": "current", "full-cloud": "worse"}
    unsure = planner.explain(link(1.9, doubt=0.2), {})
    assert verdicts(unsure)["edge-only"] == "not clearly better"
    assert unsure.gain_needed_s > unsure.of("cut-1").score - unsure.of("edge-only").score > 0


def test_while_the_current_one_cannot_be_used_the_second_best_is_in_use() -> None:
    planner = Planner(ALL)
    planner.decide(link(10), {})
    seen = planner.explain(link(10), {"cut-1": "its head failed"})
    assert (seen.current, seen.using, seen.of("cut-1").reason) == ("cut-1", "edge-only", "its head failed")
    nothing = planner.explain(link(10), {c.id: "broken" for c in ALL})
    assert (nothing.using, nothing.flips) == (None, ())


@given(st.floats(0.3, 300), st.floats(0.001, 0.3), st.floats(0.0, 0.05), st.sampled_from([0.0, 4.0]))
def test_what_it_says_is_in_use_is_what_a_decision_takes(
    mbit: float, rtt_s: float, queue_s: float, rate: float
) -> None:
    planner, demand = Planner(ALL), Demand(per_s=rate)
    for at in (link(10), link(mbit, rtt_s, queue_s)):
        seen = planner.explain(at, {}, demand=demand)
        decision = planner.decide(at, {}, demand=demand)
        assert decision is not None
        assert decision.id == seen.using
        assert decision.predicted_s == pytest.approx(seen.of(decision.id).expected_s)


@given(st.floats(0.3, 300), st.floats(0.001, 0.3), st.sampled_from(["latency", "energy=0.1", "bytes=0.1/MB,cloud=3"]))
def test_on_the_far_side_of_a_flip_another_one_scores_best(mbit: float, rtt_s: float, text: str) -> None:
    objective = Objective.parse(text)
    best = Planner(ALL, objective).explain(link(mbit, rtt_s), {})
    for flip in best.flips:
        beyond = flip.at * (1.02 if flip.when == "above" else 0.98)
        assume(abs(flip.at) > 1e-6)
        after = moved(flip.condition, beyond, objective, mbit, rtt_s)
        within = moved(flip.condition, flip.at * (0.98 if flip.when == "above" else 1.02), objective, mbit, rtt_s)
        assert after.of(flip.id).score <= after.of(str(best.using)).score
        assert within.of(flip.id).score >= within.of(str(best.using)).score * (1 - 1e-9)


def moved(condition: Condition, value: float, objective: Objective, mbit: float, rtt_s: float) -> Explanation:
    """Explained with one condition at another value."""
    candidates = [
        Candidate(
            c.id,
            PlacementCost(
                edge_s=c.cost.edge_s * (value if condition == "edge_factor" else 1),
                encode_s=c.cost.encode_s * (value if condition == "edge_factor" else 1),
                up_nbytes=c.cost.up_nbytes,
                tail_s=c.cost.tail_s * (value if condition == "cloud_factor" else 1),
                down_nbytes=c.cost.down_nbytes,
                energy_j=c.cost.energy_j,
            ),
        )
        for c in ALL
    ]
    at = link(
        value if condition == "uplink_mbit" else mbit,
        value if condition == "rtt_s" else rtt_s,
        value if condition == "queue_s" else 0.0,
    )
    return Planner(candidates, objective).explain(at, {})


def test_flips_name_the_value_at_which_lines_cross() -> None:
    flips = {(f.condition, f.when): f for f in Planner(ALL).explain(link(10), {}).flips}
    # cut-1 42 ms + 20 ms + 10,100 bytes against edge-only 100 ms; full-cloud 16 + 20 ms + 150,100 bytes.
    assert flips["uplink_mbit", "below"].id == "edge-only"
    assert flips["uplink_mbit", "below"].at == pytest.approx(10_100 * 8 / 0.038 / 1e6)
    assert flips["uplink_mbit", "above"].id == "full-cloud"
    assert flips["rtt_s", "above"].at == pytest.approx(0.1 - 0.042 - 10_100 * 8 / 10e6)
    assert flips["queue_s", "above"].at == pytest.approx(0.1 - 0.062 - 10_100 * 8 / 10e6)
