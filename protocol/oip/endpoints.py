"""The routes of the Open Inference Protocol and of Triton's extensions to it, over an `InferenceService`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from protocol.oip import codec, encodings
from protocol.oip.routes import Answer, Call, Endpoint, Route
from protocol.oip.service import InferenceService, OipError, Parameter, Refusal, answered
from protocol.oip.tensors import MAX_PARAMETERS

# What takes longer than a switch of threads (some 50 us) is done on another one: zlib works without the GIL.
_ELSEWHERE_NBYTES = 64 << 10
_LARGE_JSON_NBYTES = 256 << 10  # 3 ms
_OCTETS = "application/octet-stream"

_Parameters = Annotated[dict[str, bool | int | float | str], msgspec.Meta(max_length=MAX_PARAMETERS)]


class _Index(msgspec.Struct):
    ready: bool = False


class _Control(msgspec.Struct):
    """The body of load and unload. What uploads a model (`config`, `file:...`) is refused: models come in folders."""

    parameters: _Parameters | None = None


_index = msgspec.json.Decoder(_Index)
_control = msgspec.json.Decoder(_Control)


class Endpoints:
    """One method for each thing that can be asked. Constructing has no side effects."""

    def __init__(self, service: InferenceService, *, admin: bool) -> None:
        self._service = service
        self._admin = admin

    def routes(self) -> list[Route]:
        model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
        routes = [
            Route("GET", "/v2/health/live", "open", "Is the process alive?", self.live),
            Route("GET", "/v2/health/ready", "open", "Are the models that should be served ready?", self.ready),
            Route("GET", "/v2", "open", "Name, version and extensions of the server", self.server, gives="Server"),
            Route("GET", "/v2/models/stats", "infer", "Statistics of all models", self.statistics, gives="Statistics"),
            Route(
                "POST", "/v2/repository/index", "infer", "All models and their states", self.index, "Index", "Entries"
            ),
            Route("POST", "/v2/repository/models/{model}/load", "admin", "Load a model", self.load, "Control"),
            Route("POST", "/v2/repository/models/{model}/unload", "admin", "Unload it", self.unload, "Control"),
        ]
        for path in (model, version):
            routes += [
                Route("POST", f"{path}/infer", "infer", "Run the model", self.infer, "Infer", "Inferred"),
                Route("GET", f"{path}/ready", "infer", "Is the model ready?", self.model_ready),
                Route("GET", path, "infer", "Its inputs and outputs", self.model, gives="Model"),
                Route("GET", f"{path}/config", "infer", "Its ModelConfig", self.config, gives="Config"),
                Route("GET", f"{path}/stats", "infer", "Its statistics", self.statistics, gives="Statistics"),
            ]
        return routes + _not_spoken(model)

    async def infer(self, call: Call) -> Answer:
        length = call.headers.get(b"inference-header-content-length")
        json_nbytes = None if length is None else _size(length)
        decode = functools.partial(
            codec.decode,
            call.body,
            json_nbytes,
            model=call.names["model"],
            version=call.names.get("version"),
            tenant=call.tenant,
            trace=call.headers.get(b"traceparent", b"").decode("latin-1"),
        )
        size = len(call.body) if json_nbytes is None else json_nbytes
        # Numbers are read in short pieces, between which the event loop gets its turn.
        request, form = await asyncio.to_thread(decode) if size > _LARGE_JSON_NBYTES else decode()
        response = await answered(self._service, request)
        body, json_nbytes = codec.encode(response, form)
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if json_nbytes is not None:
            headers = ((b"inference-header-content-length", b"%d" % json_nbytes),)
        coding = encodings.wished(call.headers.get(b"accept-encoding", b"").decode("latin-1"))
        if coding and len(body) >= encodings.SMALLEST_NBYTES:
            if len(body) > _ELSEWHERE_NBYTES:
                body = await asyncio.to_thread(encodings.deflate, body, coding)
            else:
                body = encodings.deflate(body, coding)
            headers = (*headers, (b"content-encoding", coding.encode()))
        return Answer(body, codec_type(json_nbytes), headers=headers)

    async def live(self, _: Call) -> Answer:
        return _yes_or_no(await self._service.live(), "the server is not live")

    async def ready(self, _: Call) -> Answer:
        return _yes_or_no(await self._service.ready(), "the server is not ready")

    async def model_ready(self, call: Call) -> Answer:
        name = call.names["model"]
        ready = await self._service.model_ready(name, call.names.get("version"))
        return _yes_or_no(ready, f"model {name!r} is not ready")

    async def server(self, _: Call) -> Answer:
        return _json(await self._service.server_metadata())

    async def model(self, call: Call) -> Answer:
        return _json(await self._service.model_metadata(call.names["model"], call.names.get("version")))

    async def config(self, call: Call) -> Answer:
        return _json(await self._service.model_config(call.names["model"], call.names.get("version")))

    async def statistics(self, call: Call) -> Answer:
        found = await self._service.statistics(call.names.get("model"), call.names.get("version"))
        return _json({"model_stats": found})

    async def index(self, call: Call) -> Answer:
        wish = codec.parse(call.body, _index) if len(call.body) else _Index()
        return _json(await self._service.repository_index(ready_only=wish.ready))

    async def load(self, call: Call) -> Answer:
        name, parameters = self._controlled(call)
        await self._service.load(name, parameters, tenant=call.tenant)
        return Answer()

    async def unload(self, call: Call) -> Answer:
        name, parameters = self._controlled(call)
        await self._service.unload(name, parameters, tenant=call.tenant)
        return Answer()

    def _controlled(self, call: Call) -> tuple[str, Mapping[str, Parameter]]:
        control = codec.parse(call.body, _control) if len(call.body) else _Control()
        return call.names["model"], check_control(control.parameters or {}, admin=self._admin)


def check_control(parameters: Mapping[str, Parameter], *, admin: bool) -> Mapping[str, Parameter]:
    """Raises OipError if models may not be loaded over the network at all, or are to be sent with the request."""
    if not admin:
        raise OipError(Refusal.FORBIDDEN, "models are not loaded over the network here; enable the admin routes")
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise OipError(
                Refusal.UNSUPPORTED, f"parameter {name[:64]!r}: models come from the repository's folder only"
            )
    return parameters


def codec_type(json_nbytes: int | None) -> str:
    return "application/json" if json_nbytes is None else _OCTETS


def _size(text: bytes) -> int:
    if not text.isdigit() or len(text) > 12:
        raise OipError(Refusal.BAD_REQUEST, "Inference-Header-Content-Length is no number of bytes")
    return int(text)


def _json(document: Any) -> Answer:
    return Answer(codec.to_json(document))


def _yes_or_no(yes: bool, reason: str) -> Answer:
    if yes:
        return Answer()
    raise OipError(Refusal.NOT_READY, reason, retry_after_s=1.0)


# ---- what Triton's clients can ask and we do not do: they show the sentence ------------------------------------------

_SHARED_MEMORY = "shared memory is not spoken here; send tensors in the message"
_TRACE = "traces are configured at the server; send a sampled traceparent to have one request traced"
_LOGGING = "the log is configured at the server, not over the network"


def _not_spoken(model: str) -> list[Route]:
    routes = [Route("GET", "/v2/logging", "infer", _LOGGING, _refusing(_LOGGING))]
    routes.append(Route("POST", "/v2/logging", "infer", _LOGGING, _refusing(_LOGGING)))
    for path in ("/v2/trace/setting", f"{model}/trace/setting"):
        routes += [Route(method, path, "infer", _TRACE, _refusing(_TRACE)) for method in ("GET", "POST")]
    for kind in ("system", "cuda"):
        base = f"/v2/{kind}sharedmemory"
        for path in (base, f"{base}/region/{{region}}"):
            routes.append(Route("GET", f"{path}/status", "infer", _SHARED_MEMORY, _refusing(_SHARED_MEMORY)))
            routes.append(Route("POST", f"{path}/unregister", "infer", _SHARED_MEMORY, _refusing(_SHARED_MEMORY)))
        path = f"{base}/region/{{region}}/register"
        routes.append(Route("POST", path, "infer", _SHARED_MEMORY, _refusing(_SHARED_MEMORY)))
    return routes


def _refusing(reason: str) -> Endpoint:
    async def refuse(_: Call) -> Answer:
        raise OipError(Refusal.BAD_REQUEST, reason)

    return refuse
