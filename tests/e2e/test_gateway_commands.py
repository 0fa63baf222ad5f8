"""`cloud-gateway` as an operator types it: what it prints, its exit codes, and that its end loses nothing."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from protocol.bundle import Bundle
from protocol.messages import Reject, Result
from tests import models
from tests.processes import Process, finished, running
from tests.waiting import until
from tests.wire_client import WireClient, placement

FAST = ("--set", "models.warm_up_s=0.02")


class Served:
    """A gateway of a model folder, with its administration on."""

    def __init__(self, process: Process, ready: dict[str, Any], folder: Path) -> None:
        self.process = process
        self.ready = ready
        self.folder = folder
        self.at = ("--url", f"http://{ready['http']}", "--key-file", str(folder / "ops.key"))

    def ask(self, *command: str) -> Any:
        """What a command prints with --json."""
        done = finished("cloud-gateway", *command, *self.at, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> Path:
    """models/: a bundle and a plain graph; damaged/: the graph, and one that is none; keys/ with an API key for all."""
    place = tmp_path_factory.mktemp("gateway")
    shutil.copytree(toy_bundle, place / "models" / "toy" / "1")
    for root in ("models", "damaged"):
        (place / root / "plain" / "1").mkdir(parents=True)
        models.write(models.two_heads(), place / root / "plain" / "1")
    (place / "damaged" / "broken" / "1").mkdir(parents=True)
    (place / "damaged" / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    keys = str(place / "keys")
    assert finished("cloud-gateway", "keys", "init", "--keys", keys).returncode == 0
    roles = ("--role", "infer", "--role", "metrics", "--role", "admin")
    made = finished("cloud-gateway", "keys", "add", "ops", "--api", *roles, "--keys", keys, "--json")
    assert made.returncode == 0, made.stderr
    (place / "ops.key").write_text(json.loads(made.stdout)["key"])
    return place


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    with running(
        "cloud-gateway", "serve", "--models", str(folder / "models"), "--bind", "tcp://127.0.0.1:0",
        "--http", "127.0.0.1:0", *FAST, "--set", f"access.keys_dir={folder / 'keys'}", "--set", "access.admin=true",
        "--json",
    ) as process:  # fmt: skip
        yield Served(process, process.json(), folder)


# ---- a gateway that runs --------------------------------------------------------------------------------------------


def test_ready_says_where_it_serves_and_what_its_lanes_are(served: Served) -> None:
    assert served.ready["event"] == "ready"
    assert served.ready["endpoint"].startswith("tcp://127.0.0.1:")
    assert len(served.ready["lanes"]) == 4  # three tails of the bundle, and the plain graph
    assert all(lane["batch_1_ms"] > 0 for lane in served.ready["lanes"])


def test_models_are_listed_unloaded_and_loaded_by_command(served: Served) -> None:
    def states() -> dict[str, str]:
        return {entry["name"]: entry["state"] for entry in served.ask("models", "list")}

    assert states() == {"toy": "READY", "plain": "READY"}
    assert served.ask("models", "unload", "plain")["ok"]
    assert states()["plain"] != "READY"
    assert served.ask("models", "load", "plain", "--version", "1")["version"] == 1
    assert states()["plain"] == "READY"
    absent = finished("cloud-gateway", "models", "load", "absent", *served.at)
    _refused(absent, 3, "no model 'absent'")


def test_the_status_says_what_it_does_for_people_and_programs(served: Served) -> None:
    assert served.ask("status")["ready"]
    told = finished("cloud-gateway", "status", *served.at)
    assert told.returncode == 0
    assert "ready, up" in told.stdout.splitlines()[0]
    assert "toy 1: AVAILABLE" in told.stdout


def test_without_its_key_the_gateway_tells_nothing(served: Served) -> None:
    _refused(finished("cloud-gateway", "status", *served.at[:2]), 3, "needs an API key with the role metrics")


def test_every_act_of_an_administrator_is_on_a_record_that_can_be_verified(served: Served) -> None:
    done = finished("cloud-gateway", "audit", "verify", str(served.folder / "keys" / "audit.log"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


# ---- before it runs -------------------------------------------------------------------------------------------------


def test_a_dry_run_loads_everything_listens_nowhere_and_ends_with_0(served: Served, toy_bundle: Path) -> None:
    done = finished("cloud-gateway", "dry-run", "--models", str(served.folder / "models"), *FAST, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    assert {m["name"]: m["state"] for m in told["models"]} == {"toy": "AVAILABLE", "plain": "AVAILABLE"}
    assert len(told["lanes"]) == 4


def test_a_dry_run_names_what_is_damaged_and_ends_with_3(folder: Path) -> None:
    done = finished("cloud-gateway", "dry-run", "--models", str(folder / "damaged"), *FAST, "--json")
    _refused(done, 3, "broken version 1", "damaged")
    told = json.loads(done.stdout)
    assert not told["ok"]
    assert {m["name"]: m["state"] for m in told["models"]} == {"broken": "ERROR", "plain": "AVAILABLE"}


def test_settings_are_checked_with_the_nearest_name_of_what_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[limits]\npending_request = 5\n")
    done = finished("cloud-gateway", "config", "check", str(file))
    assert done.returncode == 3
    assert "pending_requests" in done.stderr + done.stdout
    wrong = finished("cloud-gateway", "serve", "x", "--set", "drain.grce_s=1")
    _refused(wrong, 3, "drain.grace_s")


@pytest.mark.parametrize("door", ["--bind", "--http", "--grpc"])
def test_a_port_in_use_is_one_sentence_with_code_6(toy_bundle: Path, door: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = {"--bind": "tcp://127.0.0.1:0", "--http": "127.0.0.1:0", "--grpc": "127.0.0.1:0"}
        free[door] = free[door].removesuffix(":0") + f":{taken.getsockname()[1]}"
        flags = [part for pair in free.items() for part in pair]
        done = finished("cloud-gateway", "serve", str(toy_bundle), *flags, *FAST)
        port = taken.getsockname()[1]
    _refused(done, 6, str(port))
    assert ("WARMING" in done.stderr) == (door == "--grpc"), "what can be known at once costs no warm-up"


def test_nobody_there_and_a_stranger_are_told_apart(tmp_path: Path) -> None:
    done = finished("cloud-gateway", "status", "--url", "http://127.0.0.1:1")
    _refused(done, 6, "no gateway answers", "--url")
    _refused(finished("cloud-gateway", "models", "list", "--url", "127.0.0.1:1"), 3, "http://HOST:PORT")


# ---- while it runs, and its end -------------------------------------------------------------------------------------


def test_sighup_with_a_wrong_file_serves_on_as_before_and_a_right_one_is_applied(
    toy_bundle: Path, tmp_path: Path, toy_samples: npt.NDArray[Any]
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[limits]\ncredit_requests = 7\n")
    with running(
        "cloud-gateway", "serve", str(toy_bundle), "--config", str(file), "--bind", "tcp://127.0.0.1:0", "--http",
        "off", *FAST, "--set", "logs.format=json",
    ) as process:  # fmt: skip
        endpoint = process.line().split()[1]
        with WireClient(endpoint) as agent:
            assert agent.greet().credit_requests == 7
            for text, outcome, credit in (
                ("[limits]\ncredit_requests = 0\n", "refused", 7),
                ("[limits]\ncredit_requests = 9\n", "applied", 9),
            ):
                file.write_text(text)
                process.popen.send_signal(signal.SIGHUP)
                _until_logged(process, f'"outcome":"{outcome}"', f'"outcome": "{outcome}"')
                assert agent.greet().credit_requests == credit
        process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def test_sigterm_while_models_are_loaded_ends_it_without_serving(tmp_path: Path) -> None:
    (tmp_path / "slow" / "1").mkdir(parents=True)
    models.write(models.residual(), tmp_path / "slow" / "1")
    (tmp_path / "slow" / "config.pbtxt").write_text("max_batch_size: 4096\n")  # every size up to it is measured
    with running(
        "cloud-gateway", "serve", "--models", str(tmp_path), "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0",
        "--set", "models.warm_up_s=600",
    ) as process:  # fmt: skip
        _until_logged(process, "state=WARMING")
        process.popen.send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.rest() == []
    assert "ended before it was ready" in "".join(process.errors)


def test_sigterm_under_load_answers_or_refuses_every_request(
    toy_bundle: Path, toy_samples: npt.NDArray[Any], toy_reference: npt.NDArray[Any]
) -> None:
    entry = placement(Bundle.open(toy_bundle), "full-cloud")
    name = Bundle.open(toy_bundle).manifest.model.name
    with running(
        "cloud-gateway", "serve", str(toy_bundle), "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0", *FAST,
        "--json",
    ) as process:  # fmt: skip
        ready = process.json()
        seen: Counter[str] = Counter()
        begun = threading.Barrier(3)

        def by_zeromq() -> None:
            with WireClient(ready["endpoint"]) as agent:
                agent.greet()
                begun.wait(20)
                left = time.monotonic() + 20
                number, ended = 0, 0
                draining = False
                while time.monotonic() < left and not (draining and ended == number):
                    while number - ended < 16 and not draining:
                        number += 1
                        agent.send(*agent.infer(entry, {"x": toy_samples[number % 32][None]}, number))
                    reply = agent.receive()
                    if isinstance(reply, Result | Reject):
                        ended += 1
                        seen[f"zmq {type(reply).__name__}"] += 1
                    else:
                        draining = True
                assert ended == number, f"{number - ended} of {number} vanished"

        def by_http() -> None:
            given = triton.InferInput("x", [1, 3, 16, 16], "FP32")
            begun.wait(20)
            with triton.InferenceServerClient(ready["http"], network_timeout=20) as client:
                for number in range(100_000):
                    given.set_data_from_numpy(toy_samples[number % 32][None])
                    try:
                        found = client.infer(name, [given])
                    except InferenceServerException as error:
                        seen["http refused" if "503" in str(error.status()) else f"http {error}"] += 1
                        return
                    except OSError:  # the door has closed: this request was never taken
                        seen["http closed"] += 1
                        return
                    np.testing.assert_allclose(found.as_numpy("logits")[0], toy_reference[number % 32], atol=1e-4)
                    seen["http answered"] += 1

        failures: list[BaseException] = []
        threads = [threading.Thread(target=_caught, args=(target, failures)) for target in (by_zeromq, by_http)]
        for thread in threads:
            thread.start()
        begun.wait(20)
        until(lambda: failures or (seen["http answered"] >= 20 and seen["zmq Result"] >= 50), "no load came about")
        assert not failures, failures
        process.popen.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert process.wait() == 0
        assert not failures, failures
        stopped = [json.loads(line) for line in process.rest()][-1]
    assert stopped["event"] == "stopped"
    assert stopped["stats"]["results"] == seen["zmq Result"]
    assert seen["http refused"] + seen["http closed"] == 1


# ---- what they share -------------------------------------------------------------------------------------------


def _caught(target: Any, failures: list[BaseException]) -> None:
    try:
        target()
    except BaseException as error:
        failures.append(error)


def _until_logged(process: Process, *words: str) -> None:
    until(lambda: any(word in line for line in list(process.errors) for word in words), f"none of {words} was logged")


def _refused(done: Any, code: int, *words: str) -> None:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in message, message
