"""Unmodified tritonclient (grpc, grpc.aio, streams) against the gRPC door."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import trustme
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from protocol.errors import InputError, NetworkError
from protocol.oip.app import OipApp
from protocol.oip.grpc_server import GrpcDoor, GrpcListen
from protocol.oip.http_server import Listen, OipServer
from protocol.oip.service import AccessDenied, OipError, OpenGuard, Refusal, Role
from protocol.oip.tls import Tls
from tests.oip import ToyService

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.full((2, 4), 0.5, np.float32)


@pytest.fixture
def service() -> ToyService:
    return ToyService()


class Serving:
    """Both doors on one loop."""

    def __init__(self, service: ToyService, listen: GrpcListen | None = None, guard: Any = None, **more: Any) -> None:
        guard = guard or OpenGuard(admin=True)
        self.door = GrpcDoor(service, guard, listen or GrpcListen("127.0.0.1:0"), admin=True, **more)
        self.server = OipServer(OipApp(service, guard), Listen("127.0.0.1:0"), companions=[self.door])

    def __enter__(self) -> str:
        self.server.start()
        assert self.door.endpoint is not None
        return f"localhost:{self.door.endpoint.port}"

    def __exit__(self, *_: object) -> None:
        self.server.close(2.0)


@pytest.fixture
def address(service: ToyService) -> Iterator[str]:
    with Serving(service) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


def inputs(module: Any = triton, **arrays: np.ndarray[Any, Any]) -> list[Any]:
    given = []
    for name, array in (arrays or {"a": A, "b": B}).items():
        tensor = module.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        given.append(tensor)
    return given


def test_tritonclient_learns_everything_about_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum", "1")
    assert client.get_server_metadata().name == "isthmus"
    assert [tensor.name for tensor in client.get_model_metadata("sum").inputs] == ["a", "b"]
    config = client.get_model_config("sum").config
    assert (config.max_batch_size, config.input[0].data_type, list(config.output[0].dims)) == (8, 11, [4])
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    (told,) = client.get_inference_statistics("sum").model_stats
    assert (told.inference_count, told.inference_stats.queue.ns, told.batch_stats[0].compute_infer.count) == (
        3,
        3000,
        3,
    )
    assert len(client.get_inference_statistics().model_stats) == 2


def test_tritonclient_infers_with_id_timeout_and_priority(client: Any, service: ToyService) -> None:
    wanted = [triton.InferRequestedOutput("y")]
    result = client.infer(
        "sum", inputs(), outputs=wanted, request_id="q1", timeout=250_000, priority=3, parameters={"mine": "yes"}
    )
    assert np.array_equal(result.as_numpy("y"), A + B)
    assert result.get_response().id == "q1"
    assert result.get_response().parameters["placement"].string_param == "full-cloud"
    (request,) = service.requests
    assert (request.timeout_s, request.priority, request.parameters) == (0.25, 2, {"mine": "yes"})
    assert request.outputs == ("y",)


def test_the_calls_own_deadline_is_the_budget(client: Any, service: ToyService) -> None:
    client.infer("sum", inputs(), client_timeout=5.0)
    budget_s = service.requests[0].timeout_s
    assert budget_s is not None
    assert 0 < budget_s < 5.1


def test_a_call_that_runs_out_of_time_is_withdrawn_from_the_service(client: Any, service: ToyService) -> None:
    service.hold = asyncio.Event()
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        client.infer("sum", inputs(), client_timeout=0.3)
    for _ in range(100):
        if service.cancelled:
            return
        threading.Event().wait(0.02)
    pytest.fail("the service was not told")


def test_a_stream_answers_in_order_and_goes_on_after_a_refusal(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(40):
        client.async_stream_infer("absent" if i == 5 else "sum", inputs(a=A + i, b=B), request_id=str(i))
    for i in range(40):
        result, error = answers.get(timeout=20)
        if i == 5:
            assert "no model 'absent'" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(i)
            assert np.array_equal(result.as_numpy("y"), A + i + B)
    client.stop_stream()


def test_tritonclient_aio_infers_and_streams(address: str) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_model_ready("sum")
            asked = [client.infer("sum", inputs(triton_aio), request_id=str(i)) for i in range(50)]
            for i, result in enumerate(await asyncio.gather(*asked)):
                assert result.get_response().id == str(i)
                assert np.array_equal(result.as_numpy("y"), A + B)

            async def requests() -> Any:
                for i in range(3):
                    yield {"model_name": "sum", "inputs": inputs(triton_aio), "request_id": str(i)}

            found = [result async for result, error in client.stream_infer(requests()) if error is None]
            assert [result.get_response().id for result in found] == ["0", "1", "2"]

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_tritonclient_loads_unloads_and_lists_models(client: Any, service: ToyService) -> None:
    client.unload_model("sum")
    assert not client.is_model_ready("sum")
    assert {m.name: m.state for m in client.get_model_repository_index().models}["sum"] == "UNAVAILABLE"
    client.load_model("sum")
    assert client.is_model_ready("sum")
    with pytest.raises(InferenceServerException, match="repository's folder only"):
        client.load_model("sum", config="{}")
    with pytest.raises(InferenceServerException, match="repository's folder only"):
        client.load_model("sum", config="{}", files={"file:1/model.onnx": b"x"})


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda c: c.get_log_settings(), "not spoken here"),
        (lambda c: c.get_trace_settings(), "not spoken here"),
        (lambda c: c.get_system_shared_memory_status(), "not spoken here"),
        (lambda c: c.get_model_metadata("absent"), r"NOT_FOUND.*no model 'absent'"),
        (lambda c: c.infer("sum", inputs(a=A)), r"INVALID_ARGUMENT.*takes a and b"),
        (lambda c: c.infer("sum", inputs(), model_version="7"), "version 7"),
        (lambda c: c.infer("sum", inputs(), sequence_id=3), "sequences"),
        (
            lambda c: c.infer("sum", inputs(), outputs=[triton.InferRequestedOutput("y", class_count=2)]),
            "classification",
        ),
    ],
)
def test_tritonclient_shows_the_sentence_of_a_refusal(client: Any, ask: Any, says: str) -> None:
    with pytest.raises(InferenceServerException, match=says):
        ask(client)


@pytest.fixture
def stub(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def a_request() -> Any:
    request = service_pb2.ModelInferRequest(model_name="echo")
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.inputs[0].contents.fp32_contents.append(1.5)
    return request


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_has_its_code_and_tells_when_to_come_back(
    stub: Any, service: ToyService, refusal: Refusal
) -> None:
    service.failure = OipError(refusal, "because", slack_s=0.02, retry_after_s=1.2)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(a_request(), timeout=10)
    error: Any = caught.value
    assert (error.code().name, error.details()) == (refusal.grpc_code, "because")
    trailing = dict(error.trailing_metadata())
    assert trailing["isthmus-code"] == refusal.name
    assert (trailing["isthmus-slack-us"], trailing["isthmus-retry-after-us"]) == ("20000", "1200000")


def test_a_bug_in_the_service_is_one_internal_error_and_the_server_goes_on(stub: Any, service: ToyService) -> None:
    service.failure = ZeroDivisionError("secret detail")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(a_request(), timeout=10)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    service.failure = None
    assert stub.ModelInfer(a_request(), timeout=10).outputs[0].datatype == "FP32"


def test_a_message_over_the_limit_is_refused(service: ToyService) -> None:
    with Serving(service, body_nbytes=1 << 20) as address, triton.InferenceServerClient(address) as client:
        large = np.zeros((1, 1 << 19), np.float32)
        with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("echo", inputs(x=large))
        assert client.is_server_live()


class Keyed:
    """Lets in whoever says `secret`."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.held = 0

    def check(self, *, role: Role, credential: str | None, address: str, nbytes: int) -> str:
        self.seen.append((role, address, nbytes))
        if role != "open" and credential != "secret":
            raise AccessDenied(401, "an API key is needed")
        self.held += 1
        return "keyed"

    def release(self, tenant: str) -> None:
        self.held -= 1


