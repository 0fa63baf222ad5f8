"""What an engine has really run, written down so that it outlives whoever is killed.

One file a life of a gateway, one line for each request of each run: `NUMBER LABEL`. The line is handed to the kernel
before the engine begins, so nothing that was executed is missing, however the process ends.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.numbering import numbers_in
from protocol.engines.base import ActivationScope, Engine
from protocol.tensors import Array, Tensors, TensorSpec


class CountedEngine(ActivationScope):
    """An engine that writes down what it runs. `busy_s` is slept for each request: a slow machine."""

    def __init__(self, engine: Engine, file: Path, *, busy_s: float = 0.0) -> None:
        self.label = engine.label
        self._engine = engine
        self._file = file
        self._busy_s = busy_s

    @property
    def description(self) -> str:
        return self._engine.description

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    def activate(self) -> None:
        self._engine.activate()
        self._out = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        if numbers := numbers_in(tensors):
            os.write(self._out, "".join(f"{number} {self.label}\n" for number in numbers).encode())
            time.sleep(self._busy_s * len(numbers))
        return self._engine.infer(tensors)

    def deactivate(self) -> None:
        self._engine.deactivate()
        os.close(self._out)


@dataclass(frozen=True, slots=True)
class Executions:
    """Over all lives of all gateways."""

    total: int
    twice_in_a_life: tuple[int, ...]  # numbers of requests
    in_several_lives: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> Executions:
        """Read all ledgers of a folder."""
        lives = [Counter(int(line.split()[0]) for line in p.read_text().splitlines()) for p in folder.glob("life-*")]
        everywhere = Counter(number for life in lives for number in life)
        return cls(
            sum(life.total() for life in lives),
            tuple(sorted({n for life in lives for n, count in life.items() if count > 1})),
            tuple(sorted(n for n, count in everywhere.items() if count > 1)),
        )
