"""What the daemon is made of, seen together: status, explanation, metrics, late answers, a change of bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cloud_gateway.gateway import Gateway
from edge_agent.cli_ask import lines
from edge_agent.daemon import Daemon
from edge_agent.local_client import LocalClient, unwrap
from edge_agent.outcomes import Refusal
from protocol.errors import InputError
from tests.daemons import daemon_of, got

Images = npt.NDArray[Any]


def client_of(daemon: Daemon) -> LocalClient:
    return LocalClient(daemon.door.unix_socket or "")


def test_a_daemon_says_where_requests_run_why_and_what_would_flip_it(
    toy_bundle: Path, toy_gateway: Gateway, tmp_path: Path, toy_samples: Images
) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", gateways=(str(toy_gateway.endpoint),),
                       settings={"gateways.wait_s": 20.0})  # fmt: skip
    daemon.start()
    try:
        with client_of(daemon) as client:
            for _ in range(3):
                unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
            status, explained = client.document("/v2/isthmus/status"), client.document("/v2/isthmus/explain")
        assert status["connected"]
        assert status["gateways"][0]["name"] == str(toy_gateway.endpoint)
        assert any(line.startswith("requests run as ") for line in lines(status))
        assert not any("cannot be used" in line for line in lines(status))
        assert explained["sentences"][0].startswith("The next request runs as ")
        assert {p["id"] for p in explained["placements"]} == {p["id"] for p in status["placements"]}
        code, metrics = got(daemon, "/metrics")
        assert code == 200
        assert "isthmus_agent_" in metrics
        assert got(daemon, "/status")[0] == got(daemon, "/status.json")[0] == 200
    finally:
        daemon.close()


def test_another_bundle_takes_over_while_requests_run_and_none_is_lost(
    toy_bundle: Path, tmp_path: Path, toy_samples: Images
) -> None:
    other = tmp_path / "other"
    shutil.copytree(toy_bundle, other)
    daemon = daemon_of(toy_bundle, tmp_path / "s")
    daemon.start()
    try:
        before = daemon.agent
        futures = [daemon.front.submit({"x": toy_samples[:1]}, deadline_s=20.0) for _ in range(50)]
        daemon._switch(other)
        futures += [daemon.front.submit({"x": toy_samples[:1]}, deadline_s=20.0) for _ in range(50)]
        outcomes = [future.result(20) for future in futures]
        assert not any(isinstance(outcome, Refusal) for outcome in outcomes)
        assert daemon.agent is not before
        assert daemon.known is not None
        assert daemon.known.agent is daemon.agent
        with client_of(daemon) as client:
            unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
            assert client.is_ready()
    finally:
        daemon.close()


def test_a_bundle_that_cannot_be_started_leaves_the_old_one_serving(toy_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy_bundle, broken)
    data = bytearray((broken / "edge.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "edge.onnx").write_bytes(data)
    daemon = daemon_of(toy_bundle, tmp_path / "s")
    daemon.start()
    try:
        with pytest.raises(Exception, match="changed or damaged"):
            daemon._switch(broken)
        with client_of(daemon) as client:
            unwrap(client.infer({"x": np.zeros((1, 3, 16, 16), np.float32)}, deadline_s=20.0))
    finally:
        daemon.close()


def test_an_unsigned_bundle_is_not_served_where_signatures_are_required(toy_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="sign"):
        daemon_of(toy_bundle, tmp_path / "s", settings={"bundle.signatures": "required"})


def test_a_device_without_any_bundle_says_how_to_get_one(toy_bundle: Path, tmp_path: Path) -> None:
    daemon = daemon_of(toy_bundle, tmp_path / "s", settings={"bundle.path": None})
    with pytest.raises(InputError, match="`edge-agent bundles install DIR`"):
        daemon.start()
