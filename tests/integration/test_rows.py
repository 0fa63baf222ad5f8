"""A request of many rows through the whole agent: planned as that many, and one row costs afterwards what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer

ROWS = 256


def test_many_rows_are_planned_as_many_and_one_row_afterwards_as_one(
    toy_bundle: Path, toy_samples: npt.NDArray[Any]
) -> None:
    planned = []
    with Agent(AgentConfig(bundle=toy_bundle, placements=("edge-only",))) as agent:
        for rows in (1, ROWS, ROWS, ROWS, ROWS, 1):
            sample = np.resize(toy_samples, (rows, *toy_samples.shape[1:]))
            answer = agent.submit({"x": sample}, deadline_s=60.0).result()
            assert isinstance(answer, Answer)
            assert answer.predicted_s is not None
            planned.append(answer.predicted_s)
    # By the row a batch is cheaper, if anything; a machine that is busy for a moment makes less than this of a factor.
    assert planned[1] > 8 * planned[0]
    assert planned[-1] < ROWS / 8 * planned[0]
