"""Measures what batches take on the real engine, for every number of threads and of batches side by side.

Each round visits every cell (threads, instances, batch) once, in a shuffled order, so that whatever slows the machine
for a while slows all of them. A visit runs the batch a few times on as many threads as there are instances, all on one
session, as the gateway's engine threads do. The first round finds out how far batches are worth growing.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cloud_gateway.models.lanes import Lane
from cloud_gateway.tuning.search import Pair
from cloud_gateway.tuning.traffic import Measured

RUNS = 3  # of a visit, on each thread
ENOUGH = 60  # runs of a cell
GAIN = 1.05  # a doubled batch must raise the rows a second by this factor to be worth growing further
PAST_THE_GAIN = 2  # so many doublings without one, and larger batches are not tried

Clock = Callable[[], float]


@dataclass(slots=True)
class _Cell:
    pair: Pair
    batch: int
    seconds: list[float] = field(default_factory=list)


def measure(
    lanes: Mapping[int, Lane],
    pairs: Sequence[Pair],
    *,
    largest: int,
    slo_s: float,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> dict[Pair, Measured]:
    """Seconds of single runs for every pair. `lanes` maps threads to an active lane whose engine has so many.

    Every pair is measured at batch 1 even if `budget_s` is over by then. Batches that take longer than `slo_s` are
    measured once and not grown further. Raises EngineError if the engine does.
    """
    ends = clock() + budget_s
    cells: list[_Cell] = []
    most = max(instances for _, instances in pairs)
    with ThreadPoolExecutor(most, thread_name_prefix="isthmus-tune") as pool:

        def visit(cell: _Cell) -> None:
            lane = lanes[cell.pair[0]]
            jobs = [pool.submit(_runs, lane, cell.batch, clock) for _ in range(cell.pair[1])]
            for job in jobs:
                cell.seconds += job.result()

        for pair in pairs:
            cells += _grown(pair, largest if lanes[pair[0]].batchable else 1, slo_s, visit, lambda: clock() >= ends)
        order = random.Random(5)
        while (due := [cell for cell in cells if len(cell.seconds) < ENOUGH]) and clock() < ends:
            order.shuffle(due)
            for cell in due:
                if clock() + sum(cell.seconds[-RUNS:]) > ends:
                    continue
                visit(cell)
            if all(clock() + sum(cell.seconds[-RUNS:]) > ends for cell in due):
                break
    runs: dict[Pair, dict[int, list[float]]] = defaultdict(dict)
    for cell in cells:
        runs[cell.pair][cell.batch] = cell.seconds
    return {pair: Measured(seconds) for pair, seconds in runs.items()}


def _grown(
    pair: Pair, largest: int, slo_s: float, visit: Callable[[_Cell], None], over: Callable[[], bool]
) -> list[_Cell]:
    """Cells of batch 1, 2, 4, ... as far as that pays, each visited once."""
    cells: list[_Cell] = []
    best, best_at = 0.0, 0
    batch = 1
    while batch <= largest and not (cells and over()):
        cell = _Cell(pair, batch)
        visit(cell)
        cells.append(cell)
        fastest = min(cell.seconds)
        if batch / fastest > best * GAIN:
            best, best_at = batch / fastest, len(cells)
        if fastest > slo_s or len(cells) - best_at >= PAST_THE_GAIN:
            break
        batch *= 2
    return cells


def _runs(lane: Lane, batch: int, clock: Clock) -> list[float]:
    tensors = lane.zeros(batch)
    lane.engine.infer(tensors)  # the first run of a shape plans its memory
    seconds = []
    for _ in range(RUNS):
        began = clock()
        lane.engine.infer(tensors)
        seconds.append(clock() - began)
    return seconds
