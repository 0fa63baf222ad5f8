"""An explanation in sentences: the most important first, every placement named, numbers that are the planner's."""

from __future__ import annotations

import json

from edge_agent import explaining
from protocol.control.demand import Demand
from protocol.control.explanation import Explanation
from protocol.control.objectives import Objective
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost

ALL = (
    Candidate("edge-only", PlacementCost(edge_s=0.100)),
    Candidate("cut-1", PlacementCost(edge_s=0.030, encode_s=0.002, up_nbytes=10_000, tail_s=0.010, down_nbytes=100)),
    Candidate("full-cloud", PlacementCost(encode_s=0.001, up_nbytes=150_000, tail_s=0.015, down_nbytes=100)),
)


def link(mbit: float, queue_s: float = 0.0, doubt: float | None = 0.0) -> LinkState:
    rate = mbit * 1e6 / 8
    return LinkState(rate, 0.02, rate, queue_s, doubt=doubt)


def said(seen: Explanation) -> str:
    return "\n".join(explaining.sentences(seen))


def placed(mbit: float = 10, objective: str = "latency") -> Planner:
    planner = Planner(ALL, Objective.parse(objective))
    planner.decide(link(mbit), {})
    return planner


def test_it_begins_with_where_the_next_request_runs_and_names_every_other_one() -> None:
    text = said(placed().explain(link(10), {}))
    assert text.startswith("The next request runs as cut-1: 70.1 ms = device 30 + encoding 2 + upload 8")
    assert "Edge-only is 29.9 ms slower, because it spends 70 ms more on the device" in text
    assert "Full-cloud is" in text
    assert "Another would be best below 2.13 Mbit/s (edge-only)" in text


def test_what_cannot_be_used_is_said_with_its_reason() -> None:
    text = said(placed().explain(link(10), {"cut-1": "its head failed"}))
    assert "runs as edge-only" in text
    assert "Cut-1 is planned, but its head failed." in text
    alone = said(placed().explain(link(10), {c.id: "the link is lost" for c in ALL if c.id != "edge-only"}))
    assert alone.endswith("Nothing changes that while the others cannot be used.")
    everything = placed().explain(link(10), {c.id: "the link is down" for c in ALL})
    assert said(everything).startswith("No placement can be used now: the link is down.")
    assert explaining.summary(everything) == "no placement can be used now"


def test_queues_doubt_and_rate_are_said() -> None:
    seen = placed().explain(link(10, queue_s=0.003, doubt=0.05), {}, demand=Demand(12.0, 0.0, 0.04, 0.0))
    text = said(seen)
    assert "and 40 ms in the device's own queues" in text
    assert "the rate is known within 10 %" in text
    assert "3 ms of waiting at the gateway" in text
    assert "12 requests per second" in text
    assert "Edge-only cannot keep up: it would be busy 120% of the time." in text
    assert "which is less than the" in said(placed().explain(link(1.9, doubt=0.2), {}))


def test_an_assumed_link_and_a_slow_device_are_no_secret() -> None:
    planner = Planner(ALL)
    planner.observe_edge("edge-only", 0.25)
    text = said(planner.explain(None, {}))
    assert text.startswith("Nothing was asked yet.")
    assert "no link was measured yet, 10 Mbit/s up, 30 ms round trip are assumed" in text
    assert "a device 2.50 times as slow as planned" in text


def test_another_objective_is_named_where_it_decides_against_the_faster_one() -> None:
    text = said(placed(20, "bytes=10/MB").explain(link(20), {}))
    assert "runs as edge-only" in text
    assert "weighed by bytes=10/MB" in text
    assert "faster, but worse when weighed by bytes=10/MB" in text


def test_the_document_is_json_and_reads_back_as_the_same_facts() -> None:
    seen = placed().explain(link(10), {"full-cloud": "not held"})
    found = json.loads(json.dumps(explaining.document(seen)))
    assert found["schema"] == explaining.SCHEMA
    assert found["sentences"] == explaining.sentences(seen)
    assert explaining.read(found) == seen
    assert explaining.summary(seen) == "cut-1, 70.1 ms; full-cloud cannot be used"
