"""The exact envelope over 1/bandwidth, against brute force over every placement."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest

from partitioner.solver.hull import lower_hull
from partitioner.solver.network import Network
from partitioner.solver.parametric import enumerate_plans, envelope
from partitioner.solver.problem import Flow, Problem, Unit
from protocol.errors import InputError
from tests.problems import NS, line_ns, placements, random_problem

HIGHEST_NS_PER_BYTE = 40
SEEDS = 1200


def check_against_brute_force(seed: int) -> int:
    """Compares at the corners and at random points between; returns the number of plans."""
    chance = random.Random(seed)
    problem = random_problem(chance, chance.choices(range(1, 13), [4] * 9 + [2, 1, 1])[0])
    ratio = chance.choice((0.0, 1.0, 2.0))
    lines = {line_ns(s.cost, ratio) for s in placements(problem)}
    network = Network(problem, up_over_down=ratio)
    if not lines:
        with pytest.raises(InputError, match="no placement is allowed"):
            envelope(network, x_lo=0, x_hi=HIGHEST_NS_PER_BYTE * NS)
        return 0
    found = envelope(network, x_lo=0, x_hi=HIGHEST_NS_PER_BYTE * NS)
    for piece in found.pieces:
        middle = piece.from_x + (piece.to_x - piece.from_x) * Fraction(chance.randint(1, 99), 100)
        for x in (piece.from_x, middle, piece.to_x):
            assert piece.found.ns + piece.found.nbytes * x == min(a + b * x for a, b in lines), f"seed {seed}"
    assert [p.to_x for p in found.pieces[:-1]] == [p.from_x for p in found.pieces[1:]]
    assert (found.pieces[0].from_x, found.pieces[-1].to_x) == (0, HIGHEST_NS_PER_BYTE)
    return len(found.pieces)


@pytest.mark.parametrize("chunk", range(6))
def test_the_envelope_equals_brute_force_on_random_graphs(chunk: int) -> None:
    counts = [check_against_brute_force(seed) for seed in range(chunk * SEEDS // 6, (chunk + 1) * SEEDS // 6)]
    assert max(counts) >= 4  # the generator makes problems worth solving


def chain(*sizes: int) -> Problem:
    """in -> unit0 -> unit1 ...; one nanosecond at the gateway, ten on the device; `sizes` of the flows in bytes."""
    units = tuple(Unit(f"unit{i}", 10 * NS, NS) for i in range(len(sizes)))
    flows = (Flow(f"t{i}", i - 1 if i else None, (i,), size) for i, size in enumerate(sizes))
    return Problem(units, (*flows, Flow("result", len(sizes) - 1, (), 0)))


def test_switching_bandwidths_are_exact_fractions() -> None:
    # full-cloud 3 + 100 x, after unit0 12 + 70 x, after unit1 21 + 1 x, edge-only 30
    plans = enumerate_plans({"raw": chain(100, 70, 1)}, x_lo=0, x_hi=100 * NS)
    assert [plans.plans[s.plan].solution.crossing for s in plans.stretches] == [("t0",), ("t2",), ()]
    switches = [s.from_x * 10**9 for s in plans.stretches[1:]]
    assert switches == [Fraction(18, 99), Fraction(9)]


def test_the_round_trip_counts_for_everything_but_edge_only() -> None:
    near = enumerate_plans({"raw": chain(100, 70, 1)}, x_lo=0, x_hi=100 * NS)
    far = enumerate_plans({"raw": chain(100, 70, 1)}, x_lo=0, x_hi=100 * NS, rtt_s=26 * NS)
    assert far.plans == near.plans
    # full-cloud takes 29 ns now, edge-only still 30: nothing else is left.
    assert [far.plans[s.plan].solution.crossing for s in far.stretches] == [("t0",), ()]
    assert far.stretches[1].from_x * 10**9 == Fraction(1, 100)


def test_rungs_compete_in_one_envelope_and_edge_only_is_listed_once() -> None:
    plain, coded = chain(100, 70, 1), chain(50, 60, 2)
    plans = enumerate_plans({"raw": plain, "q4": coded}, x_lo=0, x_hi=100 * NS)
    won = [(plans.plans[s.plan].rung, plans.plans[s.plan].solution.crossing) for s in plans.stretches]
    assert won == [("q4", ("t0",)), ("raw", ("t2",)), ("raw", ())]
    assert sum(not p.solution.crossing for p in plans.plans) == 1


def test_both_ends_are_listed_even_where_they_never_win() -> None:
    plans = enumerate_plans({"raw": chain(100, 1, 1)}, x_lo=5 * NS, x_hi=6 * NS)
    crossings = [(p.solution.crossing, p.optimal) for p in plans.plans]
    assert (("t0",), False) in crossings
    assert ((), False) in crossings
    assert sum(p.optimal for p in plans.plans) == len(plans.stretches)


def test_a_problem_that_allows_no_placement_is_refused() -> None:
    units = (Unit("first", 1, 1, pinned="cloud"), Unit("second", 1, 1, pinned="edge"))
    problem = Problem(units, (Flow("a", None, (0,), 1), Flow("b", 0, (1,), 1)))
    with pytest.raises(InputError, match="no placement is allowed"):
        enumerate_plans({"raw": problem}, x_lo=0, x_hi=1)


@pytest.mark.parametrize("slow", [1e10, 1e300])
def test_costs_that_whole_numbers_do_not_hold_are_refused_instead_of_wrapping_around(slow: float) -> None:
    problem = Problem((Unit("a", slow, 1.0),), (Flow("in", None, (0,), 1), Flow("out", 0, (), 0)))
    with pytest.raises(InputError, match="cannot be compared exactly"):
        enumerate_plans({"raw": problem}, x_lo=0, x_hi=NS)


@pytest.mark.parametrize(("x_lo", "x_hi"), [(-1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_that_is_none_is_refused(x_lo: float, x_hi: float) -> None:
    with pytest.raises(InputError, match="range"):
        enumerate_plans({"raw": chain(1)}, x_lo=x_lo, x_hi=x_hi)


def test_the_hull_equals_the_minimum_over_all_lines() -> None:
    chance = random.Random(7)
    for _ in range(300):
        lines = [(chance.randint(0, 30), chance.randint(0, 9)) for _ in range(chance.randint(1, 12))]
        hull = lower_hull(lines, Fraction(0), Fraction(5))
        slopes = [lines[i][1] for i in hull]
        assert all(left > right for left, right in itertools.pairwise(slopes))
        for x in (Fraction(n, 7) for n in range(36)):
            assert min(lines[i][0] + lines[i][1] * x for i in hull) == min(a + b * x for a, b in lines)
