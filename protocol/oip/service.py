"""What an Open Inference Protocol door needs from the house behind it: nouns, one service, one guard. No library here.

    HTTP or gRPC -> Guard.check -> codec -> InferRequest -> InferenceService.infer -> InferResponse -> codec -> out

Both daemons implement `InferenceService`; the doors (`app`, `grpc_server`) know nothing else of them. Its methods are
called on the event loop of the doors and must not block it: work is handed to threads and awaited. If the caller goes
away, the awaiting task is cancelled, and the service then removes what it has queued for it.

What cannot be answered is raised as `OipError`; this table is its meaning on both wires (docs/oip.md tells clients):

    refusal                HTTP  gRPC
    BAD_REQUEST            400   INVALID_ARGUMENT     it does not fit the model: sending it again will not help
    UNAUTHENTICATED        401   UNAUTHENTICATED      no credential, or none that is known
    FORBIDDEN              403   PERMISSION_DENIED    a known credential without this role
    NOT_FOUND              404   NOT_FOUND            no such model, version or route
    NOT_ALLOWED            405   UNIMPLEMENTED        the route exists, but not for this method
    TIMED_OUT              408   DEADLINE_EXCEEDED    the request's own bytes came too slowly
    TOO_LARGE              413   RESOURCE_EXHAUSTED   over a limit on sizes
    UNSUPPORTED            415   UNIMPLEMENTED        an encoding or element type that is not spoken here
    RATE_LIMITED           429   RESOURCE_EXHAUSTED   over the credential's own rate
    CANCELLED              499   CANCELLED            the caller went away or withdrew it
    INTERNAL               500   INTERNAL             the engine failed
    BUSY                   503   UNAVAILABLE          the queue is full: another server, or later
    DRAINING               503   UNAVAILABLE          shutting down: another server
    NOT_READY              503   UNAVAILABLE          the model is known but not AVAILABLE
    DEADLINE               504   DEADLINE_EXCEEDED    it cannot finish, or did not, within `timeout`
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from protocol.tensors import Array  # numpy: settings and commands read this module, too

Parameter: TypeAlias = bool | int | float | str
Role = Literal["open", "infer", "metrics", "admin"]
NO_PARAMETERS: Mapping[str, Parameter] = {}


class Refusal(enum.Enum):
    """Why a request is not answered: its HTTP status and the name of its gRPC code."""

    BAD_REQUEST = (400, "INVALID_ARGUMENT")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    FORBIDDEN = (403, "PERMISSION_DENIED")
    NOT_FOUND = (404, "NOT_FOUND")
    NOT_ALLOWED = (405, "UNIMPLEMENTED")
    TIMED_OUT = (408, "DEADLINE_EXCEEDED", "slow sender")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    UNSUPPORTED = (415, "UNIMPLEMENTED")
    RATE_LIMITED = (429, "RESOURCE_EXHAUSTED")
    CANCELLED = (499, "CANCELLED")
    INTERNAL = (500, "INTERNAL")
    BUSY = (503, "UNAVAILABLE")
    DRAINING = (503, "UNAVAILABLE", "draining")  # a third member, or Python takes equal values for one refusal
    NOT_READY = (503, "UNAVAILABLE", "not ready")
    DEADLINE = (504, "DEADLINE_EXCEEDED")

    @property
    def status(self) -> int:
        return int(self.value[0])

    @property
    def grpc_code(self) -> str:
        return str(self.value[1])


class OipError(Exception):
    """A request that is refused, with the sentence that its caller will read.

    `slack_s` of the caller's budget is left to act elsewhere; coming back before `retry_after_s` is of no use. Both are
    None where they mean nothing.
    """

    def __init__(
        self, refusal: Refusal, reason: str, *, slack_s: float | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason
        self.slack_s = slack_s
        self.retry_after_s = retry_after_s
        self.by_service = False  # the service itself has refused, and knows of it

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.refusal.status

    @property
    def grpc_code(self) -> str:
        """The name of the member of `grpc.StatusCode`."""
        return self.refusal.grpc_code


class AccessDenied(OipError):  # noqa: N818 - the guard's word for it
    """Raised by a `Guard`: `status` is 401 (who are you?), 403 (not you) or 429 (not so fast)."""

    def __init__(self, status: Literal[401, 403, 429], reason: str, retry_after_s: float | None = None) -> None:
        refusals = {401: Refusal.UNAUTHENTICATED, 403: Refusal.FORBIDDEN, 429: Refusal.RATE_LIMITED}
        super().__init__(refusals[status], reason, retry_after_s=retry_after_s)


# ---- inference ------------------------------------------------------------------------------------------------------


class InferRequest(msgspec.Struct, frozen=True, eq=False):
    """One inference, decoded. `tensors` are read-only and lie in the message as it came wherever that is possible."""

    model: str
    version: str | None  # None: the newest that is ready
    id: str  # the caller's own, echoed; "" if it gave none
    tensors: dict[str, Array]
    outputs: tuple[str, ...]  # which to return; empty: all
    timeout_s: float | None  # the caller's budget, counted from the request's last byte
    priority: int | None  # 0 first .. 9; None: the service's default
    tenant: str  # who asks, as the guard named it
    parameters: Mapping[str, Parameter] = NO_PARAMETERS  # the caller's own; the protocol's are not among them
    trace: str = ""  # W3C traceparent as it came; "" if none


class InferResponse(msgspec.Struct, frozen=True, eq=False):
    """The answer. `parameters` tell where it was made: placement, bundle, engine, precision, queue_us, batch_size..."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = NO_PARAMETERS


