"""An agent between several gateways over loopback: nothing is lost when one goes, and names are followed."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.link import LinkEmulator
from cloud_gateway.gateway import Gateway
from edge_agent import resolver
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from protocol.errors import InputError
from protocol.messages import RequestId
from tests.gateways import gateway_of
from tests.waiting import until

Array = npt.NDArray[Any]
SLOW = 200.0  # a device on which even the toy model takes long enough to want the gateway
NAME = "_isthmus._tcp.test"


@pytest.fixture
def agent_for(toy_bundle: Path) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(*gateways: str, **options: Any) -> Agent:
        agent = Agent(AgentConfig(bundle=toy_bundle, gateway=gateways, seed=1, **options))
        agent.start()
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.close()


@pytest.fixture
def two(toy_bundle: Path) -> Iterator[tuple[Gateway, Gateway]]:
    made = [gateway_of(toy_bundle, settings={"drain.grace_s": 0.0}) for _ in range(2)]
    with made[0] as a, made[1] as b:
        yield a, b


def answer(agent: Agent, x: Array, deadline_s: float = 10.0, **options: Any) -> Answer:
    outcome = agent.submit({"x": x}, deadline_s=deadline_s, **options).result(timeout=deadline_s + 5)
    assert isinstance(outcome, Answer), outcome
    return outcome


def all_ready(agent: Agent, count: int) -> bool:
    view = agent.look()
    return sum(g.state == "ready" and g.link is not None and not g.reason for g in view.gateways) == count


def test_nothing_is_lost_when_the_gateway_in_use_dies_and_the_other_one_takes_over(
    two: tuple[Gateway, Gateway], toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    agent = agent_for(*(str(g.endpoint) for g in two), placements=("full-cloud",))
    until(lambda: all_ready(agent, 2), "both gateways welcome us")
    x = toy_samples[:1]
    first = answer(agent, x)
    used = next(g for g in two if str(g.endpoint) == first.gateway)
    other = next(g for g in two if g is not used)
    futures = [agent.submit({"x": x}, deadline_s=30.0) for _ in range(20)]
    used.close()
    outcomes = [f.result(timeout=35) for f in futures]
    assert [type(o) for o in outcomes] == [Answer] * 20, outcomes
    until(lambda: answer(agent, x).gateway == str(other.endpoint), "the other gateway takes over")
    view = agent.look()
    assert [g.in_use for g in view.gateways if g.endpoint == str(other.endpoint)] == [True]
    assert (view.pending, view.in_flight) == (0, 0)


def test_an_agent_says_how_things_stand_while_it_runs_and_afterwards(
    two: tuple[Gateway, Gateway], toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    agent = agent_for(str(two[0].endpoint), "tcp://127.0.0.1:1")
    until(lambda: all_ready(agent, 1), "one gateway welcomes us")
    answer(agent, toy_samples[:1])
    view = agent.look(explain=True)
    up, down = view.gateways
    assert (up.state, up.reason, up.breaker, up.encrypted) == ("ready", "", "closed", False)
    assert up.link is not None
    assert up.credit_requests > 0
    assert (down.state, bool(down.reason), down.link) == ("disconnected", True, None)
    assert view.placement in view.predicted_s
    assert view.explanation is not None
    assert view.ready
    agent.close()
    assert agent.look().pending == 0


def test_a_request_that_outlives_its_agent_is_done_once_and_answered_again(
    toy_gateway: Gateway, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    identity = RequestId(os.urandom(8), 7)
    done = []
    for _ in range(2):
        agent = agent_for(str(toy_gateway.endpoint), placements=("full-cloud",))
        assert agent.wait_ready(10)
        done.append(answer(agent, toy_samples[:1], identity=identity, priority=9))
        agent.close()
    assert [a.request for a in done] == [str(identity)] * 2
    np.testing.assert_array_equal(done[0].outputs["logits"], done[1].outputs["logits"])
    stats = toy_gateway.stats()
    assert (stats["requests"], stats["results"], stats["duplicates_answered"]) == (2, 1, 1)


def test_an_identity_that_is_pending_is_refused(agent_for: Callable[..., Agent], toy_samples: Array) -> None:
    agent = agent_for("tcp://127.0.0.1:1", placements=("full-cloud",))
    identity = RequestId(os.urandom(8), 1)
    future = agent.submit({"x": toy_samples[:1]}, deadline_s=30.0, identity=identity)
    with pytest.raises(InputError, match="pending already"):
        agent.submit({"x": toy_samples[:1]}, deadline_s=30.0, identity=identity)
    agent.close()
    assert future.done()


def test_a_hedge_answers_when_the_link_goes_dark_without_a_word(
    toy_gateway: Gateway, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    target = ("127.0.0.1", toy_gateway.endpoint.port)
    with LinkEmulator(target=target, uplink_mbit_per_s=100, downlink_mbit_per_s=100, rtt_ms=2) as link:
        agent = agent_for(link.endpoint, placements=("full-cloud", "edge-only"), edge_slowdown=SLOW, hedge=True)
        assert agent.wait_ready(10)
        x = toy_samples[:1]
        until(lambda: answer(agent, x).placement == "full-cloud", "the gateway is used")
        link.blackhole(True)
        stuck = answer(agent, x, deadline_s=2.0)
        assert (stuck.placement, stuck.gateway, stuck.hedged) == ("edge-only", "", True)
        assert agent.look().counters["hedges_won_locally"] >= 1


# ---- names ----------------------------------------------------------------------------------------------------------


class NameServer:
    """Answers every question over UDP with the SRV record as it is now; `ports` may change."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.endpoint = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                asked, peer = self._socket.recvfrom(4096)
            except TimeoutError:
                continue
            question = dns.message.from_wire(asked)
            reply = dns.message.make_response(question)
            reply.flags |= dns.flags.RA
            lines = [f"{rank} 0 {port} localhost." for rank, port in enumerate(self.ports)]
            if lines:
                reply.answer.append(dns.rrset.from_text(question.question[0].name, 0, "IN", "SRV", *lines))
            self._socket.sendto(reply.to_wire(), peer)


