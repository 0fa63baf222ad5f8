"""Placements within constraints, straight from the problem: against brute force, and what is said if there are none."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from partitioner.solver.budgets import Setting, plans_within
from partitioner.solver.constraints import BOUNDS, Conflict, Constraints
from partitioner.solver.parametric import Plans
from partitioner.solver.problem import Flow, Problem, Solution, Unit
from protocol.errors import InputError
from protocol.latency import PlacementCost, adjusted, bottleneck_s, latency_s, line_of
from tests.problems import NS, placements, random_problem

PROBLEMS = 75
RTT_S = 20 * NS


def number(name: str, solution: Solution, constraints: Constraints, setting: Setting) -> float:
    """What a constraint is about, from the definition."""
    cost = solution.cost
    link = constraints.link(rtt_s=setting.rtt_s, up_over_down=setting.up_over_down, queue_s=setting.queue_s)
    if name == "max_latency_s":
        spread = cost.spread(edge=setting.edge_spread, tail=setting.tail_spread)
        return latency_s(adjusted(spread, quantile=constraints.quantile), link)
    if name == "min_per_s":
        period = bottleneck_s(cost, link)
        return 1 / period if period else float("inf")
    return float(cost.decode_s + cost.tail_s if name == "cloud_s" else getattr(cost, name))


def keeps(solution: Solution, constraints: Constraints, setting: Setting) -> bool:
    for name in constraints.asked:
        value, limit = number(name, solution, constraints, setting), getattr(constraints, name)
        kept = value >= limit * (1 - 1e-9) if BOUNDS[name].at_least else value <= limit * (1 + 1e-9) + 1e-12
        if not kept:
            return False
    return True


def random_constraints(chance: random.Random, problem: Problem) -> Constraints:
    memory = sum(u.memory_nbytes for u in problem.units)
    limits = {
        "edge_memory_nbytes": memory * chance.uniform(0.4, 1),
        "cloud_memory_nbytes": memory * chance.uniform(0.4, 1),
        "energy_j": sum(u.energy_j for u in problem.units) * chance.uniform(0.5, 1.5),
        "cloud_s": chance.randint(20, 200) * NS,
        "min_per_s": 1 / (chance.randint(50, 400) * NS),
        "max_latency_s": chance.randint(100, 900) * NS,
    }
    # Throughput rarely: mending it takes a bisection, and with it a second of the test.
    asked = {name: limit for name, limit in limits.items() if chance.random() < (0.1 if name == "min_per_s" else 0.35)}
    return Constraints(**asked, at_mbit=8e3 / chance.randint(1, 20), quantile=chance.choice((0.5, 0.95)))


def test_plans_within_constraints_equal_brute_force() -> None:
    plans = conflicts = 0
    for seed in range(PROBLEMS):
        chance = random.Random(seed)
        problem = random_problem(chance, chance.randint(2, 7))
        constraints = random_constraints(chance, problem)
        setting = Setting(rtt_s=chance.choice((0.0, RTT_S)), edge_spread=0.5, tail_spread=0.25)
        x_lo, x_hi = 0.0, 30 * NS
        solutions = list(placements(problem))
        admitted = [s for s in solutions if keeps(s, constraints, setting)]
        found = plans_within({"raw": problem}, constraints, x_lo=x_lo, x_hi=x_hi, setting=setting)
        if isinstance(found, Conflict):
            assert not admitted, f"seed {seed}"
            check_conflict(found, constraints, solutions, setting)
            conflicts += 1
            continue
        assert found.gap == 0
        lines = [line_of(s.cost, rtt_s=setting.rtt_s) for s in admitted]
        for stretch in found.stretches:
            plan = found.plans[stretch.plan].solution
            assert keeps(plan, constraints, setting), f"seed {seed}"
            for x in (stretch.from_x, (stretch.from_x + stretch.to_x) / 2, stretch.to_x):
                mine = line_of(plan.cost, rtt_s=setting.rtt_s).at(float(x))
                assert mine == pytest.approx(min(line.at(float(x)) for line in lines), rel=1e-9), f"seed {seed}"
        plans += 1
    assert plans > 20
    assert conflicts > 5


def check_conflict(found: Conflict, constraints: Constraints, solutions: list[Solution], setting: Setting) -> None:
    """The named subset conflicts, nothing smaller does, and each relaxation is the nearest that helps."""
    subset = constraints.only(found.constraints)
    assert not any(keeps(s, subset, setting) for s in solutions)
    for relaxation in found.relaxations:
        others = constraints.only([n for n in found.constraints if n != relaxation.constraint])
        values = [
            number(relaxation.constraint, s, constraints, setting) for s in solutions if keeps(s, others, setting)
        ]
        best = (max if BOUNDS[relaxation.constraint].at_least else min)(values)
        assert relaxation.needed == pytest.approx(best, rel=1e-5)


#     in 100 -> a -> 60 -> b -> 5 -> c -> result       each unit: device 10 ns, gateway 1 ns, memory 4, energy 2
def chain() -> Problem:
    units = tuple(Unit(name, 10 * NS, 1 * NS, 4, 2.0) for name in "abc")
    flows = (Flow("in", None, (0,), 100), Flow("ab", 0, (1,), 60), Flow("bc", 1, (2,), 5), Flow("out", 2, (), 0))
    return Problem(units, flows)


def winners(found: Plans | Conflict) -> list[tuple[str, ...]]:
    assert isinstance(found, Plans), found
    return [found.plans[s.plan].solution.crossing for s in found.stretches]


def within(constraints: Constraints, **given: object) -> Plans | Conflict:
    return plans_within({"raw": chain()}, constraints, x_lo=0, x_hi=100 * NS, **given)  # type: ignore[arg-type]


def test_without_constraints_it_is_the_plain_envelope() -> None:
    assert winners(within(Constraints())) == [("in",), ("bc",), ()]


def test_a_memory_budget_shuts_out_what_does_not_fit() -> None:
    assert winners(within(Constraints(edge_memory_nbytes=8))) == [("in",), ("bc",)]
    assert winners(within(Constraints(edge_memory_nbytes=7))) == [("in",), ("ab",)]


def test_pinned_layers_stay_on_the_device_and_are_part_of_the_min_cut() -> None:
    assert winners(within(Constraints(on_device=("b",)))) == [("bc",), ()]
    with pytest.raises(InputError, match="no unit 'z'"):
        within(Constraints(on_device=("z",)))


def test_edge_only_pays_no_round_trip_when_its_latency_is_judged() -> None:
    constraints = Constraints(max_latency_s=30 * NS, at_mbit=8e6)
    assert winners(within(constraints, setting=Setting(rtt_s=1.0))) == [()]


def test_contradicting_constraints_are_named_with_what_they_would_have_to_be() -> None:
    found = within(Constraints(edge_memory_nbytes=7, cloud_memory_nbytes=4, energy_j=100))
    assert isinstance(found, Conflict)
    assert found.constraints == ("edge_memory_nbytes", "cloud_memory_nbytes")
    assert [r.needed for r in found.relaxations] == [8, 8]
    pinned = within(Constraints(edge_memory_nbytes=7, on_device=("c",)))
    assert isinstance(pinned, Conflict)
    assert set(pinned.constraints) == {"edge_memory_nbytes", "on_device"}


def test_a_rung_that_is_not_accurate_enough_does_not_compete() -> None:
    coarse = Problem(chain().units, tuple(f._replace(up_nbytes=f.up_nbytes / 4) for f in chain().flows))
    problems = {"fine": chain(), "coarse": coarse}
    setting = Setting(accuracy={"fine": 0.9, "coarse": 0.8})
    found = plans_within(problems, Constraints(min_accuracy=0.85), x_lo=0, x_hi=NS, setting=setting)
    assert isinstance(found, Plans)
    assert {p.rung for p in found.plans} == {"fine"}
    both = plans_within(problems, Constraints(min_accuracy=0.5), x_lo=0, x_hi=NS, setting=setting)
    assert isinstance(both, Plans)
    assert both.plans[both.stretches[-1].plan].rung == "coarse"
    found = plans_within(problems, Constraints(min_accuracy=0.95), x_lo=0, x_hi=NS, setting=setting)
    assert isinstance(found, Conflict)
    assert found.relaxations[0].needed == 0.9
    with pytest.raises(InputError, match="accuracy of coarse, fine is not known"):
        plans_within(problems, Constraints(min_accuracy=0.5), x_lo=0, x_hi=1)


def test_a_throughput_that_no_placement_has_is_relaxed_to_the_best_there_is() -> None:
    # At 1 ns a byte: full-cloud is bound by 100 ns of upload, edge-only by 30 ns of compute, cut bc by 20 ns.
    found = within(Constraints(min_per_s=1e8, at_mbit=8e3))
    assert isinstance(found, Conflict)
    assert found.relaxations[0].needed == pytest.approx(1 / (20 * NS), rel=1e-5)


def test_when_no_min_cuts_are_left_the_answer_says_so() -> None:
    chance = random.Random(1)
    units = tuple(Unit(f"u{i}", 10 * NS, 50 * NS, chance.randint(20, 60), 2.0) for i in range(20))
    problem = Problem(units, tuple(Flow(f"in{i}", None, (i,), 1) for i in range(20)))
    constraints = Constraints(edge_memory_nbytes=400, cloud_memory_nbytes=450)
    found = plans_within({"raw": problem}, constraints, x_lo=0, x_hi=NS, max_min_cuts=4)
    assert isinstance(found, Plans)
    assert found.gap > 0
    # Halving an odd number of equal units is impossible, but only trying everything would prove it.
    even = Problem(tuple(u._replace(memory_nbytes=2) for u in units[1:]), problem.flows[:19])
    halves = Constraints(edge_memory_nbytes=19, cloud_memory_nbytes=19)
    with pytest.raises(InputError, match=r"no placement was found in \d+ min-cuts"):
        plans_within({"raw": even}, halves, x_lo=0, x_hi=NS, max_min_cuts=20)


def test_a_rung_of_which_nothing_is_known_leaves_the_gap_open() -> None:
    # Halving an odd number of equal units is impossible, but only trying everything would prove it.
    count = 19
    units = tuple(Unit(f"u{i}", 10 * NS, 50 * NS, 2) for i in range(count))
    unsure = Problem(units, tuple(Flow(f"in{i}", None, (i,), 1) for i in range(count)))
    easy = Problem(tuple(u._replace(memory_nbytes=1) for u in units), unsure.flows)
    halves = Constraints(edge_memory_nbytes=19, cloud_memory_nbytes=19)
    found = plans_within({"unsure": unsure, "easy": easy}, halves, x_lo=0, x_hi=NS, max_min_cuts=20)
    assert isinstance(found, Plans)
    assert {p.rung for p in found.plans} == {"easy"}
    assert found.gap == float("inf")


def test_brute_force_itself_counts_the_round_trip_as_the_product_does() -> None:
    remote = Solution(frozenset(), ("in",), PlacementCost(up_nbytes=100, tail_s=3 * NS))
    constraints = Constraints(max_latency_s=1.0, at_mbit=8e3)
    assert number("max_latency_s", remote, constraints, Setting(rtt_s=RTT_S)) == pytest.approx(123 * NS)
    assert Fraction(1, 2) == 0.5
