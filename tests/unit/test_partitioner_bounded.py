"""Branch and bound within budgets, against brute force over every placement."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np

from partitioner.solver.bounded import Bounded, Budget, items, least, minimise
from partitioner.solver.mincut import combine
from partitioner.solver.network import Network
from partitioner.solver.problem import Flow, Problem, Unit, evaluate
from tests.problems import NS, placements, random_problem

PROBLEMS = 200


def mask(network: Network, on_edge: frozenset[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    chosen = np.zeros(network.count, dtype=bool)
    chosen[list(on_edge)] = True
    return chosen


def random_budgets(chance: random.Random, network: Network) -> list[Budget]:
    units, n = network.problem.units, network.count
    nothing, no_flow = np.zeros(n, np.int64), np.zeros(len(network.flows), np.int64)
    memory = np.array([u.memory_nbytes for u in units])
    energy = np.array([int(u.energy_j) for u in units])
    candidates = [
        Budget("edge memory", np.concatenate([memory, nothing, no_flow]), int(memory.sum() * chance.uniform(0.3, 1))),
        Budget("cloud memory", np.concatenate([nothing, memory, no_flow]), int(memory.sum() * chance.uniform(0.4, 1))),
        Budget(
            "energy",
            np.concatenate([energy, nothing, network.nbytes[2 * n :]]),
            int((energy.sum() + 40) * chance.uniform(0.4, 1)),
        ),
    ]
    return [b for b in candidates if chance.random() < 0.6]


def brute_force(problem: Problem, network: Network, cost: object, budgets: list[Budget]) -> int | None:
    values = []
    for solution in placements(problem):
        paid = items(network, mask(network, solution.on_edge))
        if all(b.tally[paid].sum() <= b.limit for b in budgets):
            values.append(int(np.asarray(cost)[paid].sum()))
    return min(values, default=None)


def test_the_bounded_optimum_equals_brute_force_on_random_graphs() -> None:
    feasible = branched = 0
    for seed in range(PROBLEMS):
        chance = random.Random(seed)
        problem = random_problem(chance, chance.randint(2, 9))
        network = Network(problem)
        cost = combine(network.ns, network.nbytes, Fraction(chance.randint(0, 40), chance.randint(1, 5)))
        budgets = random_budgets(chance, network)
        expected = brute_force(problem, network, cost, budgets)
        found = minimise(network, cost, budgets)
        assert (found.cost, found.is_infeasible) == (expected, expected is None), f"seed {seed}"
        assert found.gap == 0
        if found.on_edge is not None:
            evaluate(problem, found.on_edge)  # closed, and no pin broken
            feasible += 1
        branched += found.min_cuts > 10
    assert feasible > PROBLEMS // 2
    assert branched > 5  # some of them are not solved by prices alone


def test_a_tally_over_items_is_what_the_definition_says() -> None:
    chance = random.Random(5)
    for _ in range(50):
        problem = random_problem(chance, 7)
        network = Network(problem)
        for solution in placements(problem):
            paid = items(network, mask(network, solution.on_edge))
            cost = solution.cost
            seconds = cost.edge_s + cost.encode_s + cost.decode_s + cost.tail_s
            assert network.ns[paid].sum() == round(seconds / NS)
            assert network.nbytes[paid].sum() == cost.up_nbytes + cost.down_nbytes


def knapsack(count: int) -> tuple[Network, list[Budget]]:
    """Independent units, each 10 on the device or more at the gateway, with memory for about half of them."""
    chance = random.Random(3)
    units = tuple(Unit(f"unit{i}", 10 * NS, chance.randint(30, 90) * NS, chance.randint(20, 60)) for i in range(count))
    network = Network(Problem(units, tuple(Flow(f"input{i}", None, (i,), 1) for i in range(count))))
    memory = np.array([u.memory_nbytes for u in units])
    tally = np.concatenate([memory, np.zeros(2 * count, np.int64)])
    return network, [Budget("memory", tally, int(memory.sum()) // 2)]


def test_when_the_min_cuts_are_spent_the_gap_says_how_good_the_answer_is() -> None:
    network, budgets = knapsack(20)
    cost = combine(network.ns, network.nbytes, Fraction(1))
    hasty = minimise(network, cost, budgets, max_min_cuts=6)
    patient = minimise(network, cost, budgets)
    assert hasty.cost is not None
    assert patient.cost is not None
    assert patient.gap == 0
    assert hasty.bound is not None
    assert hasty.bound <= patient.cost <= hasty.cost
    assert 0 < hasty.gap < 0.5


def test_budgets_that_contradict_each_other_by_little_are_proven_to_at_once() -> None:
    # Twenty kilobytes short of a model of a gigabyte and a half.
    chance, count = random.Random(5), 30
    units = tuple(Unit(f"u{i}", 50 * NS, 5 * NS, chance.randint(1, 10**8)) for i in range(count))
    later = [[j for j in (i + chance.randint(2, 8), i + chance.randint(2, 8)) if j < count] for i in range(count)]
    network = Network(Problem(units, tuple(Flow(f"t{i}", i, tuple(sorted(set(later[i]))), 50) for i in range(count))))
    memory = np.array([u.memory_nbytes for u in units])
    half, nothing, no_flow = int(memory.sum()) // 2, np.zeros(count, np.int64), np.zeros(len(network.flows), np.int64)
    edge = Budget("edge", np.concatenate([memory, nothing, no_flow]), half)
    cloud = Budget("cloud", np.concatenate([nothing, memory, no_flow]), int(memory.sum()) - half - 20_000)
    found = minimise(network, combine(network.ns, network.nbytes, Fraction(1)), [edge, cloud], max_min_cuts=20)
    assert found.is_infeasible


def test_only_placements_below_a_given_cost_are_looked_for() -> None:
    network, budgets = knapsack(8)
    cost = combine(network.ns, network.nbytes, Fraction(1))
    best = minimise(network, cost, budgets).cost
    assert best is not None
    assert minimise(network, cost, budgets, below=best).is_infeasible
    assert minimise(network, cost, budgets, below=best + 1).cost == best


def test_the_gap_of_nothing_found_is_infinite_and_of_nothing_possible_zero() -> None:
    assert Bounded(None, None, 5, 1).gap == float("inf")
    assert Bounded(None, None, None, 1).gap == 0
    assert Bounded(frozenset(), 0, 0, 1).gap == 0


def test_the_unconstrained_least_is_the_minimum_over_all_placements() -> None:
    chance = random.Random(11)
    for _ in range(60):
        problem = random_problem(chance, 7)
        network = Network(problem)
        tally = np.array([chance.randint(0, 20) for _ in range(len(network.ns))])
        values = [int(tally[items(network, mask(network, s.on_edge))].sum()) for s in placements(problem)]
        found = least(network, tally)
        assert (found[0] if found else None) == min(values, default=None)
        assert found is None or tally[items(network, found[1])].sum() == found[0]
