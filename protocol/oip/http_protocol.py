"""One HTTP connection: uvicorn's parser with the patience it lacks. No timer of its own: a sweep looks at all of them.

    IDLE --first byte--> HEAD --blank line--> BODY --last byte--> WORK --answer sent--> IDLE
     |                    |                    |                   (bounded by the request's own deadline)
     | keep_alive_s       | header_s           | body_s + a share for its size
     v                    v                    v
    closed               408, closed          408, closed

Besides: a head of more than 64 KiB or 128 fields is refused (431); a client that does not read its answer is cut off
when nothing has left its buffer for `write_s`.

There is room for so many connections. When it is full, whoever has been idle for longest makes way for who comes. Where
nobody is idle a few more are let in who may ask for health and metrics, once; everybody else is answered 503. So no
application that holds all connections keeps an orchestrator from seeing how its daemon is.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from protocol.oip import codec
from protocol.oip.app import GONE
from protocol.oip.service import OipError, Refusal

MOST_HEAD_NBYTES = 64 << 10
MOST_FIELDS = 128
SPARE = 8  # connections over the limit, for health and metrics
_SPARED = (b"/v2/health/", b"/metrics")
_SWEEP_S = 0.5
_STATUS = tuple(b"HTTP/1.1 %d" % kind for kind in (2, 3, 4, 5))  # 100 Continue must not wait for a body


class Patience(msgspec.Struct, frozen=True):
    """How long a connection may take for what, and how many there may be."""

    header_s: float = 5.0
    body_s: float = 10.0  # and as long as its size takes at the next line's rate
    body_nbytes_per_s: int = 125_000  # 1 Mbit/s
    keep_alive_s: float = 60.0
    write_s: float = 20.0  # without a byte leaving
    connections: int = 1000
    connections_per_address: int = 1000  # a unix socket counts as one address

    @property
    def sweep_s(self) -> float:
        """How often to look: nobody waits more than a quarter longer than is allowed."""
        return min(_SWEEP_S, 0.25 * min(self.header_s, self.body_s, self.keep_alive_s, self.write_s))


class Phase(enum.Enum):
    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    WORK = "work"


class Place(enum.Enum):
    ROOM = "like everybody"
    SPARE = "for one question about health or metrics"
    NONE = "too many, or it has left"


class Connections(ServerState):
    """All connections of one server, and who is too many."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self.patience = patience
        self.refused: Counter[str] = Counter()  # connections that were cut off, by reason
        self._by_address: Counter[str] = Counter()
        self._spare: set[Connection] = set()

    def enter(self, newcomer: Connection) -> Place:
        """Where one more connection is taken, if anywhere."""
        address = newcomer.address
        if not self._has_room(address):
            self._make_way(address)
        if self._has_room(address):
            self._by_address[address] += 1
            return Place.ROOM
        if len(self._spare) >= SPARE:
            asked_nothing = [one for one in self._spare if one.phase in (Phase.IDLE, Phase.HEAD)]
            if asked_nothing:
                min(asked_nothing, key=lambda one: one.since).make_way()
        if len(self._spare) < SPARE:
            self._spare.add(newcomer)
            return Place.SPARE
        return Place.NONE

    def leave(self, connection: Connection) -> None:
        """It is gone, or going. Twice is once."""
        address = connection.address
        if connection.place is Place.ROOM:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
        self._spare.discard(connection)
        connection.place = Place.NONE

    def _has_room(self, address: str) -> bool:
        patience = self.patience
        full = self._by_address.total() >= patience.connections
        return not full and self._by_address[address] < patience.connections_per_address

    def _make_way(self, address: str) -> None:
        own = self._by_address[address] >= self.patience.connections_per_address
        idle = [
            one
            for one in self.connections
            if isinstance(one, Connection)
            and (one.place, one.phase) == (Place.ROOM, Phase.IDLE)
            and (one.address == address or not own)
        ]
        if idle:
            min(idle, key=lambda one: one.since).make_way()

    def sweep(self, now: float) -> None:
        """Cut off who has been too slow. `now` is the loop's time in seconds."""
        for connection in list(self.connections):
            if isinstance(connection, Connection):
                connection.check(now)


