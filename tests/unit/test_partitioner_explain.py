"""Explanations: what they claim is recomputed from the formula, and the sentences say what the structure holds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.people.explain import (
    LEAST_MBIT,
    MOST_MBIT,
    Explanation,
    Question,
    explain,
    family_of,
    link_of,
)
from partitioner.people.sentences import headline, sentences
from partitioner.planning.choose import summary
from protocol.bundle import Manifest, Measured
from protocol.errors import InputError
from protocol.latency import PlacementCost, adjusted, latency_s
from protocol.messages import PlacementKind
from protocol.phrases import number
from protocol.stages import Flip, stages_of
from tests import manifests
from tests.manifests import manifest, without

if TYPE_CHECKING:
    from partitioner.planning.explore import Explorer

TOY = manifest()
NO_GOOD_CUT = without(TOY, "cut-1", "cut-1.q4")


def at(mbit: float, of: Manifest = TOY, **more: float) -> Explanation:
    return explain(of, Question(mbit, **more))


def latencies(of: Manifest, mbit: float, rtt_s: float, edge: float = 1.0, cloud: float = 1.0) -> dict[str, float]:
    link = link_of(mbit, rtt_s)
    return {p.id: latency_s(adjusted(p.cost, edge_factor=edge, cloud_factor=cloud), link) for p in of.placements}


def fastest(of: Manifest, mbit: float, rtt_s: float) -> str:
    seen = latencies(of, mbit, rtt_s)
    return min(seen, key=seen.__getitem__)


def text(seen: Explanation) -> str:
    return "\n".join(sentences(seen))


# ---- the structure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mbit", "best"), [(1, "edge-only"), (10, "cut-1.q4"), (100, "full-cloud.jpeg90")])
def test_the_best_is_the_one_with_the_least_latency(mbit: float, best: str) -> None:
    seen = at(mbit)
    assert seen.best.id == best == fastest(TOY, mbit, 0.010)
    assert [r.total_s for r in seen.ranking] == sorted(r.total_s for r in seen.ranking)
    assert len(seen.ranking) == len(TOY.placements)


def test_stages_add_up_to_the_formula() -> None:
    for ranked in at(7.3).ranking:
        assert ranked.stages.total_s == pytest.approx(latency_s(ranked.cost, link_of(7.3, 0.010)))
        assert ranked.ratio == pytest.approx(ranked.total_s / at(7.3).best.total_s)


def test_the_runner_up_is_of_another_family() -> None:
    assert family_of("cut-1.q4") == family_of("cut-1") == "cut-1"
    seen = at(10)
    assert seen.ranking[1].id == "cut-1"
    assert seen.runner_up is not None
    assert seen.runner_up.id == "full-cloud.jpeg90"


def test_stretches_are_where_each_wins_with_open_ends() -> None:
    stretches = at(10).stretches
    assert [s.id for s in stretches] == ["edge-only", "cut-1.q4", "full-cloud.jpeg90"]
    assert stretches[0].from_mbit is None
    assert stretches[-1].to_mbit is None
    for stretch in stretches:
        low, high = stretch.from_mbit or LEAST_MBIT, stretch.to_mbit or MOST_MBIT
        assert fastest(TOY, math.sqrt(low * high), 0.010) == stretch.id


def latencies_at(flip: Flip, seen: Explanation, beyond: float) -> dict[str, float]:
    """Every placement's latency when the flip's condition is `beyond` times its value."""
    value = flip.at * beyond
    if flip.condition == "uplink_mbit":
        return latencies(TOY, value, seen.rtt_s)
    if flip.condition == "rtt_s":
        return latencies(TOY, seen.mbit, value)
    edge = value if flip.condition == "edge_factor" else 1.0
    cloud = value if flip.condition == "cloud_factor" else 1.0
    return latencies(TOY, seen.mbit, seen.rtt_s, edge, cloud)


@given(st.floats(0.1, 1000))
def test_every_flip_point_is_where_the_winner_changes(mbit: float) -> None:
    seen = at(mbit)
    assert seen.flips
    for flip in seen.flips:
        # A third one may take over right behind a flip, so it is asked who is fastest *at* it, and what changes there.
        there = latencies_at(flip, seen, 1.0)
        assert there[flip.id] == pytest.approx(there[seen.best.id]) == pytest.approx(min(there.values())), flip
        outwards = 1.0001 if flip.when == "above" else 0.9999
        beyond, before = latencies_at(flip, seen, outwards), latencies_at(flip, seen, 2 - outwards)
        assert beyond[flip.id] < beyond[seen.best.id], flip
        assert min(before, key=before.__getitem__) == seen.best.id, flip


def test_another_slow_down_of_the_device_rescales_head_and_encoding_exactly() -> None:
    halved = at(10, edge_slowdown=4.0)
    for ranked in halved.ranking:
        declared = next(p.cost for p in TOY.placements if p.id == ranked.id)
        assert ranked.cost.edge_s == pytest.approx(declared.edge_s / 2)
        assert ranked.cost.encode_s == pytest.approx(declared.encode_s / 2)
        assert ranked.cost.tail_s == declared.tail_s
    assert (halved.edge_slowdown, halved.declared_slowdown) == (4.0, 8.0)


def test_a_busy_gateway_and_another_round_trip_count() -> None:
    assert at(10, cloud_load=0.5).best.stages.cloud_s == pytest.approx(2 * at(10).best.stages.cloud_s)
    assert at(10, rtt_s=0.0).best.stages.round_trip_s == 0.0
    assert at(10, rtt_s=0.05).best.id == "edge-only"


def test_a_quantile_counts_the_machines_spread() -> None:
    cost = PlacementCost(edge_s=0.060, edge_spread=0.5)
    seen = explain(manifest([manifests.entry("edge-only", cost)]), Question(10, quantile=0.95))
    assert seen.best.total_s == pytest.approx(0.090)


def test_no_reason_against_splitting_where_a_cut_wins() -> None:
    assert at(10).no_split is None


def test_where_another_placement_wins_the_nearest_cut_and_its_burden_are_named() -> None:
    found = at(1).no_split
    assert found is not None
    assert (found.anywhere, found.nearest, found.against, found.blame) == (False, "cut-1.q4", "edge-only", "upload")
    assert found.behind_s == pytest.approx(0.0133, abs=1e-4)
    assert found.shrink is not None
    smaller = manifests.cut("cut-1.q4", 0.012, 5000 / found.shrink, 0.009)
    link = link_of(1, 0.010)
    # Up to the few bytes that come back.
    assert latency_s(smaller.cost, link) == pytest.approx(at(1).best.total_s)


def test_where_no_cut_wins_anywhere_it_is_looked_for_where_it_comes_closest() -> None:
    found = at(50, NO_GOOD_CUT).no_split
    assert found is not None
    assert found.anywhere
    assert found.nearest == "cut-2"

    def ratio(mbit: float) -> float:
        totals = {r.id: r.total_s for r in at(mbit, NO_GOOD_CUT).ranking}
        return totals["cut-2"] / min(totals.values())

    grid = [LEAST_MBIT * (MOST_MBIT / LEAST_MBIT) ** (i / 400) for i in range(401)]
    assert found.ratio <= min(ratio(m) for m in grid) + 1e-9
    assert found.ratio == pytest.approx(ratio(found.mbit))


def test_what_no_codec_could_mend_has_no_shrink() -> None:
    found = at(100).no_split
    assert found is not None
    assert found.blame == "device"
    assert found.shrink is None


def test_cuts_that_were_measured_but_not_kept_are_remembered() -> None:
    cost = PlacementCost(edge_s=0.030, up_nbytes=20_000, tail_s=0.010)
    larger = msgspec.structs.replace(cost, up_nbytes=90_000)
    measured = (Measured(("block_2",), 0.3, "int8", "q4", cost), Measured(("block_2",), 0.3, "int8", "", larger))
    bare = msgspec.structs.replace(without(NO_GOOD_CUT, "cut-2"), measured=measured)
    found = at(10, bare).no_split
    assert found is not None
    assert (found.nearest, found.crossing) == ("block_2 as q4", ("block_2",))


def test_a_bundle_without_any_cut_says_so() -> None:
    bare = without(NO_GOOD_CUT, "cut-2")
    found = at(10, bare).no_split
    assert found is not None
    assert found.nearest is None
    assert "holds no cut" in text(at(10, bare))
    noted = msgspec.structs.replace(bare, notes=("do not split: the nearest loses by far",))
    assert "(do not split: the nearest loses by far)" in text(at(10, noted))


def test_one_placement_alone_is_explained() -> None:
    alone = manifest([manifests.edge_only()])
    seen = at(10, alone)
    assert (seen.runner_up, seen.flips) == (None, ())
    assert "no other placement" in text(seen)
    assert "Whatever the bandwidth, edge-only is best." in text(seen)


@pytest.mark.parametrize(
    "question",
    [
        Question(0.0),
        Question(math.nan),
        Question(math.inf),
        Question(1.0, rtt_s=-0.1),
        Question(1.0, edge_slowdown=0.0),
        Question(1.0, cloud_load=1.0),
        Question(1.0, quantile=0.0),
    ],
)
def test_conditions_that_no_link_or_machine_has_are_refused(question: Question) -> None:
    with pytest.raises(InputError) as caught:
        explain(TOY, question)
    assert caught.value.remedy


def test_an_explanation_is_one_json_document() -> None:
    document = msgspec.json.decode(msgspec.json.encode(at(10)))
    assert document["best"]["id"] == "cut-1.q4"
    assert document["stretches"][0] == {"id": "edge-only", "from_mbit": None, "to_mbit": at(10).stretches[0].to_mbit}


@given(st.floats(0.06, 5000), st.floats(0, 0.2), st.floats(0.5, 100))
def test_whatever_the_conditions_every_fact_is_finite_and_said(mbit: float, rtt_s: float, slowdown: float) -> None:
    for of in (TOY, NO_GOOD_CUT):
        seen = at(mbit, of, rtt_s=rtt_s, edge_slowdown=slowdown)
        assert all(r.ratio >= 1 - 1e-12 and math.isfinite(r.total_s) for r in seen.ranking)
        assert seen.no_split is None or seen.no_split.ratio >= 1 - 1e-12
        assert (seen.best.kind is PlacementKind.CUT) == (seen.no_split is None)
        assert "nan" not in text(seen)
        assert "inf " not in text(seen)


def test_stages_of_a_placement_that_sends_nothing_are_the_devices_alone() -> None:
    stages = stages_of(PlacementCost(edge_s=0.1, encode_s=0.01), link_of(1, 0.5))
    assert stages.named() == {
        "device": 0.1, "encoding": 0.01, "upload": 0, "round trip": 0, "cloud": 0, "download": 0
    }  # fmt: skip


# ---- the words ------------------------------------------------------------------------------------------------------


def test_the_sentences_say_where_time_goes_who_is_next_and_what_would_change_it() -> None:
    said = sentences(at(10))
    assert said[0].startswith("At 10 Mbit/s (10 ms round trip, a device 8 times slower")
    assert (
        "cut-1.q4 (relu_3) is best: 36.6 ms = device 12 + encoding 1 + upload 4 + round trip 10 + cloud 9.5." in said[0]
    )
    assert "full-cloud.jpeg90, is 11 ms slower (1.30 times as long), because it spends 20 ms more sending" in said[1]
    for part in ("below 1.48 Mbit/s (edge-only)", "above 22.2 Mbit/s (full-cloud.jpeg90)", "the round trip rose above"):
        assert part in said[2]
    assert (
        said[3]
        == "Over all bandwidths: edge-only up to 1.48 Mbit/s, cut-1.q4 up to 22.2, full-cloud.jpeg90 above that."
    )
    assert "accuracy 0.9750 (whole model 0.9800" in said[4]


def test_do_not_split_comes_with_its_because() -> None:
    here = text(at(1))
    assert "because the nearest of 2 cuts measured, cut-1.q4 (relu_3), takes 1.22 times as long as edge-only" in here
    assert "40 ms more sending" in here
    assert "payload were 1.5 times smaller" in here
    assert "no codec could make up for that" in text(at(100))
    alone = text(at(10, NO_GOOD_CUT))
    assert "Do not split at any bandwidth, because the only cut that was measured, cut-2 (" in alone
    assert "--budget-s" not in alone


def test_a_search_that_ended_early_is_no_proof_that_nothing_splits() -> None:
    explorer = cast(
        "Explorer", SimpleNamespace(stable=False, rounds=1, gap=0.0, min_cuts=7, segments={1: 2}, problems={})
    )
    note = summary(explorer, 9.0, 5.0)
    assert note == "solved exactly once (7 min-cuts), measured 1 cut, stopped before it was stable; 9 s of 5 s"
    early = msgspec.structs.replace(NO_GOOD_CUT, notes=(note,))
    assert "The search ended before it was stable: a larger --budget-s may find a better cut." in text(at(10, early))


def test_what_is_spent_in_one_place_alone_is_said_in_words() -> None:
    assert sentences(at(1))[0].endswith("edge-only is best: 60 ms, all of it on the device.")
    assert "times slower than assumed (cut-1.q4)" in text(at(1))


def test_a_tie_is_called_a_tie() -> None:
    twin = manifest([*TOY.placements, manifests.cut("cut-9", 0.012, 5_000, 0.009)])
    assert "is as good" in text(at(10, twin))


def test_the_headline_is_an_instruction() -> None:
    assert headline(at(10)) == "Split at relu_3, 36.6 ms at 10 Mbit/s"
    assert headline(at(1)).startswith("Do not split: stay on the device")
    assert headline(at(100)).startswith("Do not split: send the input")


def test_numbers_have_three_digits_and_no_exponent() -> None:
    assert [number(v) for v in (0, 0.004, 0.123, 4.567, 98.14, 12345.6)] == ["0", "0", "0.12", "4.57", "98.1", "12,346"]
