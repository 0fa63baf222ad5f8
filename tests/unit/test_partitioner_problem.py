"""Placement problems: what a placement costs, what is refused, and how a network becomes one."""

from __future__ import annotations

import math

import pytest

from partitioner.graph.cuts import separate
from partitioner.graph.topology import Step, TensorInfo, Topology
from partitioner.solver.problem import Flow, Problem, Size, Unit, evaluate, problem_of
from protocol.errors import InputError
from tests.problems import sides_of

UNITS = (Unit("stem", 0.01, 0.001, 100, 1.0), Unit("left", 0.02, 0.002, 200, 2.0), Unit("right", 0.03, 0.003, 300, 3.0))
#       image -> stem -> s -+-> left  -> l (output)
#                           +-> right -> r (output)
FLOWS = (
    Flow("image", None, (0,), 5000, 0.0001, 0.0002),
    Flow("s", 0, (1, 2), 1000, 0.0003, 0.0004),
    Flow("l", 1, (), 0, down_nbytes=40),
    Flow("r", 2, (), 0, down_nbytes=60),
)
FORK = Problem(UNITS, FLOWS, radio_j_per_byte=0.001)


def test_a_tensor_that_two_units_read_is_paid_once() -> None:
    solution = evaluate(FORK, {0})
    assert solution.crossing == ("s",)
    assert solution.cost.up_nbytes == 1000
    assert solution.cost.encode_s == pytest.approx(0.0003)
    assert solution.cost.decode_s == pytest.approx(0.0004)


def test_outputs_pay_for_their_way_down_only_when_they_are_made_at_the_gateway() -> None:
    assert evaluate(FORK, {0}).cost.down_nbytes == 100
    assert evaluate(FORK, {0, 1}).cost.down_nbytes == 60
    assert evaluate(FORK, {0, 1, 2}).cost.down_nbytes == 0


def test_time_memory_and_energy_are_summed_on_the_side_where_they_arise() -> None:
    cost = evaluate(FORK, {0, 1}).cost
    assert cost.edge_s == pytest.approx(0.03)
    assert cost.tail_s == pytest.approx(0.003)
    assert (cost.edge_memory_nbytes, cost.cloud_memory_nbytes) == (300, 300)
    assert cost.energy_j == pytest.approx(1 + 2 + 0.001 * (1000 + 60))


def test_the_two_ends_are_placements_like_any_other() -> None:
    assert evaluate(FORK, ()).crossing == ("image",)
    local = evaluate(FORK, {0, 1, 2})
    assert local.crossing == ()
    assert not local.cost.crosses


def test_a_set_that_lacks_a_predecessor_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'left' is on the device but reads 's'"):
        evaluate(FORK, {1})
    assert not FORK.is_closed({1})
    assert FORK.is_closed({0, 2})


def test_pins_and_tensors_that_cannot_be_sent_are_kept() -> None:
    pinned = Problem((UNITS[0]._replace(pinned="edge"), *UNITS[1:2], UNITS[2]._replace(pinned="cloud")), FLOWS)
    with pytest.raises(InputError, match="'stem' is pinned to the edge"):
        evaluate(pinned, ())
    with pytest.raises(InputError, match="'right' is pinned to the cloud"):
        evaluate(pinned, {0, 2})
    unsendable = Problem(UNITS, (FLOWS[0], FLOWS[1]._replace(up_nbytes=math.inf), *FLOWS[2:]))
    with pytest.raises(InputError, match="'s' cannot be sent"):
        evaluate(unsendable, {0})
    assert evaluate(unsendable, ()).cost.up_nbytes == 5000


@pytest.mark.parametrize(
    ("unit", "flow"),
    [
        (Unit("u", math.nan, 0), Flow("f", None, (0,), 1)),
        (Unit("u", -1.0, 0), Flow("f", None, (0,), 1)),
        (Unit("u", 0, math.inf), Flow("f", None, (0,), 1)),
        (Unit("u", 0, 0), Flow("f", None, (0,), -1)),
        (Unit("u", 0, 0), Flow("f", None, (0,), math.nan)),
        (Unit("u", 0, 0), Flow("f", 0, (0,), 1)),
        (Unit("u", 0, 0), Flow("f", None, (1,), 1)),
    ],
)
def test_numbers_that_are_no_costs_and_flows_that_go_backwards_are_refused(unit: Unit, flow: Flow) -> None:
    with pytest.raises(InputError):
        Problem((unit,), (flow,))


