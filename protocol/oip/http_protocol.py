"""One HTTP connection: uvicorn's parser with the patience it lacks. No timer of its own: a sweep looks at all of them.

    IDLE --first byte--> HEAD --blank line--> BODY --last byte--> WORK --answer sent--> IDLE
     |                    |                    |                   (bounded by the request's own deadline)
     | keep_alive_s       | header_s           | body_s + a share for its size
     v                    v                    v
    closed               408, closed          408, closed

Besides: a head of more than 64 KiB or 128 fields is refused (431); a client that does not read its answer is cut off
when nothing has left its buffer for `write_s`; connections over the limit are answered 503 and closed.
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


class Connections(ServerState):
    """All connections of one server, and who is too many."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self.patience = patience
        self.refused: Counter[str] = Counter()  # connections that were cut off, by reason
        self._by_address: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Whether one more connection from there is taken."""
        self._by_address[address] += 1
        patience = self.patience
        return (
            len(self.connections) <= patience.connections
            and self._by_address[address] <= patience.connections_per_address
        )

    def leave(self, address: str) -> None:
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

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
        self._phase = Phase.IDLE
        self._since = loop.time()
        self._head_nbytes = 0
        self._allowed_s = 0.0
        self._address = ""
        self._unwritten = (0, 0.0)  # bytes that wait for the client, and since when no byte has left
        self._is_taken = False
        self._gone: Callable[[], None] | None = None
        self._extensions = {GONE: self._tell_when_gone}

    # ---- what the loop and the parser call --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joining = _Joining(transport)
        super().connection_made(self._joining)  # type: ignore[arg-type] # it is one
        self._address = self.client[0] if self.client else "unix"
        self._is_taken = self._all.enter(self._address)
        if not self._is_taken:
            self._cut_off(OipError(Refusal.BUSY, "too many connections", retry_after_s=1.0), "connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self._address)
        if self._gone is not None:
            self._gone()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._phase in (Phase.IDLE, Phase.HEAD):
            self._head_nbytes += len(data)
        super().data_received(data)
        if self._phase is Phase.HEAD and self._head_nbytes > MOST_HEAD_NBYTES:
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
        if not self.transport.is_closing():
            super().on_headers_complete()

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
        if self._phase is Phase.WORK and not self.pipeline:
            self._enter(Phase.IDLE)
        super().on_response_complete()

    def _tell_when_gone(self, callback: Callable[[], None] | None) -> None:
        self._gone = callback

    # ---- patience ---------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Cut it off if it has been too slow."""
        if not self._is_writing(now):
            return
        waited, patience = now - self._since, self._all.patience
        if self._phase is Phase.HEAD and waited > patience.header_s:
            self._cut_off(OipError(Refusal.TIMED_OUT, f"no whole head within {patience.header_s:g} s"), "slow head")
        elif self._phase is Phase.BODY and waited > self._allowed_s:
            self._cut_off(OipError(Refusal.TIMED_OUT, f"no whole body within {self._allowed_s:.1f} s"), "slow body")
        elif self._phase is Phase.IDLE and waited > patience.keep_alive_s:
            self.transport.close()

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
        self._phase = phase
        self._since = self.loop.time()

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
