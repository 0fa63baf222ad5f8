"""Engines in order of preference: the first that loads a graph runs it, and why an earlier one did not is told.

What runs stands in the engine's description, and so in every answer, in the metrics and on the status page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloud_gateway.models.served import Tail
from protocol.engines.base import ActivationScope, Engine
from protocol.engines.ort import CPU, OrtEngine
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec

PROVIDERS = {"onnxruntime-cpu": CPU, "onnxruntime-cuda": "CUDAExecutionProvider"}

Told = Callable[[str, str], None]  # event and sentence, for the log
EngineMaker = Callable[[Tail, int], Engine]  # of a tail and its number of threads


def ort_engines(order: Sequence[str], *, told: Told) -> EngineMaker:
    """What makes an engine for a tail and its number of threads, from names of `PROVIDERS` in order of preference."""

    def make(tail: Tail, threads: int) -> Engine:
        graph = tail.graph()
        engines = [OrtEngine(graph, label=tail.label, providers=(PROVIDERS[name],), threads=threads) for name in order]
        return engines[0] if len(engines) == 1 else PreferredEngine(engines, told=told)

    return make


class PreferredEngine(ActivationScope):
    """The first of `engines` that activates, behind the Engine contract."""

    def __init__(self, engines: Sequence[Engine], *, told: Told) -> None:
        self.label = engines[0].label
        self._engines = engines
        self._told = told
        self._chosen: Engine | None = None

    @property
    def description(self) -> str:
        return self._chosen.description if self._chosen else f"none of {len(self._engines)} engines"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._chosen.inputs if self._chosen else ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._chosen.outputs if self._chosen else ()

    def activate(self) -> None:
        """Raises what the last engine raised when none of them loads the graph."""
        if self._chosen is not None:
            return
        for engine in self._engines[:-1]:
            try:
                engine.activate()
            except EngineError as error:
                self._told("engine", f"{error}; the next in order of preference is tried")
            else:
                self._chosen = engine
                return
        self._engines[-1].activate()
        self._chosen = self._engines[-1]

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        if self._chosen is None:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        return self._chosen.infer(tensors)

    def deactivate(self) -> None:
        if self._chosen is not None:
            self._chosen.deactivate()
        self._chosen = None
