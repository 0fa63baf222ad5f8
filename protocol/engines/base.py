"""The Engine contract. Every engine passes the same contract test (tests/unit and tests/integration).

    engine = OrtEngine(model_bytes, label="cut-1/tail")     # no side effects
    with engine:                                            # activate ... deactivate
        outputs = engine.infer({"x": array})

Errors: `activate` and `infer` raise EngineError with fact and remedy; whoever asked decides on the next-best placement.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from protocol.tensors import Array, Tensors, TensorSpec


@runtime_checkable
class Engine(Protocol):
    """Runs one graph. `infer` may be called from any one thread at a time; it releases the GIL where it can."""

    label: str

    @property
    def description(self) -> str:
        """What really runs, for answers and logs: library, version, execution provider."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def activate(self) -> None:
        """Load the graph and take what it needs. Raises EngineError. Activating twice is no error."""
        ...

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        """Run once; inputs and outputs by ONNX name. Raises EngineError, also when the engine is not active."""
        ...

    def deactivate(self) -> None:
        """Give everything back. Deactivating twice is no error."""
        ...


class ActivationScope(ABC):
    """`with engine:` for every engine, so that none forgets to give back what it took."""

    @abstractmethod
    def activate(self) -> None: ...

    @abstractmethod
    def deactivate(self) -> None: ...

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.deactivate()
