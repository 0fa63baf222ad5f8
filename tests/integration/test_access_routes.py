"""Every route of the standard doors with every credential: a route that is added is tried without being named here."""

from __future__ import annotations

import http.client
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest

from cloud_gateway.access.api_keys import Role, Rules
from cloud_gateway.access.guard import ApiGuard
from cloud_gateway.access.roster import Table
from protocol.oip.app import OipApp
from protocol.oip.contract import SERVICE, contract
from protocol.oip.grpc_server import GrpcDoor, GrpcListen
from protocol.oip.http_server import Listen, OipServer
from protocol.oip.routes import Answer, Call, Route
from tests.access import CREDENTIALS, ROSTER, UTC, expected_status
from tests.oip import ToyService

# What each call of the gRPC contract asks for; one that is not listed here fails the test.
CALLS: dict[str, Role] = {
    **dict.fromkeys(("ServerLive", "ServerReady", "ServerMetadata"), "open"),
    **dict.fromkeys(("ModelReady", "ModelMetadata", "ModelInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
                    "infer"),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), "admin"),
}  # fmt: skip
OF_GRPC = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429}


async def _numbers(_: Call) -> Answer:
    return Answer(b"1")


EXTRA = Route("GET", "/metrics", "metrics", "as the gateway adds them", _numbers)


class Doors(NamedTuple):
    http: int
    grpc: int


def _app(guard: ApiGuard) -> OipApp:
    return OipApp(ToyService(), guard, admin=True, extra=[EXTRA])


def _guard() -> ApiGuard:
    table = Table.of(ROSTER, utc=UTC)
    return ApiGuard(lambda: table, Rules(admin=True), clock=lambda: UTC, failures_per_minute=100_000)


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    guard = _guard()
    calls = GrpcDoor(ToyService(), guard, GrpcListen("127.0.0.1:0"), admin=True)
    server = OipServer(_app(guard), Listen("127.0.0.1:0"), companions=[calls])
    server.start()
    assert server.endpoint is not None
    assert calls.endpoint is not None
    yield Doors(server.endpoint.port, calls.endpoint.port)
    server.close(2.0)


ROUTES = _app(_guard()).router.routes


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_every_http_route_lets_in_whom_it_should(doors: Doors, credential: str) -> None:
    text = CREDENTIALS[credential]
    connection = http.client.HTTPConnection("127.0.0.1", doors.http, timeout=20)
    wrong = []
    for route, header in itertools.product(ROUTES, ("Authorization", "X-API-Key")):
        sent = {} if text is None else {header: f"Bearer {text}" if header == "Authorization" else text}
        path = route.path.replace("{model}", "sum").replace("{version}", "1")
        connection.request(route.method, path, b"{}" if route.method == "POST" else None, sent)
        response = connection.getresponse()
        response.read()
        want = expected_status(route.role, credential)
        was = response.status if response.status in (401, 403, 429) else 200  # let in, whatever became of it then
        if was != want:
            wrong.append(f"{route.method} {path} as {route.role}: {response.status} instead of {want}")
    connection.close()
    assert not wrong


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_every_grpc_call_lets_in_whom_it_should(doors: Doors, credential: str) -> None:
    text = CREDENTIALS[credential]
    sent = [] if text is None else [("authorization", f"Bearer {text}")]
    calls = contract.calls
    assert {call.name for call in calls if not call.is_stream} == set(CALLS)
    wrong = []
    with grpc.insecure_channel(f"127.0.0.1:{doors.grpc}") as channel:
        for call in calls:
            status = _status(channel, call, sent)
            want = expected_status(CALLS.get(call.name, "infer"), credential)
            if status != want:
                wrong.append(f"{call.name}: {status} instead of {want}")
    assert not wrong


def _status(channel: Any, call: Any, metadata: list[tuple[str, str]]) -> int:
    names = {f.name for f in call.request.DESCRIPTOR.fields}
    message = call.request(**({"model_name": "sum"} if "model_name" in names else {}))
    path = f"/{SERVICE}/{call.name}"
    kinds = {"request_serializer": call.request.SerializeToString, "response_deserializer": call.response.FromString}
    try:
        if call.is_stream:
            for answer in channel.stream_stream(path, **kinds)(iter([message]), metadata=metadata, timeout=20):
                if "does not have the role" in answer.error_message:
                    return 403
                return 401 if "API key" in answer.error_message else 200
            return 200
        channel.unary_unary(path, **kinds)(message, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return OF_GRPC.get(error.code().name, 200)
    return 200


def test_no_route_is_without_a_role_that_somebody_has() -> None:
    assert {route.role for route in ROUTES} == {"open", "infer", "metrics", "admin"}
    open_paths = {route.path for route in ROUTES if route.role == "open"}
    assert open_paths == {"/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json"}
