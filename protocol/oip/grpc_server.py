"""The gRPC door: the same service, guard and refusals on the event loop of the HTTP server.

    door = GrpcDoor(service, guard, GrpcListen(bind="127.0.0.1:0"))
    with OipServer(app, listen, companions=[door]):
        print(door.endpoint)

A refusal is the call's status and sentence, with its code, slack and retry time as trailing metadata; in a stream it is
the error message of one answer, and the stream goes on. The call's own deadline counts as `timeout`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec

from protocol.errors import EngineError, InputError, NetworkError
from protocol.oip.app import BODY_NBYTES
from protocol.oip.endpoints import check_control
from protocol.oip.service import Guard, InferenceService, OipError, Parameter, Refusal, Role, answered
from protocol.oip.tls import Tls
from protocol.sockets import Endpoint, parse_endpoint, require_loopback, resolve

try:
    import grpc
    import grpc.aio

    from protocol.oip import grpc_codec
    from protocol.oip.contract import SERVICE, contract
except ModuleNotFoundError as error:
    raise EngineError(f"gRPC is not installed ({error})", "pip install 'isthmus[grpc]'") from error

log = logging.getLogger("isthmus.grpc")

_MARGIN_NBYTES = 64 << 10  # of a message, for all that is no tensor
_STREAM_DEPTH = 16  # requests of one stream that are worked on at once
_NOT_SPOKEN = "this call is not spoken here: shared memory, traces and logs are not configured over the network"


class GrpcListen(msgspec.Struct, frozen=True):
    """Where the gRPC door listens."""

    bind: str = "127.0.0.1:7481"  # HOST:PORT; port 0 picks one
    tls: Tls | None = None
    insecure: bool = False  # allow plain text off this machine
    calls: int = 1000  # at once; more are refused


class GrpcDoor:
    """A companion of `OipServer`. Constructing has no side effects."""

    def __init__(
        self,
        service: InferenceService,
        guard: Guard,
        listen: GrpcListen,
        *,
        admin: bool = False,
        body_nbytes: int = BODY_NBYTES,
        turned_away: Callable[[Refusal], None] = lambda refusal: None,
    ) -> None:
        """`turned_away` is told of inferences that are refused before the service hears of them."""
        self._turned_away = turned_away
        self.endpoint: Endpoint | None = None  # the address that is really served
        self._answers = _Answers(service, admin=admin)
        self._guard = guard
        self._listen = listen
        self._body_nbytes = body_nbytes
        self._draining = False
        self._server: Any = None
        self._wanted = resolve(parse_endpoint(listen.bind))
        if listen.tls is None:
            require_loopback(self._wanted, insecure=listen.insecure, doing="gRPC listening on")

    async def start(self) -> None:
        """Raises NetworkError or InputError."""
        largest = self._body_nbytes + _MARGIN_NBYTES
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", largest),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # or a second server would share the port without a word
                ("grpc.max_concurrent_streams", self._listen.calls),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ],
            maximum_concurrent_rpcs=self._listen.calls,
        )
        server.add_generic_rpc_handlers((self._methods(), _NotSpoken()))
        self.endpoint = self._bind(server)
        await server.start()
        self._server = server

    def _bind(self, server: Any) -> Endpoint:
        wanted, tls = self._wanted, self._listen.tls
        host = {"*": "0.0.0.0"}.get(wanted.host, f"[{wanted.host}]" if ":" in wanted.host else wanted.host)  # noqa: S104
        address = f"{host}:{wanted.port}"
        try:
            if tls is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, _credentials(tls))
        except RuntimeError as error:
            reason = f"cannot listen on {address} for gRPC: {error}"
            raise NetworkError(reason, "stop the other process or choose another port") from error
        if port == 0:
            raise NetworkError(f"cannot listen on {address} for gRPC", "stop the other process or choose another port")
        return Endpoint(wanted.host, port)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, finish what runs."""
        self._draining = True
        if self._server is not None:
            await self._server.stop(grace_s)

    # ---- calls ------------------------------------------------------------------------------------------------------

    def _methods(self) -> Any:
        handlers = {}
        for call in contract.calls:
            if call.is_stream:
                behaviour: Any = self._stream
                make = grpc.stream_stream_rpc_method_handler
            else:
                behaviour = self._unary(*self._answers.of(call.name))
                make = grpc.unary_unary_rpc_method_handler
            handlers[call.name] = make(behaviour, call.request.FromString, call.response.SerializeToString)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _unary(self, role: Role, answer: Answering) -> Callable[[Any, Any], Awaitable[Any]]:
        async def serve(message: Any, context: Any) -> Any:
            try:
                return await self._guarded(role, answer, message, context)
            except OipError as error:
                await _abort(context, error)
            except Exception:  # the top of the task
                log.exception("a call failed: %s", type(message).__name__)
                await _abort(context, OipError(Refusal.INTERNAL, "internal error; the server's log has it"))

        return serve

    async def _guarded(self, role: Role, answer: Answering, message: Any, context: Any) -> Any:
        try:
            return await self._let_in(role, answer, message, context)
        except OipError as error:
            if isinstance(message, contract.ModelInferRequest) and not error.by_service:
                self._turned_away(error.refusal)
            raise

    async def _let_in(self, role: Role, answer: Answering, message: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        nbytes = message.ByteSize() if role == "infer" else 0
        tenant = self._guard.check(
            role=role, credential=_credential(metadata), address=_address(context.peer()), nbytes=nbytes
        )
        try:
            if self._draining and role != "open":
                raise OipError(Refusal.DRAINING, "the server is shutting down; ask another")
            remaining_s = context.time_remaining()
            return await answer(message, Caller(tenant, remaining_s, str(metadata.get("traceparent", ""))))
        finally:
            self._guard.release(tenant)

    async def _stream(self, messages: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests; several are worked on at once."""
        depth = asyncio.Semaphore(_STREAM_DEPTH)
        begun: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        running: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            try:
                async for message in messages:
                    await depth.acquire()
                    task = asyncio.create_task(self._stream_one(message, context))
                    running.add(task)
                    begun.put_nowait(task)
            finally:
                begun.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await begun.get()) is not None:
                yield await task
                running.discard(task)
                depth.release()
            await reader
        finally:  # all is done, or the caller has gone
            for left in (reader, *running):
                left.cancel()

    async def _stream_one(self, message: Any, context: Any) -> Any:
        role, answer = self._answers.of("ModelInfer")
        try:
            return contract.ModelStreamInferResponse(infer_response=await self._guarded(role, answer, message, context))
        except OipError as error:
            reason = error.reason
        except Exception:
            log.exception("a request of a stream failed")
            reason = "internal error; the server's log has it"
        told = contract.ModelStreamInferResponse(error_message=reason)
        told.infer_response.id = message.id
        return told


class Caller(msgspec.Struct, frozen=True):
    tenant: str
    remaining_s: float | None
    trace: str


Answering = Callable[[Any, Caller], Awaitable[Any]]


class _Answers:
    """What each call asks of the service, and which role it takes."""

    def __init__(self, service: InferenceService, *, admin: bool) -> None:
        self._service = service
        self._admin = admin

    def of(self, call: str) -> tuple[Role, Answering]:
        roles: dict[str, Role] = {
            "ServerLive": "open",
            "ServerReady": "open",
            "ServerMetadata": "open",
            "RepositoryModelLoad": "admin",
            "RepositoryModelUnload": "admin",
        }
        return roles.get(call, "infer"), getattr(self, f"_{call}")

    async def _ServerLive(self, _: Any, __: Caller) -> Any:  # noqa: N802 - the calls are named by the contract
        return contract.ServerLiveResponse(live=await self._service.live())

    async def _ServerReady(self, _: Any, __: Caller) -> Any:  # noqa: N802
        return contract.ServerReadyResponse(ready=await self._service.ready())

    async def _ModelReady(self, asked: Any, _: Caller) -> Any:  # noqa: N802
        ready = await self._service.model_ready(asked.name, asked.version or None)
        return contract.ModelReadyResponse(ready=ready)

    async def _ServerMetadata(self, _: Any, __: Caller) -> Any:  # noqa: N802
        return contract.ServerMetadataResponse(**msgspec.structs.asdict(await self._service.server_metadata()))

    async def _ModelMetadata(self, asked: Any, _: Caller) -> Any:  # noqa: N802
        found = await self._service.model_metadata(asked.name, asked.version or None)
        return contract.ModelMetadataResponse(**msgspec.to_builtins(found))

    async def _ModelInfer(self, asked: Any, caller: Caller) -> Any:  # noqa: N802
        request = grpc_codec.decode(asked, tenant=caller.tenant, remaining_s=caller.remaining_s, trace=caller.trace)
        return grpc_codec.encode(await answered(self._service, request))

    async def _ModelConfig(self, asked: Any, _: Caller) -> Any:  # noqa: N802
        found = await self._service.model_config(asked.name, asked.version or None)
        return contract.ModelConfigResponse(config=grpc_codec.config(found))

    async def _ModelStatistics(self, asked: Any, _: Caller) -> Any:  # noqa: N802
        return grpc_codec.statistics(await self._service.statistics(asked.name or None, asked.version or None))

    async def _RepositoryIndex(self, asked: Any, _: Caller) -> Any:  # noqa: N802
        found = await self._service.repository_index(ready_only=asked.ready)
        return contract.RepositoryIndexResponse(models=[msgspec.structs.asdict(entry) for entry in found])

    async def _RepositoryModelLoad(self, asked: Any, caller: Caller) -> Any:  # noqa: N802
        await self._service.load(asked.model_name, self._control(asked), tenant=caller.tenant)
        return contract.RepositoryModelLoadResponse()

    async def _RepositoryModelUnload(self, asked: Any, caller: Caller) -> Any:  # noqa: N802
        await self._service.unload(asked.model_name, self._control(asked), tenant=caller.tenant)
        return contract.RepositoryModelUnloadResponse()

    def _control(self, asked: Any) -> Mapping[str, Parameter]:
        return check_control(grpc_codec.parameters_of(asked.parameters), admin=self._admin)


class _NotSpoken(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
    """Answers calls of the protocol that are not served with a sentence; foreign services get gRPC's own answer."""

    def service(self, details: Any) -> Any:
        if not details.method.startswith(f"/{SERVICE}/"):
            return None

        async def refuse(_: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NOT_SPOKEN)
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)


async def _abort(context: Any, error: OipError) -> None:
    trailing = [("isthmus-code", error.refusal.name)]
    if error.slack_s is not None:
        trailing.append(("isthmus-slack-us", str(max(0, int(error.slack_s * 1e6)))))
    if error.retry_after_s is not None:
        trailing.append(("isthmus-retry-after-us", str(max(0, int(error.retry_after_s * 1e6)))))
    await context.abort(grpc.StatusCode[error.grpc_code], error.reason, trailing_metadata=tuple(trailing))


def _credential(metadata: Mapping[str, Any]) -> str | None:
    bearer = str(metadata.get("authorization", ""))
    if bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    key = metadata.get("x-api-key")
    return None if key is None else str(key).strip()


def _address(peer: str) -> str:
    """`ipv4:127.0.0.1:4711`, `ipv6:[::1]:4711` (percent-encoded), `unix:`"""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "unix"
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")


def _credentials(tls: Tls) -> Any:
    tls.context()  # the same checks and sentences as for HTTP
    try:
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        authority = None if tls.client_ca is None else tls.client_ca.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", "give PEM files") from error
    return grpc.ssl_server_credentials([pair], authority, authority is not None)
