"""Store, agent and gateway together: late answers are the model's own, and a restart makes no work twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer
from edge_agent.store.client import StoreClient
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.pacing import Pace
from edge_agent.store.tickets import State, Wish
from protocol import messages as m
from protocol import sockets, wire
from protocol.tensors import Tensors, check_inputs
from tests.gateways import gateway_of
from tests.waiting import PATIENCE_S, until

Array = npt.NDArray[Any]
BRISK = Pace(quiet_s=0.0, look_s=0.001)


def taken_by(agent: Agent) -> Callable[[str, Tensors], None]:
    return lambda model, inputs: check_inputs(agent.bundle.manifest.model.inputs, inputs)


def forwarding(journal: Journal, agent: Agent, pace: Pace = BRISK) -> Forwarder:
    return Forwarder(journal, lambda: agent, accepts=taken_by(agent), pace=pace)


def test_what_was_stored_without_a_gateway_is_answered_when_one_is_there(
    tmp_path: Path, toy_bundle: Path, toy_samples: Array, toy_reference: Array
) -> None:
    alone = AgentConfig(toy_bundle, placements=("full-cloud",))
    with Journal(tmp_path / "store") as journal:
        with Agent(alone) as agent, forwarding(journal, agent, replace(BRISK, attempt_s=0.1)) as forwarder:
            tickets = [journal.put(Wish({"x": x[None]})) for x in toy_samples[:3]]
            until(lambda: "refused" in forwarder.why, "it was not refused")
        assert journal.totals().tickets[State.WAITING] == 3
        with gateway_of(toy_bundle) as gateway:
            config = replace(alone, gateway=str(gateway.endpoint))
            with Agent(config) as agent, forwarding(journal, agent):
                client = StoreClient(journal, taken_by(agent))
                for ticket, reference in zip(tickets, toy_reference, strict=False):
                    found = client.wait(ticket, timeout_s=PATIENCE_S)
                    assert found is not None
                    assert found.answer is not None, found.reason
                    assert found.answer.request == ticket
                    assert found.answer.placement == "full-cloud"
                    assert np.allclose(found.answer.outputs["logits"][0], reference, atol=1e-4)


def test_what_was_answered_but_not_written_down_is_not_done_again(
    tmp_path: Path, toy_bundle: Path, toy_gateway: Gateway, toy_samples: Array
) -> None:
    config = AgentConfig(toy_bundle, str(toy_gateway.endpoint), placements=("full-cloud",))
    with Journal(tmp_path / "store") as journal:
        ticket = journal.put(Wish({"x": toy_samples[:1]}))
        with Agent(config) as agent:  # the process that is killed between the answer and the disk
            assert agent.wait_ready(PATIENCE_S)
            begun = journal.begin(ticket)
            assert begun is not None
            identity, inputs = begun
            first = agent.submit(inputs, deadline_s=PATIENCE_S, identity=identity).result()
            assert isinstance(first, Answer)
        with Agent(config) as agent, forwarding(journal, agent):
            second = StoreClient(journal).wait(ticket, timeout_s=PATIENCE_S)
        assert second is not None
        assert second.answer is not None
        assert np.array_equal(second.answer.outputs["logits"], first.outputs["logits"])
        assert toy_gateway.stats()["duplicates_answered"] == 1


def test_a_request_of_an_earlier_life_is_named_to_a_gateway_that_has_not_welcomed_us_yet(
    toy_bundle: Path, toy_samples: Array
) -> None:
    context = sockets.make_context()
    socket, endpoint = sockets.router(context, sockets.Endpoint("127.0.0.1", 0))

    def greeting() -> tuple[bytes, m.Hello]:
        while True:
            assert socket.poll(PATIENCE_S * 1e3), "no greeting comes"
            route, head, *_ = socket.recv_multipart()
            message = wire.unpack_header(head)
            if isinstance(message, m.Hello):
                return route, message

    try:
        config = AgentConfig(toy_bundle, f"tcp://127.0.0.1:{endpoint.port}", placements=("full-cloud",))
        with Agent(config) as agent:
            first, hello = greeting()
            earlier = m.RequestId(b"an older", 1)
            assert earlier.boot not in (hello.boot, *hello.also)
            agent.submit({"x": toy_samples[:1]}, deadline_s=1.0, identity=earlier)
            route, hello = greeting()
            assert earlier.boot in hello.also
            assert route == first, "only another connection was told"
    finally:
        socket.close(0)
        context.term()
