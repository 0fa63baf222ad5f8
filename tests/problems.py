"""Small random placement problems, and what brute force says about them.

Times are whole nanoseconds and sizes whole bytes, so that the definition and the integer solver must agree exactly.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator

from partitioner.graph.cuts import Sides
from partitioner.graph.topology import Topology
from partitioner.solver.problem import Flow, Problem, Side, Solution, Unit, evaluate
from protocol.errors import InputError
from protocol.latency import PlacementCost

NS = 1e-9


def random_problem(chance: random.Random, count: int) -> Problem:
    """`count` units in a random DAG: several inputs and outputs, tensors with several readers, units slower at the
    gateway, pins on both sides and, rarely, tensors that cannot be sent."""
    flows = [_input(chance, count, k) for k in range(chance.randint(1, 3))]
    for source in range(count):
        flows += [_made(chance, count, source, k) for k in range(chance.choice((1, 1, 1, 2)))]
    return Problem(tuple(_unit(chance, i) for i in range(count)), tuple(flows), chance.choice((0.0, 0.0, 0.5)))


def _unit(chance: random.Random, i: int) -> Unit:
    cloud = chance.randint(0, 50) if chance.random() < 0.5 else chance.randint(0, 8)
    pinned: Side | None = chance.choices((None, "edge", "cloud"), (18, 1, 1))[0]
    memory, energy = chance.randint(0, 9), float(chance.randint(0, 9))
    return Unit(f"unit{i}", chance.randint(0, 50) * NS, cloud * NS, memory, energy, pinned)


def _input(chance: random.Random, count: int, k: int) -> Flow:
    readers = tuple(sorted(chance.sample(range(count), min(count, chance.randint(1, 3)))))
    return Flow(f"input{k}", None, readers, *_size(chance))


def _made(chance: random.Random, count: int, source: int, k: int) -> Flow:
    later = list(range(source + 1, count))
    near = later[:3] if chance.random() < 0.7 else later
    readers = tuple(sorted(chance.sample(near, min(len(near), chance.choice((0, 1, 1, 1, 2, 3))))))
    is_output = not readers or chance.random() < 0.15
    size = (math.inf, 0.0, 0.0) if chance.random() < 0.03 else _size(chance)
    return Flow(f"tensor{source}.{k}", source, readers, *size, chance.randint(1, 10) if is_output else 0)


def _size(chance: random.Random) -> tuple[float, float, float]:
    return float(chance.randint(1, 30)), chance.randint(0, 3) * NS, chance.randint(0, 3) * NS


def placements(problem: Problem) -> Iterator[Solution]:
    """Every placement that is allowed, by trying all sets of units."""
    for members in itertools.product((False, True), repeat=len(problem.units)):
        on_edge = frozenset(itertools.compress(range(len(members)), members))
        if problem.is_closed(on_edge):
            try:
                yield evaluate(problem, on_edge)
            except InputError:
                continue  # a pin or a tensor that cannot be sent stands against it


def line_ns(cost: PlacementCost, up_over_down: float = 1.0) -> tuple[int, int]:
    """Whole nanoseconds and bytes of a placement, the round trip left out."""
    seconds = cost.edge_s + cost.encode_s + cost.decode_s + cost.tail_s
    return round(seconds / NS), round(cost.up_nbytes + up_over_down * cost.down_nbytes)


def sides_of(topology: Topology, problem: Problem, solution: Solution) -> Sides:
    """The two sides of a placement, for `split`: exactly the units it names, with whatever is recomputed beneath them.

    Naming the crossing tensors alone says less: an output that is made on the device from a tensor that also crosses
    would be counted to the tail.
    """
    edge_steps = {problem.steps[i] for i in solution.on_edge}
    tail_steps = set(problem.steps) - edge_steps
    made_in_tail = {name for i in tail_steps for name in topology.steps[i].outputs}
    head_outputs = tuple(name for name in topology.outputs if name not in made_in_tail)
    tail_outputs = tuple(name for name in topology.outputs if name in made_in_tail)
    shared = set(range(len(topology.steps))) - set(problem.steps)
    read = [name for i in edge_steps for name in topology.steps[i].inputs]
    read_in_tail = [name for i in tail_steps for name in topology.steps[i].inputs]
    return Sides(
        solution.crossing,
        frozenset(edge_steps | _beneath(topology, [*read, *head_outputs], shared)),
        frozenset(tail_steps | _beneath(topology, read_in_tail, shared)),
        head_outputs,
        tail_outputs,
    )


def _beneath(topology: Topology, names: Iterable[str], shared: set[int]) -> set[int]:
    """The steps of `shared` that these tensors need, directly or through others of `shared`."""
    found: set[int] = set()
    pending = list(names)
    while pending:
        i = topology.producer.get(pending.pop())
        if i in shared and i not in found:
            found.add(i)
            pending.extend(topology.steps[i].inputs)
    return found
