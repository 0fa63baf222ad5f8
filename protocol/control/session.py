"""The session between an agent and a gateway, as a table: role -> (state, event) -> next state.

    agent:    DISCONNECTED --handshake--> GREETING --welcome--> READY --drain--> DRAINING
                   ^                        |  ^                  |                 |
                   `------ disconnect ------'  `--- need-hello ---'                 |
                   `-------------------------- disconnect --------------------------'
              any state --version-mismatch--> INCOMPATIBLE --disconnect--> DISCONNECTED

    gateway:  UNKNOWN --hello--> GREETED --silence--> UNKNOWN      (a peer that is UNKNOWN is told NeedHello)

An event that the table does not list is somebody's fault: the peer's if it came over the wire (WireError, counted and
the message dropped), ours otherwise (InvariantViolation).
"""

from __future__ import annotations

import enum

from protocol.errors import InvariantViolation, WireError


class Role(enum.StrEnum):
    AGENT = "agent"
    GATEWAY = "gateway"


class State(enum.StrEnum):
    DISCONNECTED = "disconnected"
    GREETING = "greeting"
    READY = "ready"
    DRAINING = "draining"
    INCOMPATIBLE = "incompatible"
    UNKNOWN = "unknown"
    GREETED = "greeted"


class Event(enum.StrEnum):
    HANDSHAKE = "handshake"  # the transport is up
    DISCONNECT = "disconnect"  # the transport is gone, or we gave it up
    WELCOME = "welcome"
    NEED_HELLO = "need-hello"
    DRAIN = "drain"
    VERSION_MISMATCH = "version-mismatch"
    HELLO = "hello"
    SILENCE = "silence"  # nothing heard for too long


FROM_PEER = frozenset({Event.WELCOME, Event.NEED_HELLO, Event.DRAIN, Event.VERSION_MISMATCH, Event.HELLO})

_ALIVE = (State.GREETING, State.READY, State.DRAINING, State.INCOMPATIBLE)

TABLE: dict[Role, dict[tuple[State, Event], State]] = {
    Role.AGENT: {
        (State.DISCONNECTED, Event.HANDSHAKE): State.GREETING,
        # libzmq reconnects by itself: a second handshake without a disconnect seen in between is a new connection.
        **{(state, Event.HANDSHAKE): State.GREETING for state in _ALIVE},
        **{(state, Event.DISCONNECT): State.DISCONNECTED for state in (State.DISCONNECTED, *_ALIVE)},
        **{(state, Event.VERSION_MISMATCH): State.INCOMPATIBLE for state in _ALIVE},
        (State.GREETING, Event.WELCOME): State.READY,
        (State.READY, Event.WELCOME): State.READY,
        (State.READY, Event.NEED_HELLO): State.GREETING,
        (State.GREETING, Event.NEED_HELLO): State.GREETING,
        (State.DRAINING, Event.NEED_HELLO): State.GREETING,
        (State.READY, Event.DRAIN): State.DRAINING,
        (State.GREETING, Event.DRAIN): State.DRAINING,
        (State.DRAINING, Event.DRAIN): State.DRAINING,
        (State.DRAINING, Event.WELCOME): State.DRAINING,
    },
    Role.GATEWAY: {
        (State.UNKNOWN, Event.HELLO): State.GREETED,
        (State.GREETED, Event.HELLO): State.GREETED,
        (State.GREETED, Event.SILENCE): State.UNKNOWN,
    },
}


class Session:
    """One end of one session. `handle` is the only way to change its state."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.DISCONNECTED if role is Role.AGENT else State.UNKNOWN

    def handle(self, event: Event) -> State:
        """Move on and return the new state. Raises WireError or InvariantViolation for an unlisted event."""
        following = TABLE[self.role].get((self.state, event))
        if following is None:
            fact = f"{event} in state {self.state} of the {self.role}'s session"
            if event in FROM_PEER:
                raise WireError(fact, "the peer breaks the protocol; see docs/wire.md")
            raise InvariantViolation(fact)
        self.state = following
        return following
