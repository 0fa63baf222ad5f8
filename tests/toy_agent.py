"""An agent small enough to check by eye: it answers x + 1 as soon as it is let, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from edge_agent.outcomes import Answer, Outcome, StageTimings
from protocol.errors import InputError
from protocol.messages import RequestId
from protocol.tensors import Array, Tensors


def accepts(model: str, inputs: Tensors) -> None:
    if inputs["x"][0] < 0:
        raise InputError("x is negative", "give another")


@dataclass
class ToyAgent:
    """`held` waits for `release`; a negative x does not fit the model."""

    held: bool = False
    asked: list[tuple[str, int, float]] = field(default_factory=list)  # identity, x, budget
    waiting: list[tuple[Future[Outcome], int]] = field(default_factory=list)
    outcome: Callable[[int], Outcome] = field(default=lambda x: answer(x + 1))

    def submit(
        self, inputs: Tensors, *, deadline_s: float, priority: int = 4, identity: RequestId | None = None
    ) -> Future[Outcome]:
        accepts("", inputs)
        x = int(inputs["x"][0])
        self.asked.append((str(identity), x, deadline_s))
        future: Future[Outcome] = Future()
        self.waiting.append((future, x))
        if not self.held:
            self.release()
        return future

    def release(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future, x in waiting:
            future.set_result(self.outcome(x))


def answer(value: int) -> Answer:
    outputs: dict[str, Array] = {"y": np.array([value], np.int64)}
    return Answer("r", outputs, "cut-1", "cut", "int8", "toy", "b", StageTimings(), 1, 1, 1, 1)
