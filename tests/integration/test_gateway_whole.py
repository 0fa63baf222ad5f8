"""One gateway, everything in it: a model folder of every form, both doors, keys, records, numbers that add up."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from cloud_gateway.access import api_keys
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import ApiKeyEntry, ApiRole, add_api_key
from cloud_gateway.doors.frontend import SETTLE_S
from cloud_gateway.gateway import Gateway
from cloud_gateway.seeing.metrics import metrics_text
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from protocol.errors import IsthmusError
from tests import models
from tests.gateways import gateway_of
from tests.waiting import until
from tests.wire_client import WireClient, placement

Array = npt.NDArray[Any]
PATIENCE_S = 60.0  # a busy machine is no failure
HASTY = """
dynamic_batching { default_queue_policy { default_timeout_microseconds: 1 } }
max_batch_size: 4
"""
BOUND = "max_batch_size: 4\n"
TIMES = 600_000  # trips of `patient` that take far longer than a test may


def patient() -> bytes:
    """Multiplies `n` times: a request takes as long as it asks for."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", "w"], ["next"]),
            helper.make_node("Identity", ["going"], ["goes"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [64, 64]),
        ],
    )
    net = models.Net()
    net.constant("w", np.eye(64, dtype=np.float32))
    net.add("Loop", ["n", "", net.constant("start", np.ones((64, 64), np.float32))], "y", body=body)
    made: bytes = net.model({"n": (TensorProto.INT64, [1])}, {"y": [64, 64]}).SerializeToString()
    return made


def repository(root: Path, bundle: Path) -> Path:
    """Every form that a version may have, and a model that takes its time."""
    shutil.copytree(bundle, root / "toy" / "1")
    for name, data, config in (
        ("plain", models.two_heads().SerializeToString(), ""),
        ("bound", models.residual().SerializeToString(), BOUND),
        ("hasty", models.residual().SerializeToString(), HASTY),
        ("patient", patient(), ""),
    ):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.onnx").write_bytes(data)
        if config:
            (root / name / "config.pbtxt").write_text(config)
    return root


