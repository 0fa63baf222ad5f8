"""Objectives: text to weights and back, wrong text with its remedy, one score, the probability to be late."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.control.objectives import BREAKS_TIES, LATENCY, Objective, probability_late
from protocol.errors import InputError


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("latency", Objective()),
        ("deadline", Objective(latency=BREAKS_TIES, deadline=1.0)),
        ("energy", Objective(latency=BREAKS_TIES, energy=1.0)),
        ("bytes", Objective(latency=BREAKS_TIES, nbytes=1e-6)),
        ("cloud", Objective(latency=BREAKS_TIES, cloud=1.0)),
        ("energy=2,bytes=0.1/MB", Objective(energy=2.0, nbytes=1e-7)),
        (" energy = 3/mJ , latency=0 ", Objective(latency=0.0, energy=3_000.0)),
        ("cloud=60/min", Objective(cloud=1.0)),
        ("bytes=1/kB", Objective(nbytes=1e-3)),
        ("deadline=2,latency=0.5", Objective(latency=0.5, deadline=2.0)),
    ],
)
def test_text_becomes_weights_and_weights_become_text(text: str, weights: Objective) -> None:
    for read in (Objective.parse(text), Objective.parse(str(weights))):
        assert msgspec.structs.astuple(read) == pytest.approx(msgspec.structs.astuple(weights), rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "'' is not NAME=WEIGHT"),
        ("speed", "'speed' is not NAME=WEIGHT"),
        ("energy,bytes", "'energy' is not NAME=WEIGHT"),
        ("energy=much", "'much' is no number"),
        ("energy=-1", "'-1' is no number"),
        ("energy=inf", "'inf' is no number"),
        ("energy=nan", "'nan' is no number"),
        ("energy=1/MB", "'MB' is no unit of energy"),
        ("energy=1,energy=2", "weighs energy twice"),
        ("latency=0", "weighs nothing"),
    ],
)
def test_text_that_makes_no_sense_is_refused_with_what_would(text: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        Objective.parse(text)
    assert part in str(caught.value)
    assert caught.value.remedy


def test_under_the_default_a_score_is_the_latency() -> None:
    assert LATENCY.is_latency
    assert LATENCY.score(0.25, late=1.0, budget_s=1.0, energy_j=5.0, nbytes=1e6, cloud_s=1.0) == 0.25


def test_a_score_is_the_sum_of_what_is_weighed() -> None:
    wanted = Objective.parse("latency=1,deadline=2,energy=3,bytes=4/MB,cloud=5")
    score = wanted.score(0.1, late=0.5, budget_s=0.2, energy_j=0.01, nbytes=10_000, cloud_s=0.004)
    assert score == pytest.approx(0.1 + 2 * 0.2 * 0.5 + 3 * 0.01 + 4 * 0.01 + 5 * 0.004)


def test_without_any_spread_an_answer_is_late_or_not() -> None:
    assert probability_late(0.1, 0.0, 0.2) == 0.0
    assert probability_late(0.3, 0.0, 0.2) == 1.0


def test_the_probability_to_be_late_is_that_of_the_normal_distribution() -> None:
    chance = random.Random(5)
    draws = [chance.gauss(0.1, 0.02) for _ in range(20_000)]
    for budget_s in (0.07, 0.1, 0.13):
        share = sum(d > budget_s for d in draws) / len(draws)
        assert probability_late(0.1, 0.02, budget_s) == pytest.approx(share, abs=0.01)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0.001, 10))
def test_a_probability_it_is(expected_s: float, deviation_s: float, budget_s: float) -> None:
    assert 0.0 <= probability_late(expected_s, deviation_s, budget_s) <= 1.0
    assert math.isfinite(Objective.parse("deadline").score(expected_s, late=1.0, budget_s=budget_s))
