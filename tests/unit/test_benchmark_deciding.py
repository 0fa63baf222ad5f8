"""The figures of the suite `deciding-live`: what its regret compares with, and what a busy machine may not spoil."""

from __future__ import annotations

import pytest

from benchmarks.deciding_live import Played, _regrets
from benchmarks.deciding_stage import FREE, _spread
from partitioner.people.replay import Run, Simulated
from partitioner.people.traces import steps
from partitioner.people.world import Outcome

RUN = Run("isthmus", 3, 0, 0.1, 0.1, 0.1, {"cut": 1.0})


def played(**latencies_s: tuple[float, ...]) -> Played:
    """Three requests of the free agent and of each placement's."""
    outcomes = {
        name.replace("_", "-"): [Outcome(float(i), name, name, s, False) for i, s in enumerate(seconds)]
        for name, seconds in latencies_s.items()
    }
    simulated = Simulated("m", "t", 3.0, 1.0, 1, 0.0, 1.0, 2.0, 3, RUN, RUN, (RUN,), 0, (), 0.0, {})
    return Played(steps("t", [(3.0, 1.0)]), outcomes, 0, simulated)


def regret(**latencies_s: tuple[float, ...]) -> float:
    live, _ = _regrets("t", played(**latencies_s))
    return live.median


def test_the_oracle_takes_whatever_answered_each_request_first() -> None:
    seconds = {FREE: (0.2, 0.2, 0.2), "cut": (0.1, 0.3, 0.1), "edge": (0.3, 0.1, 0.3)}
    assert regret(**seconds) == pytest.approx(100.0)


def test_who_always_takes_the_best_has_no_regret() -> None:
    assert regret(**{FREE: (0.1, 0.1, 0.1), "cut": (0.1, 0.3, 0.1), "edge": (0.3, 0.1, 0.3)}) == pytest.approx(0.0)


def test_a_busy_machines_outliers_are_not_how_much_times_usually_differ() -> None:
    usual = [0.100 + 0.001 * i for i in range(-8, 9)]
    assert _spread([*usual, 5.0]) == pytest.approx(_spread(usual), abs=0.02)
    assert 0.05 < _spread(usual) < 0.2


def test_times_that_are_too_few_or_nothing_have_no_spread() -> None:
    assert _spread([0.1, 0.2]) == _spread([0.0] * 10) == 0.0
