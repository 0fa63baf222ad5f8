"""The session table: every listed transition, and every unlisted one by whose fault it is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.control.session import FROM_PEER, TABLE, Event, Role, Session, State
from protocol.errors import InvariantViolation, WireError

AGENT_STATES = (State.DISCONNECTED, State.GREETING, State.READY, State.DRAINING, State.INCOMPATIBLE)
GATEWAY_STATES = (State.UNKNOWN, State.GREETED)
LISTED = [(role, state, event, to) for role in Role for (state, event), to in TABLE[role].items()]
UNLISTED = [
    (role, state, event)
    for role, states in ((Role.AGENT, AGENT_STATES), (Role.GATEWAY, GATEWAY_STATES))
    for state, event in itertools.product(states, Event)
    if (state, event) not in TABLE[role]
]


def session_in(role: Role, state: State) -> Session:
    session = Session(role)
    session.state = state
    return session


def walk(role: Role, *events: Event) -> list[State]:
    session = Session(role)
    return [session.handle(event) for event in events]


# ---- the drawing in the module, walked ------------------------------------------------------------------------------


def test_an_agent_shakes_hands_greets_is_welcomed_and_drained() -> None:
    assert walk(Role.AGENT, Event.HANDSHAKE, Event.WELCOME, Event.DRAIN, Event.DISCONNECT) == [
        State.GREETING,
        State.READY,
        State.DRAINING,
        State.DISCONNECTED,
    ]


def test_a_restarted_gateway_makes_the_agent_greet_again() -> None:
    assert walk(Role.AGENT, Event.HANDSHAKE, Event.WELCOME, Event.NEED_HELLO, Event.WELCOME)[-2:] == [
        State.GREETING,
        State.READY,
    ]


@pytest.mark.parametrize("before", [(), (Event.WELCOME,), (Event.WELCOME, Event.DRAIN)])
def test_a_version_mismatch_ends_every_connected_state_until_the_disconnect(before: tuple[Event, ...]) -> None:
    states = walk(Role.AGENT, Event.HANDSHAKE, *before, Event.VERSION_MISMATCH, Event.DISCONNECT, Event.HANDSHAKE)
    assert states[-3:] == [State.INCOMPATIBLE, State.DISCONNECTED, State.GREETING]


def test_a_welcome_that_crosses_a_drain_does_not_undo_it() -> None:
    assert walk(Role.AGENT, Event.HANDSHAKE, Event.DRAIN, Event.WELCOME) == [
        State.GREETING,
        State.DRAINING,
        State.DRAINING,
    ]


def test_a_silent_agent_is_forgotten_and_may_greet_again() -> None:
    assert walk(Role.GATEWAY, Event.HELLO, Event.HELLO, Event.SILENCE, Event.HELLO) == [
        State.GREETED,
        State.GREETED,
        State.UNKNOWN,
        State.GREETED,
    ]


# ---- the table itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "state", "event", "to"), LISTED)
def test_every_listed_transition_is_taken_and_remembered(role: Role, state: State, event: Event, to: State) -> None:
    session = session_in(role, state)
    assert session.handle(event) is to
    assert session.state is to


@pytest.mark.parametrize(("role", "state", "event"), UNLISTED)
def test_an_unlisted_event_is_the_peers_fault_if_it_came_over_the_wire_and_ours_otherwise(
    role: Role, state: State, event: Event
) -> None:
    session = session_in(role, state)
    with pytest.raises(WireError if event in FROM_PEER else InvariantViolation, match=str(event)):
        session.handle(event)
    assert session.state is state, "a refused event must not move the session"


def test_only_messages_come_from_the_peer() -> None:
    assert {Event.WELCOME, Event.NEED_HELLO, Event.DRAIN, Event.VERSION_MISMATCH, Event.HELLO} == FROM_PEER


def test_every_state_of_a_role_is_reachable_and_none_is_a_trap() -> None:
    for role, states in ((Role.AGENT, AGENT_STATES), (Role.GATEWAY, GATEWAY_STATES)):
        for origin in states:
            reached = {origin}
            while more := {to for (state, _), to in TABLE[role].items() if state in reached} - reached:
                reached |= more
            assert reached == set(states), f"{role} cannot reach every state from {origin}"


def test_from_every_state_an_agent_can_be_disconnected() -> None:
    for state in AGENT_STATES:
        assert session_in(Role.AGENT, state).handle(Event.DISCONNECT) is State.DISCONNECTED


class TwoEnds(RuleBasedStateMachine):
    """An agent and a gateway that answer each other correctly never break the protocol, in whatever order things go."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = Session(Role.AGENT)
        self.gateway = Session(Role.GATEWAY)
        self.to_agent: list[Event] = []

    @rule()
    def connect(self) -> None:
        self.to_agent.clear()
        self.agent.handle(Event.HANDSHAKE)
        self.gateway.handle(Event.HELLO)
        self.to_agent.append(Event.WELCOME)

    @rule()
    def disconnect(self) -> None:
        self.to_agent.clear()
        self.agent.handle(Event.DISCONNECT)

    @rule()
    def deliver(self) -> None:
        if self.to_agent and self.agent.state is not State.DISCONNECTED:
            event = self.to_agent.pop(0)
            if self.agent.handle(event) is State.GREETING and event is Event.NEED_HELLO:
                self.gateway.handle(Event.HELLO)
                self.to_agent.append(Event.WELCOME)

    @rule(new=st.booleans())
    def restart_gateway(self, new: bool) -> None:
        self.gateway = Session(Role.GATEWAY)
        if new and self.agent.state is not State.DISCONNECTED:
            self.to_agent.append(Event.NEED_HELLO)

    @rule()
    def drain(self) -> None:
        if self.agent.state is not State.DISCONNECTED:
            self.to_agent.append(Event.DRAIN)

    @rule()
    def silence(self) -> None:
        if self.gateway.state is State.GREETED:
            self.gateway.handle(Event.SILENCE)

    @invariant()
    def states_belong_to_their_roles(self) -> None:
        assert self.agent.state in AGENT_STATES
        assert self.gateway.state in GATEWAY_STATES


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=40, stateful_step_count=30)
