"""TensorRT and TensorRT-RTX behind the Engine contract: gateway tails and whole models, and heads on a Jetson."""

from __future__ import annotations

from collections.abc import Callable

from protocol.engines.base import ActivationScope
from protocol.engines.driver import Driver, probe
from protocol.engines.trt_options import GpuError, TrtOptions
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec

Told = Callable[[str], None]  # one sentence about how far a build has come


class TensorRtEngine(ActivationScope):
    """One graph on one GPU. `infer` may be called by several threads at once; `options.slots` run side by side.

    `activate` builds the plan, which takes seconds to minutes, unless the cache holds it: call it on a thread that may
    wait. `told` hears how far it has come. Every failure is a GpuError with its cause.
    """

    def __init__(
        self,
        model: bytes,
        *,
        label: str,
        options: TrtOptions,
        told: Told | None = None,
        driver: Callable[[], Driver | str] = probe,
    ) -> None:
        self.label = label
        self._model = model
        self._options = options
        self._told = told
        self._driver = driver

    @property
    def description(self) -> str:
        return f"{self._options.library}/inactive"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return ()

    def activate(self) -> None:
        found = self._driver()
        if isinstance(found, str):
            raise GpuError(f"{self.label}: {found}", cause="no-driver")
        raise GpuError(f"{self.label}: {self._options.library} is not built in yet", cause="no-library")

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        raise EngineError(f"{self.label} is not active", "call activate() first")

    def deactivate(self) -> None:
        """Give back the GPU's memory. What `rows` handed out stays memory, only slower to copy from."""
