"""All placements that are optimal at some bandwidth, with the exact bandwidths where one takes over from another. Pure.

At x = 1/bandwidth every placement costs a ns + b bytes * x, so the least cost over x is concave and piecewise linear.
It is found as Eisner and Severance (1976) did: keep the lower envelope of the lines known so far and ask, at each
corner of it, for a line that passes below. A corner where there is none lies on the true envelope, and an envelope
all of whose corners are true is itself true, because a concave function lies nowhere below the chord. Corners are
fractions of integers and the answer at a corner is a min-cut in integers (`mincut`), so nothing is decided by
rounding.

The round trip is left out here: it is the same for every placement but edge-only, which sends nothing. A placement
that is nowhere best without it cannot become best with it (edge-only gains on all others alike), so the placements
found here together with edge-only are complete for every round trip and every queue at the gateway.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from partitioner.solver.hull import NS_PER_S, Line, bends, corners, lower_hull, x_range
from partitioner.solver.mincut import combine, sever
from partitioner.solver.network import Network, Totals
from partitioner.solver.problem import Problem, Solution, evaluate
from protocol.errors import InputError


class Found(NamedTuple):
    """A placement by its line: `ns` nanoseconds and `nbytes` bytes. Unit `first_open` is the first that is not on the
    device; `inside` are those behind it that are."""

    ns: int
    nbytes: int
    first_open: int
    inside: tuple[int, ...] = ()

    @property
    def line(self) -> Line:
        return self.ns, self.nbytes

    @property
    def on_edge(self) -> frozenset[int]:
        return frozenset(range(self.first_open)).union(self.inside)


class Piece(NamedTuple):
    """`found` costs least for every x in [from_x, to_x] nanoseconds per byte."""

    found: Found
    from_x: Fraction
    to_x: Fraction


class Envelope(NamedTuple):
    """The least cost over a range of 1/bandwidth, and how many min-cuts it took to prove."""

    pieces: tuple[Piece, ...]
    min_cuts: int


class Plan(NamedTuple):
    """One placement under one codec rung. `optimal` if it is best somewhere in the range among those of its rung, the
    round trip left out; full-cloud and edge-only are listed even where they are not."""

    rung: str
    solution: Solution
    optimal: bool


class Stretch(NamedTuple):
    """`plan` (an index) is best between these two values of seconds per byte of uplink, all rungs together."""

    plan: int
    from_x: Fraction
    to_x: Fraction


class Plans(NamedTuple):
    """Every placement worth having, those of each rung from the fastest link to the slowest, and who wins where.

    `gap` is by which share of the cost a better placement may exist somewhere in the range; 0 is proven optimal.
    """

    plans: tuple[Plan, ...]
    stretches: tuple[Stretch, ...]
    min_cuts: int
    gap: float = 0.0


def enumerate_plans(
    problems: Mapping[str, Problem], *, x_lo: float, x_hi: float, up_over_down: float = 1.0, rtt_s: float = 0.0
) -> Plans:
    """All placements of all rungs that are best for some 1/bandwidth in [x_lo, x_hi] (seconds per byte of uplink).

    `problems` holds one problem for each codec rung: the same units with other sizes. The plans do not depend on
    `rtt_s`; the stretches do. Of placements with equal lines one is kept.
    Raises InputError for an empty range or a problem that allows no placement.
    """
    collected = Collected()
    min_cuts = 0
    for rung, problem in problems.items():
        network = Network(problem, up_over_down=up_over_down)
        proven = envelope(network, x_lo=x_lo, x_hi=x_hi)
        min_cuts += proven.min_cuts
        best = [piece.found for piece in proven.pieces]
        for found in dict.fromkeys([*best, *_ends(network)]):
            collected.add(rung, problem, found.on_edge, found.line, optimal=found in best)
    return collected.plans(x_lo, x_hi, rtt_s=rtt_s, min_cuts=min_cuts)


class Collected:
    """Placements of several rungs and their lines. Edge-only sends nothing, so of all rungs' it is kept once."""

    def __init__(self) -> None:
        self._plans: list[Plan] = []
        self._lines: list[Line] = []

    @property
    def is_empty(self) -> bool:
        return not self._plans

    def add(self, rung: str, problem: Problem, on_edge: frozenset[int], line: Line, *, optimal: bool) -> None:
        plan = Plan(rung, evaluate(problem, on_edge), optimal)
        if plan.solution.cost.crosses or all(other.solution.cost.crosses for other in self._plans):
            self._plans.append(plan)
            self._lines.append(line)

    def plans(self, x_lo: float, x_hi: float, *, rtt_s: float, min_cuts: int, gap: float = 0.0) -> Plans:
        rtt_ns = round(rtt_s * NS_PER_S)
        sends = [plan.solution.cost.crosses for plan in self._plans]
        lines = [(a + rtt_ns * there, b) for (a, b), there in zip(self._lines, sends, strict=True)]
        hull = lower_hull(lines, *x_range(x_lo, x_hi))
        at = [Fraction(x_lo), *(bend / NS_PER_S for bend in bends(lines, hull)), Fraction(x_hi)]
        stretches = [Stretch(i, *between) for i, between in zip(hull, itertools.pairwise(at), strict=True)]
        return Plans(tuple(self._plans), tuple(stretches), min_cuts, gap)


