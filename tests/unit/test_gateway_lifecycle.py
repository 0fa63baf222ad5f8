"""The life cycle of versions: which one serves, what replaces it, and what happens when something fails on the way."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloud_gateway.models.lifecycle import FIRST_PAUSE_S, LONGEST_PAUSE_S, LifeCycle
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import (
    ENDED,
    TABLE,
    Event,
    Failed,
    FoundModel,
    Idle,
    Instruction,
    Load,
    LoadAsked,
    Loaded,
    Publish,
    Ref,
    Reply,
    Same,
    Scanned,
    Sighting,
    State,
    Step,
    Tick,
    Unload,
    UnloadAsked,
    Warmed,
    WarmUp,
    Withdraw,
    following,
)
from protocol.errors import InvariantViolation

LATEST, ALL = VersionPolicy(), VersionPolicy("all")


class Stage:
    """A life cycle with a host made of sets: carries instructions out, in order, and refuses what no host could do."""

    def __init__(self, *, automatic: bool = True, preserve: bool = True) -> None:
        self.automatic = automatic
        self.life = LifeCycle(automatic=automatic, preserve=preserve)
        self.now = 0.0
        self.todo: list[Instruction] = []
        self.folder: dict[str, dict[int, Sighting]] = {}
        self.policies: dict[str, VersionPolicy] = {}
        self.loaded: set[Ref] = set()
        self.warm: set[Ref] = set()
        self.published: dict[tuple[str, int], list[Ref]] = {}
        self.flying: list[Ref] = []
        self.replies: dict[int, str] = {}
        self.asked = 0
        self.done: list[Instruction] = []
        self.writes = 0

    # ---- the folder -------------------------------------------------------------------------------------------------

    def put(self, version: int, *, name: str = "m", quiet: bool = True) -> None:
        """Write a new content into a version folder."""
        self.writes += 1
        self.folder.setdefault(name, {})[version] = Sighting(f"content-{self.writes}", quiet)

    def remove(self, version: int, *, name: str = "m") -> None:
        self.folder.get(name, {}).pop(version, None)

    def scan(self) -> None:
        found = {n: FoundModel(dict(v), self.policies.get(n, LATEST)) for n, v in self.folder.items()}
        self.tell(Scanned(found))

    # ---- talking to it ----------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        for instruction in self.life.handle(event, now=self.now):
            if isinstance(instruction, Load | WarmUp):
                self.todo.append(instruction)
            else:
                self._carry_out(instruction)
        assert len(self.todo) <= 1, "one thing at a time"
        self.life.validate()

    def load(self, version: int | None = None, *, name: str = "m") -> int:
        self.asked += 1
        self.tell(LoadAsked(name, version, self.asked))
        return self.asked

    def unload(self, version: int | None = None, *, name: str = "m") -> int:
        self.asked += 1
        self.tell(UnloadAsked(name, version, self.asked))
        return self.asked

    def _carry_out(self, prompt: Instruction) -> None:
        self.done.append(prompt)
        match prompt:
            case Publish(ref):
                assert ref in self.warm
                assert ref not in self.published.get((ref.name, ref.version), []), "published twice"
                self.published.setdefault((ref.name, ref.version), []).append(ref)
            case Withdraw(ref):
                self.published[ref.name, ref.version].remove(ref)
            case Unload(ref):
                assert not any(ref in refs for refs in self.published.values()), "unloaded while requests find it"
                assert ref not in self.flying, "unloaded under a request"
                self.loaded.remove(ref)
                self.warm.discard(ref)
            case Reply(ticket, problem):
                assert ticket not in self.replies, "answered twice"
                self.replies[ticket] = problem

    def step(self, *, fail: str = "", same: bool = False) -> None:
        """Carry out what takes its time; it may fail."""
        todo = self.todo.pop(0)
        self.done.append(todo)
        match todo:
            case Load(ref) if same and self.published.get((ref.name, ref.version)):
                self.tell(Same(ref))
            case Load(ref) | WarmUp(ref) if fail:
                self.tell(Failed(ref, fail))
            case Load(ref):
                assert ref not in self.loaded
                self.loaded.add(ref)
                self.tell(Loaded(ref))
            case WarmUp(ref):
                assert ref in self.loaded
                self.warm.add(ref)
                self.tell(Warmed(ref))

    def run(self, *, fail: Iterable[int] = ()) -> None:
        """Carry out everything; the versions in `fail` do not load."""
        for _ in range(200):
            for ref in self.life.draining():
                if ref not in self.flying:
                    self.tell(Idle(ref))
            if not self.todo:
                return
            todo = self.todo[0]
            self.step(fail="broken" if isinstance(todo, Load) and todo.ref.version in fail else "")
        raise AssertionError("never comes to rest")

    def serving(self, name: str = "m") -> list[int]:
        return sorted(version for (n, version), refs in self.published.items() if refs and n == name)

    def state(self, version: int, name: str = "m") -> State:
        return next(s.state for s in self.life.standings() if (s.name, s.version) == (name, version))

    def reason(self, version: int, name: str = "m") -> str:
        return next(s.reason for s in self.life.standings() if (s.name, s.version) == (name, version))


def staged(*versions: int, policy: VersionPolicy = LATEST, fail: Sequence[int] = (), preserve: bool = True) -> Stage:
    stage = Stage(preserve=preserve)
    stage.policies["m"] = policy
    for version in versions:
        stage.put(version)
    stage.scan()
    stage.run(fail=fail)
    return stage


def kinds(instructions: Iterable[Instruction]) -> list[tuple[str, int]]:
    return [(type(i).__name__, i.ref.version) for i in instructions if not isinstance(i, Reply)]


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


# ---- requests -------------------------------------------------------------------------------------------------------


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


# ---- in any order ---------------------------------------------------------------------------------------------------


class Rehearsal(Stage):
    """A stage that anything may happen on. It watches what must never happen."""

    def __init__(self, *, automatic: bool = True) -> None:
        super().__init__(automatic=automatic)
        self.told_to_go: set[str] = set()
        self.scanned: dict[str, frozenset[int]] = {}
        self.heeded: dict[str, frozenset[int]] = {}  # what the policy names of that which was seen

    def begin_request(self, version: int, name: str) -> None:
        if refs := self.published.get((name, version)):
            self.flying.append(refs[-1])

    def end_request(self, which: int) -> None:
        if self.flying:
            ref = self.flying.pop(which % len(self.flying))
            assert ref in self.warm, "a request ends where it began"

    def idle(self) -> None:
        for ref in self.life.draining():
            if ref not in self.flying:
                self.tell(Idle(ref))

    def check(self, served: set[str]) -> None:
        """`served`: the models that served before what was just done."""
        for name in served:
            assert self.serving(name) or self._excused(name), f"{name} served and now nothing does"

    def act(self, choice: int, version: int, name: str, flag: bool) -> None:
        served = {n for n in ("a", "b") if self.serving(n)}
        self.now += 0.5
        match choice:
            case 0:
                self.put(version, name=name, quiet=flag or not self.automatic)
            case 1:
                self.remove(version, name=name)
            case 2:
                for versions in self.folder.values():
                    for number, sighting in versions.items():
                        versions[number] = Sighting(sighting.fingerprint, quiet=True)
            case 3 | 4:
                self.scan()
            case 5:
                self.load(version if flag else None, name=name)
            case 6:
                self.unload(version if flag else None, name=name)
            case 7:
                self.begin_request(version, name)
            case 8:
                self.end_request(version)
            case 9:
                self.policies[name] = (LATEST, VersionPolicy("latest", 2), ALL, VersionPolicy("specific", 1, (1, 2)))[
                    version
                ]
            case 10:
                self.idle()
                self.tell(Tick())
            case _ if self.todo:
                self.step(fail="" if version else "broken", same=flag)
        self.check(served)

    def _excused(self, name: str) -> bool:
        """A model may cease to serve only when that was asked for: unloaded, removed, or named by no policy."""
        return name in self.told_to_go or not self.heeded.get(name)

    def scan(self) -> None:
        seen = {name: self.policies.get(name, LATEST).choose(versions) for name, versions in self.folder.items()}
        self.scanned = seen
        self.heeded = seen if self.automatic else self.heeded
        super().scan()

    def load(self, version: int | None = None, *, name: str = "m") -> int:
        self.told_to_go -= {name} if version is None else set()
        if not self.automatic and version is None:
            self.heeded[name] = self.scanned.get(name, frozenset())
        return super().load(version, name=name)

    def unload(self, version: int | None = None, *, name: str = "m") -> int:
        self.told_to_go.add(name)
        return super().unload(version, name=name)

    def finish(self) -> None:
        """Whatever happened, it comes to rest, and every request has been answered."""
        self.flying.clear()
        for versions in self.folder.values():
            for number, sighting in versions.items():
                versions[number] = Sighting(sighting.fingerprint, quiet=True)
        self.scan()
        if not self.automatic:
            for name in [n for n, versions in self.folder.items() if versions]:
                self.load(name=name)
        self.run()
        self.now += LONGEST_PAUSE_S
        self.tell(Tick())
        self.run()
        assert set(self.replies) == set(range(1, self.asked + 1)), "every request is answered exactly once"
        alive = {refs[-1] for refs in self.published.values() if refs}
        assert self.loaded == alive, "nothing is held that does not serve"
        assert all(len(refs) <= 1 for refs in self.published.values())


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stage = Rehearsal()

    @rule(choice=st.integers(0, 15), version=st.integers(0, 3), name=st.sampled_from("ab"), flag=st.booleans())
    def act(self, choice: int, version: int, name: str, flag: bool) -> None:
        self.stage.act(choice, version, name, flag)

    @invariant()
    def holds(self) -> None:
        self.stage.life.validate()

    def teardown(self) -> None:
        self.stage.finish()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("automatic", [True, False])
def test_ten_thousand_sequences_of_operations_leave_no_model_without_a_version_and_no_request_without_an_answer(
    automatic: bool,
) -> None:
    """Each sequence is replayed by its number: Rehearsal with random.Random(number)."""
    sequences = 100_000 if os.environ.get("ISTHMUS_EXAMPLES") == "explore" else 5_000
    for number in range(sequences):
        rng = random.Random(number)
        stage = Rehearsal(automatic=automatic)
        try:
            for _ in range(rng.randrange(6, 26)):
                stage.act(rng.randrange(16), rng.randrange(4), rng.choice("ab"), rng.random() < 0.5)
            stage.finish()
        except AssertionError as error:
            raise AssertionError(f"sequence {number}: {error}") from error