class House:
    """A gateway that runs, and who asks it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        assert gateway.standard is not None
        assert gateway.standard.endpoint is not None
        self.address = f"127.0.0.1:{gateway.standard.endpoint.port}"

    def ask(self, model: str, samples: Array, *, version: str = "", name: str = "x", **more: Any) -> Any:
        given = triton.InferInput(name, list(samples.shape), "INT64" if samples.dtype == np.int64 else "FP32")
        given.set_data_from_numpy(samples)
        with triton.InferenceServerClient(self.address, network_timeout=PATIENCE_S) as client:
            return client.infer(model, [given], model_version=version, **more)

    def call(self, method: str, path: str, body: object = None, key: str = "") -> tuple[int, Any, dict[str, str]]:
        """Status, decoded JSON (or text) and headers."""
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read().decode()
        connection.close()
        is_json = response.headers["content-type"] == "application/json"
        return response.status, json.loads(raw) if is_json and raw else raw, dict(response.headers)

    def refused(self) -> Counter[str]:
        """By code, as /metrics says when it looks anew: over HTTP a look may be a quarter of a second old."""
        text = metrics_text(self.gateway.observer.scene()).decode()
        counts: Counter[str] = Counter()
        for code, count in re.findall(r'^isthmus_refused_requests_total\{.*code="(\w+)"\} (\S+)$', text, re.MULTILINE):
            counts[code] += int(float(count))
        return +counts

    def counters(self) -> Any:
        return self.gateway.ledger.snapshot(now=time.monotonic()).total.counters


def house_of(root: Path, **settings: object) -> Gateway:
    given = {"models.warm_up_s": 0.02, "drain.grace_s": 2.0} | {k.replace("__", "."): v for k, v in settings.items()}
    return gateway_of(repository=root, http="127.0.0.1:0", settings=given)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> Path:
    return repository(tmp_path_factory.mktemp("models"), toy_bundle)


@pytest.fixture(scope="module")
def house(root: Path) -> Iterator[House]:
    with house_of(root, grpc__enabled=True, grpc__bind="127.0.0.1:0") as gateway:
        yield House(gateway)


# ---- what is served -------------------------------------------------------------------------------------------------


def test_a_bundle_a_plain_graph_and_a_triton_folder_are_served_side_by_side(
    house: House, toy_samples: Array, toy_reference: Array
) -> None:
    for name in ("toy", "bound"):
        found = house.ask(name, toy_samples[:2])
        np.testing.assert_allclose(found.as_numpy("logits"), toy_reference[:2], atol=1e-5)
    with OrtEngine(models.two_heads().SerializeToString(), label="reference") as engine:
        wanted = engine.infer({"x": toy_samples[:2]})
    found = house.ask("plain", toy_samples[:2])
    for output, array in wanted.items():
        np.testing.assert_allclose(found.as_numpy(output), array, atol=1e-5)
    assert house.ask("patient", np.array([3], np.int64), name="n").as_numpy("y").shape == (64, 64)
    _, index, _ = house.call("POST", "/v2/repository/index", {})
    assert {(e["name"], e["state"]) for e in index} == {
        (name, "READY") for name in ("toy", "plain", "bound", "hasty", "patient")
    }


def test_a_models_own_timeout_holds_for_requests_that_state_none(house: House, toy_samples: Array) -> None:
    house.ask("hasty", toy_samples[:1], timeout=5_000_000)
    assert "[504]" in str(_refused(lambda: house.ask("hasty", toy_samples[:1]))[0])


# ---- what operators see ---------------------------------------------------------------------------------------------


def test_every_refusal_that_a_client_saw_is_counted_with_its_code_and_no_other(
    house: House, toy_samples: Array, toy_bundle: Path
) -> None:
    before, offered = house.refused(), house.counters().offered
    answered = house.counters().answered
    seen: Counter[str] = Counter()
    asked = let_in = 0
    by_status = {"404": "UNKNOWN_SEGMENT", "400": "BAD_REQUEST", "504": "DEADLINE"}
    for model, samples, more in (
        ("absent", toy_samples[:1], {}),
        ("toy", toy_samples[:1, :, :8], {}),
        ("toy", toy_samples[:1], {"timeout": 1}),
        ("toy", toy_samples[:1], {"version": "9"}),
    ):
        error, tries = _refused(lambda model=model, samples=samples, more=more: house.ask(model, samples, **more))
        asked += tries
        let_in += tries - 1
        seen[by_status[str(error.status()).strip("[]")]] += 1
    entry = placement(Bundle.open(toy_bundle), "full-cloud")
    with WireClient(str(house.gateway.endpoint)) as agent:
        agent.greet()
        good, payload = agent.infer(entry, {"x": toy_samples[:1]}, 1)
        with house.gateway.desk.paused():
            for number in range(2, 40):  # more than the credit of one agent
                message, _ = agent.infer(entry, {"x": toy_samples[:1]}, number)
                agent.send(message, payload)
            agent.send(m.Cancel(m.RequestId(agent.boot, 2)))
            for number, change in ((40, {"segment": b"?" * 32}), (41, {"checksum": 1}), (42, {"budget_us": 1})):
                message, _ = agent.infer(entry, {"x": toy_samples[:1]}, number)
                agent.send(_changed(message, **change), payload)
            agent.send(m.Ping(1))
            replies: list[m.Message] = []
            while not isinstance(reply := agent.receive(), m.Pong):
                replies.append(reply)
        asked += 41
        replies += [agent.receive() for _ in range(41 - len(replies))]
        assert good.request == m.RequestId(agent.boot, 1)
    refusals = [r for r in replies if isinstance(r, m.Reject)]
    seen.update(str(r.code) for r in refusals)
    assert {"BUSY", "CANCELLED", "UNKNOWN_SEGMENT"} <= {str(r.code) for r in refusals}
    assert house.refused() - before == seen
    assert house.counters().offered - offered == asked
    assert house.counters().answered - answered == len(replies) - len(refusals) + let_in


def test_what_a_door_refuses_before_it_knows_for_which_model_is_counted_too(house: House, keyed: Keyed) -> None:
    before, offered = house.counters(), house.counters().offered
    path = "/v2/models/toy"
    assert house.call("POST", f"{path}/infer", {"inputs": []})[0] == 400
    assert house.call("POST", f"{path}/versions/{'9' * 5000}/infer", _asked([1, 3, 16, 16]))[0] == 404
    assert house.call("POST", f"{path}/infer", _asked([1, 3, 16, 16]) | {"pad": "x" * (65 << 20)})[0] == 413
    grpc = house.gateway.standard.grpc_endpoint if house.gateway.standard else None
    assert grpc is not None
    given = triton_grpc.InferInput("x", [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[b"text"]], np.object_))
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc.port}") as client, pytest.raises(InferenceServerException):
        client.infer("toy", [given])
    after = house.counters()
    seen = Counter({str(code): n for code, n in after.refused.items()})
    seen.subtract({str(code): n for code, n in before.refused.items()})
    assert +seen == {"BAD_REQUEST": 1, "UNKNOWN_SEGMENT": 1, "TOO_LARGE": 1, "UNSUPPORTED": 1}
    assert after.offered - offered == 4
    refused = Counter(keyed.counters().refused)
    assert keyed.call("POST", f"{path}/infer", _asked([1, 3, 16, 16]))[0] == 401
    assert Counter(keyed.counters().refused) - refused == {"UNAUTHENTICATED": 1}


def _asked(shape: list[int]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": [0] * int(np.prod(shape))}]}


def _refused(ask: Callable[[], object]) -> tuple[InferenceServerException, int]:
    """The refusal, and the number of tries: an idle lane lets a late request in now and then, to measure again."""
    for tries in range(1, 11):
        try:
            ask()
        except InferenceServerException as error:
            return error, tries
    raise AssertionError("ten were let in, one right after the other")


def _changed(message: m.Infer, **change: Any) -> m.Infer:
    return msgspec.structs.replace(message, **change)


def test_deep_health_asks_every_engine_and_counts_for_nobody(house: House, toy_samples: Array) -> None:
    status, health, _ = house.call("GET", "/v2/health/deep")
    assert (status, health["ok"]) == (200, True)
    assert {lane["key"] for lane in health["lanes"]} == set(house.gateway.catalogue.lanes)
    assert all(lane["reason"] == "" for lane in health["lanes"])
    _, text, _ = house.call("GET", "/metrics")
    names = set(re.findall(r'model="([^"]+)"', text))
    assert names <= {"toy", "plain", "bound", "hasty", "patient", "unknown", "other"}


def test_a_loop_that_does_not_come_round_any_more_is_not_called_live(house: House) -> None:
    assert house.call("GET", "/v2/health/live")[0] == 200
    house.gateway.beats.beat("some loop", now=time.monotonic() - 60)
    try:
        assert house.call("GET", "/v2/health/live")[0] == 503
    finally:
        house.gateway.beats.end("some loop")
    assert house.call("GET", "/v2/health/live")[0] == 200


def test_the_status_page_cannot_be_framed_and_its_numbers_are_those_of_the_metrics(house: House) -> None:
    status, page, headers = house.call("GET", "/status")
    assert status == 200
    assert page.startswith(("<!DOCTYPE html>", "<!doctype html>"))
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    _, document, _ = house.call("GET", "/status.json")
    assert document["ready"]
    assert document["total"]["counters"]["offered"] == house.counters().offered


# ---- life cycle -----------------------------------------------------------------------------------------------------


class Keyed(House):
    def __init__(self, gateway: Gateway, keys: dict[str, str], folder: KeyFolder) -> None:
        super().__init__(gateway)
        self.keys = keys
        self.folder = folder


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> Iterator[Keyed]:
    """A gateway with keys and a cache, whose administration is on."""
    place = tmp_path_factory.mktemp("keyed")
    folder, keys = KeyFolder(place / "keys"), {}
    folder.make()
    roles: dict[str, tuple[ApiRole, ...]] = {"ops": ("admin", "metrics"), "shop": ("infer",)}
    with folder.locked():
        folder.create("gateway")
        for number, (name, its) in enumerate(roles.items(), 1):
            key = api_keys.make_key(bytes([number]) * 40)
            keys[name] = key.text
            entry = ApiKeyEntry(name=name, id=key.id, digest=key.digest, roles=its, added=1)
            folder.change(lambda roster, entry=entry: add_api_key(roster, entry))  # type: ignore[misc]
    root = repository(place / "models", toy_bundle)
    settings = {"access.keys_dir": str(folder.path), "access.admin": True, "cache.enabled": True}
    with house_of(root, **{k.replace(".", "__"): v for k, v in settings.items()}) as gateway:
        yield Keyed(gateway, keys, folder)


def test_a_damaged_version_is_an_error_with_its_reason_and_the_old_one_keeps_serving(
    keyed: Keyed, toy_samples: Array
) -> None:
    root = keyed.gateway.settings.models.repository
    assert root is not None
    (root / "plain" / "2").mkdir()
    (root / "plain" / "2" / "model.onnx").write_bytes(b"no model")
    status, told, _ = keyed.call("POST", "/v2/repository/models/plain/load", {}, keyed.keys["ops"])
    assert status == 400
    assert "version 2: the graph is damaged" in told["error"]
    _, index, _ = keyed.call("POST", "/v2/repository/index", {}, keyed.keys["shop"])
    states = {(e["name"], e["version"]): e for e in index}
    assert states["plain", "1"]["state"] == "READY"
    assert states["plain", "2"]["state"] == "UNAVAILABLE"
    assert states["plain", "2"]["reason"]
    headers = {"Authorization": f"Bearer {keyed.keys['shop']}"}
    assert keyed.ask("plain", toy_samples[:1], headers=headers).get_response()["model_version"] == "1"
    shutil.rmtree(root / "plain" / "2")


def test_models_come_and_go_for_who_bears_the_key_and_every_act_is_on_record(keyed: Keyed, toy_samples: Array) -> None:
    path = "/v2/repository/models/bound/unload"
    headers = {"Authorization": f"Bearer {keyed.keys['shop']}"}
    assert keyed.call("POST", path, {})[0] == 401
    assert keyed.call("POST", path, {}, keyed.keys["shop"])[0] == 403
    assert keyed.ask("bound", toy_samples[:1], headers=headers) is not None
    assert keyed.call("POST", path, {"parameters": {"version": 1}}, keyed.keys["ops"])[0] == 200
    with pytest.raises(InferenceServerException, match=r"\[503\]"):
        keyed.ask("bound", toy_samples[:1], headers=headers)
    assert keyed.call("POST", "/v2/repository/models/bound/load", {}, keyed.keys["ops"])[0] == 200
    assert keyed.ask("bound", toy_samples[:1], headers=headers) is not None
    log = AuditLog(keyed.folder.audit_log)
    told = [(r.actor, r.action, r.target, r.outcome) for r in log.records() if r.target.startswith("bound")]
    assert told == [
        ("ops", "unload", "bound/1", "begun"),
        ("ops", "unload", "bound/1", "done"),
        ("ops", "load", "bound", "begun"),
        ("ops", "load", "bound", "done"),
    ]
    assert log.verify().ok


def test_what_cannot_be_recorded_is_not_done(keyed: Keyed, toy_samples: Array) -> None:
    log = keyed.folder.audit_log
    aside = log.rename(log.with_name("aside"))
    log.mkdir()
    try:
        status, told, _ = keyed.call("POST", "/v2/repository/models/bound/unload", {}, keyed.keys["ops"])
        assert status == 500
        assert "nothing is done that is not recorded" in told["error"]
        headers = {"Authorization": f"Bearer {keyed.keys['shop']}"}
        assert keyed.ask("bound", toy_samples[:1], headers=headers) is not None
    finally:
        log.rmdir()
        aside.rename(log)


def test_an_equal_request_over_http_is_answered_from_the_cache(keyed: Keyed, toy_samples: Array) -> None:
    headers = {"Authorization": f"Bearer {keyed.keys['shop']}"}
    first, again = (keyed.ask("toy", toy_samples[5:6], headers=headers) for _ in range(2))
    np.testing.assert_array_equal(first.as_numpy("logits"), again.as_numpy("logits"))
    assert again.get_response()["parameters"]["engine"].endswith("(cached)")


# ---- who misbehaves -------------------------------------------------------------------------------------------------


def test_an_agent_that_never_reads_holds_nobody_else(house: House, toy_samples: Array, toy_bundle: Path) -> None:
    entry = placement(Bundle.open(toy_bundle), "full-cloud")
    with (
        WireClient(str(house.gateway.endpoint), boot=b"deafdeaf") as deaf,
        WireClient(str(house.gateway.endpoint)) as agent,
    ):
        deaf.greet()
        agent.greet()
        message, payload = deaf.infer(entry, {"x": toy_samples[:1]}, 1)
        for number in range(1, 3000):
            deaf.send(_changed(message, request=m.RequestId(deaf.boot, number), budget_us=1), payload)
        for number in range(100, 110):
            agent.send(*agent.infer(entry, {"x": toy_samples[:1]}, number))
            assert isinstance(agent.receive(), m.Result)
        assert isinstance(house.ask("toy", toy_samples[:1]).as_numpy("logits"), np.ndarray)


def test_more_agents_than_may_be_connected_are_turned_away_and_those_inside_are_served(
    tmp_path: Path, toy_bundle: Path, toy_samples: Array
) -> None:
    entry = placement(Bundle.open(toy_bundle), "full-cloud")
    with (
        gateway_of(toy_bundle, settings={"limits.connections": 1, "drain.grace_s": 1.0}) as gateway,
        WireClient(str(gateway.endpoint)) as agent,
    ):
        agent.greet()
        with WireClient(str(gateway.endpoint), boot=b"toomany!") as other:
            until(lambda: gateway.stats().get("access_zap_300", 0) > 0)
            assert gateway.frontend.agents == 1
            assert other.silent(0.05)
        agent.send(*agent.infer(entry, {"x": toy_samples[:1]}, 1))
        assert isinstance(agent.receive(), m.Result)


# ---- the end --------------------------------------------------------------------------------------------------------


def test_who_waits_for_an_unload_does_not_hold_up_the_end_and_what_waits_is_refused_and_counted(
    tmp_path: Path, toy_bundle: Path, toy_samples: Array
) -> None:
    gateway = house_of(repository(tmp_path, toy_bundle), drain__grace_s=0.3)
    with gateway, concurrent.futures.ThreadPoolExecutor(2) as pool:
        house = House(gateway)
        with gateway.desk.paused():
            asked = pool.submit(house.ask, "bound", toy_samples[:1])
            until(lambda: gateway.desk.pending()[0] == 1)
            waiting = pool.submit(gateway.keeper.unload, "bound", wait_s=600.0)
            until(lambda: any(str(s.state) == "DRAINING" for s in gateway.keeper.index()))
            began = time.monotonic()
            gateway.close()
            assert time.monotonic() - began < 10.0
            assert waiting.result(PATIENCE_S) == "the gateway is shutting down"
            with pytest.raises(InferenceServerException, match=r"\[503\]"):
                asked.result(PATIENCE_S)
    assert house.counters().refused == {"DRAINING": 1}


def test_what_an_engine_has_at_the_end_is_refused_and_counted(tmp_path: Path, toy_bundle: Path) -> None:
    gateway = house_of(repository(tmp_path, toy_bundle), drain__grace_s=0.1)
    segment = None
    with gateway, WireClient(str(gateway.endpoint)) as agent:
        agent.greet()
        for digest, one in gateway.catalogue.segments.items():
            if one.scope.model == "patient":
                segment = digest
                while one.lane.curve.predict(1) < 0.05:  # so that an engine thread runs it
                    one.lane.curve.observe(1, 0.1)
        assert segment is not None
        entry = _Entry(segment.hex())
        agent.send(*agent.infer(entry, {"n": np.array([TIMES], np.int64)}, 1))  # type: ignore[arg-type]
        until(lambda: gateway.desk.pending()[0] == 1)
        closing = threading.Thread(target=gateway.close)
        closing.start()
        assert isinstance(agent.receive(), m.Drain)
        assert agent.socket.poll(int(PATIENCE_S * 1000))
        closing.join(SETTLE_S / 2)  # who reads no sooner than this has lost nothing
        refusal = agent.receive()
        assert isinstance(refusal, m.Reject)
        assert refusal.code is m.RejectCode.INTERNAL
        closing.join(PATIENCE_S)
    figures = gateway.ledger.snapshot(now=time.monotonic()).total.counters
    assert (figures.offered, dict(figures.refused)) == (1, {"INTERNAL": 1})


class _Boundary:
    codec = "raw"

    class spec:  # noqa: N801 - it stands for a value
        name = "n"


class _Entry:
    """What a placement of a plain graph would be."""

    boundary = (_Boundary,)

    def __init__(self, segment: str) -> None:
        self.segment = segment


def test_settings_for_a_model_that_is_not_here_are_told(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(Gateway, "told", lambda self, event, text: told.append((event, text)))
    settings = {f"models.override.{name}.max_batch_size": 4 for name in ("model", "modle")}
    with gateway_of(toy_bundle, settings=settings):
        pass
    assert told == [("model_override", "models.override names modle, and no model is called so; here are model")]


def test_a_gateway_that_has_ended_leaves_no_thread_of_its_own(toy_bundle: Path, tmp_path: Path) -> None:
    def ours() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread not in before}

    before = set(threading.enumerate())
    with gateway_of(toy_bundle, http="127.0.0.1:0") as gateway:
        gateway.log.error("drill")
        assert ours()
    until(lambda: not ours(), f"{ours()} are left")
    broken = gateway_of(tmp_path)
    broken.log.error("drill")
    with pytest.raises(IsthmusError):
        broken.start()
    until(lambda: not ours(), f"{ours()} are left")
