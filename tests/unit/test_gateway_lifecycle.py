"""The life cycle of versions: which one serves, what replaces it, and what happens when something fails on the way."""

from __future__ import annotations

import pytest

from cloud_gateway.models.lifecycle import FIRST_PAUSE_S, LONGEST_PAUSE_S
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import (
    ENDED,
    TABLE,
    Load,
    Ref,
    Sighting,
    State,
    Step,
    Tick,
    following,
)
from protocol.errors import InvariantViolation
from tests.lifecycle_stage import ALL, LATEST, Stage, kinds, staged

# ---- the table ------------------------------------------------------------------------------------------------------


def test_an_unlisted_step_is_a_bug_of_ours() -> None:
    for state in State:
        for step in Step:
            if (state, step) not in TABLE:
                with pytest.raises(InvariantViolation, match=f"{step} in state {state}"):
                    following(state, step)


def test_every_state_is_reached_and_only_the_last_two_are_left_by_nothing() -> None:
    assert set(TABLE.values()) | {State.NEW} == set(State)
    assert {state for state, _ in TABLE} == set(State) - ENDED


def test_a_new_version_is_loaded_warmed_and_published() -> None:
    stage = staged(1)
    assert kinds(stage.done) == [("Load", 1), ("WarmUp", 1), ("Publish", 1)]
    assert stage.state(1) is State.AVAILABLE


# ---- policies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        (LATEST, [4]),
        (VersionPolicy("latest", 2), [2, 4]),
        (VersionPolicy("specific", versions=(1, 2, 9)), [1, 2]),
        (ALL, [1, 2, 4]),
    ],
)
def test_a_policy_chooses_among_the_versions_in_the_folder(policy: VersionPolicy, served: list[int]) -> None:
    assert staged(1, 2, 4, policy=policy).serving() == served


def test_the_newest_version_comes_first() -> None:
    assert kinds(staged(1, 2, policy=ALL).done)[0] == ("Load", 2)


def test_an_unwanted_version_says_why_it_is_not_served() -> None:
    assert staged(1, 2).reason(1) == "not wanted by the policy (latest 1)"


def test_a_changed_policy_is_followed() -> None:
    stage = staged(1, 2)
    stage.policies["m"] = VersionPolicy("specific", versions=(1,))
    stage.scan()
    stage.run()
    assert stage.serving() == [1]


# ---- replacing ------------------------------------------------------------------------------------------------------


def test_the_new_version_is_published_before_the_old_one_is_withdrawn() -> None:
    stage = staged(1)
    stage.put(2)
    stage.scan()
    stage.run()
    assert kinds(stage.done)[3:] == [("Load", 2), ("WarmUp", 2), ("Publish", 2), ("Withdraw", 1), ("Unload", 1)]


def test_a_version_is_unloaded_only_when_nothing_is_in_flight() -> None:
    stage = staged(1)
    (ref,) = stage.published["m", 1]
    stage.flying.append(ref)
    stage.put(2)
    stage.scan()
    stage.run()
    assert stage.state(1) is State.DRAINING
    stage.flying.clear()
    stage.run()
    assert (stage.state(1), stage.serving()) == (State.UNLOADED, [2])


def test_a_failed_version_leaves_the_old_one_serving_and_says_why() -> None:
    stage = staged(1)
    stage.put(2)
    stage.scan()
    stage.run(fail=[2])
    assert stage.serving() == [1]
    assert (stage.state(2), stage.reason(2)) == (State.ERROR, "broken")


def test_a_version_that_fails_to_warm_up_is_unloaded_again() -> None:
    stage = Stage()
    stage.put(1)
    stage.scan()
    stage.step()
    stage.step(fail="no memory")
    stage.run()
    assert kinds(stage.done)[-1] == ("Unload", 1)
    assert (stage.state(1), stage.loaded) == (State.ERROR, set())


def test_a_gateway_that_starts_beside_a_broken_new_version_serves_the_one_before() -> None:
    stage = staged(1, 2, 3, fail=[2, 3])
    assert stage.serving() == [1]
    assert stage.reason(1) == "stands in for version 3"
    stage.put(3)
    stage.now += LONGEST_PAUSE_S
    stage.scan()
    stage.run()
    assert stage.serving() == [3]


def test_what_stands_in_is_finished_though_the_failed_version_is_about_to_be_tried_again() -> None:
    stage = Stage()
    stage.put(1)
    stage.put(2)
    stage.scan()
    stage.step(fail="broken")
    assert stage.todo == [Load(Ref("m", 1, 2))]
    stage.put(2)
    stage.scan()
    stage.run()
    assert stage.serving() == [1], "version 2 waits for its second attempt meanwhile"


