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
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from partitioner.mincut import combine, sever
from partitioner.network import NS_PER_S, Network, Totals
from partitioner.problem import Problem, Solution, evaluate
from protocol.errors import InputError

_MOST_DENOMINATOR = 10**9


class Found(NamedTuple):
    """A placement by its line: `ns` nanoseconds and `nbytes` bytes. On the device are the units before `first_open` and
    those of `inside`."""

    ns: int
    nbytes: int
    first_open: int
    inside: tuple[int, ...] = ()

    def at(self, x: Fraction) -> int:
        """Cost at x = p/q nanoseconds per byte, in units of 1/q ns."""
        return self.ns * x.denominator + self.nbytes * x.numerator

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
    """One placement under one codec rung. `optimal` if it is best somewhere in the range among those of its rung,
    codec and round trip aside; the two ends (full-cloud, edge-only) are listed even where they are not."""

    rung: str
    solution: Solution
    optimal: bool


class Stretch(NamedTuple):
    """`plan` (an index) is best between these two values of seconds per byte of uplink, all rungs together."""

    plan: int
    from_x: Fraction
    to_x: Fraction


class Plans(NamedTuple):
    """Every placement worth having, those of each rung from the fastest link to the slowest, and who wins where."""

    plans: tuple[Plan, ...]
    stretches: tuple[Stretch, ...]
    min_cuts: int


def enumerate_plans(
    problems: Mapping[str, Problem], *, x_lo: float, x_hi: float, up_over_down: float = 1.0, rtt_s: float = 0.0
) -> Plans:
    """All placements of all rungs that are best for some 1/bandwidth in [x_lo, x_hi] (seconds per byte of uplink).

    `problems` holds one problem for each codec rung: the same units with other sizes. The plans do not depend on
    `rtt_s`; the stretches do. Of placements with equal lines one is kept.
    Raises InputError for an empty range or a problem that allows no placement.
    """
    plans: list[Plan] = []
    lines: list[tuple[int, int]] = []
    min_cuts = 0
    local: int | None = None  # edge-only sends nothing, so it is the same under every rung
    for rung, problem in problems.items():
        network = Network(problem, up_over_down=up_over_down)
        proven = envelope(network, x_lo=x_lo, x_hi=x_hi)
        min_cuts += proven.min_cuts
        best = [piece.found for piece in proven.pieces]
        for found in dict.fromkeys([*best, *_ends(network)]):
            edge_only = found.first_open == network.count
            if edge_only and local is not None:
                continue
            local = len(plans) if edge_only else local
            plans.append(Plan(rung, evaluate(problem, found.on_edge), found in best))
            lines.append((found.ns + (0 if edge_only else round(rtt_s * NS_PER_S)), found.nbytes))
    low, high = _range(x_lo, x_hi)
    hull = lower_hull(lines, low, high)
    ends = (Fraction(x_lo), Fraction(x_hi))
    return Plans(tuple(plans), tuple(_stretches(lines, hull, low, high, ends)), min_cuts)


def envelope(network: Network, *, x_lo: float, x_hi: float) -> Envelope:
    """The lower envelope over all placements for x from `x_lo` to `x_hi` seconds per byte, without the round trip.

    Raises InputError if no placement is allowed.
    """
    low, high = _range(x_lo, x_hi)
    search = _Search(network, low, high)
    while corners := search.open_corners():
        # After the first round most corners prove true, so all that are open are asked at once.
        for x in corners:
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
        return [x for x in self._corners() if x not in self._proven]

    def ask(self, x: Fraction) -> None:
        """Look in every block that may hold a line below those known at x; in none there is nothing to look for."""
        blocks = self._network.blocks
        active = blocks.feasible
        if self._known:
            below = min(found.at(x) for found in self._known)
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
        for a, b, (low, inside) in zip(ns, nbytes, severed.inside(self._network), strict=True):
            self._known[Found(a, b, low, inside)] = None

    def pieces(self) -> Iterable[Piece]:
        founds, hull = self._hull()
        bends = [_crossing(*pair) for pair in itertools.pairwise((founds[i].ns, founds[i].nbytes) for i in hull)]
        for i, (from_x, to_x) in zip(hull, itertools.pairwise([self._low, *bends, self._high]), strict=True):
            yield Piece(founds[i], from_x, to_x)

    def _corners(self) -> list[Fraction]:
        """Where the envelope bends, and the two ends."""
        founds, hull = self._hull()
        bends = [_crossing(*pair) for pair in itertools.pairwise((founds[i].ns, founds[i].nbytes) for i in hull)]
        return list(dict.fromkeys([self._low, *bends, self._high]))

    def _hull(self) -> tuple[list[Found], list[int]]:
        founds = list(self._known)
        return founds, lower_hull([(f.ns, f.nbytes) for f in founds], self._low, self._high)


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


def _range(x_lo: float, x_hi: float) -> tuple[Fraction, Fraction]:
    """Seconds per byte as fractions of ns per byte; a range may be a single point."""
    if not 0 <= x_lo <= x_hi < float("inf"):
        raise InputError(f"the range of 1/bandwidth is [{x_lo}, {x_hi}] s/byte", "give 0 <= x_lo <= x_hi")
    low, high = ((Fraction(x) * NS_PER_S).limit_denominator(_MOST_DENOMINATOR) for x in (x_lo, x_hi))
    return low, high


def lower_hull(lines: Sequence[tuple[int, int]], low: Fraction, high: Fraction) -> list[int]:
    """Indices of the lines (a, b) of which a + b * x is least somewhere in [low, high], in order of growing x.

    Exact: integers are compared, never quotients. Ties go to the smaller b, then to the first.
    """
    order = sorted(range(len(lines)), key=lambda i: (-lines[i][1], lines[i][0], i))
    hull: list[int] = []
    for i in order:
        a, b = lines[i]
        if hull and lines[hull[-1]][1] == b:
            continue  # as steep, and not lower
        while hull and not _wins_before(lines, hull, (a, b), low):
            hull.pop()
        if not hull or _crossing(lines[hull[-1]], (a, b)) < high:
            hull.append(i)
    return hull


def _wins_before(lines: Sequence[tuple[int, int]], hull: Sequence[int], line: tuple[int, int], low: Fraction) -> bool:
    """Whether the last line of the hull still is lowest somewhere before `line`, which is flatter, takes over."""
    a, b = lines[hull[-1]]
    until = (line[0] - a, b - line[1])  # a fraction with positive denominator
    if len(hull) == 1:
        return until[0] * low.denominator > low.numerator * until[1]
    before_a, before_b = lines[hull[-2]]
    since = (a - before_a, before_b - b)
    return until[0] * since[1] > since[0] * until[1]


def _crossing(steep: tuple[int, int], flat: tuple[int, int]) -> Fraction:
    return Fraction(flat[0] - steep[0], steep[1] - flat[1])


def _stretches(
    lines: Sequence[tuple[int, int]],
    hull: Sequence[int],
    low: Fraction,
    high: Fraction,
    ends: tuple[Fraction, Fraction],
) -> Iterable[Stretch]:
    """The hull over all rungs in seconds per byte; `ends` are the range as it was asked for."""
    bends = [_crossing(lines[a], lines[b]) / NS_PER_S for a, b in itertools.pairwise(hull)]
    corners = [ends[0], *bends, ends[1]]
    for i, (from_x, to_x) in zip(hull, itertools.pairwise(corners), strict=True):
        yield Stretch(i, from_x, to_x)
