"""Placements that differ only in the codec: they share head and tail, and so what breaks one breaks its siblings."""

from __future__ import annotations

from edge_agent.flights import Prepare, Row, Send
from edge_agent.ladder import Ladder
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
