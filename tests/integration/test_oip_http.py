"""Unmodified clients (tritonclient http and http.aio, curl, plain http.client) against the HTTP door."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import trustme
from tritonclient.utils import InferenceServerException

from protocol.errors import InputError, NetworkError
from protocol.oip.app import OipApp
from protocol.oip.http_server import Listen, OipServer
from protocol.oip.service import OipError, OpenGuard, Refusal
from protocol.oip.tls import Tls
from tests.oip import ToyService

A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.full((2, 4), 0.5, np.float32)


@pytest.fixture
def service() -> ToyService:
    return ToyService()


@pytest.fixture
def server(service: ToyService) -> Iterator[OipServer]:
    with OipServer(OipApp(service, OpenGuard(admin=True), admin=True), Listen(bind="127.0.0.1:0")) as server:
        yield server


@pytest.fixture
def client(server: OipServer) -> Iterator[Any]:
    with triton.InferenceServerClient(address(server)) as client:
        yield client


def address(server: OipServer) -> str:
    assert server.endpoint is not None
    return f"{server.endpoint.host}:{server.endpoint.port}"


def inputs(module: Any, *, binary: bool = True, **arrays: np.ndarray[Any, Any]) -> list[Any]:
    given = []
    for name, array in (arrays or {"a": A, "b": B}).items():
        tensor = module.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        given.append(tensor)
    return given


# ---- tritonclient ---------------------------------------------------------------------------------------------------


def test_tritonclient_learns_everything_about_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum")
    assert client.is_model_ready("sum", "1")
    assert not client.is_model_ready("absent")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert [tensor["name"] for tensor in client.get_model_metadata("sum")["inputs"]] == ["a", "b"]
    assert client.get_model_config("sum", "1")["max_batch_size"] == 8
    assert client.get_inference_statistics("sum")["model_stats"][0]["inference_stats"]["success"]["count"] == 3
    assert [model["name"] for model in client.get_inference_statistics()["model_stats"]] == ["echo", "sum"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("coding", ["gzip", "deflate", None])
def test_tritonclient_infers_in_every_form(
    client: Any, binary_in: bool, binary_out: bool | None, coding: str | None
) -> None:
    rows = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("y", binary_data=binary_out)]
    result = client.infer(
        "sum",
        inputs(triton, binary=binary_in, a=rows, b=rows),
        outputs=outputs,
        request_id="id 1",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("y"), rows + rows)
    assert result.get_response()["id"] == "id 1"
    assert result.get_response()["parameters"]["placement"] == "full-cloud"
    assert ("parameters" in result.get_output("y")) == (binary_out is not False)


def test_tritonclients_timeout_and_priority_reach_the_service(client: Any, service: ToyService) -> None:
    client.infer("sum", inputs(triton), timeout=250_000, priority=2, parameters={"mine": 5})
    (request,) = service.requests
    assert (request.timeout_s, request.priority, request.parameters) == (0.25, 1, {"mine": 5})
    assert request.tenant == OpenGuard.TENANT


def test_binary_tensors_reach_the_service_aligned_and_read_only(client: Any, service: ToyService) -> None:
    for length in range(1, 20):  # the JSON in front of them is of another length each time
        client.infer("sum", inputs(triton), request_id="i" * length)
    for request in service.requests:
        assert all(array.flags.aligned and not array.flags.writeable for array in request.tensors.values())


def test_tritonclient_loads_and_unloads_models(client: Any, service: ToyService) -> None:
    client.unload_model("sum")
    assert not client.is_model_ready("sum")
    assert {m["name"]: m["state"] for m in client.get_model_repository_index()}["sum"] == "UNAVAILABLE"
    client.load_model("sum")
    assert client.is_model_ready("sum")
    assert [(verb, model, tenant) for verb, model, _, tenant in service.controlled] == [
        ("unload", "sum", "anonymous"),
        ("load", "sum", "anonymous"),
    ]


def test_a_model_is_not_taken_from_the_network(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="repository's folder only"):
        client.load_model("sum", config="{}")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda c: c.get_log_settings(), "the log is configured"),
        (lambda c: c.update_log_settings({"log_info": True}), "the log is configured"),
        (lambda c: c.get_trace_settings(), "traces are configured"),
        (lambda c: c.update_trace_settings("sum", {"trace_rate": "1"}), "traces are configured"),
        (lambda c: c.get_system_shared_memory_status(), "shared memory"),
        (lambda c: c.register_system_shared_memory("r", "/key", 64), "shared memory"),
        (lambda c: c.unregister_cuda_shared_memory(), "shared memory"),
        (lambda c: c.get_model_metadata("absent"), "no model 'absent'"),
        (lambda c: c.infer("sum", inputs(triton, a=A)), "the model takes a and b"),
        (lambda c: c.infer("sum", inputs(triton), model_version="7"), "version 7"),
        (
            lambda c: c.infer("sum", inputs(triton), outputs=[triton.InferRequestedOutput("y", class_count=2)]),
            "classification",
        ),
        (lambda c: c.infer("sum", inputs(triton), sequence_id=3, sequence_start=True), "sequences"),
    ],
)
def test_tritonclient_shows_the_sentence_of_a_refusal(client: Any, ask: Any, says: str) -> None:
    with pytest.raises(InferenceServerException, match=says):
        ask(client)


def test_a_long_list_of_numbers_is_read_beside_the_others(client: Any) -> None:
    rows = np.random.default_rng(1).standard_normal((10_000, 4)).astype(np.float32)
    result = client.infer("sum", inputs(triton, binary=False, a=rows, b=rows))
    assert np.array_equal(result.as_numpy("y"), rows + rows)


def test_strings_are_refused_by_name(client: Any) -> None:
    text = triton.InferInput("x", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"hello"], np.object_))
    with pytest.raises(InferenceServerException, match="strings have no fixed size"):
        client.infer("echo", [text])


def test_tritonclient_aio_infers_while_others_do(server: OipServer) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address(server), conn_limit=16) as client:
            assert await client.is_model_ready("sum")
            asked = [client.infer("sum", inputs(triton_aio), request_id=str(i)) for i in range(100)]
            for i, result in enumerate(await asyncio.gather(*asked)):
                assert np.array_equal(result.as_numpy("y"), A + B)
                assert result.get_response()["id"] == str(i)
            zipped = await client.infer("sum", inputs(triton_aio), request_compression_algorithm="gzip")
            assert np.array_equal(zipped.as_numpy("y"), A + B)
            with pytest.raises(InferenceServerException, match="no model"):
                await client.infer("absent", inputs(triton_aio))

    asyncio.run(asyncio.wait_for(ask(), 30))


# ---- curl and plain HTTP --------------------------------------------------------------------------------------------

REQUEST = {"inputs": [{"name": n, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} for n in "ab"]}


def curl(*arguments: str) -> str:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(["curl", "-sS", "-m", "10", *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl_infers(server: OipServer) -> None:
    answer = json.loads(curl("-d", json.dumps(REQUEST), f"http://{address(server)}/v2/models/sum/infer"))
    assert answer["outputs"][0] == {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}


def test_curl_sends_and_gets_in_pieces_and_compressed(server: OipServer, tmp_path: Path) -> None:
    many = {"inputs": [{"name": n, "shape": [1, 4096], "datatype": "FP32", "data": [1] * 4096} for n in "ab"]}
    (tmp_path / "body").write_text(json.dumps(many))
    url = f"http://{address(server)}/v2/models/sum/infer"
    for arguments in (["-H", "Transfer-Encoding: chunked"], ["-H", "Accept-Encoding: gzip", "--compressed"], []):
        answer = json.loads(curl(*arguments, "--data-binary", f"@{tmp_path / 'body'}", url))
        assert answer["outputs"][0]["data"] == [2.0] * 4096


def test_curl_over_a_unix_socket_that_only_the_group_may_use(service: ToyService, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    with OipServer(OipApp(service, OpenGuard()), Listen(bind=None, unix_socket=path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert json.loads(curl("--unix-socket", str(path), "http://localhost/v2"))["name"] == "isthmus"
        with pytest.raises(NetworkError, match="another process does"):
            OipServer(OipApp(service, OpenGuard()), Listen(bind=None, unix_socket=path)).start()
    assert not path.exists()


def test_a_socket_left_behind_by_a_crash_is_replaced_and_a_file_is_not(service: ToyService, tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with OipServer(OipApp(service, OpenGuard()), Listen(bind=None, unix_socket=path)):
        curl("--unix-socket", str(path), "http://localhost/v2")
    path.write_text("precious")
    with pytest.raises(NetworkError, match="a file is there"):
        OipServer(OipApp(service, OpenGuard()), Listen(bind=None, unix_socket=path)).start()
    assert path.read_text() == "precious"


def ask(server: OipServer, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
    """Status, headers, document of one request."""
    connection = http.client.HTTPConnection(address(server), timeout=10)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body if isinstance(body, bytes) or body is None else json.dumps(body), sent)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(text) if text else None


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_has_its_status_code_and_sentence(
    server: OipServer, service: ToyService, refusal: Refusal
) -> None:
    service.failure = OipError(refusal, "because", slack_s=0.02, retry_after_s=1.2)
    status, headers, document = ask(server, "POST", "/v2/models/sum/infer", REQUEST)
    assert status == refusal.status
    assert document == {"error": "because", "code": refusal.name, "slack_us": 20_000, "retry_after_us": 1_200_000}
    assert headers["retry-after"] == "2"


def test_a_bug_in_the_service_is_one_internal_error_and_the_server_goes_on(
    server: OipServer, service: ToyService
) -> None:
    service.failure = ZeroDivisionError("secret detail")
    status, _, document = ask(server, "POST", "/v2/models/sum/infer", REQUEST)
    assert (status, document["code"]) == (500, "INTERNAL")
    assert "secret" not in document["error"]
    service.failure = None
    assert ask(server, "POST", "/v2/models/sum/infer", REQUEST)[0] == 200


def test_a_server_that_is_not_ready_says_when_to_come_back(server: OipServer, service: ToyService) -> None:
    service.is_ready = False
    status, headers, document = ask(server, "GET", "/v2/health/ready")
    assert (status, document["code"], headers["retry-after"]) == (503, "NOT_READY", "1")
    assert ask(server, "GET", "/v2/health/live")[0] == 200


def test_routes_answer_with_their_documented_codes(server: OipServer) -> None:
    assert ask(server, "GET", "/nothing")[0] == 404
    assert ask(server, "GET", "/v2/models/sum/infer")[0] == 405
    assert ask(server, "POST", "/v2/models/sum/infer", b"{}", Content_Encoding="br")[0] == 415
    assert ask(server, "POST", "/v2/models/sum/infer", b"{}", Content_Encoding="gzip")[0] == 400
    assert ask(server, "POST", "/v2/models/sum/infer", b"{}", Inference_Header_Content_Length="x")[0] == 400
    assert ask(server, "POST", "/v2/repository/models/sum/load", b"[]")[0] == 400
    assert ask(server, "GET", "/openapi.json")[2]["openapi"].startswith("3.")


def test_without_the_admin_routes_nobody_loads_or_unloads(service: ToyService) -> None:
    with OipServer(OipApp(service, OpenGuard()), Listen(bind="127.0.0.1:0")) as server:
        status, _, document = ask(server, "POST", "/v2/repository/models/sum/unload")
    assert (status, document["code"]) == (403, "FORBIDDEN")
    assert "sum" in service.loaded


# ---- the server itself ----------------------------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_of_whoever_starts_it(server: OipServer, service: ToyService) -> None:
    with pytest.raises(NetworkError, match="already in use"):
        OipServer(OipApp(service, OpenGuard()), Listen(bind=address(server))).start()


def test_plain_text_off_this_machine_is_refused(service: ToyService) -> None:
    with pytest.raises(InputError, match="plain text"):
        OipServer(OipApp(service, OpenGuard()), Listen(bind="0.0.0.0:0"))


def test_closing_finishes_what_runs_and_refuses_what_comes(server: OipServer, service: ToyService) -> None:
    service.hold = asyncio.Event()
    running = http.client.HTTPConnection(address(server), timeout=10)
    running.request("POST", "/v2/models/sum/infer", json.dumps(REQUEST))
    idle = http.client.HTTPConnection(address(server), timeout=10)
    idle.request("GET", "/v2")
    idle.getresponse().read()
    while not service.requests:
        pass
    server.loop.call_soon_threadsafe(server.loop.call_later, 0.2, service.hold.set)
    server.close(grace_s=5)
    response = running.getresponse()
    assert response.status == 200
    assert json.loads(response.read())["outputs"][0]["data"] == [2.0, 4.0]
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(address(server), timeout=1).connect()


def test_closing_does_not_wait_longer_than_its_grace(server: OipServer, service: ToyService) -> None:
    service.hold = asyncio.Event()
    running = http.client.HTTPConnection(address(server), timeout=10)
    running.request("POST", "/v2/models/sum/infer", json.dumps(REQUEST))
    while not service.requests:
        pass
    server.close(grace_s=0.1)
    response = running.getresponse()
    assert (response.status, json.loads(response.read())["code"]) == (503, "DRAINING")
    assert service.cancelled == 1


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> Tls:
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return Tls(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_tls_is_spoken_and_clients_without_a_certificate_are_kept_out(
    service: ToyService, certificate: Tls, authority: trustme.CA, tmp_path: Path
) -> None:
    trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

    def status(server: OipServer, context: ssl.SSLContext) -> int:
        assert server.endpoint is not None
        connection = http.client.HTTPSConnection("localhost", server.endpoint.port, timeout=10, context=context)
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status

    with OipServer(OipApp(service, OpenGuard()), Listen(bind="127.0.0.1:0", tls=certificate)) as server:
        assert status(server, trust) == 200
    mutual = Tls(certificate.certificate, certificate.key, tmp_path / "ca.pem")
    with OipServer(OipApp(service, OpenGuard()), Listen(bind="127.0.0.1:0", tls=mutual)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            status(server, trust)
        authority.issue_cert("device").configure_cert(trust)
        assert status(server, trust) == 200


def test_a_key_that_does_not_belong_to_its_certificate_is_an_error_that_names_both(
    service: ToyService, certificate: Tls, tmp_path: Path
) -> None:
    (tmp_path / "other.pem").write_text("nothing")
    with pytest.raises(InputError, match=r"cert\.pem.*other\.pem"):
        OipServer(
            OipApp(service, OpenGuard()),
            Listen(bind="127.0.0.1:0", tls=Tls(certificate.certificate, tmp_path / "other.pem")),
        ).start()
