"""Times on this machine: interleaved rounds and medians, since anything else measures the machine's mood.

Repeatability of a median is 2-8 % (measured); a segment is measured whole, because the sum of its layers is not its
time (-24 ... +13 %).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol.timing import median_interval

ROUNDS = 5
MOST_ROUNDS = 15
NARROW = 0.02  # half the interval of a median, relative to it
MIN_RUNS = 15
MAX_RUNS = 200
BUDGET_S = 0.05  # per thing measured, unless MIN_RUNS take longer


def interleaved_medians(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each callable, all of them measured in turn over `ROUNDS` rounds after two warm-up runs.

    Rounds are added, up to `MOST_ROUNDS`, for what is not yet known within `NARROW`.
    """
    per_round = {name: _runs_per_round(work) for name, work in works.items()}
    seen: dict[str, list[Sample]] = {name: [] for name in works}
    for done in range(MOST_ROUNDS):
        for name, work in works.items():
            if done < ROUNDS or not _is_narrow(seconds_of(seen[name])):
                seen[name] += [_sample(work) for _ in range(per_round[name])]
    return {name: statistics.median(seconds_of(samples)) for name, samples in seen.items()}


class Sample(NamedTuple):
    """One run on three clocks: the wall's, this thread's and this process's processor time."""

    wall_s: float
    thread_s: float
    process_s: float


def seconds_of(samples: Sequence[Sample]) -> list[float]:
    """Seconds on the clock that fits: this thread's own where it alone did the work, and without waiting.

    Then the two clocks agree on a machine that is left alone, and a neighbour's time slice spoils only the wall's.
    Where the host takes the processor a run can seem to cost nothing (`protocol.timing.timed`): then the wall's counts.
    """
    busy = max(s.thread_s / s.wall_s for s in samples) > 0.9
    alone = statistics.median(s.process_s / max(s.thread_s, 1e-9) for s in samples) < 1.1
    return [s.thread_s if busy and alone and s.thread_s > 0.0 else s.wall_s for s in samples]


def _is_narrow(seconds: Sequence[float]) -> bool:
    median, low, high = median_interval(seconds)
    return (high - low) / 2.0 <= NARROW * median


def _runs_per_round(work: Callable[[], object]) -> int:
    work()
    once = _sample(work).wall_s
    return math.ceil(min(MAX_RUNS, max(MIN_RUNS, BUDGET_S / once)) / ROUNDS)


def _sample(work: Callable[[], object]) -> Sample:
    process, thread, wall = time.process_time(), time.thread_time(), time.perf_counter()
    work()
    ended = time.perf_counter()
    return Sample(max(ended - wall, 1e-7), time.thread_time() - thread, time.process_time() - process)
