"""Callers that go away: what has not begun does not begin, the gateway gives up what it holds, and both are counted."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc

from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.client import AsyncClient
from edge_agent.daemon import Daemon
from edge_agent.local_client import AsyncLocalClient, LocalClient, unwrap
from edge_agent.outcomes import Answer
from tests.daemons import compute_hangs, daemon_of, got
from tests.gateways import gateway_of
from tests.waiting import PATIENCE_S, until

Images = npt.NDArray[Any]
LONG_S = 3600.0
REMOTE = {"bundle.placements": "full-cloud", "gateways.wait_s": 20.0, "grpc.enabled": True, "grpc.bind": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def gateway(toy_bundle: Path) -> Iterator[Gateway]:
    with gateway_of(toy_bundle) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def served(toy_bundle: Path, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """All of its work is the gateway's."""
    folder = tmp_path_factory.mktemp("s")
    with daemon_of(toy_bundle, folder, gateways=(str(gateway.endpoint),), settings=REMOTE) as daemon:
        yield daemon


def held(gateway: Gateway) -> int:
    return gateway.desk.pending()[0]


def hangs_up(daemon: Daemon, images: Images, is_held: Callable[[], None]) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": images[0].ravel().tolist()}
    body = json.dumps({"parameters": {"timeout": int(LONG_S * 1e6)}, "inputs": [tensor]}).encode()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(daemon.door.unix_socket))
        stream.sendall(
            b"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        is_held()


def cancels_a_call(daemon: Daemon, images: Images, is_held: Callable[[], None]) -> None:
    with triton_grpc.InferenceServerClient(str(daemon.door.grpc_endpoint).removeprefix("tcp://")) as client:
        tensor = triton_grpc.InferInput("x", [1, 3, 16, 16], "FP32")
        tensor.set_data_from_numpy(images[:1])
        call = client.async_infer("model", [tensor], lambda result, error: None, client_timeout=LONG_S)
        is_held()
        call.cancel()


def cancels_a_task(daemon: Daemon, images: Images, is_held: Callable[[], None]) -> None:
    async def go() -> None:
        async with AsyncLocalClient(daemon.door.unix_socket or "", model="model") as client:
            task = asyncio.ensure_future(client.infer({"x": images[:1]}, deadline_s=LONG_S))
            await asyncio.to_thread(is_held)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(go())


def cancels_a_future(daemon: Daemon, images: Images, is_held: Callable[[], None]) -> None:
    future = daemon.agent.submit({"x": images[:1]}, deadline_s=LONG_S)
    is_held()
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()


@pytest.mark.parametrize("goes", [hangs_up, cancels_a_call, cancels_a_task, cancels_a_future])
def test_a_caller_that_goes_away_takes_its_work_out_of_the_gateways_queue(
    served: Daemon, gateway: Gateway, toy_samples: Images, goes: Callable[[Daemon, Images, Callable[[], None]], None]
) -> None:
    withdrawn = served.agent.uplink.stats["withdrawn"]
    told = gateway.stats().get("cancelled", 0)
    with gateway.desk.paused():
        goes(served, toy_samples, lambda: until(lambda: held(gateway) == 1, "it never reached the gateway"))
        until(lambda: held(gateway) == 0, "the gateway was not told")
    assert gateway.stats()["cancelled"] == told + 1
    assert served.agent.uplink.stats["withdrawn"] == withdrawn + 1
    until(lambda: served.service.pending == 0 and served.agent.look().pending == 0, "something is still held")
    with LocalClient(served.door.unix_socket or "") as client:
        unwrap(client.infer({"x": toy_samples[:1]}, deadline_s=PATIENCE_S))


def test_callers_that_went_away_are_counted_as_cancelled(served: Daemon, gateway: Gateway, toy_samples: Images) -> None:
    def count() -> str:
        lines = [line for line in got(served, "/metrics")[1].splitlines() if "refused" in line and "CANCELLED" in line]
        return lines[0].rpartition(" ")[2] if lines else "0"

    before = int(count())
    with gateway.desk.paused():
        hangs_up(served, toy_samples, lambda: until(lambda: held(gateway) == 1))
        # while the desk pauses: it would answer before anybody noticed
        until(lambda: int(count()) > before, "it is not in the metrics")


def test_a_head_that_nobody_waits_for_any_more_is_not_run(toy_bundle: Path, toy_samples: Images) -> None:
    class Watched(dict[str, Any]):
        """Inputs that know whether anybody reads them."""

        reads = 0

        def __getitem__(self, name: str) -> Any:
            self.reads += 1
            return super().__getitem__(name)

    with Agent(AgentConfig(toy_bundle, placements=("edge-only",))) as agent:
        inputs = Watched(x=toy_samples[:1])
        with compute_hangs(agent):
            future = agent.submit(inputs, deadline_s=LONG_S)
            inputs.reads = 0
            assert future.cancel()
            until(lambda: agent.look().pending == 0, "it is still pending")
        outcome = agent.submit({"x": toy_samples[:1]}, deadline_s=PATIENCE_S).result(PATIENCE_S)
        assert isinstance(outcome, Answer)
        assert outcome.predicted_s is not None
        assert inputs.reads == 0
        assert not future.cancel() or future.cancelled()


def test_the_client_in_the_callers_process_withdraws_what_its_task_gives_up(
    toy_bundle: Path, toy_samples: Images
) -> None:
    async def go() -> None:
        async with AsyncClient(toy_bundle, placements=("edge-only",)) as client:
            with compute_hangs(client.agent), pytest.raises(TimeoutError):
                await asyncio.wait_for(client.infer({"x": toy_samples[:1]}, deadline_s=LONG_S), 0.05)
            stats = client.agent.uplink.stats
            await asyncio.to_thread(until, lambda: stats["withdrawn"] == 1, "the agent goes on with it")

    asyncio.run(go())


def test_a_callback_that_wants_to_end_everything_ends_no_agent(toy_bundle: Path, toy_samples: Images) -> None:
    def leave(_: object) -> None:
        raise SystemExit(3)

    with Agent(AgentConfig(bundle=toy_bundle)) as agent, compute_hangs(agent):  # so that it is not done before
        agent.submit({"x": toy_samples[:1]}, deadline_s=0.01).add_done_callback(leave)
        until(lambda: agent.look(PATIENCE_S).pending == 0)
        assert agent.fatal is None


def test_a_connection_whose_call_was_given_up_answers_nobody_else(
    served: Daemon, gateway: Gateway, toy_samples: Images
) -> None:
    async def go() -> None:
        async with AsyncLocalClient(served.door.unix_socket or "", model="model", concurrency=1) as client:
            unwrap(await client.infer({"x": toy_samples[:1]}, deadline_s=PATIENCE_S))
            with gateway.desk.paused():
                task = asyncio.ensure_future(client.infer({"x": toy_samples[:1]}, deadline_s=LONG_S))
                await asyncio.to_thread(until, lambda: held(gateway) == 1)
                task.cancel()
                await asyncio.to_thread(until, lambda: held(gateway) == 0)
            answers = [await client.infer({"x": toy_samples[:1]}, deadline_s=PATIENCE_S) for _ in range(3)]
            assert len({unwrap(answer).request for answer in answers}) == 3

    asyncio.run(go())
