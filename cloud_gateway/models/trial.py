"""What an engine must show before it may serve, and of each answer afterwards.

Before: the same as the engine that is trusted says, to one row and to several, since a batch is what mixes rows up.
Afterwards: that it answers what its graph answers. Whatever else a library raises is a failure of its engine, and no
bug of ours: the next in the order is there for that.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloud_gateway.models.agreement import disagreement
from protocol.engines.base import Engine
from protocol.engines.causes import OWN, THE_REQUESTS, Cause, cause_of
from protocol.errors import EngineError, InvariantViolation
from protocol.seeing.health import known_input
from protocol.tensors import Array, Tensors, TensorSpec

if TYPE_CHECKING:
    from cloud_gateway.models.preferred import PreferredEngine

ROWS = 3


class TryAnotherError(EngineError):
    """`engine` failed a batch on `failed`; it is to be run in `with engine.using(instead)`.

    `culprit` is what failed it: by the time of a verdict, the kind may be another that was loaded since.
    """

    def __init__(self, error: EngineError, engine: PreferredEngine, failed: str, culprit: Engine, instead: str) -> None:
        super().__init__(error.fact, error.remedy)
        self.engine = engine
        self.failed = failed
        self.culprit = culprit
        self.instead = instead
        self.cause: Cause = cause_of(error)


class DisagreesError(EngineError):
    """It computes something else than the engine that is trusted."""


class Here(threading.local):
    """What holds for one thread alone: an engine that it asked for, and the one that ran last."""

    kind: str | None = None
    on_trial: bool = False
    ran: str = ""  # its description
    ran_on: tuple[str, Engine] | None = None

    @contextmanager
    def asking_for(self, kind: str, *, on_trial: bool) -> Iterator[None]:
        before = self.kind, self.on_trial
        self.kind, self.on_trial = kind, on_trial
        try:
            yield
        finally:
            self.kind, self.on_trial = before


def compare(engine: Engine, judge: Engine, tolerance: float) -> str:
    """How far the engine's answers lie from the judge's, in words; "" where they agree or none can be had.

    Raises EngineError where the engine does not run, or the judge has trouble of its own: then nobody knows.
    """
    for question in _questions(judge.inputs):
        try:
            wanted = judge.infer(question)
        except EngineError as error:
            if cause_of(error) in OWN:
                raise EngineError(f"there is nothing to compare it with: {error.fact}", error.remedy) from error
            continue  # a guessed shape, say: there is nothing to compare
        try:
            given = engine.infer(question)
        except EngineError as error:
            if cause_of(error) in THE_REQUESTS:  # it takes no batch of that size, and says so in service as well
                continue
            raise
        if reason := disagreement(given, wanted, tolerance):
            return reason
    return ""


def unlike(outputs: Tensors, specs: Sequence[TensorSpec]) -> str:
    """Why these cannot be the outputs of a graph that has those; "" if they can.

    Shapes say little: what a graph declares of its outputs is often wrong.
    """
    for spec in specs:
        array = outputs.get(spec.name)
        if array is None:
            return f"it answered {', '.join(sorted(outputs)) or 'nothing'}, without {spec.name}"
        if array.dtype != spec.numpy_dtype:
            return f"it answered {spec.name} as {array.dtype} instead of {spec.dtype}"
    return ""


def failure(error: Exception, label: str) -> EngineError:
    """What an engine raised, as the contract has it. Raises what is a bug of ours."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, InvariantViolation):
        raise error
    return EngineError(f"{label}: {type(error).__name__}: {str(error)[:300]}", "")


def _questions(specs: Sequence[TensorSpec]) -> Iterator[dict[str, Array]]:
    yield known_input(specs)
    if specs and all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs):
        yield known_input([TensorSpec(spec.name, spec.dtype, (ROWS, *spec.shape[1:])) for spec in specs])
