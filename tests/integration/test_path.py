"""Agent and gateway together, over loopback and over a link that is broken on purpose. Nothing may be lost."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.link import LinkEmulator
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.client import AsyncClient, Client, RefusedError, unwrap
from edge_agent.outcomes import Answer, Outcome, Refusal
from protocol import messages as m
from protocol import sockets, wire
from protocol.bundle import Bundle
from protocol.control.flights import RefusalCode
from protocol.errors import InputError
from tests.gateways import gateway_of

Array = npt.NDArray[Any]
SLOW = 200.0  # a device on which even the toy model takes long enough to want the gateway
ALL = ("full-cloud", "cut-1", "cut-2", "edge-only")


@pytest.fixture
def agent_for(toy_bundle: Path) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(gateway: str | None, **options: Any) -> Agent:
        agent = Agent(AgentConfig(**{"bundle": toy_bundle, "gateway": gateway} | options))
        agent.start()
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.close()


def answer(agent: Agent, x: Array, deadline_s: float = 5.0) -> Answer:
    outcome = agent.submit({"x": x}, deadline_s=deadline_s).result(timeout=deadline_s + 5)
    assert isinstance(outcome, Answer), outcome
    return outcome


def eventually(agent: Agent, x: Array, wanted: Callable[[Answer], bool], tries: int = 400) -> Answer:
    """The first answer that is as wanted, of a bounded number; each attempt takes a moment of its own."""
    for _ in range(tries):
        last = answer(agent, x)
        if wanted(last):
            return last
        threading.Event().wait(0.02)
    raise AssertionError(f"never as wanted; last was {last}")


def make_slow(agent: Agent, placement: str) -> None:
    """Let the planner believe that it has seen this placement take 50 ms, so that it wants another one."""
    for _ in range(80):
        agent.planner.observe_edge(placement, 0.05)
        agent.planner.observe_tail(placement, 0.05)


@pytest.mark.parametrize("placement", ALL)
def test_every_placement_gives_the_models_answer_and_says_where_it_was_made(
    toy_gateway: Gateway,
    toy_bundle: Path,
    toy_samples: Array,
    toy_reference: Array,
    agent_for: Callable[..., Agent],
    placement: str,
) -> None:
    agent = agent_for(str(toy_gateway.endpoint), placements=(placement,))
    assert agent.wait_ready(20)
    for x, wanted in zip(toy_samples[:8], toy_reference[:8], strict=True):
        got = answer(agent, x[None])
        tolerance = 1e-5 if placement == "full-cloud" else 0.05 * np.abs(wanted).max()  # the others may be INT8
        np.testing.assert_allclose(got.outputs["logits"][0], wanted, atol=tolerance)
        assert got.placement == placement
        assert got.bundle == Bundle.open(toy_bundle).digest
        assert got.degraded == ()
        assert "onnxruntime" in got.engine
        assert got.timings.total_s >= got.timings.edge_s + got.timings.network_s
        assert (got.up_nbytes == 0) == (placement == "edge-only")


def test_without_a_gateway_the_device_answers_alone(agent_for: Callable[..., Agent], toy_samples: Array) -> None:
    agent = agent_for(None)
    got = answer(agent, toy_samples[:1])
    assert got.placement == "edge-only"


def test_a_gateway_that_never_answers_degrades_to_the_device_and_says_why(
    agent_for: Callable[..., Agent], toy_samples: Array
) -> None:
    agent = agent_for("tcp://127.0.0.1:1", placements=("full-cloud", "edge-only"))
    make_slow(agent, "edge-only")
    got = answer(agent, toy_samples[:1])
    assert got.placement == "edge-only"
    assert got.degraded


def test_no_gateway_and_no_local_model_is_a_refusal_within_the_deadline(
    agent_for: Callable[..., Agent], toy_samples: Array
) -> None:
    agent = agent_for("tcp://127.0.0.1:1", placements=("full-cloud",))
    outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=0.3).result(timeout=5)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.DEADLINE
    with pytest.raises(RefusedError):
        unwrap(outcome)


def test_a_failing_head_goes_full_cloud_and_comes_back(
    toy_gateway: Gateway, toy_samples: Array, tmp_path: Path, agent_for: Callable[..., Agent]
) -> None:
    fault = tmp_path / "fault"
    agent = agent_for(str(toy_gateway.endpoint), placements=("cut-1", "full-cloud"), fault_file=fault)
    assert agent.wait_ready(20)
    x = toy_samples[:1]
    make_slow(agent, "full-cloud")
    eventually(agent, x, lambda a: a.placement == "cut-1")
    fault.touch()
    degraded = answer(agent, x)
    assert degraded.placement == "full-cloud"
    assert "fault drill" in degraded.degraded[0]
    fault.unlink()
    make_slow(agent, "full-cloud")
    back = eventually(agent, x, lambda a: a.placement == "cut-1")
    assert back.degraded == ()


def test_a_gateway_with_another_build_of_the_model_serves_it_whole(
    toy_model: Path, toy_bundle: Path, toy_samples: Array, tmp_path: Path, agent_for: Callable[..., Agent]
) -> None:
    from partitioner.people.report import Silent
    from partitioner.planning.build import Order, build
    from partitioner.planning.explore import Search

    order = Order(
        model=toy_model,
        target=tmp_path / "other",
        cuts=(("r2", "r1"),),
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=1.0,
    )
    other = build(order, Silent()).target
    with gateway_of(other) as gateway:
        agent = agent_for(str(gateway.endpoint), placements=("cut-1", "full-cloud"))
        assert agent.wait_ready(20)
        make_slow(agent, "full-cloud")
        got = answer(agent, toy_samples[:1])
        assert got.placement == "full-cloud"


def test_nothing_is_lost_while_the_gateway_is_killed_and_started_again(
    toy_bundle: Path, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    first = gateway_of(toy_bundle, settings={"drain.grace_s": 0.0})
    first.start()
    endpoint = first.endpoint
    agent = agent_for(str(endpoint), placements=("full-cloud", "edge-only"), edge_slowdown=SLOW)
    assert agent.wait_ready(20)
    x = toy_samples[:1]
    assert eventually(agent, x, lambda a: a.placement == "full-cloud").degraded == ()
    futures = [agent.submit({"x": x}, deadline_s=30.0) for _ in range(20)]
    first.close()
    outcomes: list[Outcome] = [f.result(timeout=35) for f in futures]
    assert [type(o) for o in outcomes] == [Answer] * 20, outcomes
    gone = answer(agent, x)
    assert gone.placement == "edge-only"
    assert gone.degraded
    with gateway_of(toy_bundle, bind=str(endpoint)):
        back = eventually(agent, x, lambda a: a.placement == "full-cloud")
        assert back.degraded == ()


def test_without_a_local_model_requests_wait_for_the_gateways_return(
    toy_bundle: Path, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    first = gateway_of(toy_bundle, settings={"drain.grace_s": 0.0})
    first.start()
    endpoint = first.endpoint
    agent = agent_for(str(endpoint), placements=("cut-1",))
    assert agent.wait_ready(20)
    assert answer(agent, toy_samples[:1]).placement == "cut-1"
    first.close()
    futures = [agent.submit({"x": toy_samples[:1]}, deadline_s=25.0) for _ in range(5)]
    with gateway_of(toy_bundle, bind=str(endpoint)):
        outcomes = [f.result(timeout=30) for f in futures]
    assert [type(o) for o in outcomes] == [Answer] * 5
    assert {o.placement for o in outcomes if isinstance(o, Answer)} == {"cut-1"}


def test_a_black_hole_costs_no_request_and_the_split_comes_back(
    toy_gateway: Gateway, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    target = ("127.0.0.1", toy_gateway.endpoint.port)
    with LinkEmulator(target=target, uplink_mbit_per_s=100, downlink_mbit_per_s=100, rtt_ms=2) as link:
        agent = agent_for(link.endpoint, placements=("full-cloud", "edge-only"), edge_slowdown=SLOW)
        assert agent.wait_ready(20)
        x = toy_samples[:1]
        assert eventually(agent, x, lambda a: a.placement == "full-cloud").degraded == ()
        link.blackhole(True)
        stuck = answer(agent, x, deadline_s=2.0)
        assert stuck.placement == "edge-only"
        assert "did not answer" in stuck.degraded[0]
        link.blackhole(False)
        eventually(agent, x, lambda a: a.placement == "full-cloud")


def test_many_callers_are_batched_and_each_gets_its_own_answer(wide_bundle: Path) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((64, 1, 64), dtype=np.float32)
    with (
        gateway_of(wide_bundle) as gateway,
        Client(wide_bundle, gateway=str(gateway.endpoint), placements=("full-cloud",)) as client,
    ):
        assert client.wait_ready(20)
        alone = [unwrap(client.infer({"x": x}, deadline_s=5)).outputs["h4"] for x in inputs[:8]]
        futures = [client.agent.submit({"x": x}, deadline_s=10) for x in inputs]
        together = [unwrap(f.result(timeout=15)) for f in futures]
    sizes = Counter(a.batch_size for a in together)
    assert max(sizes) > 1, sizes
    for one, many in zip(alone, together, strict=False):
        np.testing.assert_allclose(one, many.outputs["h4"], rtol=1e-4, atol=1e-3)


def test_the_asyncio_client_gets_the_same_answers(
    toy_gateway: Gateway, toy_bundle: Path, toy_samples: Array, toy_reference: Array
) -> None:
    async def ask() -> list[Outcome]:
        async with AsyncClient(toy_bundle, gateway=str(toy_gateway.endpoint), placements=("full-cloud",)) as client:
            assert await client.wait_ready(20)
            return await asyncio.gather(*(client.infer({"x": x[None]}, deadline_s=5) for x in toy_samples[:8]))

    got = np.concatenate([unwrap(o).outputs["logits"] for o in asyncio.run(ask())])
    np.testing.assert_allclose(got, toy_reference[:8], atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"y": np.zeros((1, 3, 16, 16), np.float32)}, "'x' is missing"),
        ({"x": np.zeros((1, 3, 16, 16), np.uint8)}, "element type uint8"),
        ({"x": np.zeros((1, 3, 16, 17), np.float32)}, r"shape \[1, 3, 16, 17\]"),
    ],
)
def test_a_wrong_tensor_is_refused_in_words_before_anything_runs(
    agent_for: Callable[..., Agent], inputs: dict[str, Array], words: str
) -> None:
    agent = agent_for(None)
    with pytest.raises(InputError, match=words):
        agent.submit(inputs, deadline_s=1.0)


def test_closing_the_agent_refuses_what_is_pending(toy_samples: Array, agent_for: Callable[..., Agent]) -> None:
    agent = agent_for("tcp://127.0.0.1:1", placements=("full-cloud",))
    future = agent.submit({"x": toy_samples[:1]}, deadline_s=30.0)
    agent.close()
    outcome = future.result(timeout=5)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.CLOSED
    late = agent.submit({"x": toy_samples[:1]}, deadline_s=1.0).result(timeout=5)
    assert isinstance(late, Refusal)


def test_work_that_nobody_waits_for_any_more_does_not_make_the_next_request_late(
    toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    agent = agent_for(None, edge_slowdown=100.0)  # tens of ms a request: far more than fits into the deadlines below
    crowd = [agent.submit({"x": toy_samples[:1]}, deadline_s=0.5) for _ in range(100)]
    outcomes = [future.result(timeout=10) for future in crowd]
    # How many are in time is the machine's affair: a hiccup of 5 ms in the first one, times 100, is all their budget.
    assert {o.code for o in outcomes if isinstance(o, Refusal)} == {RefusalCode.DEADLINE}
    assert isinstance(agent.submit({"x": toy_samples[:1]}, deadline_s=3.0).result(timeout=10), Answer)


def test_a_result_without_the_models_outputs_costs_neither_the_agent_nor_its_caller(
    toy_bundle: Path, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    held = tuple(bytes.fromhex(p.segment) for p in Bundle.open(toy_bundle).manifest.placements if p.segment)
    context = sockets.make_context()
    router, endpoint = sockets.router(context, sockets.parse_endpoint("tcp://127.0.0.1:0"))
    stop = threading.Event()

    def lie() -> None:
        while not stop.is_set():
            if not router.poll(50):
                continue
            route, header, *_ = router.recv_multipart()
            message = wire.unpack_header(header)
            if isinstance(message, m.Hello):
                router.send_multipart([route, *wire.pack(m.Welcome(b"a" * 8, "liar", 8, 2**20, held, ()))])
            elif isinstance(message, m.Ping):
                router.send_multipart([route, *wire.pack(m.Pong(message.number))])
            elif isinstance(message, m.Infer):
                empty = m.Result(message.request, message.attempt, (), 0, m.Timings(1, 1, 1, 1, 1), "liar", "fp32", "")
                router.send_multipart([route, *wire.pack(empty)])

    liar = threading.Thread(target=lie)
    liar.start()
    try:
        agent = agent_for(str(endpoint), placements=("full-cloud", "edge-only"), edge_slowdown=SLOW)
        assert agent.wait_ready(20)
        told = eventually(agent, toy_samples[:1], lambda a: any("lacks logits" in why for why in a.degraded))
        assert told.placement == "edge-only"
        assert agent.fatal is None
    finally:
        stop.set()
        liar.join(timeout=5)
        router.close(0)


def test_one_slow_spell_does_not_lock_a_lane_out_for_good(
    toy_gateway: Gateway, toy_samples: Array, agent_for: Callable[..., Agent]
) -> None:
    for lane in toy_gateway.catalogue.lanes.values():
        for _ in range(100):
            lane.curve.observe(1, 30.0)  # a machine that was suspended, say
    agent = agent_for(str(toy_gateway.endpoint), placements=("full-cloud",))
    assert agent.wait_ready(20)
    got = [agent.submit({"x": toy_samples[:1]}, deadline_s=1.0).result(timeout=5) for _ in range(3)]
    assert any(isinstance(o, Answer) for o in got)


def test_a_request_that_only_its_own_values_fail_does_not_disable_the_head(tmp_path: Path) -> None:
    from partitioner.people.report import Silent
    from partitioner.planning.build import Order, build
    from partitioner.planning.explore import Search
    from tests import models

    model = models.write(models.tokens(), tmp_path)
    order = Order(
        model=model,
        target=tmp_path / "bundle",
        cuts=(("masked",),),
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=1.0,
    )
    data = tmp_path / "data.npz"
    rng = np.random.default_rng(1)
    ids, mask = rng.integers(0, 50, (32, 7)), np.ones((32, 7), np.int64)
    np.savez(data, ids=ids, mask=mask)
    bundle = build(replace(order, calibration=data), Silent()).target
    with Client(bundle) as client:
        for _ in range(4):  # more than the breaker's threshold
            bad = client.infer({"ids": np.full((1, 7), 99, np.int64), "mask": mask[:1]}, deadline_s=2.0)
            assert isinstance(bad, Refusal)
        assert isinstance(client.infer({"ids": ids[:1], "mask": mask[:1]}, deadline_s=2.0), Answer)


def test_using_an_agent_that_was_not_started_is_refused_in_words(toy_bundle: Path, toy_samples: Array) -> None:
    client = Client(toy_bundle)
    with pytest.raises(InputError, match="not started"):
        client.infer({"x": toy_samples[:1]}, deadline_s=1.0)
    client.agent.close()
