"""Known questions asked along the way of a request: answered without a gateway, and by nobody while a thread hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.agent import Agent, AgentConfig
from edge_agent.compute import Rehearsal
from edge_agent.heads import Prepared
from protocol.errors import EngineError, InputError


def test_a_rehearsal_gives_the_heads_own_answer_and_is_no_request(
    toy_bundle: Path, toy_samples: npt.NDArray[Any]
) -> None:
    with Agent(AgentConfig(bundle=toy_bundle)) as agent:
        made = [agent.rehearse({"x": toy_samples[:1]}, placement="edge-only").result(10) for _ in range(2)]
        answer = agent.submit({"x": toy_samples[:1]}, deadline_s=10.0).result()
    assert not hasattr(answer, "code")
    np.testing.assert_array_equal(made[0].outputs["logits"], made[1].outputs["logits"])
    assert answer.request.endswith("1")  # the only request that there was


def test_a_rehearsal_of_what_is_not_there_is_refused(toy_bundle: Path) -> None:
    with Agent(AgentConfig(bundle=toy_bundle)) as agent, pytest.raises(InputError):
        agent.rehearse({"y": np.zeros(3)}, placement="edge-only")


def test_a_head_that_fails_is_told_to_who_rehearses(toy_bundle: Path, toy_samples: npt.NDArray[Any]) -> None:
    fault = toy_bundle.parent / "fault-rehearsed"
    fault.touch()
    with Agent(AgentConfig(bundle=toy_bundle, fault_file=fault)) as agent:
        cut = next(e.id for e in agent.bundle.manifest.placements if e.id.startswith("cut-1"))
        with pytest.raises(EngineError, match="made to fail"):
            agent.rehearse({"x": toy_samples[:1]}, placement=cut).result(10)


def test_while_the_compute_thread_hangs_a_rehearsal_is_not_answered(
    toy_bundle: Path, toy_samples: npt.NDArray[Any]
) -> None:
    entered, hold = threading.Event(), threading.Event()

    class Slow(Mapping[str, Any]):
        """Inputs whose reading takes as long as we like: what a hung driver looks like from outside."""

        def __getitem__(self, name: str) -> Any:
            entered.set()
            hold.wait(20)
            return toy_samples[:1]

        def __iter__(self) -> Iterator[str]:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    with Agent(AgentConfig(bundle=toy_bundle)) as agent:
        stuck: Future[Prepared] = Future()
        agent.uplink.post(Rehearsal("edge-only", Slow(), stuck))
        assert entered.wait(10)
        waiting = agent.rehearse({"x": toy_samples[:1]}, placement="edge-only")
        assert not waiting.done()
        hold.set()
        assert waiting.result(10).outputs["logits"].shape == (1, 10)
