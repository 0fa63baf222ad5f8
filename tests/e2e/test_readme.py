"""The README's commands, run as they are written, in a fresh copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import BIN, ROOT


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# As it is written, but for the port: the machine's own 7447 may be taken.
README = (ROOT / "README.md").read_text(encoding="utf-8").replace(":7447", f":{_free_port()}")
# Searches end early here; everything else runs as it is written.
QUICKLY = " --budget-s 2 --recipe-budget-s 0 --no-memory"
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


def blocks(heading: str, language: str) -> list[str]:
    """The fenced blocks of one language under a heading of the README."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    body = next(part for part in section if part.startswith(heading))
    return re.findall(rf"^```{language}\n(.*?)^```", body, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    """Its lines without what only sets up a shell (the tests have an environment already) and without comments."""
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line and "activate" not in line]


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
        ["bash", "-c", command], cwd=checkout, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def gateway(checkout: Path) -> Iterator[str]:
    """The first terminal of "By hand": everything but its last command is run, the last one keeps serving."""
    *before, serve = commands(blocks("By hand", "sh")[0])
    for command in before:
        if command.startswith("partitioner split"):
            command += QUICKLY
        done = shell(command, checkout)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert serve.startswith("cloud-gateway serve")
    process = subprocess.Popen(
        ["bash", "-c", f"exec {serve}"], cwd=checkout, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready tcp://"), ready
        yield ready.split()[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)


def test_the_second_terminal_answers_five_real_images(gateway: str, checkout: Path) -> None:
    (run,) = commands(blocks("By hand", "sh")[1])
    done = shell(run, checkout)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == f"ready {gateway}"
    answers = [json.loads(line) for line in lines]
    assert [a["status"] for a in answers] == ["answered"] * 5
    assert all("placement" in a and "degraded" in a and "timings_ms" in a for a in answers)


def test_the_python_client_answers(gateway: str, checkout: Path) -> None:
    (code,) = blocks("By hand", "python")
    frame = "import numpy as np\nframe = np.load('digits-data/held_out.npz')['image'][:1]\n"
    done = subprocess.run(
        [str(BIN / "python"), "-c", frame + code], cwd=checkout, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d (full-cloud|cut-1|edge-only)[.a-z0-9]* 0\.\d+", done.stdout)


def test_the_foreign_client_answers(gateway: str, checkout: Path) -> None:
    (command,) = commands(blocks("By hand", "sh")[2])
    done = shell(command, checkout)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


def test_the_partitioners_commands_run(gateway: str, checkout: Path) -> None:
    inspect, auto, _, verify, *more = commands(blocks("Finding the cut", "sh")[0])
    names = {
        "MODEL": "examples/digits/digits.onnx",
        "DATA.npz": "digits-data/calibration.npz",
        "BUNDLE": "auto-bundle",
    }
    for command in (inspect, f"{auto}{QUICKLY}", verify, *more):
        for word, name in names.items():
            command = re.sub(rf"(?<=\s){re.escape(word)}(?=\s|$)", name, command)
        done = shell(command, checkout)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_commands_of_the_planning_page_run(gateway: str, checkout: Path) -> None:
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    for command in commands(block):
        if command.startswith(("partitioner plan", "partitioner split")):
            command += QUICKLY
        done = shell(command, checkout)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_exit_codes_are_those_of_the_code() -> None:
    from edge_agent.outcomes import RefusedError
    from protocol import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.IsthmusError)]
    documented = {int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)}
    documented |= {int(code) for code in re.findall(r"\| (\d) \| [^|]+ \|$", README, re.MULTILINE)}
    assert documented == {c.exit_code for c in [*classes, RefusedError]} | {0, 1, 2}
