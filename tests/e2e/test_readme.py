"""The README's commands, run as they are written, in a fresh copy of the repository."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from protocol.bundle import Bundle
from tests.processes import BIN, ROOT


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# As it is written, but for the ports: the machine's own may be taken.
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCAL_API = f"127.0.0.1:{_free_port()}"
README = README.replace(":7447", f":{_free_port()}").replace(":7480", f":{_free_port()}")
README = README.replace("127.0.0.1:7490", LOCAL_API)
# Searches end early here; everything else runs as it is written.
QUICKLY = " --budget-s 2 --recipe-budget-s 0 --no-memory"
pytestmark = pytest.mark.timeout(1800)  # whichever test is first waits for all the partitioner's commands
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ISTHMUS_AGENT__HTTP__BIND": LOCAL_API}


def blocks(heading: str, language: str) -> list[str]:
    """The fenced blocks of one language under a heading of the README."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    body = next(part for part in section if part.startswith(heading))
    return re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """Its lines without what only sets up a shell (the tests have an environment already) and without comments."""
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and "activate" not in line and not line.startswith("export ")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, so that nothing that lies about here is needed."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def shell(command: str, checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, timeout=800, check=False
    )


class Ran(NamedTuple):
    """The commands of one chain up to the first that failed, and what they said."""

    failed: str  # the command and its output; empty if all went well
    count: int


def run_chain(chain: list[str], checkout: Path) -> Ran:
    for number, command in enumerate(chain, 1):
        done = shell(command, checkout)
        if done.returncode != 0:
            return Ran(f"{command}\n{done.stdout}\n{done.stderr}", number)
    return Ran("", len(chain))


def quick(command: str) -> str:
    return command + QUICKLY if command.startswith(("partitioner plan", "partitioner split")) else command


def by_hand() -> tuple[list[str], str]:
    """The first terminal: what is run before, and the last command, which keeps serving."""
    *before, serve = commands(blocks("By hand", "sh")[0])
    return before, serve


def with_names(command: str, bundle: str) -> str:
    """The command with a model, a cut and data that are there, instead of the words that stand for them."""
    names = {
        "MODEL": "examples/digits/digits.onnx",
        "TENSOR": "stem3/relu",
        "DATA.npz": "digits-data/calibration.npz",
        "BUNDLE": bundle,
    }
    for word, name in names.items():
        command = re.sub(rf"(?<=\s){re.escape(word)}(?=\s|$)", name, command)
    return quick(command)


def finding_the_cut() -> list[str]:
    inspect, auto, _, verify, *more = commands(blocks("Finding the cut", "sh")[0])
    return [with_names(command, "auto-bundle") for command in (inspect, auto, verify, *more)]


def for_a_gpu() -> list[str]:
    return [with_names(command, f"gpu-bundle-{n}") for n, command in enumerate(commands(blocks("On a GPU", "sh")[0]))]


def planning_page() -> tuple[list[str], list[str]]:
    """What looks at the model, and what is done with the bundle: neither needs the other."""
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    chain = [quick(command) for command in commands(block)]
    of_bundle = [command for command in chain if "planned-bundle" in command]
    return [command for command in chain if command not in of_bundle], of_bundle


def thin_out(folder: Path) -> None:
    """Every fifth sample: the commands do what they do for a reader, and judge in a fifth of the time."""
    for path in folder.glob("*.npz"):
        with np.load(path) as archive:
            some = {name: archive[name][::5] for name in archive}
        np.savez(path, **some)


@pytest.fixture(scope="module")
def ran(checkout: Path) -> dict[str, Ran]:
    """Every chain of the partitioner's commands, two at a time: each is a process on one core for minutes.

    They end before anything is served, so that whoever waits for an answer has the machine to himself.
    """
    (*setup, data, split), _ = by_hand()
    prepared = run_chain([*setup, data], checkout)
    assert not prepared.failed, prepared.failed
    thin_out(checkout / "digits-data")
    of_model, of_bundle = planning_page()
    chains = {
        "planning, model": of_model,
        "finding": finding_the_cut(),
        "planning, bundle": of_bundle,
        "gpu": for_a_gpu(),
        "by hand": [quick(split)],
    }
    with ThreadPoolExecutor(2) as two:
        futures = {name: two.submit(run_chain, chain, checkout) for name, chain in chains.items()}
        return {name: future.result() for name, future in futures.items()}


