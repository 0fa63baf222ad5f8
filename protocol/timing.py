"""How segments are timed on a machine that is never quite alone.

Each run of a segment is paired with a run of the *yardstick* (the whole model) just before it, and what counts is the
median of their ratio: whatever slows the machine for a while slows both. With one thread the clock is that thread's own
processor time, which a neighbour's time slice does not touch; with more it is the wall's. On a 2-core machine that
others kept busy, wall-clock medians of MobileNetV2's segments differed by 42 % when they were taken a second time, and
these by 4 % (measured).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocol.profile import Timing

MIN_REPEATS = 15
ROUNDS = 5  # in one visit
MAX_VISITS = 8  # of whoever visits in fixed rounds
NARROW = 0.015  # half the interval of a median, relative to it, that is narrow enough
_Z95 = 1.96

Run = Callable[[], object]


def clock_for(threads: int) -> Callable[[], float]:
    """The clock for work on this many threads. One thread of ONNX Runtime is the caller's own."""
    return time.thread_time if threads == 1 else time.perf_counter


def timed(run: Run, clock: Callable[[], float]) -> float:
    """Seconds that `run` takes on this clock, always above 0.

    A kernel that learns afterwards for how long its host had taken the processor takes that off whatever runs then: the
    processor time of a short run can be 0. The wall's clock goes on.
    """
    wall, started = time.perf_counter(), clock()
    run()
    seconds = clock() - started
    return seconds if seconds > 0.0 else max(time.perf_counter() - wall, 1e-9)


@dataclass
class Ratios:
    """What was seen of one segment, visit after visit: its seconds, and their ratio to the yardstick's just before."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def is_narrow(self) -> bool:
        if len(self.ratios) < MIN_REPEATS:
            return False
        median, low, high = median_interval(self.ratios)
        return (high - low) / 2.0 <= NARROW * median

    def timing(self, yardstick_s: float) -> Timing:
        """Seconds at the yardstick's usual pace."""
        median, low, high = median_interval(self.ratios)
        p95 = quantile(self.ratios, 0.95)
        return Timing(median * yardstick_s, low * yardstick_s, high * yardstick_s, p95 * yardstick_s, len(self.ratios))


def visit(run: Run, yardstick: Run, into: Ratios, paces: list[float], *, threads: int, rounds: int = ROUNDS) -> None:
    """One visit: `rounds` pairs of yardstick and segment after a warm-up. `paces` collects the yardstick's seconds."""
    clock = clock_for(threads)
    run()
    run()
    for _ in range(rounds):
        pace = timed(yardstick, clock)
        seconds = timed(run, clock)
        paces.append(pace)
        into.seconds.append(seconds)
        into.ratios.append(seconds / pace)


def summary(samples: Sequence[float]) -> Timing:
    """Plain seconds, for what has no yardstick (the yardstick itself)."""
    median, low, high = median_interval(samples)
    return Timing(median, low, high, quantile(samples, 0.95), len(samples))


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % interval by order statistics (no shape of the distribution is assumed)."""
    ordered = sorted(samples)
    count = len(ordered)
    reach = _Z95 * math.sqrt(count) / 2.0
    low = max(math.floor((count - 1) / 2.0 - reach), 0)
    high = min(math.ceil((count - 1) / 2.0 + reach), count - 1)
    return statistics.median(ordered), ordered[low], ordered[high]


def quantile(samples: Sequence[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(math.ceil(share * len(ordered)) - 1, len(ordered) - 1)] if ordered else 0.0
