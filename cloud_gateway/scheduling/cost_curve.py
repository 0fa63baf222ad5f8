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

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._quantiles: dict[int, float] = {}
        self._points: list[tuple[int, float]] = []  # (batch, seconds), never falling

    def observe(self, batch: int, seconds: float) -> None:
        """One batch of `batch` rows took `seconds`."""
        if batch > EXACT_UP_TO:
            batch = 1 << (batch - 1).bit_length()
        samples = self._samples.setdefault(batch, deque(maxlen=WINDOW))
        samples.append(seconds)
        ordered = sorted(samples)
        self._quantiles[batch] = ordered[min(int(len(ordered) * QUANTILE), len(ordered) - 1)]
        floor, points = 0.0, []
        for size in sorted(self._quantiles):
            floor = max(floor, self._quantiles[size])
            points.append((size, floor))
        self._points = points  # in one step: the frontend reads it without the lane's lock

    def predict(self, batch: int) -> float:
        """A high quantile of L(batch); 0 when nothing was measured yet."""
        points = self._points
        if not points:
            return 0.0
        sizes = [size for size, _ in points]
        at = bisect.bisect_left(sizes, batch)
        if at < len(points) and sizes[at] == batch:
            return points[at][1]
        if at == 0:
            return points[0][1]
        if at == len(points):
            size, seconds = points[-1]
            return seconds * batch / size  # beyond what was measured: no gain from batching is assumed
        (low, low_s), (high, high_s) = points[at - 1], points[at]
        return low_s + (high_s - low_s) * (batch - low) / (high - low)

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