def envelope(network: Network, *, x_lo: float, x_hi: float) -> Envelope:
    """The lower envelope over all placements for x from `x_lo` to `x_hi` seconds per byte, without the round trip.

    Raises InputError if no placement is allowed.
    """
    search = _Search(network, *x_range(x_lo, x_hi))
    while open_corners := search.open_corners():
        # After the first round most corners prove true, so all that are open are asked at once.
        for x in open_corners:
            search.ask(x)
    return Envelope(tuple(search.pieces()), search.min_cuts)


class _Search:
    """The lines known so far, and the corners of their envelope below which no line passes."""

    def __init__(self, network: Network, low: Fraction, high: Fraction) -> None:
        self._network, self._low, self._high = network, low, high
        self._ns, self._nbytes = network.totals(network.ns), network.totals(network.nbytes)
        self._known = dict.fromkeys(_best_prefixes(network, self._ns, self._nbytes, low, high))
        self._proven: set[Fraction] = set()
        self.min_cuts = 0

    def open_corners(self) -> list[Fraction]:
        at = corners([found.line for found in self._known], self._low, self._high)
        return [x for x in at if x not in self._proven]

    def ask(self, x: Fraction) -> None:
        """Look in every block that may hold a line below those known at x; in none there is nothing to look for."""
        active = self._network.blocks.feasible
        if self._known:
            # In units of 1/q ns, as everything at x = p/q ns per byte.
            below = min(a * x.denominator + b * x.numerator for a, b, *_ in self._known)
            active = active & np.asarray(combine(self._ns.least, self._nbytes.fixed, x) < below, dtype=bool)
        elif not active.any():
            raise InputError("no placement is allowed", "pins and tensors that cannot be sent contradict each other")
        self._proven.add(x)
        if not active.any():
            return
        self.min_cuts += 1
        severed = sever(self._network, combine(self._network.ns, self._network.nbytes, x), active)
        ns = severed.totals(self._ns.fixed, self._network.ns).tolist()
        nbytes = severed.totals(self._nbytes.fixed, self._network.nbytes).tolist()
        for a, b, (first, inside) in zip(ns, nbytes, severed.inside(self._network), strict=True):
            self._known[Found(a, b, first, inside)] = None

    def pieces(self) -> Iterable[Piece]:
        founds = list(self._known)
        lines = [found.line for found in founds]
        hull = lower_hull(lines, self._low, self._high)
        at = [self._low, *bends(lines, hull), self._high]
        for i, (from_x, to_x) in zip(hull, itertools.pairwise(at), strict=True):
            yield Piece(founds[i], from_x, to_x)


def _best_prefixes(network: Network, ns: Totals, nbytes: Totals, low: Fraction, high: Fraction) -> list[Found]:
    """Of the placements that hold the first k units, those that are best among themselves somewhere."""
    allowed = np.flatnonzero(network.feasible_prefixes).tolist()
    lines = [(int(ns.prefix[k]), int(nbytes.prefix[k])) for k in allowed]
    return [Found(*lines[i], allowed[i]) for i in lower_hull(lines, low, high)]


def _ends(network: Network) -> list[Found]:
    """Full-cloud and edge-only, where pins allow them."""
    ends = [k for k in (0, network.count) if network.feasible_prefixes[k]]
    ns, nbytes = network.totals(network.ns).prefix, network.totals(network.nbytes).prefix
    return [Found(int(ns[k]), int(nbytes[k]), k) for k in ends]
