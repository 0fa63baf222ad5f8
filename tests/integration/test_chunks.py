"""Large payloads in chunks over a slow link: the urgent passes, what breaks off begins anew, the wrong is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.link import LinkEmulator
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from tests.waiting import until

Array = npt.NDArray[Any]
ROWS = 64  # of the toy model's input: 196,608 bytes, 1.6 s on 1 Mbit/s
LONG_S = 60.0
CHUNK = 16_384


@pytest.fixture
def slow_link(toy_gateway: Gateway) -> Iterator[LinkEmulator]:
    endpoint = toy_gateway.endpoint
    with LinkEmulator((endpoint.host, endpoint.port), uplink_mbit_per_s=1, downlink_mbit_per_s=4, rtt_ms=20) as link:
        yield link


@pytest.fixture
def agent(toy_bundle: Path, slow_link: LinkEmulator) -> Iterator[Agent]:
    config = AgentConfig(bundle=toy_bundle, gateway=slow_link.endpoint, placements=("full-cloud",))
    with Agent(config) as agent:
        assert agent.wait_ready(20)
        yield agent


def many(samples: Array) -> Array:
    return np.concatenate([samples] * (ROWS // len(samples)))


def counter(agent: Agent, name: str) -> int:
    return agent.look(10.0).counters.get(name, 0)


def test_a_large_request_crosses_in_chunks_and_an_urgent_one_passes_it(
    agent: Agent, toy_gateway: Gateway, toy_samples: Array, toy_reference: Array
) -> None:
    ended: list[str] = []
    large = agent.submit({"x": many(toy_samples)}, deadline_s=LONG_S)
    large.add_done_callback(lambda _: ended.append("large"))
    until(lambda: counter(agent, "chunks") > 2, "no chunk was sent")
    urgent = agent.submit({"x": toy_samples[:1]}, deadline_s=LONG_S, priority=0)
    urgent.add_done_callback(lambda _: ended.append("urgent"))
    outcomes = [urgent.result(timeout=LONG_S), large.result(timeout=LONG_S)]
    until(lambda: len(ended) == 2)
    assert ended == ["urgent", "large"]
    for outcome, rows in zip(outcomes, (1, ROWS), strict=True):
        assert isinstance(outcome, Answer), outcome
        wanted = np.concatenate([toy_reference] * (ROWS // len(toy_reference)))[:rows]
        np.testing.assert_allclose(outcome.outputs["logits"], wanted, atol=1e-4)
    assert isinstance(outcomes[1], Answer)
    assert outcomes[1].up_nbytes > 100_000
    assert toy_gateway.stats()["uploads"] == 1
