"""An agent that is looked at while it serves: with a gateway, without it, and with it again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from edge_agent.seeing.observer import Observer
from edge_agent.seeing.sight import Sight
from edge_agent.seeing.status import status_json
from edge_agent.seeing.surroundings import read_board
from protocol.seeing.logs import Logs
from tests.gateways import gateway_of
from tests.waiting import until

Array = npt.NDArray[Any]
LONG_S = 60.0


class Seen:
    """An agent with an observer that looks when it is told to."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.stream = io.StringIO()
        self.logs = Logs(stream=self.stream)
        self.observer = Observer(Sight(lambda: agent, board=read_board), logs=self.logs)

    def ask(self, x: Array) -> Answer:
        outcome = self.agent.submit({"x": x}, deadline_s=LONG_S).result(LONG_S)
        self.observer.observe(outcome, budget_s=LONG_S)
        self.observer.look()
        assert isinstance(outcome, Answer), outcome
        return outcome

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = msgspec.json.decode(status_json(self.observer.scene()))
        return status

    def lines(self) -> list[dict[str, Any]]:
        self.logs.close()
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


def test_page_metrics_and_log_tell_of_a_gateway_that_goes_and_comes(toy_bundle: Path, toy_samples: Array) -> None:
    x = toy_samples[:1]
    gateway = gateway_of(toy_bundle)
    gateway.start()
    where = str(gateway.endpoint)
    agent = Agent(
        AgentConfig(bundle=toy_bundle, gateway=where, placements=("full-cloud", "edge-only"), edge_slowdown=200)
    )
    with agent:
        seen = Seen(agent)
        assert agent.wait_ready(LONG_S)
        until(lambda: seen.ask(x).kind == "full-cloud", what="the gateway answers", within_s=LONG_S)
        until(lambda: seen.status()["now"]["kind"] == "full-cloud", what="it is in use", within_s=LONG_S)
        status = seen.status()
        assert (status["ready"], status["gateways"][0]["ready"]) == (True, True)
        assert status["gateways"][0]["rtt_s"] > 0
        assert 0 < status["gateways"][0]["tcp_rtt_s"] < 10, "the kernel was asked about the same connection"
        assert {p["id"] for p in status["placements"]} == {"full-cloud", "edge-only"}
        assert status["bundle"]["digest"] == agent.bundle.digest

        gateway.close()
        until(lambda: not seen.status()["gateways"][0]["ready"], what="the link is lost", within_s=LONG_S)
        alone = seen.ask(x)
        assert (alone.kind, bool(alone.degraded)) == ("edge-only", True)
        status = seen.status()
        assert (status["ready"], status["now"]["placement"]) == (True, "edge-only"), "it serves alone"
        assert status["now"]["degraded"]
        assert status["total"]["counters"]["degraded"] >= 1

        again = gateway_of(toy_bundle, bind=where)
        again.start()
        try:
            until(lambda: seen.ask(x).gateway != "", what="the gateway answers again", within_s=LONG_S)
            until(lambda: not seen.status()["now"]["degraded"], what="nothing is degraded", within_s=LONG_S)
            seen.observer.look()
        finally:
            again.close()
        page = seen.observer.views.metrics_text()[1].decode()
        assert f'placement="full-cloud",gateway="{where}"' in page
        counters = seen.status()["total"]["counters"]
        assert counters["up_nbytes"] > 0
        assert np.isclose(
            counters["total_s"],
            sum(counters[f"{s}_s"] for s in ("edge", "encode", "network", "queue", "decode", "compute", "waited")),
            rtol=0.05,
        )
    told = [line["event"] for line in seen.lines()]
    lost, found = told.index("gateway_lost"), [i for i, event in enumerate(told) if event == "gateway_found"]
    assert found[0] < lost < found[1]
    assert "degraded_begins" in told
    assert lost < max(i for i, event in enumerate(told) if event == "placement")
