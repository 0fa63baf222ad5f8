"""One look: an agent's view, its board and its store in words that page, metrics and log share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.bundles.record import Record, Step, UpdateView
from edge_agent.device.board import look as look_at_board
from edge_agent.seeing.sight import BOARD_EVERY_S, Sight, in_use, why
from edge_agent.seeing.standing import BoardStanding
from edge_agent.seeing.surroundings import board_standing, bundle_standing, read_store
from edge_agent.store.journal import Journal
from edge_agent.store.tickets import Wish
from edge_agent.view import AgentView, GatewayView
from protocol.bundle import Bundle
from protocol.control.planner import Candidate, Planner
from protocol.errors import NetworkError
from protocol.latency import LinkState, PlacementCost
from tests.agent_scenes import answer

LINK = LinkState(uplink_bytes_per_s=2e6, rtt_s=0.005, downlink_bytes_per_s=3e6)
UP = GatewayView(
    name="a", endpoint="tcp://127.0.0.1:1", state="ready", reason="", in_use=True, encrypted=False, rank=0, epoch="ab",
    link=LINK, wait_s=0.006, in_flight=2, in_flight_nbytes=900, credit_requests=8, credit_nbytes=10**6,
    breaker="closed", tails={}, broken={}, heard_s=0.1,
)  # fmt: skip
DOWN = replace(UP, state="disconnected", reason="no gateway answers", in_use=False, link=None, wait_s=None)
VIEW = AgentView(
    at=1.0,
    gateways=(UP,),
    placement="cut-1",
    predicted_s={"full-cloud": 0.06, "cut-1": 0.02, "cut-2": 0.0199, "edge-only": 0.045},
    unavailable={},
    pending=3,
    in_flight=2,
    waiting=0,
    counters={"sent": 9},
    edge_factor=1.5,
    switches=2,
)
EVERYTHING = dict.fromkeys(("full-cloud", "cut-1", "cut-2"), "no gateway answers")


class Watched:
    """An agent that stands as it is told to."""

    serves_alone = True

    def __init__(self, bundle: Bundle, view: AgentView = VIEW) -> None:
        self.bundle = bundle
        self.view = view

    def look(self, timeout_s: float = 1.0, *, explain: bool = False) -> AgentView:
        return self.view


@pytest.fixture
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


def test_a_look_tells_everything_of_an_agent_that_is_well(bundle: Bundle) -> None:
    seen = Sight(lambda: Watched(bundle), events=lambda: {"bundles_switched": 1})()
    assert (seen.ready, seen.reason, seen.placement, seen.kind, seen.degraded) == (True, "", "cut-1", "cut", "")
    assert seen.why == "It is predicted to take 20 ms; the next best, cut-2, would take 19.9 ms."
    assert [(p.id, p.predicted_s) for p in seen.placements if p.id.startswith("cut")] == [
        ("cut-1", 0.02), ("cut-2", 0.0199),
    ]  # fmt: skip
    (gateway,) = seen.gateways
    assert (gateway.ready, gateway.rtt_s, gateway.uplink_bytes_per_s, gateway.in_flight) == (True, 0.005, 2e6, 2)
    assert seen.events == {"sent": 9, "placement_switches": 2, "bundles_switched": 1}
    assert (seen.pending, seen.edge_factor, seen.bundle.digest) == (3, 1.5, bundle.digest)


@pytest.mark.parametrize(
    ("change", "using", "degraded"),
    [
        ({}, "cut-1", ""),
        ({"unavailable": {"cut-2": "its head is broken"}}, "cut-1", ""),
        ({"unavailable": {"cut-1": "its head is broken"}}, "cut-2", "cut-1: its head is broken"),
        ({"unavailable": EVERYTHING}, "edge-only", "cut-1: no gateway answers"),
        ({"placement": None}, "cut-2", ""),
        ({"unavailable": {**EVERYTHING, "edge-only": "it does not load"}}, "", "no gateway answers"),
        ({"placement": None, "predicted_s": {}}, "", ""),
    ],
)
def test_what_is_in_use_is_what_the_next_request_gets(change: dict[str, object], using: str, degraded: str) -> None:
    assert in_use(replace(VIEW, **change)) == (using, degraded)  # type: ignore[arg-type]


def test_why_names_the_rival() -> None:
    assert why(replace(VIEW, predicted_s={"cut-1": 0.05, "edge-only": 0.048}), "cut-1") == (
        "It is predicted to take 50 ms; edge-only with 48 ms is not clearly better."
    )
    alone = replace(VIEW, unavailable=EVERYTHING)
    assert why(alone, "edge-only") == "It is the only placement that can be used now, predicted to take 45 ms."
    assert why(replace(VIEW, predicted_s={}), "") == "no placement can be used now"


def test_an_agent_that_cannot_answer_alone_is_not_ready_without_a_gateway(bundle: Bundle) -> None:
    watched = Watched(bundle, replace(VIEW, gateways=(DOWN,)))
    sight = Sight(lambda: watched)
    assert sight().ready
    watched.serves_alone = False
    seen = sight()
    assert (seen.ready, seen.reason) == (
        False,
        "no gateway answers, and none of the placements runs on the device alone",
    )
    watched.view = replace(VIEW, gateways=(DOWN, UP))
    assert sight().ready


def test_whoever_is_unwell_is_not_ready_whatever_its_link(bundle: Bundle) -> None:
    seen = Sight(lambda: Watched(bundle), unwell=lambda: "the known answer is late")()
    assert (seen.ready, seen.reason) == (False, "the known answer is late")


def test_an_agent_that_is_not_there_or_does_not_say_is_not_ready(bundle: Bundle) -> None:
    class Mute(Watched):
        def look(self, timeout_s: float = 1.0, *, explain: bool = False) -> AgentView:
            raise NetworkError("the agent's socket thread has not answered for 1 s", "")

    assert Sight(lambda: None)().reason == "no agent runs yet"
    assert "has not answered for 1 s" in Sight(lambda: Mute(bundle))().reason


def test_a_board_is_read_every_few_seconds_and_one_that_fails_is_left_out() -> None:
    clock, reads = [0.0], []

    def board() -> BoardStanding:
        reads.append(clock[0])
        if len(reads) > 1:
            raise OSError("the file system is gone")
        return BoardStanding("Orin")

    sight = Sight(lambda: None, board=board, clock=lambda: clock[0])
    assert sight().board == sight().board == BoardStanding("Orin")
    clock[0] = BOARD_EVERY_S
    assert sight().board is None
    assert reads == [0.0, BOARD_EVERY_S]


def test_the_zone_nearest_to_its_limit_stands_for_the_boards_heat(tmp_path: Path) -> None:
    for number, (name, celsius, limit) in enumerate((("cpu", 60, 99), ("pmic", 55, 60))):
        zone = tmp_path / "sys" / "class" / "thermal" / f"thermal_zone{number}"
        zone.mkdir(parents=True)
        for file, text in (("type", name), ("temp", f"{celsius}000"), ("trip_point_0_type", "critical"),
                           ("trip_point_0_temp", f"{limit}000")):  # fmt: skip
            (zone / file).write_text(text, "utf-8")
    seen = board_standing(look_at_board(tmp_path))
    assert (seen.heat, seen.celsius, seen.limit_celsius, seen.throttled) == ("pmic", 55.0, 60.0, "")
    assert board_standing(look_at_board(tmp_path / "nothing")) == BoardStanding()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "store") as journal:
        yield journal


def test_what_is_stored_is_counted(journal: Journal) -> None:
    journal.put(Wish(dict(answer().outputs), model="digits"))
    seen = read_store(journal)
    assert (seen.waiting, seen.answered) == (1, 0)
    assert seen.nbytes > 40
    assert seen.limit_nbytes == journal.caps.most_nbytes


@pytest.mark.parametrize(
    ("record", "state", "coming"),
    [
        (Record(), "", ""),
        (Record(step=Step.FETCHING, candidate="c" * 64), "", "fetching cccccccccccc, 2.5 MB fetched"),
        (Record(step=Step.VERIFYING, candidate="c" * 64), "", "verifying cccccccccccc"),
        (Record(step=Step.ON_TRIAL), "on trial", "9 of 20 good answers"),
        (Record(step=Step.REVERTED, said="it failed the known answer"), "", "it failed the known answer"),
    ],
)
def test_a_bundles_life_is_told_in_words(bundle: Bundle, record: Record, state: str, coming: str) -> None:
    trial = "9 of 20 good answers" if record.step is Step.ON_TRIAL else ""
    update = UpdateView(record, trial, 2_500_000, None, "", ())
    told = bundle_standing(bundle, update)
    assert (told.digest, told.state, told.coming) == (bundle.digest, state, coming)


def test_how_old_a_bundle_is_and_how_long_no_offer_was_heard_are_told(bundle: Bundle) -> None:
    told = bundle_standing(bundle, UpdateView(Record(), "", 0, None, "", (), unheard_s=7.5))
    assert told.unheard_s == 7.5
    assert told.built_at is not None
    built = datetime.fromtimestamp(told.built_at, UTC).isoformat(timespec="seconds")
    assert built == bundle.manifest.conditions.created_utc
    assert bundle_standing(None, UpdateView(Record(), "", 0, None, "", (), unheard_s=7.5)).unheard_s == 7.5


def test_a_bundle_that_has_run_well_is_proven(bundle: Bundle) -> None:
    update = UpdateView(Record(proven=bundle.digest), "", 0, None, "no gateway offers anything", ())
    told = bundle_standing(bundle, update)
    assert (told.state, told.coming) == ("proven", "no gateway offers anything")


def test_an_offer_that_is_refused_again_and_again_is_counted_and_its_reason_stays_in_sight(bundle: Bundle) -> None:
    record = Record(proven=bundle.digest, said="bundle 0123 was not taken: it is not signed")
    told = bundle_standing(bundle, UpdateView(record, "", 0, None, "", (), passed_over=3))
    assert (told.refused_offers, told.coming) == (3, record.said)
    assert bundle_standing(bundle, UpdateView(record, "", 0, None, "", ())).coming == ""


def explained(view: AgentView, **unavailable: str) -> AgentView:
    """The same with the planner's own reasons: a cut that is best at 20 Mbit/s."""
    costs = {
        "cut-1": PlacementCost(edge_s=0.004, up_nbytes=10_000, down_nbytes=100, tail_s=0.004),
        "full-cloud": PlacementCost(edge_s=0.0, up_nbytes=100_000, down_nbytes=100, tail_s=0.006),
        "edge-only": PlacementCost(edge_s=0.045),
    }
    planner = Planner([Candidate(id_, cost) for id_, cost in costs.items()])
    link = LinkState(uplink_bytes_per_s=2.5e6, rtt_s=0.004, downlink_bytes_per_s=2.5e6)
    planner.decide(link, unavailable)
    explanation = planner.explain(link, unavailable)
    return replace(
        view, placement=planner.current, predicted_s=dict(planner.predict(link)), unavailable=unavailable,
        explanation=explanation,
    )  # fmt: skip


def test_the_planners_own_reason_is_told_where_it_gives_one() -> None:
    view = explained(VIEW)
    told = why(view, in_use(view)[0])
    assert told.startswith(
        "It is predicted to take 16 ms; the next best, edge-only with 45 ms, spends 41 ms more on the device"
    )
    alone = explained(VIEW, **{"full-cloud": "no gateway answers", "cut-1": "no gateway answers"})
    assert why(alone, in_use(alone)[0]) == "It is the only placement that can be used now, predicted to take 45 ms."


def test_what_would_flip_it_is_told_in_words(bundle: Bundle) -> None:
    flips = Sight(lambda: Watched(bundle, explained(VIEW)))().flips
    assert any("Mbit/s (edge-only)" in flip for flip in flips)
