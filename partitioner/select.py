"""Which cuts to measure and which to keep. Pure: estimates and measured costs in, names out.

    shortlist   every candidate, by estimate, over the range of bandwidths ->  a bounded sample, most promising first
    keep        measured costs                                             ->  at most three cuts that win somewhere

Winning means being lowest at some bandwidth between 1 and 200 Mbit/s, full-cloud and edge-only competing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from partitioner.cuts import Candidate
from protocol.latency import Line, PlacementCost, line_of, lower_envelope

SLOWEST_MBIT = 1.0
FASTEST_MBIT = 200.0
MAX_KEPT = 3
MAX_MEASURED = 12
MAX_FINALISTS = 6
NEAR = 1.3
# Guesses that only order the shortlist: INT8 heads ran at 0.5-1.1 of fp32, codes took 0.2-0.8 bytes an element.
INT8_GUESS = 0.7
CODED_GUESS = 0.5
MAX_INPUT_MULTIPLE = 4.0
_GRID = 48


def seconds_per_byte(mbit: float) -> float:
    return 8.0 / (mbit * 1e6)


def mbit_at(seconds_per_byte_: float) -> float:
    return 8.0 / (seconds_per_byte_ * 1e6)


def grid() -> list[float]:
    """Seconds per byte at bandwidths spread evenly on a logarithmic scale, fastest first."""
    step = math.log(FASTEST_MBIT / SLOWEST_MBIT) / (_GRID - 1)
    return [seconds_per_byte(FASTEST_MBIT * math.exp(-step * i)) for i in range(_GRID)]


class Guess(NamedTuple):
    """What the shortlist assumes: the whole model's time here in seconds, and the raw input's bytes."""

    model_s: float
    input_nbytes: int
    edge_slowdown: float
    rtt_s: float


def shortlist(candidates: Sequence[Candidate], guess: Guess, *, limit: int = MAX_MEASURED) -> list[Candidate]:
    """At most `limit` candidates worth measuring, most promising first.

    Half are those with the best estimates at some bandwidth; the rest is spread over the depth, because estimates err.
    """
    worthy = [c for c in _last_of_equals(candidates) if _small_enough(c, guess)]
    lines = [_estimate(c, guess) for c in worthy]
    order: dict[int, None] = {}
    for rank in range(max(1, limit // 2)):
        for x in grid()[:: _GRID // 8]:
            by_latency = sorted(range(len(worthy)), key=lambda i: (lines[i].at(x), i))
            if rank < len(by_latency) and len(order) < limit // 2:
                order[by_latency[rank]] = None
    for i in _spread(len(worthy), limit):
        if len(order) < limit:
            order[i] = None
    return [worthy[i] for i in order]


def _last_of_equals(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Of neighbours with equal bytes and nearly equal depth (Conv, then its Relu) only the last, which codes best."""
    kept: list[Candidate] = []
    for candidate in candidates:
        same = kept and kept[-1].wire_nbytes == candidate.wire_nbytes and candidate.share - kept[-1].share < 0.01
        if same:
            kept.pop()
        kept.append(candidate)
    return kept


def _small_enough(candidate: Candidate, guess: Guess) -> bool:
    return candidate.wire_nbytes is None or candidate.wire_nbytes <= MAX_INPUT_MULTIPLE * guess.input_nbytes


def _estimate(candidate: Candidate, guess: Guess) -> Line:
    head_s = candidate.share * guess.model_s * INT8_GUESS * guess.edge_slowdown
    tail_s = (1.0 - candidate.share) * guess.model_s
    nbytes = CODED_GUESS * (candidate.wire_nbytes or guess.input_nbytes)
    return Line(head_s + tail_s + guess.rtt_s, nbytes)


def _spread(count: int, limit: int) -> list[int]:
    """Indices over 0..count-1 at even distances, coarse ones first."""
    if count == 0:
        return []
    order: dict[int, None] = {}
    parts = 2
    while len(order) < min(count, limit) and parts <= 4 * max(count, limit):
        for k in range(1, parts, 2):
            order[min(count - 1, round(k * count / parts))] = None
        parts *= 2
    for i in range(count):
        order[i] = None
    return list(order)


