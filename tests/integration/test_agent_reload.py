"""Settings that change while the daemon serves: what is applied, what needs a restart, what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

from cloud_gateway.gateway import Gateway
from edge_agent.config import load_settings
from edge_agent.daemon import Daemon
from edge_agent.local_client import LocalClient, unwrap
from edge_agent.steering import Steering
from tests.daemons import Manager, daemon_of
from tests.waiting import until

Images = npt.NDArray[Any]


class Steered:
    """A daemon whose settings come from a file, beside what the test itself says."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.file = folder / "agent.toml"
        self.file.write_text("")
        self.log = io.StringIO()
        self.manager = Manager(folder / "notify")
        env = {"NOTIFY_SOCKET": str(self.manager.path)}
        self.daemon: Daemon = daemon_of(bundle, folder / "s", log=self.log, env=env, settings={"gateways.wait_s": 20.0})
        self.given: dict[str, object] = {
            "state_dir": str(folder / "s"), "bundle.path": str(bundle), "http.bind": "127.0.0.1:0",
            "gateways.wait_s": 20.0, "health.every_s": 3600.0, "health.timeout_s": 3600.0,
        }  # fmt: skip
        read = lambda: load_settings(file=self.file, env={}, overrides=self.given)  # noqa: E731
        self.steering = Steering(self.daemon, read, watched=[])

    def reload(self, text: str) -> str:
        """As SIGHUP does, and what is said of it."""
        self.file.write_text(text)
        done = self.steering.reloader.reload()
        self.steering._told(done)
        return f"{done.outcome}: {done}"


@pytest.fixture
def steered(toy_bundle: Path, tmp_path: Path) -> Iterator[Steered]:
    steered = Steered(toy_bundle, tmp_path)
    with steered.daemon:
        yield steered
    steered.manager.close()


def test_what_is_a_number_somewhere_is_applied_at_once(steered: Steered) -> None:
    before = steered.daemon.agent
    steered.given |= {"health.every_s": 2.0, "health.timeout_s": 1.0}
    said = steered.reload(
        "requests.deadline_ms = 77\nrequests.most_pending = 3\nlogs.level = 'warning'\ndrain.grace_s = 1\n"
        "updates.check_every_s = 9\n"
    )
    assert said.startswith("applied: applied requests.deadline_ms, requests.most_pending")
    daemon = steered.daemon
    assert daemon.agent is before
    assert (daemon.service._deadline_s, daemon.service._most_pending, daemon._grace_s) == (0.077, 3, 1.0)
    assert (daemon._logs.level, daemon._updates.policy.check_every_s) == ("warning", 9.0)
    assert (daemon.vitals._every_s, daemon.vitals._timeout_s) == (2.0, 1.0)
    assert any("STATUS=serves model" in line and "settings: applied" in line for line in steered.manager.heard())


def test_an_agent_with_other_settings_takes_over_and_no_request_is_lost(
    steered: Steered, toy_gateway: Gateway, toy_samples: Images
) -> None:
    daemon, before = steered.daemon, steered.daemon.agent
    with LocalClient(daemon.door.unix_socket or "") as client:
        assert unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0)).kind == "edge-only"
        running = [daemon.front.submit({"x": toy_samples[:1]}, deadline_s=20.0) for _ in range(20)]
        text = f"gateways.endpoints = ['{toy_gateway.endpoint}']\nplanner.objective = 'cloud'\n"
        said = steered.reload(text)
        assert said == "applied: applied gateways.endpoints, planner.objective"
        assert all(unwrap(future.result(20)).kind == "edge-only" for future in running)
        assert daemon.agent is not before
        until(lambda: daemon.agent.wait_ready(0), "the new gateway is not asked")
        assert daemon.agent.planner.objective.cloud > 0
        steered.reload(text + "bundle.placements = ['full-cloud']\n")
        assert unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0)).kind == "full-cloud", "it has a link"


def test_a_gateway_that_is_named_while_it_serves_is_asked_for_updates_at_once(
    steered: Steered, toy_gateway: Gateway
) -> None:
    assert steered.daemon._updates.look().checked_at is None, "there is nobody to ask"
    assert steered.daemon._updates.look().trouble == ""
    steered.reload(f"gateways.endpoints = ['{toy_gateway.endpoint}']\n")
    until(lambda: steered.daemon._updates.look().checked_at is not None, "nobody is asked")
    # What is said once a gateway has answered: this device believes nobody.
    until(lambda: "no key is known to check it with" in steered.daemon._updates.look().trouble, "nobody answers")


def test_a_mistake_changes_nothing_and_what_needs_a_restart_is_named(steered: Steered, toy_samples: Images) -> None:
    before = steered.daemon.agent
    said = steered.reload("planner.objective = 'quickly'\nrequests.deadline_ms = 5\n")
    assert said.startswith("refused: nothing changed: ")
    assert "the objective 'quickly'" in said
    assert steered.daemon.service._deadline_s == 1.0
    said = steered.reload("bundle.placements = ['no-such']\nhttp.max_connections = 7\n")
    assert "http.max_connections will change with a restart" in said
    assert "bundle.placements stays as it was: the bundle has no placement 'no-such'" in said
    assert steered.daemon.agent is before
    with LocalClient(steered.daemon.door.unix_socket or "") as client:
        unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=20.0))
    lines = [json.loads(line) for line in steered.log.getvalue().splitlines()]
    assert [line["outcome"] for line in lines if line["event"] == "settings_reloaded"] == ["refused", "partly"]
