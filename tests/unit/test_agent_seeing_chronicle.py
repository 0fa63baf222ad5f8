"""Lines of the log: one for each change, none for what stays as it is."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.seeing.chronicle import CALM_S, Chronicle, Line
from edge_agent.seeing.standing import AgentStanding, BundleStanding, GatewayStanding
from tests.agent_scenes import LOST, answer, refusal

UP = GatewayStanding("a", "ready", True, rtt_s=0.005)
DOWN = GatewayStanding("a", "disconnected", False, reason="no gateway answers")
STANDING = AgentStanding(ready=True, placement="cut-1", kind="cut", why="it is fastest", gateways=(UP,))


def names(lines: list[Line]) -> list[str]:
    return [line.event for line in lines]


def test_the_first_look_tells_where_things_stand() -> None:
    lines = Chronicle().looked(STANDING)
    assert lines == [
        Line("info", "placement", {"placement": "cut-1", "why": "it is fastest"}),
        Line("info", "gateway_found", {"gateway": "a", "rtt_ms": 5.0}),
    ]


def test_what_stays_as_it_is_is_not_told_again() -> None:
    chronicle = Chronicle()
    chronicle.looked(STANDING)
    other = replace(STANDING, pending=7, why="it is still fastest", gateways=(replace(UP, rtt_s=0.009),))
    assert chronicle.looked(other) == []


def test_a_new_placement_is_told_with_the_one_before() -> None:
    chronicle = Chronicle()
    chronicle.looked(STANDING)
    (line,) = chronicle.looked(replace(STANDING, placement="edge-only", kind="edge-only", why="the link is slow"))
    assert line == Line("info", "placement", {"placement": "edge-only", "why": "the link is slow", "was": "cut-1"})


def test_a_link_is_lost_and_found_once_each() -> None:
    chronicle = Chronicle()
    looks = [STANDING, *[replace(STANDING, gateways=(DOWN,))] * 3, STANDING, STANDING]
    told = [line for look in looks for line in chronicle.looked(look)]
    assert names(told) == ["placement", "gateway_found", "gateway_lost", "gateway_found"]
    assert told[2] == Line(
        "warning", "gateway_lost", {"gateway": "a", "link": "disconnected", "reason": "no gateway answers"}
    )


def test_a_gateway_that_was_never_there_is_not_lost() -> None:
    assert names(Chronicle().looked(replace(STANDING, gateways=(DOWN,)))) == ["placement"]


def test_a_gateway_that_is_named_no_more_is_told() -> None:
    chronicle = Chronicle()
    chronicle.looked(STANDING)
    assert names(chronicle.looked(replace(STANDING, gateways=()))) == ["gateway_forgotten"]


def test_readiness_is_told_with_its_reason() -> None:
    chronicle = Chronicle()
    (line,) = chronicle.looked(AgentStanding(ready=False, reason="starting"))
    assert line == Line("warning", "unready", {"reason": "starting"})
    assert names(chronicle.looked(AgentStanding(ready=True))) == ["ready"]


def test_another_bundle_is_told_by_its_digest() -> None:
    chronicle = Chronicle()
    chronicle.looked(replace(STANDING, bundle=BundleStanding("digits", "3", "a" * 64)))
    (line,) = chronicle.looked(replace(STANDING, bundle=BundleStanding("digits", "4", "b" * 64)))
    assert line.event == "bundle"
    assert line.fields == {"model": "digits", "version": "4", "digest": "b" * 12, "was": "a" * 12}


def test_a_bad_second_is_one_line_at_its_beginning_and_one_at_its_end() -> None:
    chronicle = Chronicle()
    told = []
    for i in range(60):
        outcome = answer(i, kind="edge-only", degraded=(LOST,)) if 10 <= i < 30 and i % 3 else answer(i)
        told += chronicle.finished(outcome, budget_s=0.1, now=i / 10)
    assert names(told) == ["degraded_begins", "degraded_ends"]
    begins, ends = told
    assert (begins.fields["cause"], begins.fields["request"]) == ("link", f"{'ab' * 8}-10")
    assert (ends.fields["answers"], ends.fields["lasted_s"]) == (14, 1.9)


def test_a_degradation_does_not_end_before_it_has_been_calm_for_a_while() -> None:
    chronicle = Chronicle()
    chronicle.finished(answer(degraded=(LOST,)), budget_s=0.1, now=0.0)
    assert chronicle.finished(answer(), budget_s=0.1, now=CALM_S - 0.01) == []
    assert names(chronicle.finished(answer(), budget_s=0.1, now=CALM_S)) == ["degraded_ends"]


def test_a_refusal_is_told_with_its_request_and_what_it_left() -> None:
    (line,) = Chronicle().finished(refusal(7, slack_s=0.0301), budget_s=0.1, now=0.0)
    assert (line.level, line.event) == ("warning", "refused")
    assert (line.fields["request"], line.fields["slack_ms"], line.fields["budget_ms"]) == (f"{'ab' * 8}-7", 30.1, 100.0)
