"""L(b): how long a batch of b takes on one lane, as measured at warm-up and corrected by what is seen. Pure.

Between the batch sizes that were seen L is interpolated linearly, and it never falls with b. Admission and
dispatch use a high quantile, not the mean: at 120 % load that is the difference between 77 and 80 % goodput with
nothing answered late (simulated), because a mean lets half of the tight deadlines slip.
"""

from __future__ import annotations

import bisect
from collections import deque

WINDOW = 64  # samples per batch size; old ones are forgotten
QUANTILE = 0.9
EXACT_UP_TO = 64  # larger batches share the entries of the powers of two
KNEE_GAIN = 1.05  # a doubled batch must raise the throughput by at least this factor


class CostCurve:
    """Durations in seconds by batch size."""

    def __init__(self, quantile: float = QUANTILE) -> None:
        self._quantile = quantile
        self._samples: dict[int, deque[float]] = {}
        self._ordered: dict[int, list[float]] = {}  # the same, ascending
        # (batch, seconds), never falling, and what was asked of it before: replaced together by every observation
        self._curve: tuple[list[int], list[float], dict[int, float]] = ([], [], {})

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
        floor = 0.0
        sizes, costs = sorted(self._ordered), []
        for size in sizes:
            seen = self._ordered[size]
            floor = max(floor, seen[min(int(len(seen) * self._quantile), len(seen) - 1)])
            costs.append(floor)
        self._curve = sizes, costs, {}  # in one step: others read it without a lock

    def predict(self, batch: int) -> float:
        """A high quantile of L(batch); 0 when nothing was measured yet."""
        sizes, costs, known = self._curve
        seconds = known.get(batch)
        if seconds is None:
            seconds = known[batch] = _interpolate(sizes, costs, batch)
        return seconds

    def knee(self, most: int) -> int:
        """The largest measured batch of at most `most` rows that still pays: it must raise b / L(b) by KNEE_GAIN.

        The fastest sample of each size is compared: noise only ever adds time, and one slow run at warm-up must not
        cost a lane its batches.
        """
        best, throughput = 1, 0.0
        for size in sorted(self._samples):
            seen = size / max(min(self._samples[size]), 1e-9)
            if size == 1 or (size <= most and seen > throughput * KNEE_GAIN):
                best, throughput = size, seen
        return best


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
