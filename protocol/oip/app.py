"""The HTTP door as an ASGI application: routes, guard, body, endpoint, answer; every refusal as one JSON sentence.

    headers -> route -> guard (the announced size) -> body, within its limit -> inflate -> endpoint -> answer

Plain ASGI without a framework: routes are a table (`routes`), so the roles and the OpenAPI document are read from what
really runs, and a small inference costs some 60 us here instead of three times that.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import numpy as np

from protocol import __version__
from protocol.oip import codec, encodings
from protocol.oip.endpoints import Endpoints
from protocol.oip.openapi import document
from protocol.oip.origins import refuse_pages
from protocol.oip.routes import Answer, Call, Route, Router
from protocol.oip.service import Guard, InferenceService, OipError, Refusal, is_local

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

log = logging.getLogger("isthmus.http")

BODY_NBYTES = 64 << 20  # of an inference, as it comes and inflated
TOTAL_NBYTES = 512 << 20  # of all bodies that are held at once
ALIGNMENT = 64
# An extension of our server: scope["extensions"][GONE](callback) is called back when the client goes; None unsets it.
# Awaiting `receive` beside the work, as ASGI has it, costs a task for each request (10 us).
GONE = "isthmus.gone"
_NO_EXTENSIONS: dict[str, Any] = {}
# A refused body that is no larger is read to its end, so that the connection lives on and the client reads the answer.
_SWALLOW_NBYTES = 256 << 10
_LINGER_S = 2.0
_ELSEWHERE_NBYTES = 64 << 10


class OipApp:
    """`await app(scope, receive, send)`. `draining` refuses new inferences; what runs is finished."""

    def __init__(
        self,
        service: InferenceService,
        guard: Guard,
        *,
        admin: bool = False,
        extra: Iterable[Route] = (),
        body_nbytes: int = BODY_NBYTES,
        total_nbytes: int = TOTAL_NBYTES,
        turned_away: Callable[[Refusal], None] = lambda refusal: None,
    ) -> None:
        """`turned_away` is told of inferences that are refused before the service hears of them."""
        self.draining = False
        self._turned_away = turned_away
        self._guard = guard
        self._machine = socket.gethostname()
        self._body_nbytes = body_nbytes
        self._room = _Room(total_nbytes)
        routes = [*Endpoints(service, admin=admin).routes(), *extra]
        routes.append(Route("GET", "/openapi.json", "open", "This document", self._openapi))
        self.router = Router(routes)
        self._document = codec.to_json(document(self.router.routes, version=__version__))

    async def _openapi(self, _: Call) -> Answer:
        return Answer(self._document)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = _Request(scope, receive, send, self._room)
        try:
            answer = await self._serve(request)
        except OipError as error:
            if request.is_infer and not error.by_service:
                self._turned_away(error.refusal)
            answer = _refusal(error)
        except asyncio.CancelledError:
            if not self.draining:
                raise
            answer = _refusal(OipError(Refusal.DRAINING, "the server is shutting down; ask another"))
        except Exception:  # the top of the task: a bug of ours must not take the server with it
            log.exception("an endpoint failed: %s %s", scope["method"], scope["path"])
            answer = _refusal(OipError(Refusal.INTERNAL, "internal error; the server's log has it"))
        finally:
            self._room.give(request.held_nbytes)
        await request.reply(answer, close=self.draining)

    async def _serve(self, request: _Request) -> Answer:
        scope = request.scope
        found = self.router.find(scope["method"], scope["raw_path"].decode("ascii", "replace"))
        route, is_infer = found.route, found.route.takes == "Infer"
        request.is_infer = is_infer
        limit = self._body_nbytes if is_infer else route.largest_nbytes
        if self.draining and is_infer:
            raise OipError(Refusal.DRAINING, "the server is shutting down; ask another")
        client = scope.get("client")
        address = client[0] if client and client[0] else "unix"
        credential = _credential(request.headers)
        if credential is None:
            named = address != "unix" and is_local(address)
            refuse_pages(request.headers, machine=self._machine, checks_name=named)
        announced = request.announced_nbytes
        tenant = self._guard.check(role=route.role, credential=credential, address=address, nbytes=announced or 0)
        is_in = True
        try:
            if announced is not None and announced > limit:
                raise _too_large(announced, limit)
            body = await request.body(limit)
            if announced is None and len(body):  # chunked: only now is its size known
                self._guard.release(tenant)
                is_in = False
                tenant = self._guard.check(role=route.role, credential=credential, address=address, nbytes=len(body))
                is_in = True
            call = Call(scope["method"], scope["path"], found.names, _query(scope), request.headers, body, tenant)
            return await request.unless_gone(route.endpoint(call)) if is_infer else await route.endpoint(call)
        finally:
            if is_in:
                self._guard.release(tenant)


class _Room:
    """What all bodies together may hold."""

    def __init__(self, total_nbytes: int) -> None:
        self.free_nbytes = total_nbytes

    def take(self, nbytes: int) -> None:
        """Raises OipError if there is no room."""
        if nbytes > self.free_nbytes:
            raise OipError(Refusal.BUSY, "too many bytes are being received at once", retry_after_s=1.0)
        self.free_nbytes -= nbytes

    def give(self, nbytes: int) -> None:
        self.free_nbytes += nbytes


class _Request:
    """One request's way through ASGI."""

    def __init__(self, scope: Message, receive: Receive, send: Send, room: _Room) -> None:
        self.scope = scope
        self.held_nbytes = 0
        self.is_infer = False
        self._room = room
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._is_read = False
        length = self.headers.get(b"content-length")
        if length is not None:
            self.announced_nbytes: int | None = int(length)  # the parser lets only numbers pass
        else:
            self.announced_nbytes = None if b"transfer-encoding" in self.headers else 0

    async def body(self, limit_nbytes: int) -> memoryview:
        """The whole body, inflated, read-only. Binary tensors lie aligned. Raises OipError."""
        if self.announced_nbytes == 0:
            self._is_read = True
            return memoryview(b"")
        buffer = _aligned(await self._whole(limit_nbytes), self._binary_at())
        coding = self.headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if encodings.is_identity(coding) or not len(buffer):
            return buffer
        plain = await _inflate(buffer, coding, min(limit_nbytes, self._room.free_nbytes))
        self._hold(len(plain))
        return _aligned(plain, self._binary_at())

    def _hold(self, nbytes: int) -> None:
        self._room.take(nbytes)
        self.held_nbytes += nbytes

    async def _whole(self, limit_nbytes: int) -> bytes:
        pieces: list[bytes] = []
        size, more = 0, True
        if self.announced_nbytes is not None:
            self._hold(self.announced_nbytes)
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise OipError(Refusal.CANCELLED, "the caller has gone")
            pieces.append(message["body"])
            size += len(message["body"])
            more = message["more_body"]
            if size > limit_nbytes:
                raise _too_large(size, limit_nbytes)
            if self.announced_nbytes is None:
                self._hold(len(message["body"]))
        self._is_read = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _binary_at(self) -> int:
        text = self.headers.get(b"inference-header-content-length", b"")
        return int(text) if text.isdigit() and len(text) <= 12 else 0

    async def unless_gone(self, work: Awaitable[Answer]) -> Answer:
        """The work's answer; the work is cancelled as soon as the client has gone (where the server can tell)."""
        tell = self.scope.get("extensions", _NO_EXTENSIONS).get(GONE)
        if tell is None:
            return await work
        task = asyncio.current_task()
        assert task is not None
        gone = False

        def cancel() -> None:
            nonlocal gone
            gone = True
            task.cancel()

        tell(cancel)
        try:
            return await work
        except asyncio.CancelledError:
            if gone and task.uncancel() == 0:
                error = OipError(Refusal.CANCELLED, "the caller has gone")
                error.by_service = True  # it was cancelled there
                raise error from None
            raise
        finally:
            tell(None)

    async def reply(self, answer: Answer, *, close: bool) -> None:
        headers = [
            (b"content-type", answer.content_type.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
        ]
        linger = not self._is_read and not await self._swallow()
        if close or linger:
            headers.append((b"connection", b"close"))
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": answer.body, "more_body": linger})
        if linger:
            # Closing with unread bytes makes the kernel send a reset, and the client would never read why.
            await self._discard(math.inf, _LINGER_S)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _swallow(self) -> bool:
        """Reads a small refused body to its end; whether it was read."""
        announced = self.announced_nbytes
        if announced is None or announced > _SWALLOW_NBYTES:
            return False
        return announced == 0 or await self._discard(_SWALLOW_NBYTES, _LINGER_S)

    async def _discard(self, most_nbytes: float, most_s: float) -> bool:
        read = 0
        try:
            async with asyncio.timeout(most_s):
                while read <= most_nbytes:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return True
                    read += len(message["body"])
                    if not message["more_body"]:
                        self._is_read = True
                        return True
        except TimeoutError:
            pass
        return False


def _aligned(body: bytes, binary_at: int) -> memoryview:
    """The same bytes, copied so that what lies at `binary_at` is aligned for every element type."""
    if binary_at <= 0 or binary_at >= len(body):
        return memoryview(body)
    pad = -binary_at % ALIGNMENT
    room = np.empty(pad + len(body), np.uint8)
    room[pad:] = np.frombuffer(body, np.uint8)
    return room.data[pad:].toreadonly()


async def _inflate(buffer: memoryview, coding: str, limit_nbytes: int) -> bytes:
    if len(buffer) <= _ELSEWHERE_NBYTES // 8:
        return encodings.inflate(buffer, coding, limit_nbytes=limit_nbytes)
    return await asyncio.to_thread(encodings.inflate, buffer, coding, limit_nbytes=limit_nbytes)


def _too_large(nbytes: int, limit: int) -> OipError:
    return OipError(Refusal.TOO_LARGE, f"the body has {nbytes:,} bytes; at most {limit:,} are taken here")


def _credential(headers: dict[bytes, bytes]) -> str | None:
    bearer = headers.get(b"authorization")
    if bearer is not None and bearer[:7].lower() == b"bearer ":
        return bearer[7:].strip().decode("latin-1")
    key = headers.get(b"x-api-key")
    return None if key is None else key.strip().decode("latin-1")


_NO_QUERY: dict[str, str] = {}


def _query(scope: Message) -> dict[str, str]:
    text: bytes = scope["query_string"]
    if not text:
        return _NO_QUERY
    try:
        return dict(urllib.parse.parse_qsl(text.decode("latin-1"), max_num_fields=32))
    except ValueError:
        raise OipError(Refusal.BAD_REQUEST, "the query has more than 32 fields") from None


def _refusal(error: OipError) -> Answer:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if error.retry_after_s is not None:
        headers = ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    if error.refusal is Refusal.UNAUTHENTICATED:
        headers = (*headers, (b"www-authenticate", b'Bearer realm="isthmus"'))
    return Answer(codec.to_json(codec.error_document(error)), status=error.status, headers=headers)
