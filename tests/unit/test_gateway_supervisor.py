"""The table of the front's supervisor, its clock, and the names that connections have across processes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloud_gateway.doors.routes import is_front, peer_of, to_route, user_id_of
from cloud_gateway.doors.supervision import Event, GiveUp, Kill, Part, Policy, Spawn, State, Supervision
from protocol.errors import InvariantViolation

POLICY = Policy(pause_s=0.2, most_pause_s=5.0, start_s=20.0, silence_s=10.0, part_s=5.0)


def started(policy: Policy = POLICY, *, ready: bool = True) -> Supervision:
    supervision = Supervision(policy)
    assert supervision.handle(Event.START, now=0.0) == [Spawn(1)]
    if ready:
        supervision.handle(Event.READY, now=0.5)
    return supervision


def test_a_front_that_is_ready_serves_and_needs_to_be_heard_of() -> None:
    supervision = started()
    assert supervision.state is State.SERVING
    assert supervision.next_deadline() == 10.5
    supervision.handle(Event.HEARD, now=3.0)
    assert supervision.next_deadline() == 13.0


def test_a_front_that_ends_by_itself_is_started_again_after_the_pause() -> None:
    supervision = started()
    assert supervision.handle(Event.EXITED, now=100.0) == []
    assert supervision.state is State.WAITING
    assert supervision.handle(Event.TICK, now=100.1) == []
    assert supervision.handle(Event.TICK, now=100.2) == [Spawn(2)]
    assert supervision.restarts == 1


def test_pauses_double_while_lives_are_short_and_are_short_again_after_a_steady_one() -> None:
    supervision, now, pauses = started(), 1.0, []
    for _ in range(8):
        supervision.handle(Event.EXITED, now=now)
        due = supervision.next_deadline()
        assert due is not None
        pauses.append(round(due - now, 3))
        now = due
        supervision.handle(Event.TICK, now=now)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    supervision.handle(Event.READY, now=now)
    supervision.handle(Event.EXITED, now=now + 60)
    assert supervision.next_deadline() == pytest.approx(now + 60.2)


@pytest.mark.parametrize(
    ("ready", "due", "why"), [(False, 20.0, "not ready after 20 s"), (True, 10.5, "silent for 10 s")]
)
def test_a_front_that_hangs_is_killed_once_and_then_waited_for(ready: bool, due: float, why: str) -> None:
    supervision = started(ready=ready)
    (kill,) = supervision.handle(Event.TICK, now=due)
    assert isinstance(kill, Kill)
    assert why in kill.why
    assert (supervision.state, supervision.next_deadline()) == (State.ENDING, None)
    supervision.handle(Event.READY, now=due)  # its last words
    assert (supervision.state, supervision.next_deadline()) == (State.ENDING, None)
    supervision.handle(Event.EXITED, now=due + 0.01)
    assert supervision.next_deadline() == pytest.approx(due + 0.21)
    assert supervision.handle(Event.TICK, now=due + 1) == [Spawn(2)]


def test_a_farewell_that_takes_too_long_ends_by_force() -> None:
    supervision = started()
    assert supervision.handle(Event.STOP, now=2.0) == [Part()]
    assert supervision.handle(Event.TICK, now=6.9) == []
    assert [type(i) for i in supervision.handle(Event.TICK, now=7.0)] == [Kill]
    supervision.handle(Event.EXITED, now=7.1)
    assert supervision.state is State.ENDED
    assert supervision.handle(Event.TICK, now=1e9) == []


def test_nothing_is_started_after_a_stop() -> None:
    supervision = started()
    supervision.handle(Event.EXITED, now=1.0)
    assert supervision.handle(Event.STOP, now=1.0) == []
    assert supervision.state is State.ENDED
    assert supervision.next_deadline() is None


def test_it_never_gives_up_unless_told_how_often_is_too_often() -> None:
    patient, strict = started(Policy(pause_s=0.0)), started(Policy(pause_s=0.0, max_restarts=3, window_s=60.0))
    ends: dict[Supervision, list[Any]] = {patient: [], strict: []}
    for supervision, answers in ends.items():
        for second in range(4):
            answers += supervision.handle(Event.EXITED, now=float(second))
            answers += supervision.handle(Event.TICK, now=float(second))
    assert ends[patient] == [Spawn(2), Spawn(3), Spawn(4), Spawn(5)]
    assert ends[strict][:-1] == [Spawn(2), Spawn(3), Spawn(4)]
    assert isinstance(ends[strict][-1], GiveUp)
    assert strict.state is State.ENDED


def test_ends_that_lie_far_apart_are_not_too_often() -> None:
    supervision = started(Policy(pause_s=0.0, max_restarts=1, window_s=60.0))
    for minute in range(1, 20):
        assert supervision.handle(Event.EXITED, now=minute * 61.0) == []
        assert supervision.handle(Event.TICK, now=minute * 61.0) == [Spawn(minute + 1)]


def test_the_end_of_a_front_that_does_not_live_is_a_bug() -> None:
    with pytest.raises(InvariantViolation):
        Supervision(POLICY).handle(Event.EXITED, now=0.0)


class AnyHistory(RuleBasedStateMachine):
    """A process that does what it likes. It lives between Spawn and EXITED; instructions must always fit that."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.alive = self.stopped = False
        self.supervision = Supervision(POLICY)
        self.tell(Event.START)

    def tell(self, event: Event) -> None:
        for instruction in self.supervision.handle(event, now=self.now):
            match instruction:
                case Spawn(life):
                    assert not self.alive
                    assert not self.stopped
                    assert life == self.supervision.lives
                    self.alive = True
                case Kill() | Part():
                    assert self.alive

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        """The shell wakes up at every deadline."""
        until = self.now + seconds
        for _ in range(200):
            due = self.supervision.next_deadline()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.tell(Event.TICK)
        else:
            raise AssertionError("it wants to be woken again and again")
        self.now = until

    @precondition(lambda self: self.alive)
    @rule(event=st.sampled_from([Event.READY, Event.HEARD]))
    def say(self, event: Event) -> None:
        self.tell(event)

    @precondition(lambda self: self.alive)
    @rule()
    def exit(self) -> None:
        self.alive = False
        self.tell(Event.EXITED)

    @rule()
    def stop(self) -> None:
        self.stopped = True
        self.tell(Event.STOP)

    @invariant()
    def somebody_will_do_something(self) -> None:
        """Either it serves, or is about to end, or there is an alarm; after a stop it ends."""
        state = self.supervision.state
        assert self.alive == (state in (State.STARTING, State.SERVING, State.ENDING, State.STOPPING))
        assert self.supervision.next_deadline() is not None or state in (State.ENDING, State.STOPPING, State.ENDED)
        assert (state in (State.STOPPING, State.ENDED)) == self.stopped


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=50, stateful_step_count=30)


# ---- routes ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.binary(max_size=20) | st.just(bytes(255)), st.text("aé/-7", max_size=20))
def test_a_route_gives_back_what_it_was_made_of(life: int, peer: bytes, user_id: str) -> None:
    route = to_route(life, peer, user_id)
    assert peer_of(route, life=life) == peer
    assert user_id_of(route) == user_id
    assert is_front(route) == (not peer and not user_id)


@given(st.integers(0, 2**32 - 2), st.binary(min_size=1, max_size=20))
def test_a_route_of_an_earlier_life_leads_nowhere(life: int, peer: bytes) -> None:
    assert peer_of(to_route(life, peer), life=life + 1) is None


@given(st.binary(max_size=12))
def test_what_is_no_route_leads_nowhere_and_names_nobody(data: bytes) -> None:
    peer, user_id = peer_of(data, life=int.from_bytes(data[:4])), user_id_of(data)
    if peer is None:
        assert user_id == ""
        assert not is_front(data)
    else:
        assert data.startswith(to_route(int.from_bytes(data[:4]), peer))