class Stretch(NamedTuple):
    """`id` is best between these bandwidths (Mbit/s), the faster one first."""

    id: str
    from_mbit: float
    to_mbit: float


def plan(costs: Mapping[str, PlacementCost], *, rtt_s: float) -> list[Stretch]:
    """Who wins where between 200 and 1 Mbit/s, fastest link first."""
    names = list(costs)
    lines = [line_of(costs[n], rtt_s=rtt_s) for n in names]
    pieces = lower_envelope(lines, seconds_per_byte(FASTEST_MBIT), seconds_per_byte(SLOWEST_MBIT))
    return [Stretch(names[p.line], mbit_at(p.from_x), mbit_at(p.to_x)) for p in pieces]


def finalists(
    ends: Mapping[str, PlacementCost], cuts: Mapping[str, PlacementCost], *, rtt_s: float, limit: int = MAX_FINALISTS
) -> list[str]:
    """The cuts that win, or come so near that measuring them side by side may decide otherwise; best first.

    At least one, at most `limit`: measured minutes apart, two times differ by 10-50 % on a machine that others use.
    """
    ratios = _ratios(ends, cuts, rtt_s=rtt_s)
    order = sorted(cuts, key=lambda n: ratios[n])
    return order[:1] + [n for n in order[1:limit] if ratios[n] <= NEAR]


class Kept(NamedTuple):
    """The cuts to keep, best gain first, and how many more would have won somewhere."""

    cuts: tuple[str, ...]
    dropped: tuple[str, ...]


def keep(
    ends: Mapping[str, PlacementCost], cuts: Mapping[str, PlacementCost], *, rtt_s: float, limit: int = MAX_KEPT
) -> Kept:
    """Choose up to `limit` cuts, one after the other, by the mean relative latency each takes off what is there."""
    winners = {s.id for s in plan({**ends, **cuts}, rtt_s=rtt_s)} & set(cuts)
    chosen: dict[str, PlacementCost] = {}
    while len(chosen) < min(limit, len(winners)):
        there = {**ends, **chosen}
        gains = {n: gain(there, cuts[n], rtt_s=rtt_s) for n in cuts if n in winners and n not in chosen}
        best = max(gains, key=lambda n: gains[n])
        chosen[best] = cuts[best]
    return Kept(tuple(chosen), tuple(n for n in cuts if n in winners and n not in chosen))


def gain(there: Mapping[str, PlacementCost], cost: PlacementCost, *, rtt_s: float) -> float:
    """Mean over bandwidths of the share of latency that one more placement saves; 0 where it does not win."""
    lines = [line_of(c, rtt_s=rtt_s) for c in there.values()]
    line = line_of(cost, rtt_s=rtt_s)
    savings = []
    for x in grid():
        before = min(other.at(x) for other in lines)
        savings.append(max(0.0, 1.0 - line.at(x) / before) if before > 0 else 0.0)
    return sum(savings) / len(savings)


def closest(ends: Mapping[str, PlacementCost], cuts: Mapping[str, PlacementCost], *, rtt_s: float) -> tuple[str, float]:
    """The cut that comes nearest to winning, and its best ratio of latency to the better end (1.1: 10 % slower)."""
    ratios = _ratios(ends, cuts, rtt_s=rtt_s)
    best = min(ratios, key=lambda n: ratios[n])
    return best, ratios[best]


def _ratios(ends: Mapping[str, PlacementCost], cuts: Mapping[str, PlacementCost], *, rtt_s: float) -> dict[str, float]:
    """For each cut the least ratio, over all bandwidths, of its latency to the better end's."""
    lines = [line_of(c, rtt_s=rtt_s) for c in ends.values()]
    return {
        name: min(line_of(cost, rtt_s=rtt_s).at(x) / max(min(o.at(x) for o in lines), 1e-12) for x in grid())
        for name, cost in cuts.items()
    }