@contextlib.contextmanager
def serving(command: str, checkout: Path, **environment: str) -> Iterator[str]:
    """A command that keeps serving; gives what it is ready with, and sees that it ends cleanly."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=checkout, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready "), ready
        yield ready.split()[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def gateway(checkout: Path, ran: dict[str, Ran]) -> Iterator[str]:
    """The last command of the first terminal, serving."""
    assert not ran["by hand"].failed, ran["by hand"].failed
    _, serve = by_hand()
    assert serve.startswith("cloud-gateway serve")
    with serving(serve, checkout) as endpoint:
        assert endpoint.startswith("tcp://"), endpoint
        yield endpoint


@pytest.fixture(scope="module")
def agent(gateway: str, checkout: Path) -> Iterator[str]:
    """The second terminal, serving."""
    (run,) = commands(blocks("By hand", "sh")[1])
    assert run.startswith("edge-agent run")
    with serving(run, checkout) as endpoint:
        yield endpoint


def test_the_third_terminal_is_answered_by_the_agent(agent: str, gateway: str, checkout: Path) -> None:
    assert agent in (gateway, "edge-only")  # where the machine is busy it serves before the gateway has answered
    asked = blocks("By hand", "sh")[2]
    (socket_path,) = re.findall(r"^export ISTHMUS_AGENT_SOCKET=(\S+)$", asked, flags=re.MULTILINE)
    said = {}
    for command in commands(asked):
        done = shell(f"export ISTHMUS_AGENT_SOCKET={socket_path}; {command}", checkout)
        verb = command.split()[1] if command.startswith("edge-agent") else command.split()[-1].rpartition("/")[2]
        assert done.returncode in ((0, 11) if verb == "doctor" else (0,)), f"{command}\n{done.stdout}\n{done.stderr}"
        said[verb] = done.stdout
    first, *lines = said["infer"].splitlines()
    assert first in (f"ready {gateway}", "ready edge-only")
    answers = [json.loads(line) for line in lines]
    assert [a["status"] for a in answers] == ["answered"] * 5
    assert all("placement" in a and "degraded" in a and "timings_ms" in a for a in answers)
    assert "digits" in said["status"]
    assert "next request runs as" in said["explain"]
    assert json.loads(said["digits"])["name"] == "digits"
    assert said["metrics"].startswith("# HELP")
    assert re.search(r"^\d+ checks: \d+ ok", said["doctor"], flags=re.MULTILINE)


@pytest.mark.parametrize("way", range(3), ids=["the standard client", "the typed client", "no daemon"])
def test_every_way_to_ask_from_python_is_answered(agent: str, checkout: Path, way: int) -> None:
    if way == 0:
        pytest.importorskip("tritonclient.http")
    code = blocks("Ways to ask", "python")[way]
    frame = "import numpy as np\nframe = np.load('digits-data/held_out.npz')['image'][:1]\n"
    done = subprocess.run(
        [str(BIN / "python"), "-c", frame + code],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d (full-cloud|cut-1|edge-only)[.a-z0-9]*", done.stdout)


def test_a_device_enrols_and_serves_the_bundle_that_it_is_sent(checkout: Path, ran: dict[str, Ran]) -> None:
    assert not ran["by hand"].failed, ran["by hand"].failed
    of_gateway, of_device = (
        [command.replace(of_first, of_second) for command in commands(block)]
        for of_first, of_second in [(re.findall(r"tcp://127\.0\.0\.1:(\d+)", README)[0], str(_free_port()))]
        for block in blocks("A device that nobody visits", "sh")[:2]
    )
    *before, serve = of_gateway
    said = [shell(command, checkout) for command in before]
    assert [done.returncode for done in said] == [0] * len(before), [done.stderr for done in said]
    token = next(line for done in said for line in done.stdout.splitlines() if line.startswith("isthmus-invite_"))
    with serving(serve, checkout, ISTHMUS_GATEWAY__HTTP__BIND="127.0.0.1:0"):
        *before, run = [command.replace("isthmus-invite_...", token) for command in of_device]
        chain = run_chain(before, checkout)
        assert not chain.failed, chain.failed
        with serving(run, checkout, ISTHMUS_AGENT__HTTP__BIND="127.0.0.1:0"):
            done = shell("edge-agent bundles list --state-dir camera-7", checkout)
            assert "(current)" in done.stdout, done.stdout + done.stderr


def test_the_foreign_client_answers(gateway: str, checkout: Path) -> None:
    (command,) = commands(blocks("Ways to ask", "sh")[0])
    done = shell(command, checkout)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


def test_the_same_gateway_answers_operators_and_the_standard_protocol(gateway: str, checkout: Path) -> None:
    said = {}
    for command in commands(blocks("The gateway as a server", "sh")[0]):
        done = shell(command, checkout)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[command.split()[1]] = done.stdout
    assert "digits" in said["status"]
    assert "READY" in said["models"]
    assert said["-s"].startswith("# HELP")  # the last of the two curls: the metrics


def test_the_partitioners_commands_run(ran: dict[str, Ran]) -> None:
    assert not ran["finding"].failed, ran["finding"].failed
    assert ran["finding"].count >= 6


def test_the_bundles_for_a_gpu_are_made(ran: dict[str, Ran], checkout: Path) -> None:
    assert not ran["gpu"].failed, ran["gpu"].failed
    halves, heads = (checkout / f"gpu-bundle-{n}" for n in range(2))
    assert (halves / "full.fp16.onnx").is_file()
    assert Bundle.open(heads).manifest.conditions.head_engine == "tensorrt"


@pytest.mark.parametrize("part", ["planning, model", "planning, bundle"])
def test_the_commands_of_the_planning_page_run(ran: dict[str, Ran], part: str) -> None:
    assert not ran[part].failed, ran[part].failed
    assert ran[part].count >= 3


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_exit_codes_are_those_of_the_code() -> None:
    from edge_agent.doctor.cli import SOMETHING_FAILS
    from edge_agent.outcomes import RefusedError
    from edge_agent.store.tickets import StoreError
    from protocol import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.IsthmusError)]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    documented |= {int(code) for code in re.findall(r"\| (\d+) \| [^|]+ \|$", README, re.MULTILINE)}
    assert documented == {c.exit_code for c in [*classes, RefusedError, StoreError]} | {0, 1, 2, SOMETHING_FAILS}