def test_the_guard_is_asked_with_credential_address_and_size(service: ToyService) -> None:
    guard = Keyed()
    with Serving(service, guard=guard) as address, triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match=r"UNAUTHENTICATED.*API key"):
            client.infer("sum", inputs())
        for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            client.infer("sum", inputs(), headers=headers)
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.unload_model("sum")
    role, peer, nbytes = guard.seen[-2]
    assert role == "infer"
    assert peer in ("127.0.0.1", "::1")
    assert nbytes >= A.nbytes + B.nbytes
    assert guard.seen[-1][0] == "admin"
    assert service.requests[0].tenant == "keyed"
    assert guard.held == 0


def test_a_port_in_use_is_an_error_of_whoever_starts_it(address: str, service: ToyService) -> None:
    port = address.rpartition(":")[2]
    with pytest.raises(NetworkError, match="cannot listen"):
        Serving(service, GrpcListen(f"127.0.0.1:{port}")).__enter__()


def test_without_the_extra_a_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['grpc'] = None; import protocol.oip.grpc_server"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "EngineError" in done.stderr
    assert "pip install 'isthmus[grpc]'" in done.stderr


def test_grpc_can_be_served_without_http(service: ToyService) -> None:
    door = GrpcDoor(service, OpenGuard(), GrpcListen("127.0.0.1:0"))
    with OipServer(OipApp(service, OpenGuard()), Listen(bind=None), companions=[door]) as server:
        assert server.endpoint is None
        assert door.endpoint is not None
        with triton.InferenceServerClient(f"localhost:{door.endpoint.port}") as client:
            assert client.is_server_live()


def test_plain_text_off_this_machine_is_refused(service: ToyService) -> None:
    with pytest.raises(InputError, match="plain text"):
        GrpcDoor(service, OpenGuard(), GrpcListen("0.0.0.0:0"))


def test_tls_is_spoken(service: ToyService, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    with (
        Serving(service, GrpcListen("127.0.0.1:0", tls=tls)) as address,
        triton.InferenceServerClient(address, ssl=True, root_certificates=str(tmp_path / "ca.pem")) as client,
    ):
        assert client.is_server_live()
