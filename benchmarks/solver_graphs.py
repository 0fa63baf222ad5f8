"""Placement problems of the shapes that networks have, at any size, from a seed.

Law: the numbers are made up but shaped like measured ones. Times are log-normal around 20 us a unit at the gateway and
5-15 times that on the device, but for a tenth of the units, which are slower at the gateway; tensors are log-normal
around 400 KB at the input and shrink e-fold four times towards the output; codecs run at 300 and 600 MB/s.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from partitioner.solver.problem import Flow, Problem, Unit

INPUT_NBYTES = 150_528.0  # 224 x 224 RGB, as uint8
RESULT_NBYTES = 4000.0


def problem(shape: str, count: int, seed: int = 1) -> Problem:
    """A problem of `count` units in one of SHAPES."""
    chance = random.Random(seed)
    readers: list[list[int]] = [[] for _ in range(count)]
    for i in range(1, count):
        for source in SHAPES[shape](i, chance):
            readers[source].append(i)
    units, flows = [], [Flow("input", None, (0,), INPUT_NBYTES, INPUT_NBYTES / 3e8, INPUT_NBYTES / 6e8)]
    for i, reading in enumerate(readers):
        cloud_s = chance.lognormvariate(0, 1) * 2e-5
        slowness = chance.uniform(5, 15) if chance.random() > 0.1 else chance.uniform(0.3, 1)
        nbytes = chance.lognormvariate(0, 0.7) * 4e5 * math.exp(-4 * i / count)
        down = 0.0 if reading else RESULT_NBYTES
        units.append(Unit(f"unit{i}", cloud_s * slowness, cloud_s, int(nbytes)))
        flows.append(Flow(f"tensor{i}", i, tuple(reading), nbytes, nbytes / 3e8, nbytes / 6e8, down))
    return Problem(tuple(units), tuple(flows))


def _residual(i: int, chance: random.Random) -> set[int]:
    """A chain with a connection around every five units."""
    return {i - 1, i - 6} if i % 6 == 0 and i > 6 else {i - 1}


def _inception(i: int, chance: random.Random) -> set[int]:
    """Four branches of two units that meet in one, over and over."""
    place = i % 10
    if place in (1, 3, 5, 7):
        return {i - place}
    return {i - 1, i - 3, i - 5, i - 7} if place == 9 else {i - 1}


def _searched(i: int, chance: random.Random) -> set[int]:
    """Every unit reads one to three of the twelve before it: no unit through which everything passes."""
    return {max(0, i - chance.randint(1, 12)) for _ in range(chance.choice((1, 1, 2, 3)))}


def _detector(i: int, chance: random.Random) -> set[int]:
    """Branches that start at different depths and end in outputs of their own."""
    near = {i - 1} if i % 50 else {i - 40}
    return near | {max(0, i - chance.randint(2, 45))} if i % 7 == 0 else near


def _exits(i: int, chance: random.Random) -> set[int]:
    """A chain from which one unit in twenty branches off as an output."""
    return {i - 1} if chance.random() > 0.05 else {max(0, i - 2)}


SHAPES: dict[str, Callable[[int, random.Random], set[int]]] = {
    "residual": _residual,
    "inception": _inception,
    "searched": _searched,
    "detector": _detector,
    "exits": _exits,
}