# ---- descriptions, each in the shape of its JSON document -----------------------------------------------------------


class ServerMetadata(msgspec.Struct, frozen=True):
    name: str
    version: str
    extensions: Sequence[str]


class TensorMetadata(msgspec.Struct, frozen=True):
    """`datatype` in the protocol's words ("FP32", see `codec.DATATYPES`); -1 in `shape` is a free dimension."""

    name: str
    datatype: str
    shape: Sequence[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    name: str
    versions: Sequence[str]
    platform: str
    inputs: Sequence[TensorMetadata]
    outputs: Sequence[TensorMetadata]


class Duration(msgspec.Struct, frozen=True):
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0


class InferStatistics(msgspec.Struct, frozen=True):
    """Since the model was loaded; the names and their meaning are Triton's."""

    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class BatchStatistics(msgspec.Struct, frozen=True):
    """The same for the executions of one batch size."""

    batch_size: int
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()


class ModelStatistics(msgspec.Struct, frozen=True):
    """`inference_count` counts rows, `execution_count` batches: their quotient is the mean batch size."""

    name: str
    version: str
    last_inference: int = 0  # milliseconds since the epoch; 0: never
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: InferStatistics = InferStatistics()
    batch_stats: Sequence[BatchStatistics] = ()


class RepositoryEntry(msgspec.Struct, frozen=True):
    """`state` is READY, UNAVAILABLE, LOADING or UNLOADING; `reason` says why it is not READY."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class InferenceService(Protocol):
    """The house behind the doors. Every method may raise OipError; an unknown model or version is NOT_FOUND."""

    async def live(self) -> bool: ...

    async def ready(self) -> bool: ...

    async def model_ready(self, model: str, version: str | None) -> bool: ...

    async def server_metadata(self) -> ServerMetadata: ...

    async def model_metadata(self, model: str, version: str | None) -> ModelMetadata: ...

    async def model_config(self, model: str, version: str | None) -> dict[str, Any]:
        """Triton's ModelConfig as its JSON: name, platform, backend, max_batch_size, input, output, ..."""
        ...

    async def statistics(self, model: str | None, version: str | None) -> Sequence[ModelStatistics]:
        """Of one model, or of all."""
        ...

    async def repository_index(self, *, ready_only: bool) -> Sequence[RepositoryEntry]: ...

    async def load(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        """Returns when the model is ready; a BAD_REQUEST tells why it cannot be."""
        ...

    async def unload(self, model: str, parameters: Mapping[str, Parameter], *, tenant: str) -> None:
        """Returns when no new request finds the model."""
        ...

    async def infer(self, request: InferRequest) -> InferResponse: ...


async def answered(service: InferenceService, request: InferRequest) -> InferResponse:
    """What the service answers; refusals are marked as its own, so that doors tell theirs from them."""
    try:
        return await service.infer(request)
    except OipError as error:
        error.by_service = True
        raise


# ---- who may ask ----------------------------------------------------------------------------------------------------


class Guard(Protocol):
    """Who may do what, and how fast. Both methods are called on the event loop and return at once."""

    def check(self, *, role: Role, credential: str | None, address: str, nbytes: int) -> str:
        """The name of the tenant that asks. Raises AccessDenied.

        `credential` is what came as `Authorization: Bearer ...` (or `X-API-Key`), `address` a literal IP address or
        "unix", `nbytes` the size of the request's body. A body of unknown size is checked twice: with 0 bytes before it
        is read, with its true size after.
        """
        ...

    def release(self, tenant: str) -> None:
        """What `check` has let in has ended: called exactly once for every `check` that raised nothing."""
        ...


class OpenGuard:
    """Lets in whoever is on this machine; administration only if `admin`, other machines only if `anywhere`."""

    TENANT = "anonymous"

    def __init__(self, *, admin: bool = False, anywhere: bool = False) -> None:
        self._admin = admin
        self._anywhere = anywhere

    def check(self, *, role: Role, credential: str | None, address: str, nbytes: int) -> str:
        if not self._anywhere and not is_local(address):
            raise AccessDenied(403, f"{address} is another machine, and no API keys are configured here")
        if role == "admin" and not self._admin:
            raise AccessDenied(403, "administration over the network is off; configure an API key with the role admin")
        return self.TENANT

    def release(self, tenant: str) -> None:
        pass


@functools.lru_cache(1024)
def is_local(address: str) -> bool:
    """Whether a peer's address is this machine: a unix socket or a loopback address."""
    if address == "unix":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
