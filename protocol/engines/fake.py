"""An engine without a library: a Python function behind the Engine contract, for tests and drills."""

from __future__ import annotations

from collections.abc import Callable

from protocol.engines.base import ActivationScope
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec


class FakeEngine(ActivationScope):
    """Runs `function(tensors) -> outputs`. Whatever the function raises counts as a failed engine."""

    description = "fake"

    def __init__(
        self,
        function: Callable[[Tensors], dict[str, Array]],
        *,
        label: str = "fake",
        inputs: tuple[TensorSpec, ...] = (),
        outputs: tuple[TensorSpec, ...] = (),
    ) -> None:
        self.label = label
        self.inputs = inputs
        self.outputs = outputs
        self.calls = 0
        self._function = function
        self._active = False

    def activate(self) -> None:
        self._active = True

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        if not self._active:
            raise EngineError(f"{self.label} is not active", "call activate() first")
        self.calls += 1
        try:
            return self._function(tensors)
        except Exception as error:
            raise EngineError(f"{self.label} failed: {error}", "") from error

    def deactivate(self) -> None:
        self._active = False
