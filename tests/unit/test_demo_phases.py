"""The demo's script is data: these tests read it as an audience would."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.demo.phases import SCRIPT, Act, rates, schedule


def test_the_link_gets_worse_and_recovers_before_anything_breaks() -> None:
    assert [p.rate_mbit for p in SCRIPT[:4]] == [100.0, 10.0, 2.0, 30.0]
    assert all(p.act is Act.SET_RATE and p.steady for p in SCRIPT[:4])


def test_what_is_broken_is_mended_in_the_next_phase() -> None:
    assert [p.act for p in SCRIPT[4:]] == [Act.KILL_GATEWAY, Act.START_GATEWAY, Act.BREAK_HEAD, Act.MEND_HEAD]
    assert not any(p.steady for p in SCRIPT[4:])


def test_phase_names_are_distinct_because_statistics_are_kept_by_name() -> None:
    assert len({p.name for p in SCRIPT}) == len(SCRIPT)


def test_costs_are_compared_at_each_link_rate_once() -> None:
    assert rates() == (100.0, 10.0, 2.0, 30.0)


@given(st.floats(0.01, 1000))
def test_phases_follow_one_another_without_a_gap(phase_s: float) -> None:
    slots = schedule(phase_s)
    assert slots[0].from_s == 0
    assert all(a.to_s == b.from_s and a.from_s < a.to_s for a, b in itertools.pairwise(slots))
    assert slots[-1].to_s == pytest.approx(phase_s * sum(p.share for p in SCRIPT))


@pytest.mark.parametrize("phase_s", [0.0, -1.0, math.inf, math.nan])
def test_a_phase_without_a_length_is_refused(phase_s: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        schedule(phase_s)