class _Joining:
    """A transport that sends an answer's head together with its body: one system call less, one segment less."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(_STATUS) and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what was held back: nothing follows."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""


class Connection(HttpToolsProtocol):
    """See the module's docstring. Made by the loop, one for each connection."""

    def __init__(self, config: Config, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config, connections, {}, loop)
        self._all = connections
        self.phase = Phase.IDLE
        self.since = loop.time()  # in this phase
        self.place = Place.NONE
        self.address = ""
        self._head_nbytes = 0
        self._allowed_s = 0.0
        self._unwritten = (0, 0.0)  # bytes that wait for the client, and since when no byte has left
        self._gone: Callable[[], None] | None = None
        self._extensions = {GONE: self._tell_when_gone}

    # ---- what the loop and the parser call --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joining = _Joining(transport)
        super().connection_made(self._joining)  # type: ignore[arg-type] # it is one
        self.address = self.client[0] if self.client else "unix"
        self.place = self._all.enter(self)
        if self.place is Place.NONE:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self)
        if self._gone is not None:
            self._gone()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.phase in (Phase.IDLE, Phase.HEAD):
            self._head_nbytes += len(data)
        super().data_received(data)
        if self.phase is Phase.HEAD and self._head_nbytes > MOST_HEAD_NBYTES:
            self._refuse_head()

    def send_400_response(self, msg: str) -> None:
        self._cut_off(OipError(Refusal.BAD_REQUEST, "this is no HTTP/1.1 request"), "malformed")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item] # ours is a callable
        self._enter(Phase.HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MOST_FIELDS:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        self._head_nbytes = 0
        patience = self._all.patience
        self._allowed_s = patience.body_s + _announced(self.headers) / patience.body_nbytes_per_s
        self._enter(Phase.BODY)
        if self.place is Place.SPARE and not self.url.startswith(_SPARED):
            self._turn_away()
        if not self.transport.is_closing():
            super().on_headers_complete()
            if self.place is Place.SPARE:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        # A pipelined request may be complete before the one in front of it is answered: it waits for us, not we for it.
        self._enter(Phase.WORK)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._joining.flush()
        if self.phase is Phase.WORK and not self.pipeline:
            self._enter(Phase.IDLE)
        super().on_response_complete()

    def _tell_when_gone(self, callback: Callable[[], None] | None) -> None:
        self._gone = callback

    # ---- patience ---------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Cut it off if it has been too slow."""
        if not self._is_writing(now):
            return
        waited, patience = now - self.since, self._all.patience
        idle_s = patience.header_s if self.place is Place.SPARE else patience.keep_alive_s
        if self.phase is Phase.HEAD and waited > patience.header_s:
            self._cut_off(OipError(Refusal.TIMED_OUT, f"no whole head within {patience.header_s:g} s"), "slow head")
        elif self.phase is Phase.BODY and waited > self._allowed_s:
            self._cut_off(OipError(Refusal.TIMED_OUT, f"no whole body within {self._allowed_s:.1f} s"), "slow body")
        elif self.phase is Phase.IDLE and waited > idle_s:
            self.transport.close()

    def make_way(self) -> None:
        """Close it, although it has done nothing wrong: others want its place."""
        self._all.refused["made way"] += 1
        self._all.leave(self)
        self.transport.close()

    def _turn_away(self) -> None:
        self._cut_off(OipError(Refusal.BUSY, "too many connections", retry_after_s=1.0), "connections")

    def _is_writing(self, now: float) -> bool:
        """False if it had to be cut off because its client does not read."""
        unwritten = self.transport.get_write_buffer_size()
        before, since = self._unwritten
        if unwritten == 0 or unwritten != before:
            self._unwritten = (unwritten, now)
        elif now - since > self._all.patience.write_s:
            self._all.refused["does not read"] += 1
            self.transport.abort()
            return False
        return True

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = self.loop.time()

    def _refuse_head(self) -> None:
        error = OipError(Refusal.TOO_LARGE, f"the head has more than {MOST_HEAD_NBYTES} bytes or {MOST_FIELDS} fields")
        self._cut_off(error, "large head", status=b"431 Request Header Fields Too Large")

    def _cut_off(self, error: OipError, why: str, status: bytes = b"") -> None:
        """Answer by ourselves, if nothing has been answered yet, and close."""
        if self.transport.is_closing():
            return
        self._all.refused[why] += 1
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = codec.to_json(codec.error_document(error))
            self.transport.write(
                b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
                % (status or b"%d %s" % (error.status, error.refusal.name.encode()), len(body), body)
            )
        self.transport.close()


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    for name, value in headers:
        if name == b"content-length":
            return int(value)
    return 0