#     x -> conv -> c -+-> relu -> h -> dense -> y        mask -> cast -> m, read by relu and dense
#                     +-> shape -> n -----------^
def network() -> Topology:
    steps = (
        Step("weights", "Constant", (), ("w",)),
        Step("conv", "Conv", ("x", "w"), ("c",)),
        Step("shape", "Shape", ("c",), ("n",)),
        Step("cast", "Cast", ("mask",), ("m",)),
        Step("relu", "PRelu", ("c", "m"), ("h",)),
        Step("dense", "Where", ("h", "n", "m"), ("y",)),
    )
    infos = {name: TensorInfo("float32", (1, 1000)) for name in ("x", "c", "h", "y")}
    infos |= {"n": TensorInfo("int64", (2,)), "mask": TensorInfo("int64", (1, 10)), "m": TensorInfo("bool", (1, 10))}
    return Topology(("x", "mask"), ("y",), steps, infos)


def of_network(topology: Topology) -> Problem:
    sizes = {name: Size(10.0, 0.1, 0.2) for name in ("x", "mask", "c", "h", "n")}
    times = [0.0, 1.0, 0.0, 0.0, 2.0, 3.0]
    return problem_of(topology, edge_s=times, cloud_s=[t / 10 for t in times], sizes=sizes, pinned={"conv": "edge"})


def test_a_network_becomes_live_units_and_flows_between_them() -> None:
    problem = of_network(network())
    assert [u.name for u in problem.units] == ["conv", "shape", "relu", "dense"]
    assert problem.units[0].pinned == "edge"
    flows = {f.name: f for f in problem.flows}
    assert "w" not in flows
    assert flows["x"].source is None
    assert flows["c"].readers == (1, 2)
    assert flows["c"].encode_s == 0.1
    assert flows["y"].down_nbytes == 4000


def test_who_reads_a_recomputed_tensor_reads_what_lies_beneath_it() -> None:
    topology = network()
    problem = of_network(topology)
    flows = {f.name: f for f in problem.flows}
    assert "m" not in flows
    assert flows["mask"].readers == (2, 3)
    cut_behind_relu = evaluate(problem, {0, 1, 2})
    assert cut_behind_relu.crossing == ("mask", "n", "h")
    sides = sides_of(topology, problem, cut_behind_relu)
    assert sides.head_steps == {0, 1, 2, 3, 4}
    assert sides.tail_steps == {3, 5}  # the mask is cast on both sides


def test_a_shape_is_sent_rather_than_the_tensor_whose_shape_it_is() -> None:
    problem = of_network(network())
    flows = {f.name: f for f in problem.flows}
    assert flows["n"].readers == (3,)
    assert "c" not in evaluate(problem, {0, 1, 2}).crossing


def test_a_tensor_without_a_size_or_barred_by_the_topology_never_crosses() -> None:
    times = [0.0] * 6
    problem = problem_of(network(), edge_s=times, cloud_s=times, sizes={"x": Size(1), "mask": Size(1)})
    with pytest.raises(InputError, match="'c' cannot be sent"):
        evaluate(problem, {0})
    topology = network()
    barred = {**topology.tensors, "h": TensorInfo("float32", (1,), barred="a sequence of tensors")}
    problem = of_network(Topology(topology.inputs, topology.outputs, topology.steps, barred))
    with pytest.raises(InputError, match="'h' cannot be sent"):
        evaluate(problem, {0, 1, 2})


def test_the_sides_of_a_placement_are_those_of_its_cut() -> None:
    topology = network()
    problem = of_network(topology)
    solution = evaluate(problem, {0, 1, 2})
    assert sides_of(topology, problem, solution) == separate(topology, solution.crossing)


def test_outputs_that_need_no_input_are_made_on_the_device() -> None:
    plain = network()
    topology = Topology(plain.inputs, ("y", "w"), plain.steps, plain.tensors)
    problem = of_network(topology)
    sides = sides_of(topology, problem, evaluate(problem, {0}))
    assert (sides.head_outputs, sides.tail_outputs) == (("w",), ("y",))
    assert 0 in sides.head_steps


def test_lists_of_the_wrong_length_and_unknown_pins_are_refused() -> None:
    times = [0.0] * 6
    with pytest.raises(InputError, match="edge_s has 2 entries for 6 steps"):
        problem_of(network(), edge_s=[0, 0], cloud_s=times, sizes={})
    with pytest.raises(InputError, match="no node 'nose'"):
        problem_of(network(), edge_s=times, cloud_s=times, sizes={}, pinned={"nose": "edge"})
