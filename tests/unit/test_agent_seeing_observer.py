"""The observer: one call for each request, one look for whoever asks, and a log of what changes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from edge_agent.seeing.observer import Observer
from edge_agent.seeing.standing import AgentStanding
from protocol.seeing.flood import BURST
from protocol.seeing.logs import Logs
from tests import agent_scenes
from tests.agent_scenes import LOST, answer, refusal
from tests.waiting import until


class Stage:
    """An observer with a log in memory and a standing that tests change."""

    def __init__(self, level: str = "info") -> None:
        self.stream = io.StringIO()
        self.logs = Logs(stream=self.stream, level=level)
        self.standing = agent_scenes.standing()
        self.now = 0.0
        self.looks = 0
        self.observer = Observer(self.look, logs=self.logs, clock=lambda: self.now, look_every_s=0.001)

    def look(self) -> AgentStanding:
        self.looks += 1
        return self.standing

    def lines(self) -> list[dict[str, Any]]:
        self.observer.close()
        self.logs.close()
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def names(self) -> list[str]:
        return [line["event"] for line in self.lines()]


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.observer.close()
    made.logs.close()


def test_one_call_reaches_account_and_log(stage: Stage) -> None:
    stage.observer.look()
    stage.observer.observe(answer(), budget_s=0.1)
    stage.observer.observe(refusal(7), budget_s=0.1)
    total = stage.observer.scene().snapshot.total.counters
    assert (total.answered, total.refused) == (1, {"DEADLINE": 1})
    refused = stage.lines()[-1]
    assert (refused["event"], refused["request"], refused["code"]) == ("refused", f"{'ab' * 8}-7", "DEADLINE")


def test_an_answer_is_held_against_what_was_planned_for_it(stage: Stage) -> None:
    stage.observer.look()
    stage.observer.observe(replace(answer(total_s=0.02), predicted_s=0.018), budget_s=0.1)
    stage.observer.observe(answer(total_s=0.5, degraded=(LOST,)), budget_s=1.0)
    counters = stage.observer.scene().snapshot.total.counters
    assert (counters.predicted, counters.predicted_s) == (1, 0.018), "no plan has a detour in it"


def test_answers_are_labelled_with_the_bundle_that_is_looked_at(stage: Stage) -> None:
    stage.observer.look()
    stage.observer.observe(answer(), budget_s=0.1)
    (scope,) = (figures.scope for figures in stage.observer.scene().snapshot.scopes)
    assert (scope.model, scope.version, scope.placement) == ("digits", "3", "cut-1")


def test_a_stream_of_refusals_is_a_few_lines_and_a_count(stage: Stage) -> None:
    for number in range(1000):
        stage.observer.observe(refusal(number), budget_s=0.1)
    names = stage.names()
    assert names.count("refused") == BURST
    assert names[-1] == "held_back"


def test_answers_are_told_at_level_debug_alone_and_never_what_is_in_them() -> None:
    for level, wanted in (("info", []), ("debug", ["answered"])):
        stage = Stage(level)
        stage.observer.observe(answer(), budget_s=0.1)
        assert stage.names() == wanted
        assert "logits" not in stage.stream.getvalue()


def test_what_changes_is_told_by_itself_once_it_is_started(stage: Stage) -> None:
    stage.observer.start()
    until(lambda: stage.looks > 3, what="it looks again and again", within_s=30)
    stage.standing = replace(stage.standing, placement="edge-only", why="the link is lost")
    seen = stage.looks
    until(lambda: stage.looks > seen + 1, what="it looks once more", within_s=30)
    placements = [line for line in stage.lines() if line["event"] == "placement"]
    assert [line["placement"] for line in placements] == ["cut-1", "edge-only"]
    assert placements[1]["was"] == "cut-1"


def test_a_look_that_fails_is_told_and_the_next_one_is_taken(stage: Stage) -> None:
    def fail() -> AgentStanding:
        stage.looks += 1
        raise LookupError("the board is on fire")

    observer = Observer(fail, logs=stage.logs, look_every_s=0.001)
    observer.start()
    until(lambda: stage.looks > 2, what="it looks in spite of that", within_s=30)
    observer.close()
    told = stage.lines()
    assert told[0]["event"] == "look_failed"
    assert told[0]["reason"] == "LookupError: the board is on fire"


def test_views_show_the_same_look_to_all(stage: Stage) -> None:
    kind, page = stage.observer.views.metrics_text()
    status = msgspec.json.decode(stage.observer.views.status_json())
    assert kind.startswith("text/plain")
    assert b'isthmus_agent_placement_current{placement="cut-1"} 1' in page
    assert status["now"]["placement"] == "cut-1"
    assert stage.looks == 1
    assert stage.observer.views.page()[0].startswith(b"<!doctype html>")


def test_without_a_log_it_only_counts() -> None:
    observer = Observer(agent_scenes.standing)
    observer.observe(refusal(), budget_s=0.1)
    observer.look()
    observer.close()
    assert observer.scene().snapshot.total.counters.refusals == 1