def test_new_content_of_a_version_replaces_the_old_content_without_a_gap() -> None:
    stage = staged(1)
    stage.put(1)
    stage.scan()
    stage.run()
    assert kinds(stage.done)[3:] == [("Load", 1), ("WarmUp", 1), ("Publish", 1), ("Withdraw", 1), ("Unload", 1)]


def test_new_content_that_fails_leaves_the_old_content_serving_and_says_so() -> None:
    stage = staged(1)
    stage.put(1)
    stage.scan()
    stage.run(fail=[1])
    assert stage.state(1) is State.AVAILABLE
    assert stage.reason(1) == "what its folder holds now cannot be served: broken"


def test_a_touched_folder_with_the_same_content_changes_nothing() -> None:
    stage = staged(1)
    stage.put(1)
    stage.scan()
    stage.step(same=True)
    stage.scan()
    assert (stage.todo, stage.state(1)) == ([], State.AVAILABLE)


def test_a_version_that_is_still_being_copied_is_not_begun_and_costs_nobody_his_service() -> None:
    stage = staged(1)
    stage.put(2, quiet=False)
    stage.scan()
    stage.remove(1)
    stage.scan()
    stage.run()
    assert stage.serving() == [1], "removed, but its successor is on its way"
    assert stage.reason(2) == "still being copied"
    stage.folder["m"][2] = Sighting(stage.folder["m"][2].fingerprint, quiet=True)
    stage.scan()
    stage.run()
    assert stage.serving() == [2]


def test_a_removed_version_goes_when_another_serves_and_the_model_goes_with_its_folder() -> None:
    stage = staged(1, 2, policy=ALL)
    stage.remove(1)
    stage.scan()
    stage.run()
    assert stage.serving() == [2]
    stage.folder.clear()
    stage.scan()
    stage.run()
    assert (stage.serving(), stage.loaded, stage.life.standings()) == ([], set(), [])


def test_going_back_takes_a_draining_version_back_without_loading_it_again() -> None:
    stage = staged(1)
    (ref,) = stage.published["m", 1]
    stage.flying.append(ref)
    stage.put(2)
    stage.scan()
    stage.run()
    stage.remove(2)
    stage.scan()
    stage.run()
    assert kinds(stage.done)[-3:] == [("Publish", 1), ("Withdraw", 2), ("Unload", 2)]


def test_a_folder_that_is_moved_away_and_back_takes_its_draining_content_back() -> None:
    stage = staged(1)
    before, (ref,) = stage.folder["m"][1], stage.published["m", 1]
    stage.flying.append(ref)
    stage.put(1)
    stage.scan()
    stage.run()
    assert stage.published["m", 1] != [ref]
    stage.folder["m"][1] = before
    stage.scan()
    stage.run()
    assert stage.published["m", 1] == [ref]
    assert kinds(stage.done)[-3:] == [("Publish", 1), ("Withdraw", 1), ("Unload", 1)]


def test_a_served_version_that_is_being_overwritten_is_not_loaded_half_written() -> None:
    stage = staged(1, 2)
    stage.put(2, quiet=False)
    stage.scan()
    assert (stage.todo, stage.serving()) == ([], [2]), "nor is an older one loaded for it"
    stage.put(2)
    stage.scan()
    assert kinds(stage.todo) == [("Load", 2)]


def test_where_two_do_not_fit_the_old_version_goes_first() -> None:
    stage = staged(1, preserve=False)
    stage.put(2)
    stage.scan()
    stage.run()
    assert kinds(stage.done)[3:] == [("Withdraw", 1), ("Unload", 1), ("Load", 2), ("WarmUp", 2), ("Publish", 2)]


# ---- trying again ---------------------------------------------------------------------------------------------------


def test_a_failed_version_is_not_tried_again_while_its_folder_stays_as_it_is() -> None:
    stage = staged(1, fail=[1])
    for _ in range(3):
        stage.now += 1000
        stage.scan()
        stage.tell(Tick())
    assert stage.todo == []


def test_a_folder_that_keeps_changing_and_failing_is_tried_after_growing_pauses() -> None:
    stage = staged(1, fail=[1])
    pauses = []
    for _ in range(9):
        stage.put(1)
        stage.scan()
        assert stage.todo == [], "not at once"
        wake = stage.life.next_wake(now=stage.now)
        assert wake is not None
        pauses.append(wake - stage.now)
        stage.now = wake
        stage.tell(Tick())
        stage.run(fail=[1])
    assert pauses[:3] == [FIRST_PAUSE_S, FIRST_PAUSE_S * 2, FIRST_PAUSE_S * 4]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_request_tries_a_failed_version_again_at_once() -> None:
    stage = staged(1, fail=[1])
    ticket = stage.load()
    stage.run()
    assert (stage.replies[ticket], stage.serving()) == ("", [1])
