"""Late answers for other programs on the device, over HTTP: the daemon mounts these routes beside the standard ones.

    POST   /v2/isthmus/store/{model}     an inference request as in /v2/models/{model}/infer, JSON or binary tensors;
                                         202 and a ticket as soon as it is on the disk
    GET    /v2/isthmus/store/{ticket}    202 while it waits; 200 and the answer as in infer, which stays; 410 with the
                                         reason if there will never be one
    DELETE /v2/isthmus/store/{ticket}    the same, and it is removed from the disk first: the answer is given once
    GET    /v2/isthmus/store             how much lies there, and what is waited for

Parameters of a request: `timeout` (microseconds, at most a day) or `store_life_s` say how long an answer is of use;
`priority` as in infer; `store_key` is the caller's own name for the request: sent twice, for example because the
connection broke before the ticket came, it is stored once. The wishes about outputs hold for the late answer.

When the agent itself is killed, only what was stored survives: a request to /v2/models/{model}/infer goes with it.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

from edge_agent.serving.service import provenance
from edge_agent.store.journal import Journal
from edge_agent.store.tickets import Accepts, State, StoreError, StoreFullError, Ticket, Wish
from protocol.errors import InputError
from protocol.oip import codec
from protocol.oip.routes import Answer, Call, Route
from protocol.oip.service import InferRequest, InferResponse, OipError, Parameter, Refusal

PATH = "/v2/isthmus/store"
_ELSEWHERE_NBYTES = 64 << 10  # copying and summing more than this takes longer than a switch of threads
_OCTETS = "application/octet-stream"
_DEFAULT_PRIORITY = 5

T = TypeVar("T")


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """The caller's wishes about its answer, kept beside the request."""

    id: str = ""
    outputs: tuple[str, ...] = ()
    form: codec.Form = codec.PLAIN


_note = msgspec.json.Decoder(Note)


def routes(
    journal: Journal, accepts: Accepts, *, why: Callable[[], str] = lambda: "", trouble: Callable[[], str] = lambda: ""
) -> list[Route]:
    """`accepts` raises InputError (or OipError) for what is not answered here; `why` says why nothing is being sent,
    `trouble` why there is no store to speak of, which is then refused as NOT_READY."""
    store = _Store(journal, accepts, why, trouble)
    named = f"{PATH}/{{name}}"  # a model's or a ticket: OpenAPI takes one name for one place
    return [
        Route("POST", named, "infer", "Store a request to this model for a late answer", store.put, "Infer"),
        Route("GET", named, "infer", "What became of the request with this ticket", store.look, gives="Inferred"),
        Route("DELETE", named, "infer", "The same, and it is removed", store.drop, gives="Inferred"),
        Route("GET", PATH, "infer", "What lies in the store", store.totals),
    ]


class _Store:
    def __init__(self, journal: Journal, accepts: Accepts, why: Callable[[], str], trouble: Callable[[], str]) -> None:
        self._journal = journal
        self._accepts = accepts
        self._why = why
        self._trouble = trouble

    async def put(self, call: Call) -> Answer:
        self._require()
        work = functools.partial(self._offer, call)
        try:
            offered = await asyncio.to_thread(work) if len(call.body) > _ELSEWHERE_NBYTES else work()
        except InputError as error:
            raise OipError(Refusal.BAD_REQUEST, str(error)[:900]) from None
        ticket = await _on_disk(offered)
        document = codec.to_json({"ticket": ticket, "state": State.WAITING})
        return Answer(document, status=202, headers=((b"location", f"{PATH}/{ticket}".encode()),))

    async def look(self, call: Call) -> Answer:
        return _told(await self._found(self._journal.looking, call))

    async def drop(self, call: Call) -> Answer:
        return _told(await self._found(self._journal.dropping, call), removed=True)

    async def totals(self, _: Call) -> Answer:
        self._require()
        try:
            totals = await asyncio.to_thread(self._journal.totals)
        except StoreError as error:
            raise _not_now(error) from None
        caps = self._journal.caps
        document = {
            "tickets": totals.tickets,
            "nbytes": totals.nbytes,
            "most_tickets": caps.most_tickets,
            "most_nbytes": caps.most_nbytes,
            "why": self._why(),
        }
        return Answer(codec.to_json(document))

    def _require(self) -> None:
        if trouble := self._trouble():
            raise _not_now(trouble)

    def _offer(self, call: Call) -> Future[str]:
        length = call.headers.get(b"inference-header-content-length")
        model = call.names["name"]
        json_nbytes = None if length is None else _size(length)
        request, form = codec.decode(call.body, json_nbytes, model=model, version=None, tenant=call.tenant)
        self._accepts(model, request.tensors)
        return self._journal.offer(_wish(request, form))

    async def _found(self, ask: Callable[..., Future[Ticket | None]], call: Call) -> Ticket:
        self._require()
        name = call.names["name"]
        try:
            found = await _on_disk(ask(name, tenant=call.tenant))
        except InputError as error:
            raise OipError(Refusal.NOT_FOUND, str(error)) from None
        if found is None:
            raise OipError(Refusal.NOT_FOUND, f"ticket {name[:64]!r} is not known, or not any more")
        return found


