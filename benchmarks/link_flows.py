"""What travels over the emulated link: lanes (the two directions), connections, and their flows.

Law: a chunk is in exactly one place: in the lane while the link holds it, in the outbox while the kernel does not take
it, or gone. Nothing here waits; the loop in `link.py` decides when each is looked at.
"""

from __future__ import annotations

import socket
import struct
from collections import deque

from benchmarks.shaping import Shaper, bytes_per_s

OUTBOX_NBYTES = 64 << 10  # a reader slower than the link holds back its own sender, and nobody else's
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Lane:
    """One direction of the link: its clock, and the chunks under way in the order in which the clock counts them.

    Args:
        rate_mbit_per_s: rate in Mbit/s; None is unlimited.
        delay_s: one-way delay in seconds.

    Raises:
        ValueError: if the rate is not positive and finite, or the delay negative or not finite.
    """

    def __init__(self, rate_mbit_per_s: float | None, delay_s: float) -> None:
        self.shaper = Shaper(bytes_per_s(rate_mbit_per_s), delay_s)
        self.delivered_nbytes = 0
        self._under_way: deque[tuple[Flow, bytes]] = deque()
        self._late_s = 0.0

    def enter(self, flow: Flow, chunk: bytes, now: float) -> None:
        """Put a chunk on the link; an empty one is the end of the flow's stream."""
        self.shaper.push(len(chunk), now=now)
        self._under_way.append((flow, chunk))

    def arrivals(self, now: float) -> set[Flow]:
        """Move what is due into the outboxes; return the flows that got something."""
        if (due_s := self.shaper.next_release()) is not None:
            self._late_s = max(self._late_s, now - due_s)
        reached = set()
        for _ in range(self.shaper.pop(now=now)):
            flow, chunk = self._under_way.popleft()
            flow.outbox.append(memoryview(chunk))
            flow.outbox_nbytes += len(chunk)
            self.delivered_nbytes += len(chunk)
            reached.add(flow)
        return reached

    def stats(self, now: float) -> dict[str, float]:
        """Return what was delivered, what is held, and the latest wake-up since the last call of `stats`."""
        late_s, self._late_s = self._late_s, 0.0
        return {
            "delivered_nbytes": self.delivered_nbytes,
            "backlog_nbytes": self.shaper.backlog(now),
            "held_nbytes": self.shaper.held_nbytes,
            "late_max_ms": round(late_s * 1e3, 3),
        }


class Connection:
    """A client's socket, the socket to the target, and the two flows between them."""

    def __init__(self, client: socket.socket, server: socket.socket, up: Lane, down: Lane) -> None:
        self.client, self.server = client, server
        self.connected = self.closed = False
        self.flows = (Flow(self, up, client, server), Flow(self, down, server, client))

    def close(self, *, reset: bool) -> None:
        """Close both ends, with RST if `reset`; what is still under way for them arrives nowhere."""
        self.closed = True
        for end in (self.client, self.server):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            end.close()


class Flow:
    """One direction of one connection: where it is read, where it goes, and what could not be written yet."""

    def __init__(self, connection: Connection, lane: Lane, source: socket.socket, sink: socket.socket) -> None:
        self.connection, self.lane, self.source, self.sink = connection, lane, source, sink
        self.outbox: deque[memoryview] = deque()
        self.outbox_nbytes = 0
        self.served = 0  # chunks read so far: whoever was served least goes first
        self.ended = False  # the source has said its last byte
        self.finished = False  # and the sink has been told

    @property
    def wants_read(self) -> bool:
        return self.connection.connected and not self.ended and self.outbox_nbytes < OUTBOX_NBYTES

    @property
    def wants_write(self) -> bool:
        connecting = self.sink is self.connection.server and not self.connection.connected
        return connecting or bool(self.outbox)

    def read(self, now: float) -> None:
        """Move one chunk from the source to the link.

        Raises:
            OSError: if the connection is broken.
        """
        try:
            chunk = self.source.recv(self.lane.shaper.chunk_nbytes)
        except BlockingIOError:
            return
        self.ended = not chunk
        self.served += 1
        self.lane.enter(self, chunk, now)

    def write(self) -> None:
        """Write what the sink takes, and close the connection once both of its flows are finished.

        Raises:
            OSError: if the connection is broken.
        """
        while self.outbox and not self.finished:
            chunk = self.outbox.popleft()
            if not chunk:
                self._finish()
                return
            try:
                nbytes = self.sink.send(chunk)
            except BlockingIOError:
                nbytes = 0
            self.outbox_nbytes -= nbytes
            if nbytes < len(chunk):
                self.outbox.appendleft(chunk[nbytes:])
                return

    def _finish(self) -> None:
        self.finished = True
        self.sink.shutdown(socket.SHUT_WR)
        if all(flow.finished for flow in self.connection.flows):
            self.connection.close(reset=False)