def test_an_srv_record_is_followed_to_another_gateway_without_losing_a_request(
    two: tuple[Gateway, Gateway], toy_samples: Array, agent_for: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "TTL_S", (0.05, 1.0))
    monkeypatch.setattr(resolver, "RETRY_S", (0.05, 0.2))
    ports = [g.endpoint.port for g in two]
    with NameServer(ports[0]) as names:
        agent = agent_for(f"srv://{NAME}", insecure=True, name_servers=(names.endpoint,), placements=("full-cloud",))
        assert agent.wait_ready(10)
        x = toy_samples[:1]
        assert answer(agent, x).gateway == f"tcp://localhost:{ports[0]}"
        futures = [agent.submit({"x": x}, deadline_s=30.0) for _ in range(10)]
        names.ports = (ports[1],)
        until(lambda: answer(agent, x).gateway == f"tcp://localhost:{ports[1]}", "the new gateway is used")
        assert all(isinstance(f.result(timeout=35), Answer) for f in futures)
        until(lambda: len(agent.look().gateways) == 1, "the old gateway is left")
        names.ports = ()  # a name that fails to resolve for a while takes nobody away
        assert answer(agent, x).gateway == f"tcp://localhost:{ports[1]}"
        until(lambda: agent.look().counters.get("names_unresolved", 0) > 0, "the failure is counted")
        assert answer(agent, x).gateway == f"tcp://localhost:{ports[1]}"


def test_a_name_that_does_not_resolve_is_no_reason_not_to_serve(
    agent_for: Callable[..., Agent], toy_samples: Array
) -> None:
    with NameServer() as names:
        agent = agent_for(f"srv://{NAME}", insecure=True, name_servers=(names.endpoint,))
        until(lambda: agent.look().counters.get("names_unresolved", 0) > 0, "the name is asked for")
        until(lambda: answer(agent, toy_samples[:1]).placement == "edge-only", "the device serves alone")
        assert not agent.look().ready


def test_a_host_name_is_resolved_by_a_thread_and_connected_to_by_address(
    toy_gateway: Gateway, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    agent = agent_for(f"tcp://localhost:{toy_gateway.endpoint.port}", placements=("full-cloud",))
    assert agent.wait_ready(20)
    assert answer(agent, toy_samples[:1]).gateway == f"tcp://localhost:{toy_gateway.endpoint.port}"
    assert agent.gateway in (f"tcp://127.0.0.1:{toy_gateway.endpoint.port}", f"tcp://[::1]:{toy_gateway.endpoint.port}")
