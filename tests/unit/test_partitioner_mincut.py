"""The min-cut: exact beyond 32 and 64 bits, equal to networkx, and what goes wrong without each precaution."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from networkx.algorithms.flow import edmonds_karp
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from benchmarks.solver_graphs import SHAPES, problem
from partitioner.solver.bounded import items, least
from partitioner.solver.mincut import combine, min_cut
from partitioner.solver.network import Arcs, Network
from partitioner.solver.parametric import envelope
from partitioner.solver.problem import Flow, Problem, Unit, evaluate
from tests.problems import NS, line_ns, placements


def networkx_cut(
    network: Network,
    tally: np.ndarray,
    *,
    backward: bool = True,
    as_number: Callable[[int], float] = int,
    flow_func: Callable[..., object] | None = None,
) -> tuple[float, set[int]]:
    """Value and device side of the min-cut, written down anew from the definition, without blocks or waists."""
    graph, n = nx.DiGraph(), network.count
    for i in range(n):
        graph.add_edge("device", i, capacity=as_number(int(tally[n + i])))
        graph.add_edge(i, "gateway", capacity=as_number(int(tally[i])))
    for j, flow in enumerate(network.flows):
        source = "device" if flow.source is None else flow.source
        graph.add_edge(source, f"flow{j}", capacity=as_number(int(tally[2 * n + j])))
        for reader in flow.readers:
            graph.add_edge(f"flow{j}", reader)  # without a capacity: infinite
            if backward and flow.source is not None:
                graph.add_edge(reader, flow.source)
    value, (device_side, _) = nx.minimum_cut(graph, "device", "gateway", flow_func=flow_func)
    return value, {node for node in device_side if isinstance(node, int)}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_on_larger_graphs_the_least_cost_is_that_of_networkx(shape: str) -> None:
    network = Network(problem(shape, 120))
    for mbit in (1, 8, 60):
        tally = combine(network.ns, network.nbytes, Fraction(8000, mbit))
        expected, _ = networkx_cut(network, tally)
        found = least(network, tally)
        assert found is not None
        assert found[0] == expected
        assert tally[items(network, found[1])].sum() == expected


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_corner_of_a_larger_envelope_is_that_of_networkx(shape: str) -> None:
    network = Network(problem(shape, 80, seed=4))
    found = envelope(network, x_lo=8e-9, x_hi=8e-5)
    assert len(found.pieces) > 1
    for piece in found.pieces:
        x = piece.from_x
        expected, _ = networkx_cut(network, combine(network.ns, network.nbytes, x))
        assert piece.found.ns * x.denominator + piece.found.nbytes * x.numerator == expected


def random_arcs(chance: random.Random, nodes: int, bits: int) -> tuple[Arcs, np.ndarray]:
    pairs = {(chance.randrange(nodes), chance.randrange(nodes)) for _ in range(4 * nodes)}
    pairs = {(a, b) for a, b in pairs if a != b}
    pairs |= {(nodes - 2, chance.randrange(nodes - 2)) for _ in range(3)} | {
        (chance.randrange(nodes - 2), nodes - 1) for _ in range(3)
    }
    tail, head = np.array(sorted(pairs)).T
    item = np.array([-1 if chance.random() < 0.1 and nodes - 1 not in pair else 0 for pair in sorted(pairs)])
    item[tail == nodes - 2] = 0
    capacities = np.array([chance.getrandbits(bits) for _ in item], dtype=object)
    return Arcs(tail, head, item, np.zeros(len(item), dtype=np.int64)), capacities


@pytest.mark.parametrize("bits", [3, 28, 31, 40, 61, 90])
def test_cuts_are_exact_however_wide_the_capacities_are(bits: int) -> None:
    chance = random.Random(bits)
    for _ in range(12):
        nodes = chance.randint(4, 14)
        arcs, capacities = random_arcs(chance, nodes, bits)
        graph = nx.DiGraph()
        graph.add_nodes_from(range(nodes))
        for tail, head, item, capacity in zip(arcs.tail, arcs.head, arcs.item, capacities, strict=True):
            graph.add_edge(int(tail), int(head), **({} if item < 0 else {"capacity": capacity}))
        expected, _ = nx.minimum_cut(graph, nodes - 2, nodes - 1)
        if bits <= 55:
            capacities = capacities.astype(np.int64)
        side = min_cut(arcs, capacities, nodes)
        severed = side[arcs.tail] & ~side[arcs.head]
        assert side[nodes - 2]
        assert not side[nodes - 1]
        assert not (severed & arcs.infinite).any()
        assert capacities[severed].sum() == expected


def test_scipy_alone_loses_what_is_wider_than_32_bits_without_a_word() -> None:
    graph = csr_array(np.array([[0, 2**40, 0], [0, 0, 2**40], [0, 0, 0]], dtype=np.int64))
    assert maximum_flow(graph, 0, 2).flow_value == 0  # if this fails, scipy has learned 64 bits: simplify min_cut


def test_combining_leaves_64_bits_only_where_it_must() -> None:
    narrow, wide = np.array([2**20, 3]), np.array([2**40, 3])
    assert combine(narrow, narrow, Fraction(3, 7)).dtype == np.int64
    exact = combine(wide, wide, Fraction(2**40 + 1, 2**39))
    assert exact.dtype == object
    assert exact[0] == 2**40 * 2**39 + 2**40 * (2**40 + 1)


#     input 1 B -> stem (device 90 ns, gateway 10) -> 50 B -> filter (device 10 ns, gateway 90) -> result
SLOWER_AT_THE_GATEWAY = Problem(
    (Unit("stem", 90 * NS, 10 * NS), Unit("filter", 10 * NS, 90 * NS)),
    (Flow("input", None, (0,), 1), Flow("between", 0, (1,), 50), Flow("result", 1, (), 0)),
)


def test_without_backward_arcs_the_answer_is_no_placement_at_all() -> None:
    network = Network(SLOWER_AT_THE_GATEWAY)
    tally = combine(network.ns, network.nbytes, Fraction(1))
    claimed, on_device = networkx_cut(network, tally, backward=False)
    # Stem at the gateway, filter on the device, and nothing paid for the way back: 10 + 10 + 1 ns.
    assert (claimed, on_device) == (21, {1})
    assert not SLOWER_AT_THE_GATEWAY.is_closed(on_device)
    true = {line_ns(s.cost)[0] + line_ns(s.cost)[1] for s in placements(SLOWER_AT_THE_GATEWAY)}
    found = least(network, tally)
    assert found is not None
    assert found[0] == min(true) == 100  # edge-only; full-cloud takes 101
    assert networkx_cut(network, tally)[0] == 100


#     input -0.1-> a -0.3-> b -0.1-> c -0.3-> d -> result, seconds on the wire; on the device 0.4, 0.4, 0.9 and 0.2 s,
#     at the gateway 0.5, 0.4, 0.3 and 0.9 s
TENTHS = Problem(
    (Unit("a", 0.4, 0.5), Unit("b", 0.4, 0.4), Unit("c", 0.9, 0.3), Unit("d", 0.2, 0.9)),
    tuple(Flow(f"t{i}", i - 1 if i else None, (i,), nbytes) for i, nbytes in enumerate((1e8, 3e8, 1e8, 3e8))),
)


def test_capacities_in_floats_give_a_placement_that_is_16_percent_slower() -> None:
    network = Network(TENTHS)
    tally = combine(network.ns, network.nbytes, Fraction(1))
    _, in_floats = networkx_cut(network, tally, as_number=lambda ns: ns / 1e9, flow_func=edmonds_karp)
    _, in_integers = networkx_cut(network, tally, flow_func=edmonds_karp)

    def total_ns(on_device: set[int]) -> int:
        return sum(line_ns(evaluate(TENTHS, on_device).cost))

    assert total_ns(in_floats) == 2_200_000_000  # 0.4 - 0.1 - 0.3 is not 0: arcs that are full look open
    assert total_ns(in_integers) == 1_900_000_000
    found = least(network, tally)
    assert found is not None
    assert found[0] == 1_900_000_000


def test_waists_are_the_units_through_which_everything_passes() -> None:
    #  0 -> 1 -> 2 -+-> 3 -+-> 5 -> 6      and 2 -> 6: a connection around does not matter
    #               +-> 4 -+
    readers = {0: (1,), 1: (2,), 2: (3, 4, 6), 3: (5,), 4: (5,), 5: (6,), 6: ()}
    flows = (Flow("in", None, (0,), 1), *(Flow(f"t{i}", i, r, 1) for i, r in readers.items()))
    network = Network(Problem(tuple(Unit(f"u{i}", 1, 1) for i in range(7)), flows))
    assert network.waists.tolist() == [0, 1, 2, 5, 6]
    assert (network.blocks.low.tolist(), network.blocks.high.tolist()) == ([2], [5])


def test_a_chain_of_any_length_needs_no_min_cut() -> None:
    assert envelope(Network(problem("residual", 3000)), x_lo=8e-9, x_hi=8e-5).min_cuts == 0
