"""One agent's connection to one gateway: socket, monitor and session state. It says what happened; the uplink decides.

A DEALER can give up for good, silently (after garbage, an HTTP answer, a failed authentication), and libzmq reconnects
by itself otherwise. So the monitor is watched, and the socket is made anew when no Welcome comes or the gateway falls
silent. A gateway that refuses us, or hangs up, may know us by another of our `ways`: the
next socket takes the next one. Whoever is refused by all of them knocks again after a while, or when its keys change.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator, Sequence

import zmq

from edge_agent.knocking import Chance, Knocking
from edge_agent.ways import Ways
from protocol import descriptors, sockets, wire
from protocol import messages as m
from protocol.control.causes import Cause, Why
from protocol.control.pulse import SILENCE_S
from protocol.control.session import Event, Role, Session, State
from protocol.errors import InvariantViolation
from protocol.latency import TcpView

WELCOME_S = 3.0  # from transport handshake to Welcome
RECREATE_S = 8.0  # without a handshake for this long, libzmq may have given up for good
TURN_S = 2.0  # the same where another way may do
GIVEN_UP_S = 1.0  # after a connection was dropped libzmq says at once that it will try again, or never will
LOOK_S = 0.25  # between two looks at whether our keys have changed, while they do not do
HANG_UPS = 2  # after so many in a row another way is tried at once: once may be a gateway that has just been restarted


class Change(enum.StrEnum):
    """What the transport says."""

    HANDSHAKE = "the connection was made anew"
    LOST = "the link to the gateway is lost"
    NO_GATEWAY = "what answers at the gateway's address is no gateway, or one that wants keys (--keys)"
    HUNG_UP = "nobody listens behind the gateway's address"
    REFUSED = "the gateway does not let us in: our key is unknown, revoked or expired"


_CHANGES: dict[int, Change] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Change.HANDSHAKE,
    zmq.EVENT_DISCONNECTED: Change.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Change.NO_GATEWAY,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Change.HUNG_UP,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: Change.REFUSED,
}


class Shared:
    """What all connections of one thread share: ZeroMQ's context, and the one sleep from which any of them wakes it."""

    def __init__(self, mailbox_fd: int, chance: Chance | None = None) -> None:
        self.chance: Chance = chance or random.Random()
        self.context = sockets.make_context()
        self.poller = zmq.Poller()
        self.poller.register(mailbox_fd, zmq.POLLIN)

    def poll(self, timeout_ms: int) -> None:
        """Sleep until something comes, in the mailbox too."""
        self.poller.poll(timeout_ms)

    def close(self) -> None:
        """After all connections."""
        self.context.term()


