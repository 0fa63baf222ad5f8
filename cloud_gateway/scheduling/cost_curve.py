"""L(b): how long a batch of b takes on one lane, as measured at warm-up and corrected by what is seen. Pure.

Between the batch sizes that were seen L is interpolated linearly, and it never falls with b. Admission and
dispatch use a high quantile and a margin, not the mean, because a mean lets half of the tight deadlines slip; what a
batch typically takes (the median) only decides what is worth a try when nothing else waits. A size that was seen a
few times says what is typical of it, not how far it spreads: that is taken from all sizes, or one slow batch of a
rare size would keep it from ever being run again. The figures are in docs/scheduling.md.
"""

from __future__ import annotations

import bisect
from collections import deque

WINDOW = 64  # samples per batch size; old ones are forgotten
QUANTILE = 0.9
FEW = 20  # samples, below which a size's own quantile is chance
MOST_MARGIN = 1.15  # beyond the quantile: as far again as it lies beyond the median, but no further than this
EXACT_UP_TO = 64  # larger batches share the entries of the powers of two
LEAST_S = 1e-9
SAME = 0.01  # relative; a curve is drawn anew only for more
KNEE_GAIN = 1.05  # a doubled batch must raise the throughput by at least this factor


class CostCurve:
    """Durations in seconds by batch size."""

    def __init__(self, quantile: float = QUANTILE) -> None:
        self._quantile = quantile
        self._samples: dict[int, deque[float]] = {}
        self._ordered: dict[int, list[float]] = {}  # the same, ascending
        self._seen: dict[int, tuple[float, float]] = {}  # of each size: the median, and how far the quantile lies above
        # (batch, seconds), never falling, and what was asked of it before: replaced together by every observation
        self._curve: tuple[list[int], list[float], dict[int, float]] = ([], [], {})
        self._middle: tuple[list[int], list[float]] = ([], [])

    @property
    def is_known(self) -> bool:
        """Whether anything was measured yet."""
        return bool(self._seen)

    def observe(self, batch: int, seconds: float) -> None:
        """One batch of `batch` rows took `seconds`."""
        if batch > EXACT_UP_TO:
            batch = 1 << (batch - 1).bit_length()
        samples = self._samples.get(batch)
        if samples is None:
            samples, self._ordered[batch] = self._samples.setdefault(batch, deque()), []
        ordered = self._ordered[batch]
        if len(samples) == WINDOW:
            del ordered[bisect.bisect_left(ordered, samples.popleft())]
        samples.append(seconds)
        bisect.insort(ordered, seconds)
        median = ordered[len(ordered) // 2]
        quantile = ordered[min(int(len(ordered) * self._quantile), len(ordered) - 1)]
        spread = quantile / max(median, LEAST_S)
        before = self._seen.get(batch)
        if before is not None and len(ordered) > FEW and _is_same(before, median, spread):
            return  # one sample of many mostly moves nothing
        self._seen[batch] = median, spread
        sizes, costs, medians = sorted(self._seen), [], []
        common = sorted(spread for _, spread in self._seen.values())[len(sizes) // 2]
        cost = middle = 0.0
        for size in sizes:
            typical, spread = self._seen[size]
            if len(self._ordered[size]) < FEW:
                spread = common
            cost, middle = max(cost, typical * spread * min(spread, MOST_MARGIN)), max(middle, typical)
            costs.append(cost)
            medians.append(middle)
        self._middle = sizes, medians
        self._curve = sizes, costs, {}  # in one step: others read it without a lock

    def predict(self, batch: int) -> float:
        """A high quantile of L(batch) with its margin; 0 when nothing was measured yet."""
        sizes, costs, known = self._curve
        seconds = known.get(batch)
        if seconds is None:
            seconds = known[batch] = _interpolate(sizes, costs, batch)
        return seconds

    def typical(self, batch: int) -> float:
        """The median of L(batch); 0 when nothing was measured yet."""
        return _interpolate(*self._middle, batch)

    def knee(self, most: int) -> int:
        """The largest measured batch of at most `most` rows that still pays: it must raise b / L(b) by KNEE_GAIN.

        The fastest sample of each size is compared: noise only ever adds time, and one slow run at warm-up must not
        cost a lane its batches.
        """
        best, throughput = 1, 0.0
        for size in sorted(self._samples):
            seen = size / max(self._ordered[size][0], LEAST_S)
            if size == 1 or (size <= most and seen > throughput * KNEE_GAIN):
                best, throughput = size, seen
        return best


def _is_same(before: tuple[float, float], median: float, spread: float) -> bool:
    """Within what nobody could tell apart."""
    return abs(median - before[0]) <= SAME * before[0] and abs(spread - before[1]) <= SAME * before[1]


def _interpolate(sizes: list[int], costs: list[float], batch: int) -> float:
    if not sizes:
        return 0.0
    at = bisect.bisect_left(sizes, batch)
    if at < len(sizes) and sizes[at] == batch:
        return costs[at]
    if at == 0:
        return costs[0]
    if at == len(sizes):
        return costs[-1] * batch / sizes[-1]  # beyond what was measured: no gain from batching is assumed
    (low, low_s), (high, high_s) = (sizes[at - 1], costs[at - 1]), (sizes[at], costs[at])
    return low_s + (high_s - low_s) * (batch - low) / (high - low)
