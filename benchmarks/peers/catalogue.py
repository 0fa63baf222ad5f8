"""How each system is started and asked. Versions are pinned: a figure without a version is an anecdote.

| system        | how it is asked | batching |
|---|---|---|
| bare          | ZeroMQ | greedy, at most 16: the reference, benchmarks/bare_gateway.py |
| isthmus       | ZeroMQ, its own protocol | work-conserving, bound at the measured knee |
| isthmus_http  | HTTP, Open Inference Protocol v2 binary | the same |
| mosec         | HTTP, raw bytes | its batcher, at most 16, no wait |
| tritonserver  | HTTP, Open Inference Protocol v2 binary | dynamic_batching, no queue delay; Python backend |
| litserve      | HTTP, multipart upload | at most 16, no wait |
| torchserve    | HTTP, raw bytes | at most 16, 2 ms: without a delay it does not batch at all |
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.peers.environments import UnavailableError, environment
from benchmarks.peers.http_client import AnswerError, HttpClient
from benchmarks.peers.processes import READY_LIMIT_S, ServerProcess, free_ports, python
from benchmarks.peers.questions import Questions
from benchmarks.peers.zmq_client import AgentClient, BareClient
from protocol.bundle import Bundle

SERVERS = Path(__file__).with_name("servers")
MAX_BATCH = 16
ANSWER_LIMIT_S = 20.0


class Client(Protocol):
    """`slots` connections, each with at most one request in flight."""

    def send(self, slot: int, which: int) -> None: ...

    def arrived(self, timeout_s: float) -> Sequence[tuple[int, bytes]]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """What a system is given: the model in both forms, a scratch folder of its own, and a core."""

    model: Path
    bundle: Path
    folder: Path
    questions: Questions
    core: int | None


@dataclass(frozen=True, slots=True)
class Running:
    """A started server, and how to reach it with any number of connections."""

    server: ServerProcess
    connect: Callable[[int], Client]


def start(name: str, stage: Stage) -> Running:
    """Start a system and wait for its first right answer. Raises UnavailableError with the reason."""
    stage.folder.mkdir()
    running = SYSTEMS[name](stage)
    try:
        _wait_for_an_answer(running, stage.questions)
    except BaseException:
        running.server.stop()
        raise
    return running


def gateway(*bundles: Path, core: int | None, log: Path, http_port: int = 0) -> ServerProcess:
    """Our own gateway as it is shipped, serving these bundles on ports of its choosing; one engine thread, as all."""
    env = {
        "ISTHMUS_GATEWAY__HTTP__BIND": f"127.0.0.1:{http_port}",
        "ISTHMUS_GATEWAY__SCHEDULING__WORKERS": "1",
        "ISTHMUS_GATEWAY__SCHEDULING__THREADS": "1",
    }
    command = python("-m", "cloud_gateway", "serve", *map(str, bundles), "--bind", "tcp://127.0.0.1:0")
    return ServerProcess(command, core=core, log=log, env=env, says_ready=True)


def _bare(stage: Stage) -> Running:
    command = python("-m", "benchmarks.bare_gateway", str(stage.model))
    server = ServerProcess(command, core=stage.core, log=stage.folder / "log", says_ready=True)
    endpoint = server.ready_line()
    return Running(server, lambda slots: BareClient(endpoint, stage.questions.tensors, slots))


def _isthmus(stage: Stage) -> Running:
    server = gateway(stage.bundle, core=stage.core, log=stage.folder / "log")
    endpoint, bundle = server.ready_line(), Bundle.open(stage.bundle)
    return Running(server, lambda slots: AgentClient(endpoint, bundle, stage.questions.tensors, slots))


def _isthmus_http(stage: Stage) -> Running:
    (port,) = free_ports(1)
    server = gateway(stage.bundle, core=stage.core, log=stage.folder / "log", http_port=port)
    server.ready_line()
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError as error:
        server.stop()
        raise UnavailableError("this gateway has no HTTP door") from error
    path = f"/v2/models/{Bundle.open(stage.bundle).manifest.model.name}/infer"
    return Running(server, lambda slots: HttpClient(port, path, "v2", stage.questions.tensors, slots))


def _mosec(stage: Stage) -> Running:
    home = environment("mosec", ["mosec==0.9.8"])
    (port,) = free_ports(1)
    options = f"--port {port} --address 127.0.0.1 --timeout 20000 --log-level error --wait 0"
    command = [str(home / "bin/python"), "-W", "ignore", str(SERVERS / "mosec_tail.py"), *options.split()]
    return _over_http(stage, command, port, "/inference", "raw")


def _litserve(stage: Stage) -> Running:
    home = environment("litserve", ["litserve==0.2.19", "python-multipart"])
    (port,) = free_ports(1)
    command = [str(home / "bin/python"), str(SERVERS / "litserve_tail.py"), str(port)]
    return _over_http(stage, command, port, "/predict", "multipart")


def _tritonserver(stage: Stage) -> Running:
    home = environment("tritonserver", ["nvidia-pytriton==0.7.0"])
    packages = next((home / "lib").glob("python3.*/site-packages"))
    triton, version = packages / "pytriton" / "tritonserver", packages.parent.name.removeprefix("python")
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise UnavailableError(f"its Python backend has no stub for Python {version}")
    backend = stage.folder / "backends" / "python"
    shutil.copytree(triton / "backends" / "python", backend)
    shutil.copy(stub, backend)
    versions = stage.folder / "models" / "tail" / "1"
    versions.mkdir(parents=True)
    shutil.copy(SERVERS / "triton_model.py", versions / "model.py")
    shutil.copy(SERVERS / "tail.py", versions)
    (versions.parent / "config.pbtxt").write_text(TRITON_MODEL, "utf-8")
    ports = free_ports(3)
    options = [f"--model-repository={versions.parents[1]}", f"--backend-directory={backend.parent}", "--log-info=false"]
    for door, port in zip(("http", "grpc", "metrics"), ports, strict=True):
        options += [f"--{door}-address=127.0.0.1", f"--{door}-port={port}"]
    # Its stub is an executable: it loads the interpreter's library, and finds packages through the path's `python`.
    libraries = (sysconfig.get_config_var("LIBDIR"), packages / "nvidia_pytriton.libs")
    env = {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "PATH": f"{home / 'bin'}:/usr/local/bin:/usr/bin:/bin"}
    command = [str(triton / "bin" / "tritonserver"), *options]
    return _over_http(stage, command, ports[0], "/v2/models/tail/infer", "v2", env)


def _torchserve(stage: Stage) -> Running:
    if shutil.which("java") is None:
        raise UnavailableError("no Java runtime; install default-jre-headless")
    wanted = ["torchserve==0.12.0", "torch-model-archiver", "torch==2.13.0", "setuptools<81", "pyyaml", "psutil"]
    home = environment("torchserve", [*wanted, "requests", "enum-compat"])
    tools, store = home / "bin", stage.folder / "store"
    store.mkdir()
    path = {"PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(SERVERS)}
    archive = [str(tools / "torch-model-archiver"), "--model-name", "tail", "--version", "1.0", "--force"]
    archive += ["--handler", str(SERVERS / "torchserve_handler.py"), "--export-path", str(store)]
    done = subprocess.run(archive, capture_output=True, text=True, env=path)
    if done.returncode:
        raise UnavailableError(f"its archiver failed: {done.stderr.strip()[-300:]}")
    ports = free_ports(5)
    (stage.folder / "config.properties").write_text(_torchserve_settings(ports), "utf-8")
    (stage.folder / "log4j2.xml").write_text(QUIET_JAVA, "utf-8")
    options = ["--foreground", "--ncs", "--disable-token-auth", "--model-store", str(store)]
    options += [
        "--ts-config",
        str(stage.folder / "config.properties"),
        "--log-config",
        str(stage.folder / "log4j2.xml"),
    ]
    env = {**path, "TEMP": str(stage.folder), "LOG_LOCATION": str(stage.folder), "METRICS_LOCATION": str(stage.folder)}
    command = [str(tools / "torchserve"), *options]
    return _over_http(stage, command, ports[0], "/predictions/tail", "raw", {**env, "TAIL_DELAY_MS": "2"})


def _over_http(
    stage: Stage, command: Sequence[str], port: int, path: str, form: str, env: dict[str, str] | None = None
) -> Running:
    told = {"TAIL_MODEL": str(stage.model), "TAIL_MAX_BATCH": str(MAX_BATCH), "TMPDIR": str(stage.folder)}
    server = ServerProcess(command, core=stage.core, log=stage.folder / "log", env={**told, **(env or {})})
    return Running(server, lambda slots: HttpClient(port, path, form, stage.questions.tensors, slots))


def _wait_for_an_answer(running: Running, questions: Questions) -> None:
    give_up = time.monotonic() + READY_LIMIT_S
    trouble = "it never listened"
    while time.monotonic() < give_up:
        if not running.server.running:
            raise UnavailableError(f"it ended at once: {running.server.tail_of_log()}")
        try:
            answer = ask(running)
        except (OSError, AnswerError) as error:
            trouble = str(error)
            time.sleep(0.2)
            continue
        if not questions.is_right(0, answer):
            raise UnavailableError("its answer is not ONNX Runtime's")
        return
    raise UnavailableError(f"no right answer within {READY_LIMIT_S:.0f} s ({trouble}): {running.server.tail_of_log()}")


def ask(running: Running) -> bytes:
    """Ask question 0 once, on a connection of its own. Raises OSError, AnswerError."""
    client = running.connect(1)
    try:
        client.send(0, 0)
        give_up = time.monotonic() + ANSWER_LIMIT_S
        while time.monotonic() < give_up:
            for _, answer in client.arrived(1.0):
                return answer
        raise TimeoutError(f"no answer within {ANSWER_LIMIT_S:.0f} s")
    finally:
        client.close()


def _torchserve_settings(ports: Sequence[int]) -> str:
    model = {"defaultVersion": True, "marName": "tail.mar", "minWorkers": 1, "maxWorkers": 1, "responseTimeout": 60}
    model |= {"batchSize": MAX_BATCH, "maxBatchDelay": 2}
    doors = ("inference_address", "management_address", "metrics_address")
    lines = [f"{door}=http://127.0.0.1:{port}" for door, port in zip(doors, ports, strict=False)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    lines += ["grpc_inference_address=127.0.0.1", "grpc_management_address=127.0.0.1", "load_models=tail.mar"]
    lines += ["disable_token_authorization=true", "enable_model_api=true", "job_queue_size=200"]
    return "\n".join([*lines, f"models={json.dumps({'tail': {'1.0': model}})}", ""])


TRITON_MODEL = f"""backend: "python"
max_batch_size: {MAX_BATCH}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 256, 14, 14 ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""
QUIET_JAVA = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN"><Appenders><Console name="C"><PatternLayout pattern="%p %m%n"/></Console></Appenders>
<Loggers><Root level="warn"><AppenderRef ref="C"/></Root></Loggers></Configuration>
"""

SYSTEMS: dict[str, Callable[[Stage], Running]] = {
    "bare": _bare,
    "isthmus": _isthmus,
    "isthmus_http": _isthmus_http,
    "mosec": _mosec,
    "tritonserver": _tritonserver,
    "litserve": _litserve,
    "torchserve": _torchserve,
}
