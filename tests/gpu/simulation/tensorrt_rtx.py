"""SIMULATION of TensorRT-RTX: the simulated TensorRT, and what RTX alone has. It compiles when a context is made.
ISTHMUS_SIMULATED_BUILD knows "own memory" as well: a graph that cannot be built for runs that are captured.

Only what the recorded version of the real bindings has is here (`tests/gpu/api/tensorrt-rtx-1.7.json`).
"""

from __future__ import annotations

import enum
import json
import os
from typing import Any

import tensorrt as _tensorrt
from tensorrt import *  # noqa: F403 - the same names are the point

__version__ = "1.7.1.116"
_COMPILED = b"simulated kernels of 1.7.1\n"


class BuilderFlag(enum.IntEnum):
    TF32 = 1
    VERSION_COMPATIBLE = 2
    REQUIRE_USER_ALLOCATION = 3


class IBuilderConfig(_tensorrt.IBuilderConfig):
    """It takes RTX's flags as well."""


class Builder(_tensorrt.Builder):
    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def build_serialized_network(self, network: Any, config: IBuilderConfig) -> bytes | None:
        if (
            os.environ.get("ISTHMUS_SIMULATED_BUILD") == "own memory"
            and BuilderFlag.REQUIRE_USER_ALLOCATION in config._flags
        ):
            return None
        return super().build_serialized_network(network, config)


class DynamicShapesKernelSpecializationStrategy(enum.IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        from simulated_gpu import GPU

        GPU.call("deserialize_compiled")
        if not blob.startswith(_COMPILED):
            return False
        self._kernels |= set(json.loads(blob[len(_COMPILED) :]))
        return True

    def serialize(self) -> bytes:
        return _COMPILED + json.dumps(sorted(self._kernels)).encode()


class IRuntimeConfig:
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self._strategy: Any = None
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IExecutionContext(_tensorrt.IExecutionContext):
    _config: Any = None

    def is_stream_capturable(self, stream: int) -> bool:
        from simulated_gpu import GPU

        return not GPU.uncapturable

    def infer_shapes(self) -> list[str]:
        from simulated_gpu import GPU

        kernel = json.dumps(sorted(self._shapes.items()))
        kernels = self._config._cache._kernels
        if kernel not in kernels:
            GPU.call("compile")
            kernels.add(kernel)
        return super().infer_shapes()


class ICudaEngine(_tensorrt.ICudaEngine):
    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None:
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy == 1, "a graph would keep general kernels"
        context = super().create_execution_context(runtime_config._strategy)
        if context is not None:
            context.__class__ = IExecutionContext
            context._config = runtime_config
        return context


class Runtime(_tensorrt.Runtime):
    def _engine(self, profiles: Any, model: bytes) -> ICudaEngine:
        return ICudaEngine(profiles, model)
