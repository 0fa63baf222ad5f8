"""The gateway behind the standard protocol: the same lanes, batches, deadlines and counts as for agents."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from cloud_gateway.access.audit import AuditLog
from cloud_gateway.doors.http_service import HttpService
from cloud_gateway.gateway import Gateway
from cloud_gateway.models.keeper import VersionStatus
from cloud_gateway.models.states import State
from cloud_gateway.seeing.tracing import Traced
from cloud_gateway.work import Crashed
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.errors import InvariantViolation
from protocol.oip.app import OipApp
from protocol.oip.grpc_server import GrpcDoor, GrpcListen
from protocol.oip.http_server import Listen, OipServer
from protocol.oip.service import OpenGuard
from tests.waiting import until
from tests.wire_client import WireClient, placement

Array = npt.NDArray[Any]


class Doors:
    """HTTP and gRPC in front of a gateway that runs."""

    def __init__(self, gateway: Gateway, **more: Any) -> None:
        self.gateway = gateway
        self.service = HttpService(gateway.catalogue, gateway.desk, gateway.ledger, **more)
        guard = OpenGuard(admin=True)
        self.grpc = GrpcDoor(self.service, guard, GrpcListen("127.0.0.1:0"), admin=True)
        app = OipApp(self.service, guard, admin=True)
        self.server = OipServer(app, Listen("127.0.0.1:0"), companions=[self.service, self.grpc])
        self.server.start()
        (found,) = gateway.catalogue.published()
        self.model = found.version.name

    @property
    def address(self) -> str:
        assert self.server.endpoint is not None
        return f"{self.server.endpoint.host}:{self.server.endpoint.port}"

    def counters(self) -> Any:
        return self.gateway.ledger.snapshot(now=time.monotonic()).total.counters

    def ask(self, samples: Array, **more: Any) -> Any:
        with triton.InferenceServerClient(self.address) as client:
            return client.infer(self.model, inputs(triton, samples), **more)


@pytest.fixture
def doors(toy_gateway: Gateway) -> Iterator[Doors]:
    doors = Doors(toy_gateway)
    yield doors
    doors.server.close(2.0)


def inputs(module: Any, samples: Array) -> list[Any]:
    given = module.InferInput("x", list(samples.shape), "FP32")
    given.set_data_from_numpy(samples)
    return [given]


def test_http_and_grpc_give_the_models_own_answers(
    doors: Doors, toy_samples: Array, toy_reference: Array, toy_bundle: Path
) -> None:
    found = doors.ask(toy_samples[:3], request_id="q1", outputs=[triton.InferRequestedOutput("logits")])
    np.testing.assert_allclose(found.as_numpy("logits"), toy_reference[:3], atol=1e-5)
    told = found.get_response()
    assert (told["id"], told["model_version"]) == ("q1", "1")
    assert told["parameters"]["placement"] == "full-cloud"
    assert told["parameters"]["bundle"] == Bundle.open(toy_bundle).digest
    assert told["parameters"]["engine"].startswith("onnxruntime-")
    assert told["parameters"]["compute_us"] > 0
    assert doors.grpc.endpoint is not None
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{doors.grpc.endpoint.port}") as client:
        answer = client.infer(doors.model, inputs(triton_grpc, toy_samples[:3]))
    np.testing.assert_allclose(answer.as_numpy("logits"), toy_reference[:3], atol=1e-5)


def test_requests_over_http_grpc_and_zeromq_share_a_batch(
    doors: Doors, toy_samples: Array, toy_reference: Array, toy_bundle: Path
) -> None:
    entry = placement(Bundle.open(toy_bundle), "full-cloud")
    assert doors.grpc.endpoint is not None
    (found,) = doors.gateway.catalogue.published()
    assert found.whole is not None
    doors.gateway.desk.bound(found.whole.lane, 8)  # whatever the knee was on this machine
    with (
        WireClient(str(doors.gateway.endpoint)) as agent,
        triton_grpc.InferenceServerClient(f"127.0.0.1:{doors.grpc.endpoint.port}") as rpc,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        agent.greet()
        with doors.gateway.desk.paused():
            over_http = pool.submit(doors.ask, toy_samples[1:2])
            over_grpc = pool.submit(rpc.infer, doors.model, inputs(triton_grpc, toy_samples[2:3]))
            agent.send(*agent.infer(entry, {"x": toy_samples[:1]}, 1))
            until(lambda: doors.gateway.desk.pending()[0] == 3)
        result, _ = agent.receive_all()
        assert isinstance(result, m.Result)
        assert result.timings.batch_size == 3
        assert over_http.result(10).get_response()["parameters"]["batch_size"] == 3
        np.testing.assert_allclose(over_http.result(10).as_numpy("logits"), toy_reference[1:2], atol=1e-5)
        np.testing.assert_allclose(over_grpc.result(10).as_numpy("logits"), toy_reference[2:3], atol=1e-5)
    assert doors.counters().executions == 1


def test_what_the_server_says_about_the_model_is_what_it_takes(doors: Doors, toy_samples: Array) -> None:
    doors.ask(toy_samples[:2])
    with triton.InferenceServerClient(doors.address) as client:
        assert client.is_server_ready()
        assert client.is_model_ready(doors.model, "1")
        meta = client.get_model_metadata(doors.model)
        assert meta["versions"] == ["1"]
        assert meta["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}]
        config = client.get_model_config(doors.model)
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3, 16, 16]}]
        assert config["max_batch_size"] >= 1
        (told,) = client.get_inference_statistics(doors.model)["model_stats"]
        assert (told["inference_count"], told["execution_count"]) == (2, 1)
        assert told["inference_stats"]["success"]["count"] == 1
        assert told["inference_stats"]["compute_infer"]["ns"] > 0
        assert told["batch_stats"][0]["batch_size"] == 2
        assert client.get_model_repository_index() == [
            {"name": doors.model, "version": "1", "state": "READY", "reason": ""}
        ]
        with pytest.raises(InferenceServerException, match="named at its start"):
            client.load_model(doors.model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "absent"}, "absent"),
        ({"version": "7"}, "version 7"),
        ({"version": "x"}, "version x"),
        ({"name": "y"}, "the model takes x"),
        ({"datatype": "FP16"}, "wanted float32"),
        ({"shape": [1, 3, 16, 15]}, "wanted float32"),
        ({"output": "nothing"}, "one of logits"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_counted(doors: Doors, change: dict[str, Any], says: str) -> None:
    shape = change.get("shape", [1, 3, 16, 16])
    data = [0] * int(np.prod(shape))
    given = {"name": change.get("name", "x"), "datatype": change.get("datatype", "FP32"), "shape": shape, "data": data}
    asked: dict[str, Any] = {"inputs": [given]}
    if "output" in change:
        asked["outputs"] = [{"name": change["output"]}]
    version = f"/versions/{change['version']}" if "version" in change else ""
    connection = http.client.HTTPConnection(doors.address, timeout=10)
    connection.request("POST", f"/v2/models/{change.get('model', doors.model)}{version}/infer", json.dumps(asked))
    response = connection.getresponse()
    assert response.status in (400, 404)
    assert says in json.loads(response.read())["error"]
    assert (doors.counters().offered, doors.counters().refusals, doors.counters().answered) == (1, 1, 0)


def test_a_deadline_that_cannot_be_met_is_refused_and_counted(doors: Doors, toy_samples: Array) -> None:
    doors.ask(toy_samples[:1])
    with pytest.raises(InferenceServerException, match=r"\[504\]"):
        doors.ask(toy_samples[:1], timeout=1)
    assert doors.counters().refused == {"DEADLINE": 1}


def test_a_full_credit_is_answered_busy_with_a_time_to_come_back(doors: Doors, toy_samples: Array) -> None:
    limits = doors.gateway.desk.limits
    doors.gateway.desk.limits = limits._replace(credit_requests=1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with doors.gateway.desk.paused():
            first = pool.submit(doors.ask, toy_samples[:1])
            until(lambda: doors.gateway.desk.pending()[0] == 1)
            with pytest.raises(InferenceServerException, match=r"\[503\].*credit"):
                doors.ask(toy_samples[:1], timeout=1_000_000)
        assert first.result(10).as_numpy("logits") is not None


def test_callers_without_a_deadline_wait_for_their_turn_when_their_credit_is_used_up(
    doors: Doors, toy_samples: Array, toy_reference: Array
) -> None:
    doors.gateway.desk.limits = doors.gateway.desk.limits._replace(credit_requests=2)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        with doors.gateway.desk.paused():
            asked = [pool.submit(doors.ask, toy_samples[i : i + 1]) for i in range(12)]
            until(lambda: doors.counters().offered == 12)
            assert doors.gateway.desk.pending()[0] == 2
        for i, one in enumerate(asked):
            np.testing.assert_allclose(one.result(20).as_numpy("logits"), toy_reference[i : i + 1], atol=1e-5)
    assert (doors.counters().answered, doors.counters().refusals) == (12, 0)


def test_the_queued_work_of_a_caller_that_has_gone_is_removed(doors: Doors, toy_samples: Array) -> None:
    def leave() -> None:
        with contextlib.suppress(Exception):
            client = triton.InferenceServerClient(doors.address, network_timeout=0.2)
            client.infer(doors.model, inputs(triton, toy_samples[:1]))

    with doors.gateway.desk.paused():
        thread = threading.Thread(target=leave)
        thread.start()
        until(lambda: doors.counters().offered == 1)
        thread.join()
        until(lambda: doors.gateway.desk.pending()[0] == 0)
    assert doors.counters().refused == {"CANCELLED": 1}
    assert doors.counters().executions == 0


def test_closing_the_doors_answers_everything_that_was_admitted(doors: Doors, toy_samples: Array) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        with doors.gateway.desk.paused():
            asked = [pool.submit(doors.ask, toy_samples[i : i + 1]) for i in range(4)]
            until(lambda: doors.gateway.desk.pending()[0] == 4)
            closing = threading.Thread(target=doors.server.close, args=(10.0,))
            closing.start()
        assert all(one.result(10).as_numpy("logits").shape == (1, 10) for one in asked)
        closing.join()


def test_a_crash_refuses_what_waits_and_what_comes(doors: Doors, toy_samples: Array) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, doors.gateway.desk.paused():
        waiting = pool.submit(doors.ask, toy_samples[:1])
        until(lambda: doors.gateway.desk.pending()[0] == 1)
        doors.service.post_all([Crashed(InvariantViolation("a bug"))])
        with pytest.raises(InferenceServerException, match=r"\[500\]"):
            waiting.result(10)
        with pytest.raises(InferenceServerException, match=r"\[500\]"):
            doors.ask(toy_samples[:1])
        with triton.InferenceServerClient(doors.address) as client:
            assert not client.is_server_live()


def test_a_request_is_traced_if_its_caller_samples_it_and_not_else(toy_gateway: Gateway, toy_samples: Array) -> None:
    traced: list[Traced] = []
    doors = Doors(toy_gateway, record=traced.append)
    try:
        for flags in ("00", "01"):
            doors.ask(toy_samples[:1], headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-{flags}"})
        doors.ask(toy_samples[:1])
        until(lambda: traced)
    finally:
        doors.server.close()
    (one,) = traced
    assert one.trace == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert one.arrived < one.ended
    assert one.compute_s > 0
    assert one.attributes["model"] == doors.model


class ShelfKeeper:
    """A repository of two models of which one is loading."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done: list[tuple[str, str]] = []
        self.trouble = ""

    def index(self) -> list[VersionStatus]:
        return [
            VersionStatus(self.name, 1, State.AVAILABLE),
            VersionStatus("slow", 1, State.LOADING),
            VersionStatus("broken", 1, State.ERROR, "the file is damaged"),
        ]

    def is_ready(self) -> bool:
        return True

    def load(self, name: str, version: int | None = None, *, wait_s: float) -> str:
        self.done.append(("load", name))
        return self.trouble

    def unload(self, name: str, version: int | None = None, *, wait_s: float) -> str:
        self.done.append(("unload", name))
        return self.trouble


def test_models_are_loaded_and_unloaded_by_the_keeper_and_every_act_is_recorded(
    toy_gateway: Gateway, tmp_path: Path
) -> None:
    keeper, audit = ShelfKeeper("toy"), AuditLog(tmp_path / "audit.log")
    doors = Doors(toy_gateway, keeper=keeper, audit=audit.act)
    try:
        with triton.InferenceServerClient(doors.address) as client:
            client.load_model("slow")
            client.unload_model("toy")
            keeper.trouble = "there is no such folder"
            with pytest.raises(InferenceServerException, match="no such folder"):
                client.load_model("absent")
            assert [entry["state"] for entry in client.get_model_repository_index()] == [
                "READY",
                "LOADING",
                "UNAVAILABLE",
            ]
            assert not client.is_model_ready("slow")
            with pytest.raises(InferenceServerException, match=r"\[503\].*broken.*ERROR: the file is damaged"):
                client.get_model_metadata("broken")
    finally:
        doors.server.close()
    assert keeper.done == [("load", "slow"), ("unload", "toy"), ("load", "absent")]
    told = [(record.actor, record.action, record.target) for record in audit.records()]
    assert ("anonymous", "load", "slow") in told
    assert ("anonymous", "unload", "toy") in told
