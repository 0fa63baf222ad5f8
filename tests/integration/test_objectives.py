"""What the best placement is to be the best in, through the whole agent: the answers change, and `explain` says why.

The bundle is told that full-cloud costs the device little energy and that its gateway is erratic; the device is slow,
so that full-cloud is the fastest by far.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from typer.testing import CliRunner

from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.cli import app
from edge_agent.explaining import sentences
from edge_agent.outcomes import Answer
from protocol.control.objectives import Objective
from protocol.errors import InputError
from tests.daemons import daemon_of
from tests.waiting import until

Array = npt.NDArray[Any]
LONG_S = 60.0
SLOW = 300.0
ENERGY_J = {"full-cloud": 0.001, "edge-only": 5.0}
ERRATIC = 1e7  # how far the 95th percentile lies above the median, relative


@pytest.fixture(scope="module")
def priced_bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with energies, and a spread of full-cloud's seconds at the gateway."""
    target = tmp_path_factory.mktemp("priced") / "bundle"
    shutil.copytree(toy_bundle, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for placement in manifest["placements"]:
        placement["cost"]["energy_j"] = ENERGY_J.get(placement["id"], 1.0)
        placement["cost"]["tail_spread"] = ERRATIC if placement["id"] == "full-cloud" else 0.0
    written = json.dumps(manifest).encode()
    (target / "manifest.json").write_bytes(written)
    (target / "manifest.json.sha256").write_text(f"{hashlib.sha256(written).hexdigest()}  manifest.json\n")
    return target


def agent_for(bundle: Path, gateway: Gateway, objective: str) -> Agent:
    config = AgentConfig(
        bundle=bundle,
        gateway=str(gateway.endpoint),
        placements=("full-cloud", "edge-only"),
        edge_slowdown=SLOW,
        objective=Objective.parse(objective),
    )
    return Agent(config)


@pytest.mark.parametrize(
    ("objective", "wanted", "budget_s"),
    [
        ("latency", "full-cloud", 10.0),
        ("bytes=10000/MB", "edge-only", 10.0),
        ("cloud=100000/s", "edge-only", 10.0),
        ("deadline=1000,latency=0.001", "edge-only", 2.0),
        ("latency=1,energy=100/J", "full-cloud", 10.0),
        ("bytes=10000/MB,energy=1000/J", "full-cloud", 10.0),
    ],
)
def test_the_objective_decides_where_requests_are_answered(
    priced_bundle: Path, toy_gateway: Gateway, toy_samples: Array, objective: str, wanted: str, budget_s: float
) -> None:
    with agent_for(priced_bundle, toy_gateway, objective) as agent:
        assert agent.wait_ready(LONG_S)

        def as_wanted() -> bool:
            outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=budget_s).result(LONG_S)
            return isinstance(outcome, Answer) and outcome.kind == wanted and not outcome.degraded

        until(as_wanted, what=f"{wanted} answers", within_s=LONG_S)
        explanation = agent.look(LONG_S, explain=True).explanation
        assert explanation is not None
        assert explanation.using == wanted
        said = " ".join(sentences(explanation))
    if objective == "latency":
        assert "weighed by" not in said
    else:
        assert f"weighed by {Objective.parse(objective)}" in said


def test_the_command_explain_names_the_objective_and_what_it_costs(
    priced_bundle: Path, toy_gateway: Gateway, toy_samples: Array, tmp_path: Path
) -> None:
    settings = {
        "planner.objective": "bytes=10000/MB",
        "device.slowdown": SLOW,
        "bundle.placements": "full-cloud,edge-only",
        "bundle.signatures": "unsigned",
    }
    daemon = daemon_of(priced_bundle, tmp_path, gateways=(str(toy_gateway.endpoint),), settings=settings)
    daemon.start()
    try:
        tenant = daemon.stage.agent
        assert tenant is not None

        def using() -> str:
            tenant.submit({"x": toy_samples[:1]}, deadline_s=LONG_S).result(LONG_S)
            return json.loads(explained("--json"))["using"]  # type: ignore[no-any-return]

        def explained(*options: str) -> str:
            where = str(tmp_path / "run" / "agent.sock")
            done = CliRunner().invoke(app, ["explain", "--socket", where, *options])
            assert done.exit_code == 0, done.output
            return done.output

        until(lambda: using() == "edge-only", what="nothing is sent", within_s=LONG_S)
        said = " ".join(explained().split())
        assert "weighed by bytes=10000/MB" in said
        assert "Full-cloud is" in said
        assert "faster, but worse when weighed by bytes=10000/MB" in said
    finally:
        daemon.close()


def test_energy_cannot_be_weighed_where_the_bundle_does_not_know_it(toy_bundle: Path, toy_gateway: Gateway) -> None:
    with pytest.raises(InputError, match="does not know that of"):
        agent_for(toy_bundle, toy_gateway, "energy")
