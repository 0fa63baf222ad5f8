"""The latency formula and its lower envelope, against brute force."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.latency import Line, LinkState, PlacementCost, Stretch, latency_s, line_of, lower_envelope

times_s = st.floats(0, 2)
sizes = st.floats(1, 1e7)
costs = st.builds(
    PlacementCost,
    edge_s=times_s,
    encode_s=times_s,
    up_nbytes=st.just(0.0) | sizes,
    decode_s=times_s,
    tail_s=times_s,
    down_nbytes=sizes,
)
# Quarters are exact in floats, so that ties are ties; free floats make near-misses.
coefficients = st.integers(0, 40).map(lambda n: n / 4) | st.floats(0, 10)
lines = st.lists(st.builds(Line, coefficients, coefficients), min_size=1, max_size=8)


def test_latency_is_the_documented_sum() -> None:
    cost = PlacementCost(edge_s=0.01, encode_s=0.002, up_nbytes=1000, decode_s=0.003, tail_s=0.02, down_nbytes=100)
    link = LinkState(uplink_bytes_per_s=1e5, rtt_s=0.05, downlink_bytes_per_s=1e4, queue_s=0.004)
    assert latency_s(cost, link) == pytest.approx(0.01 + 0.002 + 0.05 + 0.01 + 0.01 + 0.003 + 0.004 + 0.02)


def test_where_nothing_crosses_the_link_and_its_queue_do_not_matter() -> None:
    cost = PlacementCost(edge_s=0.1, encode_s=0.01)
    assert not cost.crosses
    assert latency_s(cost, LinkState(1.0, 9.0, 1.0, 9.0)) == pytest.approx(0.11)
    assert tuple(line_of(cost, rtt_s=9.0, queue_s=9.0)) == pytest.approx((0.11, 0.0))


def test_a_downlink_that_is_not_given_costs_nothing() -> None:
    cost = PlacementCost(up_nbytes=1000, down_nbytes=1e9)
    assert latency_s(cost, LinkState(1e6, 0.01)) == pytest.approx(0.011)


@given(costs, st.floats(1e3, 1e9), times_s, times_s, st.floats(0.01, 10))
def test_the_line_and_the_formula_agree(
    cost: PlacementCost, uplink: float, rtt_s: float, queue_s: float, up_over_down: float
) -> None:
    link = LinkState(uplink, rtt_s, uplink / up_over_down, queue_s)
    line = line_of(cost, rtt_s=rtt_s, queue_s=queue_s, up_over_down=up_over_down)
    assert line.at(1 / uplink) == pytest.approx(latency_s(cost, link), rel=1e-9)


def assert_covers(stretches: list[Stretch], from_x: float, to_x: float) -> None:
    assert stretches[0].from_x == from_x
    assert stretches[-1].to_x == to_x
    assert all(s.from_x < s.to_x for s in stretches)
    assert all(left.to_x == right.from_x for left, right in itertools.pairwise(stretches))


@given(lines, st.floats(0, 5), st.floats(0.1, 50))
def test_the_envelope_is_the_minimum_at_every_point(candidates: list[Line], from_x: float, width: float) -> None:
    to_x = from_x + width
    stretches = lower_envelope(candidates, from_x, to_x)
    assert_covers(stretches, from_x, to_x)
    for stretch in stretches:
        for share in (0.0, 0.01, 0.3, 0.5, 0.9, 1.0):
            x = stretch.from_x + share * (stretch.to_x - stretch.from_x)
            least = min(line.at(x) for line in candidates)
            assert candidates[stretch.line].at(x) == pytest.approx(least, rel=1e-9, abs=1e-9)


@given(lines)
def test_the_envelope_uses_each_line_once_and_gets_flatter_to_the_right(candidates: list[Line]) -> None:
    used = [s.line for s in lower_envelope(candidates, 0, 10)]
    slopes = [candidates[i].slope_nbytes for i in used]
    assert len(set(used)) == len(used)
    assert all(left > right for left, right in itertools.pairwise(slopes))


def test_the_envelope_of_many_random_lines_equals_a_dense_scan() -> None:
    chance = random.Random(4)
    for _ in range(30):
        candidates = [Line(chance.random(), chance.random()) for _ in range(20)]
        stretches = lower_envelope(candidates, 0, 4)
        for step in range(401):
            x = step / 100
            owner = next(s.line for s in stretches if s.from_x <= x <= s.to_x)
            assert candidates[owner].at(x) == pytest.approx(min(line.at(x) for line in candidates), abs=1e-12)


def test_ties_go_to_the_smaller_slope_and_then_to_the_first() -> None:
    assert lower_envelope([Line(1, 2), Line(1, 1)], 0, 1) == [Stretch(1, 0, 1)]
    assert lower_envelope([Line(1, 1), Line(1, 1)], 0, 1) == [Stretch(0, 0, 1)]
    # Three lines through one point: the flattest takes over at once.
    assert [s.line for s in lower_envelope([Line(0, 3), Line(1, 2), Line(2, 1)], 0, 4)] == [0, 2]


def test_a_crossing_at_the_very_end_opens_no_empty_stretch() -> None:
    assert lower_envelope([Line(0, 1), Line(1, 0)], 0, 1) == [Stretch(0, 0, 1)]
    assert lower_envelope([Line(0, 1), Line(1, 0)], 1, 2) == [Stretch(1, 1, 2)]


def test_a_line_that_starts_at_infinity_is_never_chosen_over_a_finite_one() -> None:
    assert lower_envelope([Line(math.inf, 0), Line(1, 1)], 0, 10) == [Stretch(1, 0, 10)]


@pytest.mark.parametrize(("count", "from_x", "to_x"), [(0, 0.0, 1.0), (1, 1.0, 1.0), (1, 2.0, 1.0), (1, -1.0, 1.0)])
def test_no_lines_or_an_empty_interval_is_an_error(count: int, from_x: float, to_x: float) -> None:
    with pytest.raises(ValueError, match="interval"):
        lower_envelope([Line(1, 1)] * count, from_x, to_x)
