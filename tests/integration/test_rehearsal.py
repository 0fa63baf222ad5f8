"""Known questions asked along the way of a request: answered without a gateway, and by nobody while a thread hangs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.agent import Agent, AgentConfig
from protocol.errors import EngineError, InputError
from tests.daemons import compute_hangs
from tests.waiting import PATIENCE_S


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
    with Agent(AgentConfig(bundle=toy_bundle)) as agent:
        with compute_hangs(agent):
            waiting = agent.rehearse({"x": toy_samples[:1]}, placement="edge-only")
            assert not waiting.done()
        assert waiting.result(PATIENCE_S).outputs["logits"].shape == (1, 10)


def test_what_is_sent_whole_lies_where_the_caller_has_it(toy_bundle: Path, toy_samples: npt.NDArray[Any]) -> None:
    x = np.ascontiguousarray(toy_samples[:1])
    with Agent(AgentConfig(toy_bundle, placements=("full-cloud",))) as agent:
        made = agent.rehearse({"x": x}, placement="full-cloud").result(10)
    plain = [np.frombuffer(part, np.uint8) for part in made.buffers]
    assert any(np.shares_memory(part, x) for part in plain), "its bytes were copied"
