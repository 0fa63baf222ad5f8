"""The planner: the best line now, hysteresis around breakpoints, reasons for detours, and costs learned online."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from protocol.control.learned import MOST_GATEWAYS
from protocol.control.objectives import Objective
from protocol.control.planner import ASSUMED_LINK, HYSTERESIS, RETRY_AFTER, STALE_AFTER, Candidate, Planner
from protocol.control.speeds import STEP_SAMPLES
from protocol.latency import LinkState, PlacementCost, latency_s

EDGE = Candidate("edge-only", PlacementCost(edge_s=0.100))
CUT = Candidate("cut-1", PlacementCost(edge_s=0.030, encode_s=0.002, up_nbytes=10_000, tail_s=0.010, down_nbytes=100))
CLOUD = Candidate("full-cloud", PlacementCost(encode_s=0.001, up_nbytes=150_000, tail_s=0.015, down_nbytes=100))
ALL = (EDGE, CUT, CLOUD)


def link(mbit_per_s: float, rtt_s: float = 0.02) -> LinkState:
    return LinkState(mbit_per_s * 1e6 / 8, rtt_s, mbit_per_s * 1e6 / 8)


def chosen(planner: Planner, mbit_per_s: float) -> str:
    decision = planner.decide(link(mbit_per_s), {})
    assert decision is not None
    return decision.id


@pytest.mark.parametrize(
    ("mbit_per_s", "best"), [(0.5, "edge-only"), (1.5, "edge-only"), (5, "cut-1"), (20, "cut-1"), (500, "full-cloud")]
)
def test_the_placement_with_the_least_predicted_latency_is_chosen(mbit_per_s: float, best: str) -> None:
    decision = Planner(ALL).decide(link(mbit_per_s), {})
    assert decision is not None
    predicted = {c.id: latency_s(c.cost, link(mbit_per_s)) for c in ALL}
    assert (decision.id, decision.instead_of) == (best, None)
    assert best == min(predicted, key=lambda id_: predicted[id_])
    assert decision.predicted_s == pytest.approx(predicted[best])


def test_before_anything_was_measured_a_decent_mobile_link_is_assumed() -> None:
    planner = Planner(ALL)
    assert planner.predict(None) == planner.predict(ASSUMED_LINK)
    assert planner.decide(None, {}) == Planner(ALL).decide(ASSUMED_LINK, {})


def test_a_small_gain_does_not_move_the_planner_and_a_clear_one_does() -> None:
    a, b = Candidate("a", PlacementCost(edge_s=0.100)), Candidate("b", PlacementCost(encode_s=0.05, up_nbytes=5_000))
    planner = Planner((a, b))

    def rate_at_which_b_costs(share: float) -> LinkState:
        return LinkState(5_000 / (share * 0.100 - 0.05), 0.0)

    planner.decide(LinkState(1.0, 0.0), {})
    assert planner.current == "a"
    planner.decide(rate_at_which_b_costs(1 - HYSTERESIS + 0.01), {})
    assert planner.current == "a"
    planner.decide(rate_at_which_b_costs(1 - HYSTERESIS - 0.01), {})
    assert planner.current == "b"
    planner.decide(rate_at_which_b_costs(1.05), {})
    assert planner.current == "b", "the way back needs a clear gain as well"
    planner.decide(rate_at_which_b_costs(1.2), {})
    assert planner.current == "a"


def test_noise_of_five_per_cent_around_a_breakpoint_never_flaps() -> None:
    # cut-1 and edge-only cost the same where 10,100 bytes take 38 ms: 2.126 Mbit/s.
    chance = random.Random(1)
    planner = Planner(ALL)
    seen = {chosen(planner, 2.126 * chance.uniform(0.95, 1.05)) for _ in range(500)}
    assert len(seen) == 1


def test_a_step_across_a_breakpoint_is_followed_at_once() -> None:
    planner = Planner(ALL)
    assert [chosen(planner, rate) for rate in (10, 0.5, 10, 500)] == ["cut-1", "edge-only", "cut-1", "full-cloud"]


def test_what_is_unavailable_is_passed_over_and_said() -> None:
    decision = Planner(ALL).decide(link(10), {"cut-1": "its head failed", "full-cloud": "not held"})
    assert decision is not None
    assert decision.id == "edge-only"
    assert decision.instead_of == "cut-1"
    assert decision.predicted_s == pytest.approx(0.1)


def test_something_else_being_unavailable_is_no_degradation() -> None:
    decision = Planner(ALL).decide(link(10), {"full-cloud": "not held"})
    assert decision is not None
    assert (decision.id, decision.instead_of) == ("cut-1", None)


def test_a_detour_does_not_become_the_current_placement() -> None:
    planner = Planner(ALL)
    assert chosen(planner, 10) == "cut-1"
    detour = planner.decide(link(10), {"cut-1": "for a moment"})
    assert detour is not None
    assert detour.id != "cut-1"
    assert planner.current == "cut-1"
    assert chosen(planner, 10) == "cut-1", "its return must not be held back by hysteresis"


def test_when_nothing_can_be_used_there_is_no_decision() -> None:
    planner = Planner(ALL)
    assert planner.decide(link(10), {c.id: "broken" for c in ALL}) is None


# ---- learning -------------------------------------------------------------------------------------------------------


def predicted_edge_s(planner: Planner, id_: str) -> float:
    """Predicted seconds on a link that costs nothing."""
    return planner.predict(LinkState(1e15, 0.0))[id_]


def test_a_slow_device_is_learned_from_what_heads_really_take() -> None:
    planner = Planner(ALL)
    for _ in range(40):
        planner.observe_edge("cut-1", 3 * 0.032)
    assert predicted_edge_s(planner, "cut-1") == pytest.approx(3 * 0.032 + 0.010, rel=0.02)
    assert predicted_edge_s(planner, "edge-only") == pytest.approx(0.3, rel=0.02), "a hot device moves every head"


def test_what_was_measured_itself_is_believed_more_than_its_neighbours() -> None:
    planner = Planner(ALL)
    for _ in range(40):
        planner.observe_edge("edge-only", 0.1)
        planner.observe_edge("cut-1", 2 * 0.032)
    assert predicted_edge_s(planner, "edge-only") == pytest.approx(0.1, rel=0.02)
    assert predicted_edge_s(planner, "cut-1") == pytest.approx(2 * 0.032 + 0.010, rel=0.02)


def test_encoding_alone_says_nothing_about_the_devices_arithmetic() -> None:
    planner = Planner(ALL)
    for _ in range(40):
        planner.observe_edge("full-cloud", 0.010)  # encoding ten times as slow as planned
    assert predicted_edge_s(planner, "edge-only") == pytest.approx(0.1)
    assert predicted_edge_s(planner, "full-cloud") == pytest.approx(0.010 + 0.015, rel=0.05)


def test_a_slow_tail_is_learned_for_its_own_placement_only() -> None:
    planner = Planner(ALL)
    for _ in range(40):
        planner.observe_tail("cut-1", 0.050)
    assert predicted_edge_s(planner, "cut-1") == pytest.approx(0.032 + 0.050, rel=0.02)
    assert predicted_edge_s(planner, "full-cloud") == pytest.approx(0.016)


def test_a_stream_that_compresses_less_than_planned_is_learned_for_its_own_placement_only() -> None:
    planner = Planner([Candidate(i, PlacementCost(up_nbytes=10_000), "h", "t") for i in ("cut-1", "cut-1.q2")])
    planned = planner.predict(link(8, 0.0))["cut-1"]
    planner.observe_nbytes("cut-1", 20_000)
    once = planner.predict(link(8, 0.0))
    assert planned < once["cut-1"] < 1.5 * planned, "one frame sent alone is no trend"
    assert once["cut-1.q2"] == pytest.approx(planned)
    for _ in range(30):
        planner.observe_nbytes("cut-1", 20_000)
    assert planner.predict(link(8, 0.0))["cut-1"] == pytest.approx(2 * planned, rel=0.02)


def test_a_lively_scene_is_not_held_against_a_placement_for_good() -> None:
    planner = Planner(
        [Candidate("cut-1", PlacementCost(up_nbytes=10_000)), Candidate("edge", PlacementCost(edge_s=0.03))]
    )
    still = link(8, 0.0)
    assert chosen(planner, 8) == "cut-1"
    for _ in range(30):
        planner.observe_nbytes("cut-1", 60_000)
    assert planner.predict(still)["cut-1"] > 1.5 * planner.predict(still)["edge"], "too slow even to be tried again"
    decisions = [decided.id for _ in range(3 * STALE_AFTER) if (decided := planner.decide(still, {})) is not None]
    assert decisions[0] == "edge"
    assert decisions[-1] == "cut-1", "the scene may be a still one again"


def test_learning_moves_the_choice() -> None:
    planner = Planner(ALL)
    assert chosen(planner, 10) == "cut-1"
    for _ in range(30):
        planner.observe_tail("cut-1", 0.5)
    assert chosen(planner, 10) == "edge-only"


def test_the_first_measurement_beats_any_prior_from_another_machine() -> None:
    planner = Planner(ALL)
    planner.observe_edge("edge-only", 0.4)
    planner.observe_tail("full-cloud", 0.03)
    assert predicted_edge_s(planner, "edge-only") == pytest.approx(0.4)
    assert predicted_edge_s(planner, "full-cloud") == pytest.approx(0.001 * 4 + 0.03)


def test_once_a_speed_is_known_one_outlier_moves_a_prediction_by_a_fifth_at_most() -> None:
    planner = Planner(ALL)
    for _ in range(4):
        planner.observe_edge("edge-only", 0.1)
    planner.observe_edge("edge-only", 60.0)
    assert 0.1 < predicted_edge_s(planner, "edge-only") <= 0.1 * 1.21
    planner.observe_edge("edge-only", 0.0001)
    assert predicted_edge_s(planner, "edge-only") >= 0.1 * 0.79


def test_what_never_ran_or_was_planned_at_nothing_changes_nothing() -> None:
    free = Candidate("free", PlacementCost(up_nbytes=10))
    planner = Planner((free, EDGE))
    before = planner.predict(link(10))
    planner.observe_edge("free", 1.0)
    planner.observe_tail("free", 1.0)
    assert planner.predict(link(10)) == before


def test_a_head_that_runs_for_the_first_time_is_believed_half_where_the_device_is_known() -> None:
    planner = Planner(ALL)
    planner.observe_edge("edge-only", 0.1)
    planner.observe_edge("cut-1", 2 * 0.032)
    assert predicted_edge_s(planner, "cut-1") == pytest.approx(1.5 * 0.032 + 0.010)


# ---- trying again ---------------------------------------------------------------------------------------------------


def slowed(planner: Planner, mbit_per_s: float, factor: float = 4.0) -> None:
    """Edge-only is in use and becomes slower until another placement takes over."""
    assert chosen(planner, mbit_per_s) == "edge-only"
    for _ in range(4):
        planner.observe_edge("edge-only", 0.1)
    for _ in range(STEP_SAMPLES):
        planner.observe_edge("edge-only", 0.1 * factor)
    assert chosen(planner, mbit_per_s) != "edge-only"


def test_what_was_left_because_it_had_become_slower_is_soon_tried_again_and_kept_if_it_is_fast() -> None:
    planner = Planner(ALL)
    slowed(planner, 1.5)
    turns = []
    for turn in range(40):
        if chosen(planner, 1.5) == "edge-only":
            turns.append(turn)
            planner.observe_edge("edge-only", 0.1)
    assert RETRY_AFTER - 2 <= turns[0] <= 2 * RETRY_AFTER
    assert turns == list(range(turns[0], 40)), "one that was fast is confirmed at once"
    assert planner.current == "edge-only"


def test_what_stays_slow_is_tried_again_ever_more_seldom() -> None:
    planner = Planner(ALL)
    slowed(planner, 1.5)
    turns = []
    for turn in range(1, 400):
        if chosen(planner, 1.5) == "edge-only":
            turns.append(turn)
            planner.observe_edge("edge-only", 0.4)
    gaps = [b - a for a, b in pairwise(turns)]
    assert 3 <= len(turns) <= 6
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 80


def test_a_slow_tail_is_tried_again_too() -> None:
    planner = Planner(ALL)
    assert chosen(planner, 20) == "cut-1"
    for seconds in (0.010, 0.010, 0.010, *(0.5,) * STEP_SAMPLES):
        planner.observe_tail("cut-1", seconds)
    assert chosen(planner, 20) != "cut-1"
    assert "cut-1" in {chosen(planner, 20) for _ in range(2 * RETRY_AFTER)}


def test_what_could_not_be_the_best_at_its_usual_speed_is_not_tried_again() -> None:
    planner = Planner(ALL)
    slowed(planner, 1.5)
    assert {chosen(planner, 500) for _ in range(STALE_AFTER // 2)} == {"full-cloud"}


# ---- families: the same head and tail under several codecs ----------------------------------------------------------


def family(name: str, sizes: list[int], **cost: Any) -> list[Candidate]:
    """The same cut under as many codecs as there are sizes on the wire."""
    return [
        Candidate(f"{name}.{i}", PlacementCost(up_nbytes=n, **cost), f"{name}/head.onnx", f"{name}/tail.onnx")
        for i, n in enumerate(sizes)
    ]


def test_what_one_codec_teaches_of_head_and_tail_holds_for_its_siblings_and_nobody_else() -> None:
    siblings = family("cut-1", [9_000, 6_000, 3_000], edge_s=0.030, encode_s=0.002, tail_s=0.010)
    other = family("cut-2", [9_000], edge_s=0.050, tail_s=0.008)
    planner = Planner([*siblings, *other])
    planner.observe_edge("cut-1.0", 2 * 0.032)
    planner.observe_tail("cut-1.0", 3 * 0.010)
    for _ in range(20):
        planner.observe_edge("cut-2.0", 0.050)
    for sibling in siblings:
        assert predicted_edge_s(planner, sibling.id) == pytest.approx(2 * 0.032 + 3 * 0.010)
    assert predicted_edge_s(planner, "cut-2.0") == pytest.approx(0.058, rel=0.01)


def test_a_family_of_codecs_that_were_all_in_use_once_costs_no_detour_while_one_of_them_is() -> None:
    planner = Planner(family("cut-1", [1_000 + i for i in range(20)], edge_s=0.030, encode_s=0.002, tail_s=0.010))
    everything = {f"cut-1.{i}": "used already" for i in range(20)}
    for id_ in everything:  # each was in use for a moment
        decision = planner.decide(link(10), {k: v for k, v in everything.items() if k != id_})
        assert decision is not None
        assert decision.id == id_
    assert {chosen(planner, 10) for _ in range(3 * STALE_AFTER)} == {planner.current}


def test_codecs_of_the_input_share_what_encoding_costs_on_this_device() -> None:
    raw = Candidate("cloud", PlacementCost(encode_s=2e-6, up_nbytes=150_000, tail_s=0.015), "", "full.onnx")
    png, jpeg = (
        Candidate(id_, PlacementCost(encode_s=s, up_nbytes=n, tail_s=0.015), "", "full.onnx")
        for id_, s, n in (("cloud.png", 0.008, 80_000), ("cloud.jpeg90", 0.002, 20_000))
    )
    planner = Planner([raw, png, jpeg])
    planner.observe_edge("cloud", 40e-6)  # nothing but overhead: twenty times as planned
    assert predicted_edge_s(planner, "cloud.jpeg90") == pytest.approx(0.017)
    planner.observe_edge("cloud.png", 0.024)
    assert predicted_edge_s(planner, "cloud.jpeg90") == pytest.approx(0.006 + 0.015)
    assert predicted_edge_s(planner, "cloud") == pytest.approx(40e-6 + 0.015)


def test_an_input_sent_as_it_is_keeps_nothing_that_grows_stale_but_its_tail() -> None:
    raw = Candidate("cloud", PlacementCost(encode_s=2e-6, up_nbytes=11_000, tail_s=0.015), "", "full.onnx")
    jpeg = Candidate("cloud.jpeg90", PlacementCost(encode_s=0.0005, up_nbytes=10_000, tail_s=0.015), "", "full.onnx")
    planner = Planner([raw, jpeg])
    assert planner.decide(link(10), {"cloud.jpeg90": "for a moment"}) is not None
    assert {chosen(planner, 10) for _ in range(3 * STALE_AFTER)} == {"cloud.jpeg90"}
    assert planner.decide(link(10), {"cloud.jpeg90": "for a while"}) is not None


def test_a_family_that_was_not_in_use_for_long_is_tried_once_under_its_best_codec() -> None:
    near = family("cut-1", [5_000, 4_900], edge_s=0.030, tail_s=0.010)
    planner = Planner([*near, *family("cut-2", [3_000], edge_s=0.030, tail_s=0.010)])
    for id_ in ("cut-1.0", "cut-1.1"):
        assert planner.decide(link(10), {c: "" for c in ("cut-1.0", "cut-1.1", "cut-2.0") if c != id_}) is not None
    later = [chosen(planner, 1) for _ in range(2 * STALE_AFTER - 5)]
    assert later.count("cut-1.1") == 1
    assert "cut-1.0" not in later


def tell(planner: Planner, what: str, id_: str, seconds: float) -> None:
    (planner.observe_edge if what == "edge" else planner.observe_tail)(id_, seconds)


def test_predictions_are_kept_until_link_or_knowledge_changes_and_never_longer() -> None:
    chance = random.Random(3)
    candidates = [*family("cut-1", [9_000, 3_000], edge_s=0.03, tail_s=0.01), *ALL]
    planner = Planner(candidates)
    seen: list[tuple[str, str, float]] = []
    for _ in range(100):
        seen.append((chance.choice(["edge", "tail"]), chance.choice(candidates).id, chance.uniform(0.001, 0.1)))
        tell(planner, *seen[-1])
        here = link(chance.choice([1, 10]))
        kept = planner.predict(here)
        assert kept is planner.predict(link(here.uplink_bytes_per_s * 8 / 1e6))
        fresh = Planner(candidates)
        for one in seen:
            tell(fresh, *one)
        assert fresh.predict(here) == kept


# ---- several gateways -----------------------------------------------------------------------------------------------


def test_each_gateway_is_as_fast_as_it_was_seen_to_be() -> None:
    planner = Planner(ALL)
    for _ in range(4):
        planner.observe_tail("cut-1", 0.010, "near")
        planner.observe_tail("cut-1", 0.080, "far")
    near, far = (planner.predict(link(10), gateway)["cut-1"] for gateway in ("near", "far"))
    assert far - near == pytest.approx(0.070)
    assert [d.id for g in ("near", "far") if (d := planner.decide(link(10), {}, gateway=g)) is not None] == [
        "cut-1",
        "edge-only",
    ]


def test_a_gateway_that_was_not_measured_yet_is_taken_for_like_the_last_that_was() -> None:
    planner = Planner(ALL)
    planner.observe_tail("cut-1", 0.030, "near")
    known, new = (planner.predict(link(10), gateway)["cut-1"] for gateway in ("near", "new"))
    assert known == new
    planner.observe_tail("cut-1", 0.010, "new")
    assert planner.predict(link(10), "near")["cut-1"] == known
    assert planner.predict(link(10), "new")["cut-1"] == pytest.approx(new - 0.020)


def test_of_gateways_that_come_and_go_the_last_ones_are_remembered() -> None:
    planner = Planner(ALL)
    planner.observe_tail("cut-1", 0.080, "kept")
    planner.observe_tail("cut-1", 0.010, "first")
    assert planner.predict(link(10), "first")["cut-1"] < planner.predict(link(10), "kept")["cut-1"]
    for number in range(MOST_GATEWAYS - 1):
        planner.observe_tail("cut-1", 0.010, str(number))
        planner.observe_tail("cut-1", 0.080, "kept")
    kept, first = (planner.predict(link(10), gateway)["cut-1"] for gateway in ("kept", "first"))
    assert first == kept, "it is taken to be like the last that was measured"


def test_an_explanation_takes_the_next_request_to_have_the_budget_of_the_last() -> None:
    planner = Planner(ALL, Objective(latency=1.0, deadline=1.0))
    planner.decide(link(5), {}, budget_s=0.08)
    told = planner.explain(link(5), {})
    assert told == planner.explain(link(5), {}, budget_s=0.08)
    assert told != planner.explain(link(5), {}, budget_s=8.0)
