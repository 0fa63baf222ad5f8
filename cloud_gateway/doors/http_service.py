"""The standard protocol's way to the desk: requests over HTTP and gRPC join the same lanes and batches as all others.

    door -> infer -> fit -> desk.submit ....... engine thread -> post_all --eventfd--> event loop -> caller's future

Tensors are never copied here: an item's parts are the bytes of the request's body. Every request is counted once when
it is offered and once when it ends. One whose caller has gone is taken out of the queue; if it runs already, its answer
is dropped.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cloud_gateway.desk import Desk
from cloud_gateway.doors import descriptions
from cloud_gateway.doors.administration import Administration, Audit, administer, unrecorded
from cloud_gateway.doors.turns import Turns
from cloud_gateway.models.catalogue import Catalogue, Published
from cloud_gateway.models.lanes import Segment
from cloud_gateway.models.states import State
from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.tracing import Traced
from cloud_gateway.work import Computed, Crashed, Item, NotComputed, Outcome
from protocol import codecs
from protocol.errors import WireError
from protocol.mailbox import Mailbox
from protocol.messages import RejectCode
from protocol.oip.service import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelStatistics,
    OipError,
    Parameter,
    Refusal,
    RepositoryEntry,
    ServerMetadata,
)
from protocol.tensors import TensorHeader, dtype_name

_REFUSALS = {
    RejectCode.BUSY: Refusal.BUSY,
    RejectCode.DEADLINE: Refusal.DEADLINE,
    RejectCode.UNKNOWN_SEGMENT: Refusal.NOT_FOUND,
    RejectCode.UNKNOWN_REFERENCE: Refusal.BAD_REQUEST,
    RejectCode.BAD_REQUEST: Refusal.BAD_REQUEST,
    RejectCode.TOO_LARGE: Refusal.TOO_LARGE,
    RejectCode.DRAINING: Refusal.DRAINING,
    RejectCode.CANCELLED: Refusal.CANCELLED,
    RejectCode.INTERNAL: Refusal.INTERNAL,
}
_READY = descriptions.STATES[State.AVAILABLE]


class HttpService:
    """The `InferenceService` of a gateway, and a companion of the doors' event loop.

    `submit` is the desk's own, or that of a cache in front of it. Without a `keeper` models are those that were named
    at the start. `audit` records what administrators do, and raises if it cannot. `record` is told of requests that
    their callers trace. `is_live` says whether the gateway's other loops come round.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        desk: Desk,
        ledger: Ledger,
        *,
        submit: Callable[[Item], Verdict | None] | None = None,
        keeper: Administration | None = None,
        audit: Audit = unrecorded,
        record: Callable[[Traced], None] | None = None,
        is_live: Callable[[], bool] = lambda: True,
    ) -> None:
        self._catalogue = catalogue
        self._desk = desk
        self._submit = submit or desk.submit
        self._ledger = ledger
        self._keeper = keeper
        self._audit = audit
        self._record = record
        self._is_live = is_live
        self._mailbox: Mailbox[Outcome] = Mailbox()
        self._waiting: set[asyncio.Future[Computed | NotComputed]] = set()
        self._turns = Turns()
        self._crash: BaseException | None = None

    # ---- between threads and the event loop -------------------------------------------------------------------------

    def post_all(self, items: Iterable[Outcome], /) -> None:
        """Hand over outcomes, from any thread; a `Crashed` refuses everything that waits, now and later."""
        self._mailbox.post_all(items)

    async def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._mailbox.fileno(), self._drain)

    async def stop(self, grace_s: float) -> None:
        """Wait for what is held, at most `grace_s`; what is left then is refused."""
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=grace_s)
        self._drain()
        self._give_up(lambda: OipError(Refusal.DRAINING, "the gateway is shutting down"))
        asyncio.get_running_loop().remove_reader(self._mailbox.fileno())
        self._mailbox.close()

    def _drain(self) -> None:
        for outcome in self._mailbox.drain():
            if isinstance(outcome, Crashed):
                self._crash = outcome.error
                self._give_up(_crashed)
                continue
            future: Any = outcome.item.ticket
            if future is None:  # refused already
                continue
            if not future.done():
                future.set_result(outcome)
            elif future.cancelled():
                self._refused(outcome.item, RejectCode.CANCELLED)

    def _give_up(self, error: Callable[[], OipError]) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(error())
        self._turns.give_up(error)

    # ---- inference --------------------------------------------------------------------------------------------------

    async def infer(self, request: InferRequest) -> InferResponse:
        arrived = time.monotonic()
        published = self._offered(request)
        segment = published.whole
        assert segment is not None
        if self._crash is not None:
            raise _crashed()
        self._ledger.offered(segment.scope)
        future: asyncio.Future[Computed | NotComputed] = asyncio.get_running_loop().create_future()
        try:
            item = self._item(request, segment, arrived, future)
            _check_outputs(request, published)
        except (ValueError, WireError) as error:
            self._ledger.refused(segment.scope, RejectCode.BAD_REQUEST, slack_s=0.0, budget_s=0.0)
            raise OipError(Refusal.BAD_REQUEST, str(error)[:900]) from None
        verdict = await self._admit(item)
        if verdict is not None:
            raise self._refusal(item, verdict.code, verdict.reason, verdict.retry_after_s)
        outcome = await self._outcome(item, future)
        if isinstance(outcome, NotComputed):
            raise self._refusal(item, outcome.code, outcome.reason)
        return self._answer(request, published, outcome, arrived)

    def _offered(self, request: InferRequest) -> Published:
        """The version that is asked for. What cannot be found is counted under no name: names are the callers'."""
        try:
            found = self._find(request.model, request.version)
            if found.whole is None:
                reason = f"model {request.model!r} is served only behind its cuts; ask it through an edge agent"
                raise OipError(Refusal.BAD_REQUEST, reason)
            return found
        except OipError:
            self._ledger.offered(None)
            self._ledger.refused(None, RejectCode.UNKNOWN_SEGMENT, slack_s=0.0, budget_s=0.0)
            raise

    def _item(
        self, request: InferRequest, segment: Segment, arrived: float, future: asyncio.Future[Computed | NotComputed]
    ) -> Item:
        """Raises ValueError or WireError if the tensors are not those that the model takes."""
        tensors = request.tensors
        names = [b.spec.name for b in segment.boundary]
        if tensors.keys() != set(names):
            raise ValueError(f"the inputs are {', '.join(tensors)}; the model takes {', '.join(names)}")
        headers = []
        parts = []
        for name in names:
            array = tensors[name]
            headers.append(TensorHeader(name, dtype_name(name, array), array.shape, "raw", array.nbytes))
            parts.append(array.reshape(-1).view("u1").data)
        rows, layout = segment.fit(headers)
        timeout_s = segment.default_timeout_s if request.timeout_s is None else request.timeout_s
        return Item(
            segment, tuple(headers), parts, (1,) * len(parts), None, rows, layout, sum(h.nbytes for h in headers),
            arrived, math.inf if timeout_s is None else arrived + timeout_s,
            segment.default_priority if request.priority is None else request.priority,
            request.tenant, self, future,
        )  # fmt: skip

    async def _admit(self, item: Item) -> Verdict | None:
        """None: its outcome will come. Without a deadline it waits for its turn when its tenant's credit is used up."""
        tenant, patient, waited = item.tenant, item.deadline == math.inf, False
        while True:
            if waited or not (patient and self._turns.is_queued(tenant)):
                verdict = self._submit(item)
                if verdict is None:
                    self._turns.enter(tenant)
                    return None
                if verdict.code is not RejectCode.BUSY or not patient or not self._turns.may_wait(tenant):
                    if waited:
                        self._turns.pass_on(tenant)
                    return verdict
            try:
                await self._turns.wait(tenant, first=waited)
            except asyncio.CancelledError:
                self._refused(item, self._gone())
                raise
            except OipError as error:
                self._refused(item, _code_of(error))
                raise
            waited, item.arrived = True, time.monotonic()

    async def _outcome(self, item: Item, future: asyncio.Future[Computed | NotComputed]) -> Computed | NotComputed:
        self._waiting.add(future)
        try:
            return await future
        except asyncio.CancelledError:
            if self._desk.withdraw(lambda waiting: waiting is item) or self._desk.is_draining:
                item.ticket = None
                self._refused(item, self._gone())
            raise  # what an engine has is counted when it comes back
        except OipError as error:  # the gateway crashed, or shut down before it was done
            self._refused(item, _code_of(error))
            raise
        finally:
            self._waiting.discard(future)
            self._turns.leave(item.tenant)

    def _gone(self) -> RejectCode:
        """Why nobody waits any more: at the end callers are sent away, before that they go by themselves."""
        return RejectCode.DRAINING if self._desk.is_draining else RejectCode.CANCELLED

    def _answer(self, request: InferRequest, published: Published, done: Computed, arrived: float) -> InferResponse:
        item, now = done.item, time.monotonic()
        queue_s = done.queue_s + item.arrived - arrived  # the wait for a turn counts
        segment = item.segment
        outputs = {
            header.name: codecs.decode(header, buffer)
            for header, buffer in zip(done.headers, done.buffers, strict=True)
            if not request.outputs or header.name in request.outputs
        }
        self._ledger.answered(
            segment.scope, queue_s=queue_s, residence_s=now - arrived, budget_s=item.deadline - item.arrived,
            late=now > item.deadline, now=now,
        )  # fmt: skip
        if self._record is not None and (traced := descriptions.traced(request, done, now=now)) is not None:
            asyncio.get_running_loop().run_in_executor(None, self._record, traced)  # it takes longer than an answer
        parameters: Mapping[str, Parameter] = {
            "placement": segment.placement,
            "precision": segment.precision,
            "bundle": segment.bundle,
            "engine": done.engine,
            "queue_us": int(queue_s * 1e6),
            "decode_us": int(done.decode_s * 1e6),
            "compute_us": int(done.compute_s * 1e6),
            "batch_size": done.batch_size,
        }
        version = published.version
        return InferResponse(version.name, str(version.version), request.id, outputs, parameters)

    def _refusal(self, item: Item, code: RejectCode, reason: str, retry_after_s: float | None = None) -> OipError:
        slack_s = self._refused(item, code)
        return OipError(_REFUSALS[code], reason, slack_s=slack_s, retry_after_s=retry_after_s or None)

    def _refused(self, item: Item, code: RejectCode) -> float | None:
        """Counts it; the slack that is left, None where there was no deadline."""
        budget_s, slack_s = item.deadline - item.arrived, item.deadline - time.monotonic()
        self._ledger.refused(item.segment.scope, code, slack_s=slack_s, budget_s=budget_s)
        return None if budget_s == math.inf else max(slack_s, 0.0)

    # ---- descriptions -----------------------------------------------------------------------------------------------

    def _find(self, name: str, version: str | None) -> Published:
        """Raises OipError: NOT_READY for what the repository holds but does not serve now, else NOT_FOUND."""
        number = None if version is None else _number(version)
        found = self._catalogue.find(name, number)
        if found is not None:
            return found
        what = f"model {name[:128]!r}" + (f" version {version[:20]}" if version is not None else "")
        for status in self._keeper.index() if self._keeper else ():
            if status.name == name and number in (None, status.version):
                reason = f"{what} is {status.state}" + (f": {status.reason}" if status.reason else "")
                raise OipError(Refusal.NOT_READY, reason[:900], retry_after_s=1.0)
        raise OipError(Refusal.NOT_FOUND, f"{what} is not here; POST /v2/repository/index lists what is")

    async def live(self) -> bool:
        return self._crash is None and self._is_live()

    async def ready(self) -> bool:
        if self._crash is not None or self._desk.is_draining:
            return False
        if self._keeper is not None:
            return self._keeper.is_ready()
        return any(True for _ in self._catalogue.published())

    async def model_ready(self, model: str, version: str | None) -> bool:
        try:
            return self._find(model, version).whole is not None
        except OipError as error:
            if error.refusal is Refusal.NOT_READY:
                return False
            raise

    async def server_metadata(self) -> ServerMetadata:
        return descriptions.SERVER

    async def model_metadata(self, model: str, version: str | None) -> ModelMetadata:
        found = self._find(model, version)
        versions = sorted(p.version.version for p in self._catalogue.published() if p.version.name == model)
        return descriptions.metadata(found, versions)

    async def model_config(self, model: str, version: str | None) -> dict[str, Any]:
        return descriptions.config(self._find(model, version))

    async def statistics(self, model: str | None, version: str | None) -> Sequence[ModelStatistics]:
        if model is None:
            wanted = list(self._catalogue.published())
        elif version is None:
            self._find(model, None)
            wanted = [p for p in self._catalogue.published() if p.version.name == model]
        else:
            wanted = [self._find(model, version)]
        scopes = self._ledger.snapshot(now=time.monotonic()).scopes
        return [descriptions.statistics(p.version.name, str(p.version.version), scopes) for p in wanted]

    async def repository_index(self, *, ready_only: bool) -> Sequence[RepositoryEntry]:
        if self._keeper is not None:
            entries = [
                RepositoryEntry(s.name, str(s.version), descriptions.STATES[s.state], s.reason)
                for s in self._keeper.index()
            ]
        else:
            ready = descriptions.STATES[State.AVAILABLE]
            entries = [
                RepositoryEntry(p.version.name, str(p.version.version), ready) for p in self._catalogue.published()
            ]
        return [entry for entry in entries if not ready_only or entry.state == _READY]

    # ---- administration ---------------------------------------------------------------------------------------------

    async def load(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        await administer(self._keeper, self._audit, tenant, "load", model, parameters)

    async def unload(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        await administer(self._keeper, self._audit, tenant, "unload", model, parameters)


def _number(version: str) -> int:
    """-1 for what is no version's number: nothing bears that."""
    return int(version) if version.isascii() and version.isdigit() and len(version) < 19 else -1


def _check_outputs(request: InferRequest, published: Published) -> None:
    known = [spec.name for spec in published.outputs]
    for name in request.outputs:
        if name not in known:
            raise ValueError(f"output {name[:128]!r} is not one of {', '.join(known)}")


def _code_of(error: OipError) -> RejectCode:
    return RejectCode.DRAINING if error.refusal is Refusal.DRAINING else RejectCode.INTERNAL


def _crashed() -> OipError:
    return OipError(Refusal.INTERNAL, "the gateway has failed and is about to be restarted")
