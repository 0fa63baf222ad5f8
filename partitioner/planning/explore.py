"""Which cuts to build: solve exactly, build and measure what can be best, correct the costs, solve again until stable.

    sizes       every tensor coded under every rung          (sizes.py)
    clock       seconds of every step on either side         (clock.py), corrected by what is measured
    solve       exact: all placements optimal at some bandwidth, per rung, within the constraints   (budgets.py)
    assemble    split, quantise, prove, judge each rung      (assemble.py); what loses too much is not asked again

`Explorer` holds what does not depend on the link and the device, so that several situations may share it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from partitioner.graph.cuts import separate
from partitioner.graph.topology import Topology
from partitioner.planning.assemble import assemble
from partitioner.planning.clock import Clock, Machines
from partitioner.planning.costs import Families, Seconds, costs_of
from partitioner.planning.ends import Ends
from partitioner.planning.sizes import DECORRELATED, LOSSLESS, Sizes, measure_sizes, milder
from partitioner.planning.workshop import Segment, Workshop
from partitioner.solver.budgets import Setting, plans_within
from partitioner.solver.constraints import Conflict, Constraints
from partitioner.solver.parametric import Plans
from partitioner.solver.problem import Problem, Side, Size, problem_of
from protocol.bench import Reporter
from protocol.errors import AccuracyRefusedError, EngineError, InputError, ModelError
from protocol.latency import PlacementCost
from protocol.plan import PlanConditions, seconds_per_byte, under
from protocol.tensors import DTYPES

MAX_ROUNDS = 6
MAX_CUTS = 16


class Cut(NamedTuple):
    """A cut to build: the tensors that cross, and whether they are decorrelated on the way."""

    tensors: tuple[str, ...]
    decorrelated: bool = False

    @property
    def name(self) -> str:
        return ",".join(self.tensors) + (" decorrelated" if self.decorrelated else "")


@dataclass(frozen=True)
class Power:
    """Declared energy of the device: while it computes, in watts, and for a byte on the radio, in joules."""

    compute_w: float = 0.0
    radio_j_per_byte: float = 0.0

    @property
    def is_known(self) -> bool:
        return self.compute_w > 0 or self.radio_j_per_byte > 0


@dataclass(frozen=True)
class Search:
    """What the search may use (seconds, cuts), for which machines and links, and what every placement must keep."""

    machines: Machines = Machines()
    scope: PlanConditions = PlanConditions(rtt_s=0.010)
    constraints: Constraints = Constraints()
    power: Power = Power()
    budget_s: float = 60.0
    max_cuts: int = MAX_CUTS
    memory: bool = True  # measure peaks, each in a process of its own
    keep_best: bool = False


@dataclass
class Explorer:
    """Everything that was built and measured, by cut; `problems` says why a cut could not be built."""

    shop: Workshop
    ends: Ends
    sizes: Sizes
    clock: Clock
    segments: dict[Cut, Segment] = field(default_factory=dict)
    seconds: dict[Cut, Seconds] = field(default_factory=dict)
    problems: dict[Cut, str] = field(default_factory=dict)
    rounds: int = 0
    min_cuts: int = 0
    gap: float = 0.0
    stable: bool = False

    @classmethod
    def open(cls, shop: Workshop, ends: Ends, machines: Machines, reporter: Reporter) -> Explorer:
        """Measure what every situation shares: the size of every tensor under every rung, and the whole model."""
        reporter.stage("coding every tensor under every rung")
        sizes = measure_sizes(shop, reporter.progress)
        return cls(shop, ends, sizes, Clock(shop, ends, machines, reporter))

    def run(self, search: Search, reporter: Reporter, *, until: float) -> None:
        """Solve and measure in turn until nothing new can win, `until` (monotonic seconds) or the cuts run out.

        Raises InputError when the constraints contradict each other.
        """
        self.stable, budget = False, search.max_cuts + len(self.segments) + len(self.problems)
        for number in range(1, MAX_ROUNDS + 1):
            self.rounds += 1
            reporter.stage(f"round {number}: solving for every bandwidth")
            fresh = [c for c in self._wanted(search) if c not in self.segments and c not in self.problems]
            if not fresh:
                self.stable = True
                return
            for done, cut in enumerate(fresh):
                tried = len(self.segments) + len(self.problems)
                if tried >= budget or (time.monotonic() > until and self.segments):
                    return
                reporter.stage(f"round {number}: measuring {cut.name}")
                reporter.progress(done, len(fresh))
                self._try(cut)

    def costs(self) -> Families:
        """Every line that was measured, each cut under its tensors joined with commas."""
        segments = {cut.name: segment for cut, segment in self.segments.items()}
        seconds = self.clock.whole() | {cut.name: s for cut, s in self.seconds.items()}
        found = costs_of(self.ends, segments, seconds, slowdown=self.clock.slowdown)
        return {n: {id_: self.with_spread(c) for id_, c in family.items()} for n, family in found.items()}

    def with_spread(self, cost: PlacementCost) -> PlacementCost:
        """The cost with what either side's runs spread."""
        return cost.spread(edge=self.clock.spread("edge"), tail=self.clock.spread("cloud"))

    def share(self, cut: Cut) -> float:
        """Of the estimated compute, how much the head does."""
        topology = self.shop.model.topology
        head_steps = separate(topology, cut.tensors, on_device=self.shop.on_device).head_steps
        return sum(topology.work[i] for i in head_steps) / (sum(topology.work) or 1.0)

    def _wanted(self, search: Search) -> list[Cut]:
        wanted = self._solve(search, {})
        if not wanted and not self.segments:  # nothing can win, but by how much does the nearest one lose?
            wanted = self._solve(search, _ends_apart(self.shop.model.topology))
        return wanted

    def _solve(self, search: Search, pinned: Mapping[str, Side]) -> list[Cut]:
        """The cuts of all placements that are optimal at some bandwidth of the scope, under some rung."""
        scope, inputs = search.scope, set(self.shop.model.topology.inputs)
        problems = {rung: self._problem(rung, search, pinned) for rung in self.sizes}
        solved = plans_within(
            problems,
            search.constraints,
            x_lo=seconds_per_byte(scope.fastest_mbit),
            x_hi=seconds_per_byte(scope.slowest_mbit),
            setting=self._setting(scope),
        )
        if isinstance(solved, Conflict):
            if pinned:
                return []
            raise InputError(str(solved), "loosen one of them")
        self.min_cuts += solved.min_cuts
        self.gap = max(self.gap, solved.gap)
        return [cut for cut in self._by_rank(solved) if cut.tensors and not set(cut.tensors) <= inputs]

    def _by_rank(self, solved: Plans) -> list[Cut]:
        """Distinct cuts: what wins when all rungs compete first, since the budget may end; deep ones before early ones,
        for what fails there need not be tried earlier."""
        on_top = {s.plan for s in solved.stretches}
        depth = [len(plan.solution.on_edge) for plan in solved.plans]
        order = sorted(range(len(solved.plans)), key=lambda i: (i not in on_top, -depth[i]))
        plans = (solved.plans[i] for i in order)
        return list(dict.fromkeys(self._cut(plan.rung, plan.solution.crossing) for plan in plans))

    def _cut(self, rung: str, tensors: tuple[str, ...]) -> Cut:
        """Under the rung of transforms a cut is decorrelated if its one tensor has a size of its own there."""
        alone = rung == DECORRELATED and len(tensors) == 1 and tensors[0] in self.sizes[rung]
        return Cut(tensors, alone and self.sizes[rung][tensors[0]] not in self._plain_sizes(tensors[0]))

    def _plain_sizes(self, name: str) -> list[Size]:
        return [sizes[name] for rung, sizes in self.sizes.items() if rung != DECORRELATED and name in sizes]

    def _setting(self, scope: PlanConditions) -> Setting:
        # What a rung loses depends on the cut: cuts that lose too much are refused when they were built and judged.
        return Setting(
            rtt_s=scope.rtt_s,
            queue_s=scope.queue_s,
            up_over_down=scope.up_over_down,
            accuracy=dict.fromkeys(self.sizes, 1.0),
        )

    def _problem(self, rung: str, search: Search, pinned: Mapping[str, Side]) -> Problem:
        topology, power = self.shop.model.topology, search.power
        # One second of either side under the conditions that are planned for: load, quantile, declared factors.
        one = under(self.with_spread(PlacementCost(edge_s=1.0, tail_s=1.0)), search.scope)
        encoding = self.clock.slowdown * one.edge_s
        edge_s = self.clock.edge_s()
        return problem_of(
            topology,
            edge_s=[s * one.edge_s for s in edge_s],
            cloud_s=[s * one.tail_s for s in self.clock.cloud_s()],
            sizes={
                n: s._replace(encode_s=s.encode_s * encoding, decode_s=s.decode_s * one.tail_s)
                for n, s in self.sizes[rung].items()
            },
            memory_nbytes=weights_nbytes(topology),
            energy_j=[s * power.compute_w for s in edge_s],
            pinned=pinned,
            radio_j_per_byte=power.radio_j_per_byte,
        )

    def _try(self, cut: Cut) -> None:
        """Build and time one cut; what it shows about time and accuracy corrects the next round."""
        try:
            segment = assemble(self.shop, cut.tensors, decorrelated=cut.decorrelated)
            seconds = self.clock.time({"cut": segment})["cut"]
        except (ModelError, EngineError, AccuracyRefusedError) as error:
            self.problems[cut] = error.fact
            self._give_up(cut)
            return
        self.segments[cut], self.seconds[cut] = segment, seconds
        if cut.decorrelated:
            least = min((v.coding for v in segment.variants), key=lambda coding: coding.nbytes)
            self.sizes[DECORRELATED][cut.tensors[0]] = Size(least.nbytes, least.encode_s, least.decode_s)
            return
        self.clock.learn(segment, seconds)
        self._doubt(cut, {variant.rung for variant in segment.variants})

    def _doubt(self, cut: Cut, kept: Collection[str]) -> None:
        """Coarser rungs than those that held here will not hold before it either, where tensors matter more.

        That is a rule of thumb, seen on every network measured; without it the solver hopes for the coarsest rung at
        one early tensor after the other, and each costs seconds to try.
        """
        ladder = [rung for rung in self.sizes if rung not in (LOSSLESS, DECORRELATED)]
        held = max((i for i, rung in enumerate(ladder) if rung in kept), default=-1)
        topology = self.shop.model.topology
        head = separate(topology, cut.tensors, on_device=self.shop.on_device).head_steps
        names = {*cut.tensors, *(name for i in head for name in topology.steps[i].outputs)}
        for rung in ladder[held + 1 :]:
            for name in names & self.sizes[rung].keys():
                self.sizes[rung][name] = self.sizes[milder(self.sizes, rung)][name]

    def _give_up(self, cut: Cut) -> None:
        """What could not be built never crosses again that way: the solver finds what is best without it."""
        if cut.decorrelated:
            name = cut.tensors[0]
            if plain := self._plain_sizes(name):  # none where it was given up without a transform before
                self.sizes[DECORRELATED][name] = plain[-1]
            return
        for tensors in self.sizes.values():
            for name in cut.tensors:
                tensors.pop(name, None)


def weights_nbytes(topology: Topology) -> list[int]:
    """Bytes of the constants that each step reads; a constant that several read counts for the first."""
    seen: set[str] = set()
    found = []
    for step in topology.steps:
        fresh = [n for n in dict.fromkeys(step.inputs) if n not in topology.live and n not in seen]
        seen.update(fresh)
        found.append(sum(_nbytes(topology, name) for name in fresh))
    return found


def _nbytes(topology: Topology, name: str) -> int:
    info = topology.tensors.get(name)
    if info is None or info.elements is None or info.dtype is None:
        return 0
    return info.elements * DTYPES[info.dtype].itemsize


def _ends_apart(topology: Topology) -> dict[str, Side]:
    """The first step on the device and the last one at the gateway, so that every placement is a cut."""
    placed = [i for i in topology.live_steps if i not in topology.recomputed]
    return {topology.steps[placed[0]].name: "edge", topology.steps[placed[-1]].name: "cloud"} if placed else {}
