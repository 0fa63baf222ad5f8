"""Prediction from anchors, on a machine made of numbers: steps whose true times differ from what their kernels say."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import msgspec
import pytest
import typer

from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.graph.topology import Step, TensorInfo, Topology
from partitioner.measuring.anchors import Estimate, Predictor, choose, plain_steps, refine
from partitioner.measuring.measure import Sample, interleaved_medians, seconds_of
from partitioner.options import PlanFlags
from partitioner.planning.explore import Power
from protocol.errors import InputError
from protocol.profile import Anchor, Energy, Machine, Profile, Role, Side, StepCost, Timing, encode

COUNT = 40
FLOAT = TensorInfo("float32", (1, 1000))


def chain(count: int = COUNT) -> Topology:
    """x -> s0 -> s1 -> ... ; step i writes t<i>."""
    names = ["x", *(f"t{i}" for i in range(count))]
    steps = tuple(Step(f"s{i}", "Relu", (names[i],), (names[i + 1],)) for i in range(count))
    return Topology(("x",), (names[-1],), steps, dict.fromkeys(names, FLOAT))


class World:
    """What a machine would really take: kernels are off by a factor that drifts with depth, and a call costs extra."""

    def __init__(self, topology: Topology, *, seed: int = 1, overhead_s: float = 1e-5, rate: float = 0.0) -> None:
        rng = random.Random(seed)
        self.topology = topology
        self.overhead_s = overhead_s
        self.rate = rate
        self.kernel_s = [rng.uniform(1e-4, 1e-3) for _ in topology.steps]
        self.true_s = [s * (0.8 + 0.5 * i / len(topology.steps)) for i, s in enumerate(self.kernel_s)]

    def head_s(self, cut: tuple[str, ...]) -> float:
        return self.segment_s(separate(self.topology, cut).head_steps, cut)

    def tail_s(self, cut: tuple[str, ...]) -> float:
        return self.segment_s(separate(self.topology, cut).tail_steps, cut)

    def segment_s(self, steps: frozenset[int], cut: tuple[str, ...]) -> float:
        crossing = sum(4 * (self.topology.tensors[n].elements or 0) for n in cut)
        return self.overhead_s + sum(self.true_s[i] for i in steps) + self.rate * crossing

    @property
    def costs(self) -> dict[str, StepCost]:
        return {s.name: StepCost(k, k, s.name) for s, k in zip(self.topology.steps, self.kernel_s, strict=True)}

    def anchor(self, cut: tuple[str, ...], side: Side, peak: int | None = None) -> Anchor:
        steps = frozenset(range(len(self.topology.steps)))
        seconds = {"head": self.head_s, "tail": self.tail_s}.get(side, lambda c: self.segment_s(steps, c))(cut)
        time = Timing(seconds, 0.995 * seconds, 1.005 * seconds, 1.1 * seconds, 15)
        return Anchor(cut, side, "fp32", time, peak)

    def profile(self, cuts: list[tuple[str, ...]], side: Side) -> Profile:
        anchors = (self.anchor((), "whole", 9_000_000), *(self.anchor(c, side, 5_000_000) for c in cuts))
        machine = Machine("cpu", "x86_64", 2, "Linux", "3.11", "1.31", ())
        role: Role = "edge" if side == "head" else "cloud"
        return Profile(1, role, "net", "a" * 64, machine, 1, "2026-11-21", self.costs, anchors)


def errors(world: World, predictor: Predictor, side: Side) -> list[float]:
    found = []
    for candidate in prefix_candidates(world.topology):
        sides = separate(world.topology, candidate.cut)
        predicted = predictor.head_s(sides) if side == "head" else predictor.tail_s(sides)
        true = world.head_s(candidate.cut) if side == "head" else world.tail_s(candidate.cut)
        found.append(abs(predicted.seconds / true - 1.0))
    return found


@pytest.mark.parametrize("side", ["head", "tail"])
def test_a_few_anchors_predict_every_other_cut_within_five_percent(side: Side) -> None:
    world = World(chain())
    cuts = choose(world.topology, world.costs, 7)
    assert len(cuts) == 7
    found = errors(world, Predictor(world.profile(cuts, side), world.topology), side)
    assert sum(found) / len(found) < 0.05
    alone = errors(world, Predictor(world.profile([], side), world.topology), side)
    assert sum(found) < 0.5 * sum(alone)  # the anchors are what makes the difference


@pytest.mark.parametrize("side", ["head", "tail"])
def test_a_measured_cut_is_told_as_it_was_measured(side: Side) -> None:
    world = World(chain())
    predictor = Predictor(world.profile([("t9",)], side), world.topology)
    sides = separate(world.topology, ("t9",))
    told = predictor.head_s(sides) if side == "head" else predictor.tail_s(sides)
    time = world.anchor(("t9",), side).time
    assert told == Estimate(time.median_s, time.low_s, time.high_s)


def test_sums_of_steps_meet_the_whole_model() -> None:
    world = World(chain())
    predictor = Predictor(world.profile(choose(world.topology, world.costs, 7), "head"), world.topology)
    seconds = predictor.step_seconds()
    assert len(seconds) == len(world.topology.steps)
    assert sum(seconds) + predictor.overhead_s == pytest.approx(predictor.whole_s().seconds, rel=0.01)


def test_what_crossing_costs_is_learned_from_the_anchors() -> None:
    tensors = {
        **chain().tensors,
        "t4": TensorInfo("float32", (1, 2_000_000)),
        "t20": TensorInfo("float32", (1, 500_000)),
    }
    topology = Topology(chain().inputs, chain().outputs, chain().steps, tensors)
    world = World(topology, rate=2e-10)
    predictor = Predictor(world.profile([("t4",), ("t10",), ("t30",)], "head"), topology)
    predicted = predictor.head_s(separate(topology, ("t20",))).seconds
    assert predicted == pytest.approx(world.head_s(("t20",)), rel=0.05)


def test_an_estimate_has_an_interval_that_holds_the_truth() -> None:
    world = World(chain())
    predictor = Predictor(world.profile(choose(world.topology, world.costs, 6), "tail"), world.topology)
    inside = 0
    for candidate in prefix_candidates(world.topology):
        told = predictor.tail_s(separate(world.topology, candidate.cut))
        assert 0.0 <= told.low <= told.seconds <= told.high
        inside += told.low <= world.tail_s(candidate.cut) <= told.high
    assert inside >= 0.9 * len(prefix_candidates(world.topology))


def test_a_cut_that_was_measured_later_becomes_an_anchor() -> None:
    world = World(chain())
    first = world.profile([("t20",)], "head")
    refined = refine(first, [world.anchor(("t5",), "head")])
    near = separate(world.topology, ("t6",))
    before, after = (Predictor(p, world.topology).head_s(near).seconds for p in (first, refined))
    true = world.head_s(("t6",))
    assert abs(after - true) < abs(before - true)


def test_an_anchor_between_two_others_is_not_trusted_beyond_its_noise() -> None:
    """Two cuts a step apart: their difference is noise, and no step may get a wild factor from it."""
    world = World(chain())
    made = world.profile([("t10",), ("t11",)], "head")
    seconds = made.anchors[2].time.median_s * 0.985  # within what medians repeat by, yet below the shallower cut
    wild = Anchor(("t11",), "head", "fp32", Timing(seconds, 0.98 * seconds, 1.02 * seconds, seconds, 15))
    steps = Predictor(refine(made, [wild]), world.topology).step_seconds()
    assert 0.5 * world.true_s[11] < steps[11] < 2.0 * world.true_s[11]


#   x -> conv -> bn -> relu -> conv2        conv, bn and relu are one kernel
FUSED = Topology(
    ("x",),
    ("out",),
    (
        Step("conv", "Conv", ("x",), ("c",)),
        Step("bn", "BatchNormalization", ("c",), ("b",)),
        Step("relu", "Relu", ("b",), ("r",)),
        Step("conv2", "Conv", ("r",), ("out",)),
    ),
    dict.fromkeys(("x", "c", "b", "r", "out"), FLOAT),
)
FUSED_COSTS = {
    "conv": StepCost(0.004, 0.005, "relu"),
    "bn": StepCost(0.0, 0.002, "relu"),
    "relu": StepCost(0.0, 0.001, "relu"),
    "conv2": StepCost(0.004, 0.004, "conv2"),
}


def test_a_cut_inside_a_fused_kernel_makes_the_tail_run_the_rest_alone() -> None:
    world = World(FUSED)
    anchors = [Anchor((), "whole", "fp32", Timing(0.008, 0.008, 0.008, 0.008, 15))]
    made = refine(world.profile([], "tail"), anchors)
    made = Profile(**{f: getattr(made, f) for f in made.__struct_fields__} | {"steps": FUSED_COSTS})
    predictor = Predictor(made, FUSED)
    behind_relu, behind_conv = (predictor.tail_s(separate(FUSED, (t,))).seconds for t in ("r", "c"))
    assert behind_conv - behind_relu == pytest.approx(0.003, rel=0.05)


def test_anchors_prefer_cuts_that_break_no_fused_kernel() -> None:
    assert choose(FUSED, FUSED_COSTS, 1) == [("r",)]


def test_choosing_more_cuts_keeps_those_that_are_taken() -> None:
    world = World(chain())
    first = choose(world.topology, world.costs, 7)
    more = choose(world.topology, world.costs, 14, taken=first)
    assert not set(first) & set(more)
    assert 3 <= len(more) <= 14


def test_peak_memory_lies_between_the_anchors_around_it() -> None:
    world = World(chain())
    predictor = Predictor(world.profile([("t10",)], "head"), world.topology)
    peak = predictor.peak_memory_nbytes(separate(world.topology, ("t20",)), "head")
    assert peak is not None
    assert 0 < peak <= 9_000_000
    bare = refine(world.profile([], "head"), [world.anchor((), "whole")])
    assert Predictor(bare, world.topology).peak_memory_nbytes(separate(world.topology, ("t20",)), "head") is None


def test_a_device_is_planned_with_the_power_that_its_sensor_read_unless_another_is_declared(tmp_path: Path) -> None:
    made = msgspec.structs.replace(World(chain()).profile([], "head"), role="edge")
    bare, metered = tmp_path / "bare.json", tmp_path / "metered.json"
    bare.write_bytes(encode(made))
    metered.write_bytes(encode(msgspec.structs.replace(made, energy=Energy("rapl", 0.1, 5.0))))
    assert PlanFlags(edge=metered, max_joules=1.0).search().power == Power(5.0, 0.0)
    assert PlanFlags(edge=metered, device_watts=7.0, max_joules=1.0).search().power == Power(7.0, 0.0)
    assert not PlanFlags(edge=bare).search().power.is_known
    with pytest.raises(typer.BadParameter, match="an --edge profile with energy"):
        PlanFlags(edge=bare, max_joules=1.0).search()


def test_batches_of_a_tail_are_shaped_like_the_nearest_measured_ones() -> None:
    world = World(chain())
    whole, deep = world.anchor((), "whole"), world.anchor(("t30",), "tail")
    whole, deep = (
        Anchor(a.cut, a.side, a.precision, a.time, None, ((1, a.time.median_s), (4, factor * a.time.median_s)))
        for a, factor in ((whole, 4.0), (deep, 2.0))
    )
    predictor = Predictor(refine(world.profile([], "tail"), [whole, deep]), world.topology)
    for cut, factor in ((("t1",), 4.0), (("t32",), 2.0)):
        sides = separate(world.topology, cut)
        seconds = predictor.tail_s(sides).seconds
        assert dict(predictor.tail_batches(sides)) == pytest.approx({1: seconds, 4: factor * seconds})
    assert Predictor(world.profile([], "tail"), world.topology).tail_batches(sides) == ()


def test_a_profile_that_does_not_know_a_step_or_a_precision_is_refused() -> None:
    world = World(chain())
    with pytest.raises(InputError, match="knows nothing of step 's40'"):
        Predictor(world.profile([], "head"), chain(COUNT + 1))
    with pytest.raises(InputError, match="no anchor in int8"):
        Predictor(world.profile([], "head"), world.topology, precision="int8")


def test_an_anchor_whose_cut_no_longer_separates_is_passed_over() -> None:
    world = World(chain())
    gone = world.anchor(("t5",), "head")
    made = refine(world.profile([("t20",)], "head"), [Anchor(("gone",), "head", "fp32", gone.time)])
    assert Predictor(made, world.topology).head_s(separate(world.topology, ("t6",))).seconds > 0


def test_plain_steps_leave_out_what_depends_on_no_input() -> None:
    steps = (Step("k", "Exp", ("w",), ("v",)), Step("mul", "Mul", ("x", "v"), ("out",)))
    topology = Topology(("x",), ("out",), steps, dict.fromkeys(("x", "w", "v", "out"), FLOAT))
    assert [(s.name, s.inputs) for s in plain_steps(topology)] == [("mul", ("x",))]


# ---- plain medians ---------------------------------------------------------------------------------------------------


def test_work_of_one_thread_is_timed_by_its_own_clock_which_a_neighbour_cannot_slow() -> None:
    undisturbed, preempted = Sample(0.010, 0.010, 0.010), Sample(0.030, 0.010, 0.010)
    assert seconds_of([undisturbed, preempted, preempted]) == [0.010] * 3


def test_runs_that_seem_to_cost_nothing_since_the_host_took_the_processor_are_timed_by_the_wall() -> None:
    usual, after_a_theft = Sample(0.010, 0.010, 0.010), Sample(0.011, 0.0, 0.0)
    assert seconds_of([usual, after_a_theft, after_a_theft]) == [0.010, 0.011, 0.011]


def test_work_of_several_threads_and_waiting_are_timed_by_the_wall() -> None:
    assert seconds_of([Sample(0.010, 0.010, 0.020)]) == [0.010]
    assert seconds_of([Sample(0.010, 0.006, 0.012)] * 3) == [0.010] * 3
    assert seconds_of([Sample(0.010, 0.001, 0.001)] * 3) == [0.010] * 3


def test_works_are_measured_in_turn_and_each_gets_its_median() -> None:
    turns: list[str] = []
    long = lambda: turns.append(str(sum(range(20_000))))  # noqa: E731
    times = interleaved_medians({"short": lambda: turns.append("s"), "long": long})
    assert times["short"] < times["long"]
    changes = sum(a != b for a, b in itertools.pairwise(turns))
    assert changes >= 2 * 4  # not one after the other
