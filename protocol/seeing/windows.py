"""The last minute: sums by the second, samples, and quantiles of them. Pure: `now` is monotonic seconds.

Quantiles are computed from the samples themselves, not read off a histogram. At most `MOST_SAMPLES` of each kind are
kept, so that above `MOST_SAMPLES / WINDOW_S` a second they cover less than the window, and say how much.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

WINDOW_S = 60
MOST_SAMPLES = 32_768  # 546 answers a second for a whole window; 1 MiB for each scope that is so busy
_TRIM_AT = 1024

Samples = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of `samples` values over the last `window_s` seconds: the smallest that at least that share does not exceed."""

    p50_s: float
    p90_s: float
    p99_s: float
    samples: int
    window_s: float


def quantiles(values: Samples, window_s: float) -> Quantiles | None:
    """P50, P90 and P99 of float64 [n], exactly, by nearest rank; None of nothing."""
    count = len(values)
    if not count:
        return None
    ranks = [-(-percent * count // 100) - 1 for percent in (50, 90, 99)]  # ceilings, in integers: 0.9 * 10 is inexact
    # Sorting uses vector instructions and takes a third of the time of a partition at three ranks.
    p50, p90, p99 = (float(x) for x in np.sort(values)[ranks])
    return Quantiles(p50, p90, p99, count, window_s)


class Recent(NamedTuple):
    """Copied samples: the seconds they cover, and the values of each kind, float64 [n], in order of arrival."""

    window_s: float
    kinds: tuple[Samples, ...]


class SampleWindow:
    """Values of one or two kinds with their times. Adding is cheap; forgetting happens in strides."""

    __slots__ = ("_at", "_first", "_lost_at", "_second", "_trim_at")

    def __init__(self) -> None:
        self._at = array("d")
        self._first = array("d")
        self._second = array("d")
        self._trim_at = _TRIM_AT
        self._lost_at = -math.inf  # when the youngest came that was forgotten for want of room

    def add(self, first: float, second: float, now: float) -> None:
        """Times may come out of order by the little that threads race."""
        self._at.append(now)
        self._first.append(first)
        self._second.append(second)
        if len(self._at) >= self._trim_at:
            self._trim(now)

    def _trim(self, now: float) -> None:
        gone = self._start(now)
        if gone:
            self._lost_at = self._at[gone - 1]
            del self._at[:gone], self._first[:gone], self._second[:gone]
        # A quarter more before the next look: forgetting costs a copy of what stays.
        self._trim_at = max(_TRIM_AT, len(self._at) + len(self._at) // 4)

    def _start(self, now: float) -> int:
        """Index of the first sample that counts."""
        return max(bisect_left(self._at, now - WINDOW_S), len(self._at) - MOST_SAMPLES)

    def copy(self, now: float) -> Recent:
        start = self._start(now)
        lost_at = self._at[start - 1] if start else self._lost_at
        whole = lost_at < now - WINDOW_S or start == len(self._at)
        window_s = float(WINDOW_S) if whole else now - self._at[start]
        # A slice is a copy; the array itself must not lend its buffer, for then it could not grow.
        return Recent(window_s, (np.frombuffer(self._first[start:]), np.frombuffer(self._second[start:])))


class Seconds:
    """Two counts for every second of the window."""

    __slots__ = ("_first", "_latest", "_second", "_started")

    def __init__(self, *, now: float) -> None:
        self._first = [0] * WINDOW_S
        self._second = [0] * WINDOW_S
        self._started = now
        self._latest = int(now)

    def add(self, first: int, second: int, now: float) -> None:
        at = int(now)
        if at > self._latest:
            self._roll(at)
        slot = at % WINDOW_S
        self._first[slot] += first
        self._second[slot] += second

    def _roll(self, at: int) -> None:
        """Empty the slots of all seconds since the latest: they hold counts of a minute ago."""
        for stale in range(max(self._latest + 1, at - WINDOW_S + 1), at + 1):
            self._first[stale % WINDOW_S] = self._second[stale % WINDOW_S] = 0
        self._latest = at

    def copy(self, now: float) -> Rates:
        at = int(now)
        if at > self._latest:
            self._roll(at)
        end = at % WINDOW_S + 1
        return Rates(
            span_s=min(max(now - self._started, 1e-3), WINDOW_S - 1 + now % 1.0),
            kinds=(tuple(self._first[end:] + self._first[:end]), tuple(self._second[end:] + self._second[:end])),
        )


class Rates(NamedTuple):
    """Copied counts of every second, oldest first; the last has only begun. They cover `span_s` seconds in all."""

    span_s: float
    kinds: tuple[tuple[int, ...], ...]


def joined(recent: Sequence[Recent]) -> Recent:
    """The samples of at least one as one. Where their windows differ, the shortest is told."""
    kinds = tuple(np.concatenate(each) for each in zip(*(r.kinds for r in recent), strict=True))
    return Recent(min(r.window_s for r in recent), kinds)


def summed(rates: Sequence[Rates]) -> Rates:
    """The counts of at least one as one, over the longest span."""
    kinds = zip(*(r.kinds for r in rates), strict=True)
    return Rates(
        span_s=max(r.span_s for r in rates),
        kinds=tuple(tuple(map(sum, zip(*seconds, strict=True))) for seconds in kinds),
    )
