"""What an application that imports the agent pays: nothing of the workbench, the daemon's rim or its commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.processes import ROOT

NEVER = {"onnx", "onnx_ir", "scipy", "torch", "matplotlib", "sklearn", "pandas", "partitioner", "cloud_gateway"}
RIM = {"uvicorn", "httptools", "grpc", "structlog", "typer", "rich"}
ONLY_WHEN_ASKED = RIM | {"cryptography", "dns", "sqlite3", "PIL"}


def loaded_by(code: str) -> set[str]:
    """The packages that this code has loaded, in a process of its own."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["edge_agent", "edge_agent.agent", "edge_agent.client"])
def test_the_agent_as_a_library_loads_nothing_that_is_heavy_or_optional(module: str) -> None:
    assert not loaded_by(f"import {module}") & (NEVER | ONLY_WHEN_ASKED)


def test_the_agent_as_a_library_needs_no_event_loop() -> None:
    """asyncio and ssl are 5 MB and 50 ms; the async client brings asyncio for those who want it."""
    assert not loaded_by("import edge_agent.agent") & {"asyncio", "ssl"}


def test_the_package_itself_loads_next_to_nothing() -> None:
    assert not loaded_by("import edge_agent") & {"numpy", "onnxruntime", "zmq", "msgspec", "protocol"}


def test_looking_at_a_board_needs_no_engine() -> None:
    assert not loaded_by("from edge_agent.device.board import look; look()") & {"numpy", "onnxruntime", "zmq"}


def test_the_commands_load_no_engine_before_they_need_one() -> None:
    unwanted = NEVER | {"onnxruntime", "numpy", "zmq", "uvicorn", "cryptography", "dns", "structlog"}
    assert not loaded_by("import edge_agent.cli") & unwanted


def test_the_gateways_commands_load_neither_engine_nor_socket_before_they_need_one() -> None:
    assert not loaded_by("import cloud_gateway.cli") & {"onnxruntime", "numpy", "zmq", "uvicorn", "structlog"}


def test_a_daemons_log_loads_nothing_that_colours_it() -> None:
    assert not loaded_by("import protocol.seeing.logs") & {"rich", "pygments", "attr"}
