"""Requests of several rows: what they cost is predicted by the row, and teaches only what a row costs."""

from __future__ import annotations

import msgspec
import pytest

from protocol.control.flights import Finish, Prepare, Row, Send
from protocol.control.ladder import Ladder
from protocol.control.objectives import Objective
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost, latency_s
from protocol.messages import PlacementKind

EDGE = Candidate("edge", PlacementCost(edge_s=0.100, energy_j=0.5), "whole")
CUT = Candidate(
    "cut", PlacementCost(edge_s=0.030, up_nbytes=10_000, tail_s=0.010, down_nbytes=100, energy_j=0.2), "head", "tail"
)
LINK = LinkState(uplink_bytes_per_s=1e6, rtt_s=0.2, downlink_bytes_per_s=1e6)
ROWS = 64


def of_many(cost: PlacementCost) -> PlacementCost:
    """What ROWS rows cost at once."""
    return msgspec.structs.replace(
        cost,
        edge_s=ROWS * cost.edge_s,
        up_nbytes=ROWS * cost.up_nbytes,
        tail_s=ROWS * cost.tail_s,
        down_nbytes=ROWS * cost.down_nbytes,
    )


def test_every_row_is_paid_for_and_the_round_trip_once() -> None:
    many = Planner((EDGE, CUT)).predict(LINK, rows=ROWS)
    assert many == pytest.approx({c.id: latency_s(of_many(c.cost), LINK) for c in (EDGE, CUT)})


def test_what_is_best_for_one_row_may_not_be_for_many() -> None:
    planner = Planner((EDGE, CUT))
    one, many = planner.decide(LINK, {}), planner.decide(LINK, {}, rows=ROWS)
    assert one is not None
    assert many is not None
    assert (one.id, many.id) == ("edge", "cut"), "many rows share one round trip"
    assert many.predicted_s == pytest.approx(latency_s(of_many(CUT.cost), LINK))


def test_other_objectives_weigh_every_row_too() -> None:
    weights = Objective.parse("energy=1")
    planner = Planner((EDGE, CUT), weights)
    decision = planner.decide(LINK, {}, rows=ROWS)
    assert decision is not None
    assert decision.id == "cut"
    assert planner.learned.all()["edge"].times(ROWS).cost.energy_j == pytest.approx(ROWS * 0.5)
    unknown = Planner([Candidate("free", PlacementCost(edge_s=0.1))]).learned.all()["free"]
    assert unknown.times(ROWS).cost.energy_j is None


def test_a_large_request_teaches_what_a_row_costs() -> None:
    planner = Planner((EDGE, CUT))
    before = planner.predict(LINK)
    planner.observe_edge("edge", ROWS * 0.100, ROWS)
    planner.observe_edge("cut", ROWS * 0.030, ROWS)
    planner.observe_nbytes("cut", ROWS * 10_000, ROWS)
    planner.observe_tail("cut", ROWS * 0.010, "", ROWS)
    assert planner.predict(LINK) == pytest.approx(before)
    assert planner.learned.device_factor == pytest.approx(1.0)


def test_the_ladder_gives_a_large_request_the_time_of_all_its_rows_and_learns_by_the_row() -> None:
    cut, edge = b"c" * 32, None
    ladder = Ladder(
        [Row("cut", PlacementKind.CUT, cut, "head", "tail"), Row("edge", PlacementKind.EDGE_ONLY, edge, "whole")],
        Planner((EDGE, CUT)),
    )
    ladder.link_measured(LINK)
    ladder.link_up(held=frozenset({cut}), credit_requests=8, credit_nbytes=10**9, now=0.0)
    assert ladder.submitted(1, 60.0, rows=ROWS, now=0.0) == [Prepare(1, "cut")]
    head_s = ROWS * 0.030
    (sent,) = ladder.prepared(1, 1, ROWS * 10_000, head_s, now=head_s)
    assert isinstance(sent, Send)
    needed_s = latency_s(of_many(CUT.cost), LINK) - head_s
    assert sent.budget_s > needed_s - LINK.rtt_s - ROWS * 0.010, "an attempt is given the time of all rows"
    flight = ladder.flights[1]
    assert flight.deadline - flight.attempt_until >= ROWS * 0.100, "and leaves edge-only the time of all rows"
    done = ladder.answered(1, 1, ROWS * 0.010, now=head_s + needed_s)
    assert [type(i) for i in done] == [Finish]
    assert ladder.planner.predict(LINK)["cut"] == pytest.approx(latency_s(CUT.cost, LINK))
    assert ladder.submitted(2, 100.0, now=50.0) == [Prepare(2, "edge")], "one row is still best done on the device"
    ladder.validate()