async def _on_disk(future: Future[T]) -> T:
    try:
        return await asyncio.wrap_future(future)
    except StoreFullError as error:
        raise OipError(Refusal.BUSY, str(error), retry_after_s=5.0) from None
    except StoreError as error:
        raise _not_now(error) from None


def _not_now(trouble: object) -> OipError:
    return OipError(Refusal.NOT_READY, f"the store cannot be used now: {trouble}", retry_after_s=30.0)


def _wish(request: InferRequest, form: codec.Form) -> Wish:
    life_s: Parameter | None = request.parameters.get("store_life_s", request.timeout_s)
    if life_s is not None and (isinstance(life_s, bool | str) or not 0 < life_s < math.inf):
        raise InputError(f"parameter 'store_life_s' is {str(life_s)[:40]!r}", "give the seconds an answer is of use")
    key = request.parameters.get("store_key", "")
    if not isinstance(key, str):
        raise InputError(f"parameter 'store_key' is {str(key)[:40]!r}", "give a string")
    note = Note(request.id, request.outputs, form)
    return Wish(
        request.tensors,
        model=request.model,
        priority=_DEFAULT_PRIORITY if request.priority is None else request.priority,
        life_s=life_s,
        tenant=request.tenant,
        key=key,
        note=msgspec.json.encode(note).decode(),
    )


def _told(ticket: Ticket, *, removed: bool = False) -> Answer:
    if ticket.answer is None:
        document: dict[str, Any] = {
            "ticket": ticket.id,
            "state": ticket.state,
            "model_name": ticket.model,
            "attempts": ticket.attempts,
            "left_s": 0.0 if removed else max(ticket.left_s, 0.0),
            "code": ticket.code,
            "reason": ticket.reason,
        }
        status = 410 if ticket.state is not State.WAITING else 200 if removed else 202
        return Answer(codec.to_json(document), status=status)
    note = _note_of(ticket)
    known = ticket.answer.outputs
    outputs = {name: known[name] for name in note.outputs if name in known} or known
    parameters = {**provenance(ticket.answer), "ticket": ticket.id}
    version = ticket.answer.bundle[:12]  # the bundle that serves now may be another
    body, json_nbytes = codec.encode(InferResponse(ticket.model, version, note.id, outputs, parameters), note.form)
    if json_nbytes is None:
        return Answer(body)
    return Answer(body, _OCTETS, headers=((b"inference-header-content-length", b"%d" % json_nbytes),))


def _note_of(ticket: Ticket) -> Note:
    try:
        return _note.decode(ticket.note)
    except msgspec.MsgspecError:  # not stored through these routes
        return Note()


def _size(text: bytes) -> int:
    if not text.isdigit() or len(text) > 12:
        raise OipError(Refusal.BAD_REQUEST, "Inference-Header-Content-Length is no number of bytes")
    return int(text)
