"""The update's decisions: the steps as a table, trials, going back, and what holds whatever comes in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundles import record as records
from edge_agent.bundles import update as u
from edge_agent.bundles.record import MOST_BAD, Bad, Record, Step, changed
from edge_agent.bundles.update import (
    Answered,
    Confirm,
    Event,
    Failed,
    Fetch,
    Fetched,
    Health,
    Instruction,
    Offered,
    Prune,
    RollBack,
    Say,
    Started,
    Switch,
    Switched,
    Tick,
    TrialRules,
    Tried,
    Try,
    Unusable,
    Update,
    Verified,
    Verify,
)
from protocol.errors import BundleError

OLD, NEW, OLDER, NEWER = ("a" * 64), ("b" * 64), ("c" * 64), ("d" * 64)
RULES = TrialRules(good_answers=3, least_s=10.0, most_bad=2, bad_share=0.2, most_starts=2)
PROVEN = Record(current=OLD, proven=OLD, previous=OLDER)


def at(step: Step, **more: object) -> Update:
    """A device that runs OLD and is on its way to NEW."""
    candidate = "" if step in (Step.IDLE, Step.REVERTED, Step.ON_TRIAL, Step.REVERTING) else NEW
    current = NEW if step is Step.ON_TRIAL else OLD
    update = Update(changed(PROVEN, step=step, candidate=candidate, current=current, **more), RULES)
    if step is Step.ON_TRIAL:
        update._trial = u._Trial(0.0)
    return update


def done(update: Update, event: Event, *, now: float = 0.0) -> list[Instruction]:
    """What is to be done, without what is said."""
    return [i for i in update.handle(event, now=now) if not isinstance(i, Say)]


@pytest.mark.parametrize(
    ("step", "event", "then", "instructions"),
    [
        (Step.IDLE, Offered(NEW), Step.FETCHING, [Fetch(NEW)]),
        (Step.REVERTED, Offered(NEW), Step.FETCHING, [Fetch(NEW)]),
        (Step.IDLE, Offered(OLD), Step.IDLE, []),
        (Step.FETCHING, Offered(NEWER), Step.FETCHING, []),
        (Step.FETCHING, Fetched(), Step.VERIFYING, [Verify(NEW)]),
        (Step.VERIFYING, Verified(), Step.TESTING, [Try(NEW)]),
        (Step.TESTING, Tried(), Step.SWITCHING, [Switch(NEW)]),
        (Step.SWITCHING, Switched(NEW), Step.ON_TRIAL, []),
        (Step.SWITCHING, Switched(OLD), Step.SWITCHING, []),
        (Step.FETCHING, Failed("the link broke", for_good=False), Step.IDLE, []),
        (Step.TESTING, Failed("it crashed", for_good=True), Step.IDLE, [Prune()]),
        (Step.ON_TRIAL, Health(ok=False), Step.REVERTING, [Switch(OLD)]),
        (Step.ON_TRIAL, RollBack("no"), Step.REVERTING, [Switch(OLD)]),
        (Step.REVERTING, Switched(OLD), Step.REVERTED, [Prune()]),
        (Step.REVERTING, Started(), Step.REVERTED, [Prune()]),
        (Step.IDLE, RollBack("no"), Step.REVERTING, [Switch(OLDER)]),
        # what an operator wants does not wait for a fetch
        (Step.FETCHING, RollBack("no"), Step.REVERTING, [Switch(OLDER)]),
        (Step.FETCHING, Offered(NEWER, again=True), Step.FETCHING, [Fetch(NEWER)]),
        (Step.FETCHING, Offered(NEW, again=True, by_hand=True), Step.FETCHING, [Fetch(NEW)]),
        (Step.TESTING, RollBack("no"), Step.TESTING, []),
        (Step.TESTING, Offered(NEWER, again=True), Step.TESTING, []),
        # the process was stopped and has started again
        (Step.IDLE, Started(), Step.IDLE, [Confirm(OLD)]),
        (Step.REVERTED, Started(), Step.REVERTED, [Confirm(OLD)]),
        (Step.FETCHING, Started(), Step.FETCHING, [Fetch(NEW)]),
        (Step.VERIFYING, Started(), Step.VERIFYING, [Verify(NEW)]),
        (Step.TESTING, Started(), Step.TESTING, [Try(NEW)]),
        (Step.SWITCHING, Started(), Step.SWITCHING, [Switch(NEW)]),
        (Step.ON_TRIAL, Started(), Step.ON_TRIAL, []),
        # late events
        (Step.IDLE, Fetched(), Step.IDLE, []),
        (Step.IDLE, Verified(), Step.IDLE, []),
        (Step.FETCHING, Tried(), Step.FETCHING, []),
        (Step.IDLE, Switched(OLD), Step.IDLE, []),
        (Step.IDLE, Failed("late", for_good=True), Step.IDLE, []),
        (Step.IDLE, Answered(ok=False), Step.IDLE, []),
        (Step.IDLE, Tick(), Step.IDLE, []),
    ],
)
def test_each_step_knows_its_next(step: Step, event: Event, then: Step, instructions: list[Instruction]) -> None:
    update = at(step)
    assert done(update, event) == instructions
    assert update.record.step is then


@pytest.mark.parametrize("step", [Step.VERIFYING, Step.TESTING, Step.SWITCHING])
def test_a_bundle_at_which_the_device_stops_again_and_again_is_not_taken(step: Step) -> None:
    update = at(step)
    for _ in range(RULES.most_starts):
        assert done(update, Started())
    assert done(update, Started()) == [Prune()]
    assert update.record.step is Step.IDLE
    assert update.record.why_bad(NEW) == f"this device was stopped 2 times while the bundle was {step}"


def test_a_slow_fetch_may_take_any_number_of_starts() -> None:
    update = at(Step.FETCHING)
    for _ in range(50):
        assert done(update, Started()) == [Fetch(NEW)]


def test_a_bundle_on_trial_with_which_the_process_ends_at_each_start_is_given_up() -> None:
    update = at(Step.ON_TRIAL)
    for _ in range(RULES.most_starts):
        assert done(update, Started()) == []
    assert done(update, Started()) == [Switch(OLD)]
    assert update.record.current == OLD


def test_a_trial_needs_good_answers_a_known_one_and_time() -> None:
    update = at(Step.ON_TRIAL)
    for now in (1.0, 2.0, 3.0, 4.0):
        assert done(update, Answered(ok=True), now=now) == []
    assert done(update, Tick(), now=11.0) == [], "no known answer yet"
    assert update.wake_at() == 10.0
    assert done(update, Health(ok=True), now=11.0) == [Confirm(NEW), Prune()]
    assert (update.record.proven, update.record.previous, update.record.step) == (NEW, OLD, Step.IDLE)
    assert update.wake_at() is None
    early = at(Step.ON_TRIAL)
    for _ in range(9):
        assert done(early, Health(ok=True), now=9.9) == []
    assert "9 of 3 good answers, 0 bad, 9 of 10 s" in early.trial(now=9.0)


def test_few_bad_answers_among_many_good_ones_are_no_reason_to_go_back() -> None:
    update = at(Step.ON_TRIAL)
    for _ in range(20):
        update.handle(Answered(ok=True), now=1.0)
    for _ in range(4):
        assert done(update, Answered(ok=False), now=1.0) == []
    assert done(update, Answered(ok=False), now=1.0) == [Switch(OLD)]
    assert update.record.why_bad(NEW) == "5 of 25 answers failed"


def test_a_bad_bundle_is_not_taken_again_unless_an_operator_wants_it() -> None:
    update = at(Step.IDLE, bad=(Bad(NEW, "it crashed"),))
    assert done(update, Offered(NEW)) == []
    assert done(update, Offered(NEW, again=True)) == [Fetch(NEW)]


def test_the_bundle_of_the_settings_is_not_fetched_while_it_serves() -> None:
    update = Update(Record(), RULES, base=NEW)
    assert done(update, Offered(NEW)) == []
    assert done(update, Offered(OLD)) == [Fetch(OLD)]


@pytest.mark.parametrize(
    ("before", "revoked", "current", "proven", "previous"),
    [
        (PROVEN, {OLD}, OLDER, OLDER, ""),
        (PROVEN, {OLDER}, OLD, OLD, ""),
        (PROVEN, {OLD, OLDER}, "", "", ""),
        (PROVEN, {NEWER}, OLD, OLD, OLDER),
        (changed(PROVEN, step=Step.ON_TRIAL, current=NEW), {NEW}, OLD, OLD, OLDER),
        (changed(PROVEN, step=Step.ON_TRIAL, current=NEW), {OLD}, NEW, OLDER, ""),
        (changed(PROVEN, step=Step.TESTING, candidate=NEW), {NEW}, OLD, OLD, OLDER),
        (Record(), {NEW}, "", "", ""),
    ],
)
def test_a_revoked_bundle_stops_and_the_next_best_one_runs(
    before: Record, revoked: set[str], current: str, proven: str, previous: str
) -> None:
    update = Update(before, RULES)
    instructions = done(update, Unusable(dict.fromkeys(revoked, "it was revoked"), for_good=True))
    record = update.record
    assert (record.current, record.proven, record.previous) == (current, proven, previous)
    assert (Switch(current) in instructions) == (before.current in revoked)
    assert all(record.why_bad(digest) == "it was revoked" for digest in revoked)
    assert record.candidate not in revoked


def test_a_damaged_bundle_may_be_fetched_again() -> None:
    update = Update(PROVEN, RULES)
    assert done(update, Unusable({OLD: "its file edge.onnx is gone"}, for_good=False)) == [Switch(OLDER)]
    done(update, Switched(OLDER))
    assert done(update, Offered(OLD)) == [Fetch(OLD)]


def test_what_is_bad_is_remembered_only_so_far_back() -> None:
    record = Record()
    for number in range(MOST_BAD + 5):
        record = record.with_bad(f"{number:064x}", "bad")
    assert len(record.bad) == MOST_BAD
    assert record.why_bad(f"{0:064x}") is None
    assert record.why_bad(f"{MOST_BAD + 4:064x}") == "bad"


def test_a_record_is_read_as_it_was_written_and_a_damaged_one_is_refused() -> None:
    record = changed(PROVEN, step=Step.ON_TRIAL, bad=(Bad(NEW, "why"),), said="x")
    assert records.decode(records.encode(record), name="current.json") == record
    for data in (b"", b"{", b'{"schema_version": 1, "current": "../../etc"}', b'{"schema_version": 2}'):
        with pytest.raises(BundleError, match=r"current\.json"):
            records.decode(data, name="current.json")


BUNDLES = st.sampled_from([OLD, NEW, OLDER, NEWER])
EVENTS = st.one_of(
    st.builds(Started),
    st.builds(Offered, BUNDLES, st.booleans()),
    st.builds(Fetched),
    st.builds(Verified),
    st.builds(Tried),
    st.builds(Switched, BUNDLES),
    st.builds(Failed, st.just("no"), st.booleans()),
    st.builds(Answered, st.booleans()),
    st.builds(Health, st.booleans()),
    st.builds(Unusable, st.dictionaries(BUNDLES, st.just("revoked"), max_size=2), st.booleans()),
    st.builds(RollBack, st.just("back")),
)


@given(st.lists(EVENTS, max_size=60))
def test_whatever_comes_the_record_can_be_lived_with(events: list[Event]) -> None:
    update = Update(Record(), RULES)
    serving = ""
    for now, event in enumerate(events):
        before = update.record
        if isinstance(event, Switched):
            event = Switched(serving)
        instructions = update.handle(event, now=float(now))
        record = update.record
        for instruction in instructions:
            if isinstance(instruction, Switch):
                serving = instruction.bundle
            if isinstance(instruction, Fetch | Verify | Try):
                assert instruction.bundle == record.candidate
        assert (record.candidate != "") == (record.step in u._ON_THE_WAY)
        assert record.candidate not in {record.current} - {""}
        if record.step in u.RESTING and record.current:
            assert record.current == record.proven, "what runs at rest is proven"
        if record.current != before.current:
            assert isinstance(event, Switched) or Switch(record.current) in instructions
        if record.proven:
            assert record.proven != record.previous
        assert not any(record.why_bad(d) for d in {record.proven, record.previous} - {""}), "no way back to a bad one"
        assert records.decode(records.encode(record), name="x") == record