class Connection:
    """Used by one thread. While no address of its gateway is known nothing happens. Times are monotonic seconds."""

    def __init__(self, ways: Ways, shared: Shared) -> None:
        self.session = Session(Role.AGENT)
        self.heard_at = 0.0
        self._since = 0.0  # when the session entered its state
        self._ways = ways
        self._hang_ups = 0  # since the socket was made, or a handshake succeeded
        self._refused = False
        self._connected = False  # at any time with this socket
        self._dropped = False  # the last attempt, and libzmq has not said that it will try again
        self._dropped_at: float | None = None  # when that was first noticed
        self._turns = 0  # ways tried since a handshake succeeded, or since the last knock
        self._knocking = Knocking(shared.chance)
        self._knock_at: float | None = None  # all ways were refused
        self._look_at = 0.0  # for other keys
        self._shared = shared
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._descriptor: int | None = None  # of the TCP connection, which libzmq owns

    @property
    def state(self) -> State:
        return self.session.state

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    @property
    def tcp(self) -> TcpView | None:
        """What the kernel has seen of this connection; None without one."""
        return None if self._descriptor is None else descriptors.tcp_view(self._descriptor)

    def open(self, *, now: float) -> None:
        """Make the socket and begin to connect. Without a way nothing happens."""
        if self._socket is not None:
            raise InvariantViolation("a connection is opened twice")
        if self._ways.count == 0:
            return
        self._socket, self._monitor = sockets.watched_dealer(self._shared.context, *self._ways.current)
        self._since = now
        self._hang_ups, self._refused, self._connected = 0, False, False
        self._dropped, self._dropped_at = False, None
        self._knock_at, self._look_at = None, now + LOOK_S
        for source in (self._socket, self._monitor):
            self._shared.poller.register(source, zmq.POLLIN)

    def recreate(self, *, now: float) -> None:
        self._close_socket()
        if self._knock_at is not None and now >= self._knock_at:
            self._turns = 0
        if self._in_vain or not self._connected:
            self._ways.turn()
            self._turns += 1
        self.open(now=now)

    def forbidden(self, *, now: float) -> None:
        """The key that this connection was made with holds no longer: make it anew, with the keys as they are now."""
        self._refused = True
        self.recreate(now=now)

    def close(self) -> None:
        self._close_socket()

    def changes(self) -> Iterator[Change]:
        """What the monitor has seen since."""
        while self._monitor is not None and self._monitor.poll(0):
            event, value = sockets.monitor_event(self._monitor)
            if event in (zmq.EVENT_CONNECTED, zmq.EVENT_DISCONNECTED):
                self._descriptor = value if event == zmq.EVENT_CONNECTED else None
            if event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CONNECT_RETRIED):
                self._dropped, self._dropped_at = event == zmq.EVENT_DISCONNECTED, None
            change = _CHANGES.get(event)
            match change:
                case Change.HANDSHAKE:
                    self._connected, self._hang_ups, self._turns = True, 0, 0
                case Change.HUNG_UP:
                    self._hang_ups += 1
                case Change.REFUSED:
                    self._refused = True
            if change is not None and not (change is Change.LOST and self._refused):  # that says less
                yield change

    def receive(self) -> list[memoryview] | None:
        """The frames of one message, or None when nothing waits."""
        if self._socket is None:
            return None
        try:
            return [frame.buffer for frame in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)]
        except zmq.Again:
            return None

    def send(self, message: m.Message, payload: Sequence[wire.Buffer] = ()) -> int:
        """Bytes handed to the socket; 0 when there is no connection that would take them."""
        if self._socket is None:
            return 0
        frames = wire.pack(message, payload)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return 0
        return sum(memoryview(f).nbytes for f in frames)

    def handle(self, event: Event, *, now: float) -> State:
        """Move the session on. Raises WireError if the peer may not do that now."""
        before = self.state
        after = self.session.handle(event)
        if after is not before or event is Event.HANDSHAKE:
            self._since = now
        if event is Event.WELCOME:
            self._knocking.begin_anew()
        return after

    def overdue(self, *, now: float, patience_s: float = SILENCE_S) -> Why | None:
        """Why the socket should be made anew now, if it should."""
        waited = now - self._since
        if self.state in (State.READY, State.DRAINING) and now - self.heard_at > patience_s:
            return Why(Cause.SILENCE, "the gateway has fallen silent")
        if self.state is State.GREETING and waited > WELCOME_S:
            return Why.lost("the gateway did not welcome us")
        if self.state is State.DISCONNECTED and self._socket is not None:
            if self._tries_again(waited, now):
                return Why.lost(self._why_not())
            if self._has_given_up(now):
                return Why.lost(str(Change.NO_GATEWAY))
        return None

    def _tries_again(self, waited: float, now: float) -> bool:
        """Whether another attempt to connect may end otherwise than this one."""
        if (self._refused or self._hung_up_on_keys) and now >= self._look_at:
            self._look_at = now + LOOK_S
            if self._ways.have_changed():
                self._knocking.begin_anew()
                self._knock_at = now
                return True
        if self._in_vain and self._ways.count > 1 and self._turns < self._ways.count:  # but no more than once round
            return True
        if self._refused:
            if self._knock_at is None:
                self._knock_at = self._knocking.turned_away(now=now)
            return now >= self._knock_at
        return waited > RECREATE_S or (waited > TURN_S and (self._ways.count > 1 or self._hung_up_on_keys))

    def _has_given_up(self, now: float) -> bool:
        """Whether libzmq will never connect again, after garbage. Whoever is refused may take its time."""
        if self._dropped and not self._refused and self._dropped_at is None:
            self._dropped_at = now
        return self._dropped_at is not None and now - self._dropped_at > GIVEN_UP_S

    @property
    def _in_vain(self) -> bool:
        return self._hang_ups >= HANG_UPS or self._refused

    @property
    def _hung_up_on_keys(self) -> bool:
        return self._hang_ups > 0 and self._ways.count > 0 and self._ways.current.curve is not None

    def _why_not(self) -> str:
        if self._refused:
            return str(Change.REFUSED)
        if self._hung_up_on_keys:
            return "the gateway hangs up: its key may be another than we know"
        return "no gateway answers"

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._descriptor = None
            self._shared.poller.unregister(self._socket)
            self._socket.disable_monitor()
            self._socket.close(0)
            self._socket = None
        if self._monitor is not None:
            self._shared.poller.unregister(self._monitor)
            self._monitor.close(0)
            self._monitor = None
