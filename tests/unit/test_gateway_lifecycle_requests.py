"""The life cycle when somebody asks: loads and unloads, who is answered when, and what overtakes what."""

from __future__ import annotations

import pytest

from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import (
    Loaded,
    Ref,
    State,
)
from protocol.errors import InvariantViolation
from tests.lifecycle_stage import Stage, kinds, staged


def explicit(*versions: int) -> Stage:
    stage = Stage(automatic=False)
    for version in versions:
        stage.put(version)
    stage.scan()
    return stage


def test_in_explicit_mode_nothing_is_loaded_before_it_is_asked_for() -> None:
    stage = explicit(1, 2)
    assert (stage.todo, stage.state(2), stage.reason(2)) == ([], State.NEW, "not asked for")
    ticket = stage.load()
    assert stage.replies == {}, "not before it is available"
    stage.run()
    assert (stage.replies, stage.serving()) == ({ticket: ""}, [2])


def test_in_explicit_mode_a_changed_folder_is_heeded_when_somebody_asks() -> None:
    stage = explicit(1)
    stage.load()
    stage.run()
    stage.put(2)
    stage.scan()
    stage.run()
    assert stage.serving() == [1]
    stage.load()
    stage.run()
    assert stage.serving() == [2]


def test_one_version_may_be_asked_for_beside_those_of_the_policy() -> None:
    stage = staged(1, 2)
    stage.load(1)
    stage.run()
    assert stage.serving() == [1, 2]
    stage.unload(2)
    stage.run()
    assert (stage.serving(), stage.reason(2)) == ([1], "unloaded on request")


def test_a_request_to_load_tells_why_it_failed() -> None:
    stage = explicit(1)
    ticket = stage.load()
    stage.run(fail=[1])
    assert stage.replies[ticket] == "version 1: broken"


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("other", None, "there is no model 'other' in the repository"),
        ("m", 7, "model 'm' has no version 7 in the repository; it has 1"),
    ],
)
def test_what_is_not_there_cannot_be_loaded(name: str, version: int | None, problem: str) -> None:
    stage = explicit(1)
    ticket = stage.load(version, name=name)
    stage.run()
    assert stage.replies == {ticket: problem}


def test_a_policy_that_wants_none_of_the_versions_says_so() -> None:
    stage = explicit(1)
    stage.policies["m"] = VersionPolicy("specific", versions=(7,))
    stage.scan()
    ticket = stage.load()
    stage.run()
    assert stage.replies == {ticket: "the policy of model 'm' (specific 7) wants none of its versions (1)"}


def test_what_is_served_already_is_answered_at_once() -> None:
    stage = staged(1)
    ticket = stage.load()
    stage.run()
    assert stage.replies == {ticket: ""}


def test_an_unload_is_done_when_the_last_request_is() -> None:
    stage = staged(1)
    (ref,) = stage.published["m", 1]
    stage.flying.append(ref)
    ticket = stage.unload()
    stage.run()
    assert (stage.replies, stage.serving()) == ({}, [])
    stage.flying.clear()
    stage.run()
    assert stage.replies == {ticket: ""}
    stage.scan()
    stage.run()
    assert stage.serving() == [], "what was unloaded on request stays so"


def test_an_unload_that_overtakes_a_load_wins_and_both_are_answered() -> None:
    stage = staged()
    stage.put(1)
    stage.scan()
    loading = stage.load()
    unloading = stage.unload()
    stage.run()
    assert stage.replies[loading] == "version 1 was unloaded or removed before it was available"
    assert stage.replies[unloading] == ""
    assert (stage.serving(), stage.loaded) == ([], set())


@pytest.mark.parametrize(
    ("steps", "did"),
    [
        (0, [("Load", 1), ("Unload", 1)]),
        (1, [("Load", 1), ("WarmUp", 1), ("Unload", 1)]),
    ],
)
def test_what_is_unloaded_on_its_way_up_goes_no_further_and_is_never_published(
    steps: int, did: list[tuple[str, int]]
) -> None:
    stage = Stage()
    stage.put(1)
    stage.scan()
    for _ in range(steps):
        stage.step()
    stage.unload()
    stage.run()
    assert kinds(stage.done) == did


def test_unloading_what_nobody_knows_is_refused_and_what_is_not_loaded_is_done() -> None:
    stage = explicit(1)
    unknown, idle = stage.unload(name="other"), stage.unload()
    stage.run()
    assert stage.replies == {unknown: "there is no model 'other' here", idle: ""}


def test_a_model_that_serves_stays_settled_while_its_next_version_comes() -> None:
    stage = Stage()
    stage.put(1)
    stage.scan()
    assert not stage.life.is_settled()
    stage.run()
    stage.put(2)
    stage.scan()
    assert stage.life.is_settled()


def test_an_outcome_of_a_build_that_nobody_began_is_a_bug() -> None:
    with pytest.raises(InvariantViolation, match="Loaded of a build that is not held"):
        staged(1).tell(Loaded(Ref("m", 1, 99)))
