"""The lower envelope of lines a + b * x with whole coefficients, in fractions: nothing is rounded. Pure.

x is 1/uplink in nanoseconds per byte, a are nanoseconds, b are bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

from protocol.errors import InputError

NS_PER_S = 1_000_000_000
Line = tuple[int, int]
_MOST_DENOMINATOR = 10**9


def x_range(x_lo: float, x_hi: float) -> tuple[Fraction, Fraction]:
    """Seconds per byte as fractions of ns per byte (to a billionth); a range may be a single point.

    Raises InputError for what is no range.
    """
    if not 0 <= x_lo <= x_hi < float("inf"):
        raise InputError(f"the range of 1/bandwidth is [{x_lo}, {x_hi}] s/byte", "give 0 <= x_lo <= x_hi")
    low, high = ((Fraction(x) * NS_PER_S).limit_denominator(_MOST_DENOMINATOR) for x in (x_lo, x_hi))
    return low, high


def lower_hull(lines: Sequence[Line], low: Fraction, high: Fraction) -> list[int]:
    """Indices of the lines that are lowest somewhere in [low, high], in order of growing x (so of falling b).

    Ties go to the smaller b, then to the first.
    """
    order = sorted(range(len(lines)), key=lambda i: (-lines[i][1], lines[i][0], i))
    hull: list[int] = []
    for i in order:
        if hull and lines[hull[-1]][1] == lines[i][1]:
            continue  # as steep, and not lower
        while hull and not _wins_before(lines, hull, lines[i], low):
            hull.pop()
        if not hull or crossing(lines[hull[-1]], lines[i]) < high:
            hull.append(i)
    return hull


def _wins_before(lines: Sequence[Line], hull: Sequence[int], line: Line, low: Fraction) -> bool:
    """Whether the last line of the hull still is lowest somewhere before `line`, which is flatter, takes over."""
    a, b = lines[hull[-1]]
    until = (line[0] - a, b - line[1])  # a fraction with positive denominator
    if len(hull) == 1:
        return until[0] * low.denominator > low.numerator * until[1]
    before_a, before_b = lines[hull[-2]]
    since = (a - before_a, before_b - b)
    return until[0] * since[1] > since[0] * until[1]


def crossing(steep: Line, flat: Line) -> Fraction:
    return Fraction(flat[0] - steep[0], steep[1] - flat[1])


def bends(lines: Sequence[Line], hull: Sequence[int]) -> list[Fraction]:
    """Where each line of the hull hands over to the next."""
    return [crossing(lines[i], lines[j]) for i, j in itertools.pairwise(hull)]


def corners(lines: Sequence[Line], low: Fraction, high: Fraction) -> list[Fraction]:
    """Where the envelope bends, and the two ends of the range."""
    return list(dict.fromkeys([low, *bends(lines, lower_hull(lines, low, high)), high]))
