"""One agent's connection to one gateway: socket, monitor and session state. It says what happened; the uplink decides.

A DEALER can give up for good, silently (after garbage, an HTTP answer, a failed authentication), and libzmq reconnects
by itself otherwise. So the monitor is watched, and the socket is made anew when no Welcome comes or the gateway falls
silent.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from protocol import messages as m
from protocol import sockets, wire
from protocol.control.pulse import SILENCE_S
from protocol.control.session import Event, Role, Session, State
from protocol.errors import InvariantViolation

WELCOME_S = 3.0  # from transport handshake to Welcome
RECREATE_S = 8.0  # without a handshake for this long, libzmq may have given up for good


class Change(enum.StrEnum):
    """What the transport says."""

    HANDSHAKE = "the connection was made anew"
    LOST = "the link to the gateway is lost"
    NO_GATEWAY = "what answers at the gateway's address is no gateway"
    HUNG_UP = "nobody listens behind the gateway's address"


_CHANGES: dict[int, Change] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Change.HANDSHAKE,
    zmq.EVENT_DISCONNECTED: Change.LOST,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Change.NO_GATEWAY,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Change.HUNG_UP,
}


class Connection:
    """Used by one thread. Without an endpoint it only waits for the mailbox. Times are monotonic seconds."""

    def __init__(self, endpoint: sockets.Endpoint | None, mailbox_fd: int) -> None:
        self.session = Session(Role.AGENT)
        self.heard_at = 0.0
        self._since = 0.0  # when the session entered its state
        self._endpoint = endpoint
        self._mailbox_fd = mailbox_fd
        self._context = sockets.make_context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._poller.register(mailbox_fd, zmq.POLLIN)

    @property
    def state(self) -> State:
        return self.session.state

    def open(self, *, now: float) -> None:
        """Make the socket and begin to connect. Without an endpoint nothing happens."""
        if self._endpoint is None:
            return
        if self._socket is not None:
            raise InvariantViolation("a connection is opened twice")
        self._socket, self._monitor = sockets.watched_dealer(self._context, self._endpoint)
        self._since = now
        self._poller = zmq.Poller()
        for source in (self._socket, self._monitor, self._mailbox_fd):
            self._poller.register(source, zmq.POLLIN)

    def recreate(self, *, now: float) -> None:
        self._close_socket()
        self.open(now=now)

    def close(self) -> None:
        self._close_socket()
        self._context.term()

    def poll(self, timeout_ms: int) -> None:
        """Sleep until something comes, in the mailbox too."""
        self._poller.poll(timeout_ms)

    def changes(self) -> Iterator[Change]:
        """What the monitor has seen since."""
        while self._monitor is not None and self._monitor.poll(0):
            change = _CHANGES.get(int(recv_monitor_message(self._monitor)["event"]))
            if change is not None:
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
        return after

    def overdue(self, *, now: float, patience_s: float = SILENCE_S) -> str | None:
        """Why the socket should be made anew now, if it should."""
        waited = now - self._since
        if self.state in (State.READY, State.DRAINING) and now - self.heard_at > patience_s:
            return "the gateway has fallen silent"
        if self.state is State.GREETING and waited > WELCOME_S:
            return "the gateway did not welcome us"
        if self.state is State.DISCONNECTED and self._socket is not None and waited > RECREATE_S:
            return "no gateway answers"
        return None

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(0)
            self._socket = None
        if self._monitor is not None:
            self._monitor.close(0)
            self._monitor = None
