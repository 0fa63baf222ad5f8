"""Placements that differ only in the codec: they share head and tail, and so what breaks one breaks its siblings."""

from __future__ import annotations

from protocol.control.flights import Finish, Prepare, RefusalCode, Row, Send
from protocol.control.ladder import Ladder
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost
from protocol.messages import PlacementKind, RejectCode

MODEL = b"m" * 32
ROWS = [
    Row("cut", PlacementKind.CUT, b"1" * 32, "cut/head.onnx", "cut/tail.onnx"),
    Row("cut.q4", PlacementKind.CUT, b"2" * 32, "cut/head.onnx", "cut/tail.onnx"),
    Row("cloud", PlacementKind.FULL_CLOUD, MODEL, None, "full.onnx"),
    Row("cloud.jpeg90", PlacementKind.FULL_CLOUD, MODEL, None, "full.onnx"),
    Row("edge", PlacementKind.EDGE_ONLY, None, "edge.onnx", None),
]
COSTS = {
    "cut": PlacementCost(edge_s=0.004, up_nbytes=10_000, tail_s=0.001),
    "cut.q4": PlacementCost(edge_s=0.004, up_nbytes=5_000, tail_s=0.001),
    "cloud": PlacementCost(up_nbytes=90_000, tail_s=0.001),
    "cloud.jpeg90": PlacementCost(up_nbytes=40_000, tail_s=0.001),
    "edge": PlacementCost(edge_s=0.300),
}


def ladder() -> Ladder:
    made = Ladder(ROWS, Planner([Candidate(id_, cost) for id_, cost in COSTS.items()]))
    made.link_measured(LinkState(uplink_bytes_per_s=1e6, rtt_s=0.01))
    held = frozenset(row.segment for row in ROWS if row.segment)
    made.link_up(held=held, credit_requests=8, credit_nbytes=10**6, now=0.0)
    return made


def test_a_failed_head_goes_full_cloud_under_the_codec_that_is_predicted_best() -> None:
    made = ladder()
    assert made.submitted(1, 1.0, now=0.0) == [Prepare(1, "cut.q4")]
    assert made.preparation_failed(1, 1, "broke", now=0.0) == [Prepare(1, "cloud.jpeg90")]


def test_a_head_that_keeps_failing_is_avoided_under_every_codec() -> None:
    made = ladder()
    for seq in range(3):
        made.submitted(seq, 9.0, now=0.0)
        made.preparation_failed(seq, 1, "broke", now=0.0)
    assert {"cut", "cut.q4"} <= made.unavailable(now=0.0).keys()
    assert made.submitted(9, 9.0, now=0.0) == [Prepare(9, "cloud.jpeg90")]


def test_a_tail_that_keeps_failing_is_avoided_under_every_codec() -> None:
    made = ladder()
    for seq in range(3):
        (chosen,) = made.submitted(seq, 9.0, now=0.0)
        assert isinstance(chosen, Prepare)
        (sent,) = made.prepared(seq, 1, 5_000, COSTS[chosen.placement].edge_s, now=0.0)
        assert isinstance(sent, Send)
        made.rejected(seq, 1, RejectCode.INTERNAL, "engine", 0.0, now=0.0)
    assert {"cut", "cut.q4"} <= made.unavailable(now=0.0).keys()
    assert "cloud" not in made.unavailable(now=0.0)


def test_a_model_that_the_gateway_does_not_know_is_unknown_under_every_codec() -> None:
    made = ladder()
    made.submitted(1, 9.0, now=0.0)
    made.preparation_failed(1, 1, "broke", now=0.0)
    made.prepared(1, 2, 40_000, 0.0, now=0.0)
    made.rejected(1, 1, RejectCode.UNKNOWN_SEGMENT, "never heard of it", 0.0, now=0.0)
    assert {"cloud", "cloud.jpeg90"} <= made.unavailable(now=0.0).keys()


def test_a_codec_that_the_gateway_cannot_read_gives_way_to_another_and_is_not_sent_again() -> None:
    made = Ladder(ROWS[2:4], Planner([Candidate(r.id, COSTS[r.id]) for r in ROWS[2:4]]))  # nothing on the device
    made.link_measured(LinkState(uplink_bytes_per_s=1e6, rtt_s=0.01))
    made.link_up(held=frozenset({MODEL}), credit_requests=8, credit_nbytes=10**6, now=0.0)
    assert made.submitted(1, 9.0, now=0.0) == [Prepare(1, "cloud.jpeg90")]
    made.prepared(1, 1, 40_000, 0.0, now=0.0)
    assert made.rejected(1, 1, RejectCode.BAD_REQUEST, "no Pillow", 0.0, now=0.0)[-1] == Prepare(1, "cloud")
    assert made.prepared(1, 2, 90_000, 0.0, now=0.0) == []  # a moment's pause between two attempts
    (sent,) = made.tick(now=0.1)
    assert isinstance(sent, Send)
    (end,) = made.answered(1, sent.attempt, 0.001, now=0.2)
    assert isinstance(end, Finish)
    assert (end.placement, end.code) == ("cloud", None)
    assert made.submitted(2, 9.0, now=0.3) == [Prepare(2, "cloud")]
    made.link_up(held=frozenset({MODEL}), credit_requests=8, credit_nbytes=10**6, now=0.4)
    assert made.submitted(3, 9.0, now=0.4) == [Prepare(3, "cloud.jpeg90")], "another gateway may read it"


def test_a_request_that_no_codec_makes_acceptable_is_refused_and_blames_none_of_them() -> None:
    made = Ladder(ROWS[2:4], Planner([Candidate(r.id, COSTS[r.id]) for r in ROWS[2:4]]))
    made.link_up(held=frozenset({MODEL}), credit_requests=8, credit_nbytes=10**6, now=0.0)
    made.submitted(1, 9.0, now=0.0)
    made.prepared(1, 1, 40_000, 0.0, now=0.0)
    made.rejected(1, 1, RejectCode.BAD_REQUEST, "its shape", 0.0, now=0.0)
    made.prepared(1, 2, 90_000, 0.0, now=0.0)
    made.tick(now=0.1)
    (end,) = made.rejected(1, 2, RejectCode.BAD_REQUEST, "its shape", 0.0, now=0.2)
    assert isinstance(end, Finish)
    assert end.code is RefusalCode.BAD_REQUEST
    assert made.unavailable(now=0.2) == {}


def test_a_request_on_which_a_tail_or_a_head_failed_is_not_tried_under_each_codec_in_turn() -> None:
    rows = ROWS[:2]
    for fail in ("head", "tail"):
        made = Ladder(rows, Planner([Candidate(r.id, COSTS[r.id]) for r in rows]))
        held = frozenset(row.segment for row in rows if row.segment)
        made.link_up(held=held, credit_requests=8, credit_nbytes=10**6, now=0.0)
        made.submitted(1, 9.0, now=0.0)
        if fail == "head":
            (end,) = made.preparation_failed(1, 1, "broke", now=0.0)
        else:
            made.prepared(1, 1, 5_000, 0.0, now=0.0)
            (end,) = made.rejected(1, 1, RejectCode.INTERNAL, "engine", 0.0, now=0.0)
        assert isinstance(end, Finish)
        assert end.code is RefusalCode.NO_PLACEMENT
