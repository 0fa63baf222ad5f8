"""The local API against clients that know nothing of us: curl over TCP and the Unix socket, tritonclient's three."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from edge_agent.daemon import Daemon
from tests.daemons import daemon_of

Images = npt.NDArray[Any]
WAYS = ["tcp", "unix"]
PLACES = {"placement", "kind", "engine", "precision", "bundle", "request", "edge_us", "total_us", "predicted_us"}


@pytest.fixture(scope="module")
def daemon(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    settings = {"grpc.enabled": True, "grpc.bind": "127.0.0.1:0", "requests.deadline_ms": 20_000.0}
    with daemon_of(toy_bundle, tmp_path_factory.mktemp("s"), settings=settings) as daemon:
        yield daemon


class Curl:
    def __init__(self, daemon: Daemon, way: str) -> None:
        self._base = str(daemon.door.endpoint).replace("tcp://", "http://") if way == "tcp" else "http://localhost"
        self._to = [] if way == "tcp" else ["--unix-socket", str(daemon.door.unix_socket)]

    def __call__(self, path: str, *options: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in small letters, body."""
        data = [] if body is None else ["--data-binary", "@-"]
        done = subprocess.run(
            ["curl", "-sS", "-i", "--max-time", "30", *self._to, *options, *data, self._base + path],
            input=body, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        head, _, rest = done.stdout.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers, rest

    def json(self, path: str, *options: str, body: bytes | None = None) -> Any:
        status, _, rest = self(path, *options, body=body)
        assert status == 200, rest
        return json.loads(rest)


@pytest.fixture(params=WAYS)
def curl(daemon: Daemon, request: pytest.FixtureRequest) -> Curl:
    return Curl(daemon, request.param)


def asked(x: Images, **parameters: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    return json.dumps({"id": "mine", "parameters": parameters, "inputs": [tensor]}).encode()


def in_bytes(x: Images) -> tuple[bytes, list[str]]:
    """The binary tensor extension: the JSON, then the tensor's bytes, and the header that says where they meet."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + x.tobytes(), ["-H", f"Inference-Header-Content-Length: {len(head)}"]


def test_curl_finds_the_model_and_what_it_takes(curl: Curl, daemon: Daemon) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/model/ready"):
        assert curl(path)[0] == 200
    assert curl.json("/v2")["name"] == "isthmus-edge-agent"
    metadata = curl.json("/v2/models/model")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]
    version = metadata["versions"][0]
    assert curl.json(f"/v2/models/model/versions/{version}/config")["input"][0]["name"] == "x"
    assert "success" in curl.json("/v2/models/model/stats")["model_stats"][0]["inference_stats"]
    assert curl.json("/v2/repository/index", "-X", "POST")[0]["state"] == "READY"
    assert curl.json("/openapi.json")["paths"]["/v2/isthmus/status"]


def test_curl_gets_an_answer_in_json_in_bytes_and_compressed_with_where_it_was_made(
    curl: Curl, daemon: Daemon, toy_samples: Images
) -> None:
    x = toy_samples[:1].astype(np.float32)
    plain = curl.json("/v2/models/model/infer", body=asked(x))
    assert plain["id"] == "mine"
    assert plain["parameters"].keys() >= PLACES
    assert (plain["parameters"]["kind"], plain["parameters"]["bundle"]) == ("edge-only", daemon.agent.bundle.digest)
    wanted = np.array(plain["outputs"][0]["data"], np.float32)

    body, header = in_bytes(x)
    status, headers, rest = curl("/v2/models/model/infer", *header, body=body)
    assert status == 200
    at = int(headers["inference-header-content-length"])
    assert json.loads(rest[:at])["outputs"][0]["parameters"]["binary_data_size"] == len(rest) - at
    np.testing.assert_allclose(np.frombuffer(rest[at:], np.float32), wanted, rtol=1e-6)

    zipped = ["-H", "Content-Encoding: gzip", "-H", "Accept-Encoding: gzip"]
    status, headers, rest = curl("/v2/models/model/infer", *zipped, body=gzip.compress(asked(toy_samples[:8])))
    assert (status, headers["content-encoding"]) == (200, "gzip")
    eight = json.loads(gzip.decompress(rest))["outputs"][0]
    assert eight["shape"] == [8, 10]
    np.testing.assert_allclose(eight["data"][:10], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "words"),
    [
        ("/v2/models/other/infer", "good", 404, "NOT_FOUND", "model 'other' is not here; this device serves 'model'"),
        ("/v2/models/model/infer", b"{", 400, "BAD_REQUEST", "JSON"),
        ("/v2/models/model/infer", "square", 400, "BAD_REQUEST", "shape"),
        ("/v2/models/model/infer", "hasty", 504, "DEADLINE", "budget"),
        ("/v2/repository/models/model/load", b"{}", 403, "FORBIDDEN", "administration over the network is off"),
        ("/v2/nowhere", None, 404, "NOT_FOUND", "/v2/nowhere"),
    ],
)
def test_curl_is_told_what_is_wrong_in_one_sentence(
    curl: Curl, toy_samples: Images, path: str, body: str | bytes | None, status: int, code: str, words: str
) -> None:
    made = {
        "good": asked(toy_samples[:1]),
        "square": asked(toy_samples[:1, :, :8, :8]),
        "hasty": asked(toy_samples[:1], timeout=1),
    }
    found, _, rest = curl(path, body=made[body] if isinstance(body, str) else body)
    refused = json.loads(rest)
    assert (found, refused["code"]) == (status, code)
    assert words in refused["error"]
    assert "\n" not in refused["error"]


def test_tritonclient_speaks_to_it_over_http_grpc_and_asyncio_alike(daemon: Daemon, toy_samples: Images) -> None:
    x = toy_samples[:1]
    address = str(daemon.door.endpoint).removeprefix("tcp://")

    def tensor(client: Any) -> list[Any]:
        made = client.InferInput("x", list(x.shape), "FP32")
        made.set_data_from_numpy(x)
        return [made]

    answers, said = [], []
    with triton.InferenceServerClient(address) as http:
        for options in ({}, {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}):
            made = http.infer("model", tensor(triton), **options)
            answers.append(made.as_numpy("logits"))
            said.append(set(made.get_response()["parameters"]))
        described, config = http.get_model_metadata("model"), http.get_model_config("model")
        with pytest.raises(InferenceServerException, match=r"\[404\].*not here"):
            http.infer("other", tensor(triton))

    async def over_asyncio() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            answers.append((await client.infer("model", tensor(triton))).as_numpy("logits"))

    asyncio.run(over_asyncio())
    with triton_grpc.InferenceServerClient(str(daemon.door.grpc_endpoint).removeprefix("tcp://")) as grpc:
        assert grpc.is_server_live()
        assert grpc.is_server_ready()
        assert grpc.is_model_ready("model")
        answer = grpc.infer("model", tensor(triton_grpc))
        answers.append(answer.as_numpy("logits"))
        said.append(set(answer.get_response().parameters))
        seen = grpc.get_model_metadata("model", as_json=True)
        assert (seen["name"], seen["versions"]) == (described["name"], described["versions"])
        assert seen["inputs"][0]["name"] == "x"
        assert grpc.get_model_config("model").config.output[0].name == config["output"][0]["name"]
        assert grpc.get_inference_statistics("model").model_stats[0].inference_count >= 4
        with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*not here"):
            grpc.infer("other", tensor(triton_grpc))
    assert all(parameters >= PLACES for parameters in said)
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=1e-6)


def test_the_status_is_one_document_under_both_names(daemon: Daemon) -> None:
    curl = Curl(daemon, "unix")
    first, second = (msgspec.json.decode(curl(path)[2]) for path in ("/v2/isthmus/status", "/status.json"))
    assert first.keys() == second.keys()
    assert (first["schema"], first["bundle"]["version"]) == (2, daemon.agent.bundle.digest[:12])
