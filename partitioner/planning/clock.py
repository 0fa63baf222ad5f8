"""Seconds on either side, as far as they are known now: profiles, corrected by every cut that is measured here.

A side is *here* when no profile was given for it: then it is profiled on this machine, the heads and tails that are
built become anchors of its profile, and what was measured counts. A side that was profiled elsewhere is only predicted;
this machine's times say nothing about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from partitioner.graph.cuts import separate
from partitioner.graph.topology import Topology
from partitioner.measuring.anchors import Predictor, refine
from partitioner.measuring.profile import ProfileOrder, measure
from partitioner.planning.costs import EDGE_ONLY, FULL_CLOUD, Seconds, time_graphs
from partitioner.planning.ends import Ends
from partitioner.planning.workshop import Segment, Workshop
from protocol.bench import Reporter
from protocol.profile import Anchor, Profile, Role, Side, Timing


@dataclass
class _Known:
    """One side's profile in the precision that ships, and what it predicts."""

    profile: Profile
    precision: str
    predictor: Predictor

    def learn(self, topology: Topology, cut: tuple[str, ...], side: Side, seconds: float) -> None:
        timing = Timing(seconds, seconds, seconds, seconds, 1)
        self.profile = refine(self.profile, [Anchor(cut, side, self.precision, timing)])
        self.predictor = Predictor(self.profile, topology, precision=self.precision)


@dataclass(frozen=True)
class Machines:
    """Profiles of the machines that are planned for, by role, where they are not this one; else the declared factor by
    which the device is slower than this machine, and the seconds that profiling this machine may take.
    """

    profiles: Mapping[Role, Profile] = field(default_factory=dict)
    slowdown: float = 1.0
    budget_s: float = 15.0


class Clock:
    """What every step, every built cut and both ends take on the machines that are planned for, in seconds."""

    def __init__(self, shop: Workshop, ends: Ends, machines: Machines, reporter: Reporter) -> None:
        self._shop, self._ends, self._machines, self._reporter = shop, ends, machines, reporter
        reporter.stage("timing the whole model")
        self._here = time_graphs(shop, ends, {})
        self._known: dict[Role, _Known] = {}

    @property
    def slowdown(self) -> float:
        """How many times slower the device is than this machine: declared, or as its profile shows."""
        if "edge" not in self._machines.profiles:
            return self._machines.slowdown
        return self._side("edge").predictor.whole_s().seconds / self._here[EDGE_ONLY].head_s

    def edge_s(self) -> tuple[float, ...]:
        """Seconds of every step of the topology on the device."""
        factor = 1.0 if "edge" in self._machines.profiles else self._machines.slowdown
        return tuple(factor * s for s in self._side("edge").predictor.step_seconds())

    def cloud_s(self) -> tuple[float, ...]:
        """Seconds of every step of the topology at the gateway."""
        return self._side("cloud").predictor.step_seconds()

    @property
    def knows_both_sides(self) -> bool:
        """Whether both sides have a profile by now."""
        return len(self._known) == 2

    def spread(self, role: Role) -> float:
        """How far the 95th percentile of single runs lies from the median on this side, relatively: the whole model's
        own runs show it."""
        known = self._side(role)
        whole = known.profile.whole(known.precision) or known.profile.whole()
        return 0.0 if whole is None else whole.time.spread

    def whole(self) -> dict[str, Seconds]:
        """Both ends."""
        return self._there({}, self._here)

    def time(self, segments: Mapping[str, Segment]) -> dict[str, Seconds]:
        """Both ends and the segments, timed in turn; a side that was profiled elsewhere is predicted.

        What the ends took in the first session is the yardstick of later ones, so that the machine's mood cancels.
        """
        seen = time_graphs(self._shop, self._ends, segments)
        edge = self._here[EDGE_ONLY].head_s / seen[EDGE_ONLY].head_s
        cloud = self._here[FULL_CLOUD].tail_s / seen[FULL_CLOUD].tail_s
        levelled = {name: Seconds(s.head_s * edge, s.tail_s * cloud) for name, s in seen.items()}
        return self._there(segments, levelled)

    def learn(self, segment: Segment, seconds: Seconds) -> None:
        """Count a built cut as an anchor of the sides that are this machine."""
        topology = self._shop.model.topology
        if "edge" not in self._machines.profiles:
            self._side("edge").learn(topology, segment.cut, "head", seconds.head_s / self._machines.slowdown)
        if "cloud" not in self._machines.profiles:
            self._side("cloud").learn(topology, segment.cut, "tail", seconds.tail_s)

    def _there(self, segments: Mapping[str, Segment], here: Mapping[str, Seconds]) -> dict[str, Seconds]:
        """Seconds here as seconds there."""
        profiles, slowdown = self._machines.profiles, self.slowdown
        found = {name: Seconds(s.head_s * slowdown, s.tail_s) for name, s in here.items()}
        if "cloud" in profiles:
            found[FULL_CLOUD] = Seconds(0.0, self._side("cloud").predictor.whole_s().seconds)
        for name, segment in segments.items():
            sides = separate(self._shop.model.topology, segment.cut, on_device=self._shop.on_device)
            head_s, tail_s = found[name]
            head_s = self._side("edge").predictor.head_s(sides).seconds if "edge" in profiles else head_s
            tail_s = self._side("cloud").predictor.tail_s(sides).seconds if "cloud" in profiles else tail_s
            found[name] = Seconds(head_s, tail_s)
        return found

    def _side(self, role: Role) -> _Known:
        if role not in self._known:
            self._known[role] = self._learn_from_scratch(role)
        return self._known[role]

    def _learn_from_scratch(self, role: Role) -> _Known:
        topology = self._shop.model.topology
        precision = self._ends.edge_precision if role == "edge" and self._shop.times_heads else "fp32"
        profile = self._machines.profiles.get(role) or self._profile_here(role, precision)
        # A device that was profiled in fp32 alone is predicted in fp32: not faster than it will be.
        known = precision if precision in profile.precisions else "fp32"
        return _Known(profile, known, Predictor(profile, topology, precision=known))

    def _profile_here(self, role: Role, precision: str) -> Profile:
        shop = self._shop
        order = ProfileOrder(
            Path(shop.model.name),
            role,
            budget_s=self._machines.budget_s,
            threads=shop.threads if role == "edge" else shop.tail_threads,
            precisions=tuple(dict.fromkeys(("fp32", precision))),
            memory=False,
            batches=False,
        )
        return measure(shop.model, shop.samples, order, self._reporter)
