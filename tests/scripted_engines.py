"""Engines that fail when they are told to: they stand where a GPU's would, and obey the same contract.

    gpu = Scripted("gpu")
    gpu.fails.append(GpuError("lost", cause="device-lost"))     # the next run of it

They compute y = 2x on rows of one number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from protocol.engines.base import ActivationScope
from protocol.engines.catalogue import EngineOptions, Kind
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec

ONE = np.ones((1, 1), np.float32)
X: Tensors = {"x": ONE}


class Scripted(ActivationScope):
    """`loads` and `fails` are what its next activations and runs raise; None is a success in between."""

    def __init__(
        self,
        label: str,
        *,
        loads: Iterable[EngineError | None] = (),
        is_built: bool = False,
        factor: float = 2.0,
        while_loading: Callable[[], object] = lambda: None,
        inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", ("N", 1)),),
    ) -> None:
        self.label = label
        self.is_built = is_built
        self.inputs = inputs
        self.outputs = (TensorSpec("y", "float32", ("N", *inputs[0].shape[1:])),)
        self.description = f"scripted {label}"
        self.loads: deque[EngineError | None] = deque(loads)
        self.fails: deque[EngineError | None] = deque()
        self.before_run: Callable[[Tensors], None] = lambda tensors: None
        self.runs = 0
        self.activations = 0
        self.is_active = False
        self._factor = factor
        self._while_loading = while_loading

    @property
    def was_active(self) -> bool:
        return self.activations > 0

    def activate(self) -> None:
        if self.loads and (error := self.loads.popleft()) is not None:
            raise error
        self._while_loading()
        self.activations += 1
        self.is_active = True

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        if not self.is_active:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        self.runs += 1
        self.before_run(tensors)
        if self.fails and (error := self.fails.popleft()) is not None:
            raise error
        return {"y": (tensors[self.inputs[0].name] * self._factor).astype(np.float32)}

    def deactivate(self) -> None:
        self.is_active = False


def kind(name: str, made: Callable[[bytes, EngineOptions], Scripted], *, is_built: bool = False) -> Kind:
    """A kind of engine that settings may name: `made` is asked for each."""
    return Kind(name, lambda: "", made, on_gpu=name != "onnxruntime-cpu", is_built=is_built)
