"""The daemon as applications meet it: unmodified clients over TCP and a Unix socket, with and without a gateway."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import trustme
from tritonclient.utils import InferenceServerException

from cloud_gateway.gateway import Gateway
from edge_agent.cli_ask import lines
from edge_agent.daemon import Daemon
from edge_agent.local_client import AsyncLocalClient, LocalClient, unwrap
from edge_agent.outcomes import Refusal
from protocol.control.flights import RefusalCode
from protocol.engines.catalogue import KINDS
from protocol.errors import InputError, NetworkError
from tests.daemons import compute_hangs, daemon_of, got
from tests.waiting import PATIENCE_S, until

Images = npt.NDArray[Any]


@pytest.fixture(scope="module")
def alone(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon without a gateway."""
    daemon = daemon_of(
        toy_bundle, tmp_path_factory.mktemp("s"), settings={"grpc.enabled": True, "grpc.bind": "[::1]:0"}
    )
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def served(toy_bundle: Path, toy_gateway: Gateway, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that may use nothing but its gateway."""
    settings = {"bundle.placements": "cut-1,full-cloud", "gateways.wait_s": 20.0}
    daemon = daemon_of(toy_bundle, tmp_path / "s", gateways=(str(toy_gateway.endpoint),), settings=settings)
    daemon.start()
    yield daemon
    daemon.close()


def address(daemon: Daemon) -> str:
    return str(daemon.door.endpoint).removeprefix("tcp://")


def asked(images: Images) -> list[Any]:
    tensor = triton.InferInput("x", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


def test_an_unmodified_client_gets_split_inference_without_knowing(
    served: Daemon, toy_samples: Images, toy_reference: Images
) -> None:
    with triton.InferenceServerClient(address(served)) as client:
        assert client.is_server_ready()
        assert client.is_model_ready("model")
        answers = [client.infer("model", asked(toy_samples[i : i + 1]), timeout=20_000_000) for i in range(8)]
    given = np.concatenate([a.as_numpy("logits") for a in answers])
    assert np.mean(given.argmax(1) == toy_reference[:8].argmax(1)) >= 0.7
    said = answers[-1].get_response()["parameters"]
    assert said["placement"] in {"cut-1", "full-cloud"}
    assert said["bundle"] == served.agent.bundle.digest
    assert {"engine", "precision", "queue_us", "compute_us", "network_us", "edge_us", "total_us"} <= said.keys()
    assert said["network_us"] > 0
    assert "degraded" not in said


def test_the_device_answers_alone_where_no_gateway_is_there_and_says_so(toy_bundle: Path, tmp_path: Path) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", gateways=("tcp://127.0.0.1:1",))
    daemon.start()
    try:
        standing = daemon.standing()
        assert (standing.gateways[0].ready, standing.serves_alone, standing.ready) == (False, True, True)
        assert "on the device alone" in daemon.in_a_sentence()
        (out,) = [line for line in lines(json.loads(got(daemon, "/status.json")[1])) if "cannot be used" in line]
        assert out.startswith("  full-cloud, cut-1"), "one line for one reason"
        with LocalClient(daemon.door.unix_socket or "") as client:
            answer = unwrap(client.infer({"x": np.zeros((1, 3, 16, 16), np.float32)}, deadline_s=20.0))
        assert answer.kind == "edge-only"
        assert answer.degraded
    finally:
        daemon.close()


def test_a_bundle_that_needs_a_gateway_is_not_served_without_one(toy_bundle: Path, tmp_path: Path) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={"bundle.placements": "cut-1"})
    with pytest.raises(NetworkError, match="no gateway was named and none of the placements"):
        daemon.start()


@pytest.mark.skipif(not KINDS["tensorrt"].absent(), reason="this machine has TensorRT")
def test_an_engine_for_heads_that_is_not_here_is_told_and_nothing_falls_back_without_a_word(
    toy_bundle: Path, tmp_path: Path
) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "a", settings={"device.providers": "tensorrt-native,cpu"})
    try:
        daemon.start()
        assert daemon.stage.agent is not None
        (said,) = daemon.stage.agent.shortfalls()
        assert "edge.onnx on cpu, not on tensorrt-native (" in said
        assert KINDS["tensorrt"].absent() in said
    finally:
        daemon.close()
    only = daemon_of(toy_bundle, tmp_path / "b", settings={"device.providers": "tensorrt-native"})
    with pytest.raises(NetworkError, match=r"runs on the device alone \(nothing runs it: tensorrt-native: "):
        only.start()


def test_one_answer_comes_by_every_way(alone: Daemon, toy_samples: Images) -> None:
    x = toy_samples[:1]
    with triton.InferenceServerClient(address(alone)) as client:
        by_http = client.infer("model", asked(x), outputs=[triton.InferRequestedOutput("logits", binary_data=False)])

    async def over_asyncio() -> Images:
        async with triton_aio.InferenceServerClient(address(alone)) as client:
            return (await client.infer("model", asked(x))).as_numpy("logits")  # type: ignore[no-any-return]

    with triton_grpc.InferenceServerClient(str(alone.door.grpc_endpoint).removeprefix("tcp://")) as client:
        tensor = triton_grpc.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        by_grpc = client.infer("model", [tensor]).as_numpy("logits")
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}]})
    curl = subprocess.run(
        ["curl", "-sS", "--fail", "--unix-socket", str(alone.door.unix_socket), "-d", "@-",
         "http://localhost/v2/models/model/infer"],
        input=body, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    by_curl = np.array(json.loads(curl.stdout)["outputs"][0]["data"], np.float32)
    with LocalClient(alone.door.unix_socket or "") as local, LocalClient(f"http://{address(alone)}") as over_tcp:
        ours = [unwrap(c.infer({"x": x}, deadline_s=20.0)).outputs["logits"] for c in (local, over_tcp)]
    first = by_http.as_numpy("logits")
    assert first.shape == (1, 10)
    for other in (asyncio.run(over_asyncio()), by_grpc, by_curl.reshape(1, 10), *ours):
        np.testing.assert_allclose(other, first, rtol=1e-6)


def test_the_model_describes_itself_as_a_triton_would(alone: Daemon, toy_samples: Images) -> None:
    with triton.InferenceServerClient(address(alone)) as client:
        version = alone.agent.bundle.digest[:12]  # it is not signed: nobody has given it a number
        metadata = client.get_model_metadata("model", version)
        assert metadata["versions"] == [version]
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]
        config = client.get_model_config("model")
        assert config["max_batch_size"] == 0
        assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, 10]}]
        before = client.get_inference_statistics("model")["model_stats"][0]["inference_stats"]
        client.infer("model", asked(toy_samples[:1]))
        after = client.get_inference_statistics("model")["model_stats"][0]["inference_stats"]
        assert after["success"]["count"] == before["success"]["count"] + 1
        assert after["success"]["ns"] > before["success"]["ns"]
        assert client.get_model_repository_index() == [
            {"name": "model", "version": version, "state": "READY", "reason": ""}
        ]
        assert client.get_server_metadata()["name"] == "isthmus-edge-agent"
        with pytest.raises(InferenceServerException, match="administration over the network is off"):
            client.load_model("model")


@pytest.mark.parametrize(
    ("model", "version", "name", "shape", "words"),
    [
        ("other", "", "x", (1, 3, 16, 16), "model 'other' is not here; this device serves 'model' version "),
        ("model", "2", "x", (1, 3, 16, 16), "version '2' is not here"),
        ("model", "", "y", (1, 3, 16, 16), "the model takes"),
        ("model", "", "x", (1, 3, 8, 8), "shape"),
    ],
)
def test_what_does_not_fit_the_model_is_one_sentence(
    alone: Daemon, model: str, version: str, name: str, shape: tuple[int, ...], words: str
) -> None:
    tensor = triton.InferInput(name, list(shape), "FP32")
    tensor.set_data_from_numpy(np.zeros(shape, np.float32))
    with triton.InferenceServerClient(address(alone)) as client, pytest.raises(InferenceServerException, match=words):
        client.infer(model, [tensor], model_version=version)


def test_an_unknown_output_is_refused_before_any_work(alone: Daemon, toy_samples: Images) -> None:
    wish, refused = [triton.InferRequestedOutput("nope")], "output 'nope' is not one of logits"
    with triton.InferenceServerClient(address(alone)) as c, pytest.raises(InferenceServerException, match=refused):
        c.infer("model", asked(toy_samples[:1]), outputs=wish)


def test_a_deadline_that_cannot_be_kept_is_a_refusal_in_time(alone: Daemon, toy_samples: Images) -> None:
    with LocalClient(alone.door.unix_socket or "") as client, compute_hangs(alone.agent):
        outcome = client.infer({"x": toy_samples[:1]}, deadline_s=0.02)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.DEADLINE


def test_more_requests_than_may_wait_are_refused_as_busy(toy_bundle: Path, tmp_path: Path, toy_samples: Images) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={"requests.most_pending": 1})
    daemon.start()
    try:
        with LocalClient(daemon.door.unix_socket or "") as client, ThreadPoolExecutor() as threads:
            with compute_hangs(daemon.agent):
                first = threads.submit(client.infer, {"x": toy_samples[:1]}, deadline_s=3600.0)
                until(lambda: daemon.service.pending == 1, "the first request never waited")
                second = client.infer({"x": toy_samples[:1]}, deadline_s=20.0)
            assert isinstance(second, Refusal)
            assert second.code is RefusalCode.BUSY
            assert second.slack_s == pytest.approx(20.0)
            unwrap(first.result(PATIENCE_S))
    finally:
        daemon.close()


def test_a_caller_that_disappears_leaves_nothing_behind(toy_bundle: Path, tmp_path: Path, toy_samples: Images) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={"device.slowdown": 300.0})
    daemon.start()
    try:
        assert daemon.door.endpoint is not None
        body = json.dumps({
            "parameters": {"timeout": 5_000_000},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [0.0] * 768}],
        }).encode()  # fmt: skip
        head = b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", daemon.door.endpoint.port), timeout=20) as stream:
            stream.sendall(head + body)
            until(lambda: daemon.service.pending == 1 or daemon.service.counts().get("answered"), "it never came in")
        until(lambda: daemon.service.pending == 0, "it still waits for somebody who has gone")
        with LocalClient(daemon.door.unix_socket or "") as client:
            unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
    finally:
        daemon.close()


def test_both_local_clients_may_be_shared_by_many(alone: Daemon, toy_samples: Images) -> None:
    wanted = alone.agent.submit({"x": toy_samples[:1]}, deadline_s=20.0).result()
    assert not isinstance(wanted, Refusal)

    async def many() -> list[Any]:
        async with AsyncLocalClient(alone.door.unix_socket or "", concurrency=4) as client:
            return await asyncio.gather(*(client.infer({"x": toy_samples[:1]}, deadline_s=20.0) for _ in range(16)))

    for outcome in asyncio.run(many()):
        np.testing.assert_array_equal(unwrap(outcome).outputs["logits"], wanted.outputs["logits"])


def test_a_local_client_finds_the_daemon_again_after_its_restart(
    toy_bundle: Path, tmp_path: Path, toy_samples: Images
) -> None:
    first = daemon_of(toy_bundle, tmp_path / "s")
    first.start()
    with LocalClient(first.door.unix_socket or "") as client:
        unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
        first.close()
        with pytest.raises(NetworkError, match="start one with `edge-agent run`"):
            client.infer({"x": toy_samples[:1]}, deadline_s=1.0)
        assert not client.is_ready()
        second = daemon_of(toy_bundle, tmp_path / "s")
        second.start()
        try:
            assert client.is_ready()
            unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
        finally:
            second.close()


def test_a_wrong_tensor_and_a_strange_server_are_one_sentence_each(alone: Daemon, tmp_path: Path) -> None:
    with LocalClient(alone.door.unix_socket or "") as client:
        with pytest.raises(InputError, match="the model takes"):
            client.infer({"x": np.zeros((1, 3, 16, 16), np.int64)}, deadline_s=1.0)
        with pytest.raises(InputError, match="seconds that you can wait"):
            client.infer({"x": np.zeros(1)}, deadline_s=0.0)
    with pytest.raises(InputError, match="give a socket's path"):
        LocalClient("https://127.0.0.1")


def test_two_daemons_never_share_a_state_directory_nor_a_port(toy_bundle: Path, alone: Daemon, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"belongs to another edge-agent, process \d+; stop that one"):
        daemon_of(toy_bundle, alone.settings.state_dir).start()
    with pytest.raises(NetworkError, match="stop the other process or choose another port"):
        daemon_of(toy_bundle, tmp_path / "a", settings={"http.bind": address(alone)}).start()
    taken = {"http.unix_socket": str(alone.door.unix_socket)}
    with pytest.raises(NetworkError, match="another process does"):
        daemon_of(toy_bundle, tmp_path / "b", settings=taken).start()


def test_a_socket_file_that_a_crash_left_behind_is_no_obstacle(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "s" / "run").mkdir(parents=True)
    left = tmp_path / "s" / "run" / "agent.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(left))
    assert left.exists()
    daemon = daemon_of(toy_bundle, tmp_path / "s")
    daemon.start()
    try:
        assert left.stat().st_mode & 0o777 == 0o660
        with LocalClient(left) as client:
            assert client.is_ready()
    finally:
        daemon.close()
    assert not left.exists()


def test_a_file_in_the_sockets_place_is_one_sentence(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("not a socket")
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={"http.unix_socket": str(tmp_path / "precious")})
    with pytest.raises(NetworkError, match="a file is there; remove it or choose another path"):
        daemon.start()
    assert (tmp_path / "precious").read_text() == "not a socket"


def test_a_path_that_is_too_long_for_a_socket_is_one_sentence(toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose a shorter one with"):
        daemon_of(toy_bundle, tmp_path / ("s" * 120))


def test_other_machines_need_a_certificate_of_the_authority(toy_bundle: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={
        "http.bind": "0.0.0.0:0", "http.tls_certificate": str(tmp_path / "cert.pem"),
        "http.tls_key": str(tmp_path / "key.pem"), "http.client_ca": str(tmp_path / "ca.pem"),
    })  # fmt: skip
    daemon.start()
    try:
        assert daemon.door.endpoint is not None
        url = f"https://127.0.0.1:{daemon.door.endpoint.port}/v2/health/ready"
        ask = ["curl", "-sS", "--fail", "--cacert", str(tmp_path / "ca.pem"), url]
        mine = ["--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
        assert subprocess.run(ask, capture_output=True, timeout=30, check=False).returncode != 0
        assert subprocess.run([*ask, *mine], capture_output=True, timeout=30, check=False).returncode == 0
    finally:
        daemon.close()


def test_a_device_that_cannot_answer_its_own_question_is_not_ready(toy_bundle: Path, tmp_path: Path) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={"health.every_s": 0.1, "health.timeout_s": 0.5})
    daemon.start()
    try:
        with LocalClient(daemon.door.unix_socket or "") as client:
            until(client.is_ready)
            daemon.agent.heads.deactivate()  # as a driver that has gone away
            until(lambda: not client.is_ready(), "it is still called ready")
            until(lambda: not client.document("/v2/isthmus/status")["ready"], "the status does not say so")
            assert "known question" in client.document("/v2/isthmus/status")["reason"]
            daemon.agent.heads.activate()
            until(client.is_ready, "it never got well again")
    finally:
        daemon.close()
