"""SIMULATION of TensorRT over `simulated_gpu`: it computes with ONNX Runtime, when the simulated stream comes to it.

Only what every recorded version of the real bindings has is here, with their names of parameters (`tests/gpu/api`, a
test compares them): what our code calls on the simulation, the real ones have. Builds obey ISTHMUS_SIMULATED_BUILD:
"crash", "hang", "nothing" (no plan), "memory" (no memory), "one profile" (no plan for several), "words" (prints on
standard output as well), "other device" (what was timed is refused).
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import math
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from protocol.onnx_outline import read_outline

__version__ = "10.13.3.9"
_MAGIC = b"simulated plan\n"
_WITH_HOST_CODE = b"with a lean runtime\n"
_WORDS = {
    "OUT_OF_MEMORY": (
        "[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (4096 bytes) could not be allocated. There may not be enough free memory.",
        "[runtime.cpp::deserializeCudaEngine::167] Error Code 2: OutOfMemory (no further information)",
    ),
    "ILLEGAL_ADDRESS": ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)",),
}
_ELEMENTS = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}
SCRATCH_NBYTES = 4096


def _let_go(what: str) -> None:
    if sys.meta_path is not None:  # else Python ends, imports nothing any more, and nobody asks
        from simulated_gpu import GPU

        GPU.let_go(what)


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT8 = "int8"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    UINT8 = "uint8"


def nptype(trt_type: DataType) -> Any:
    import numpy as np  # not needed by the child that builds, which starts the faster for it

    return np.dtype(trt_type.value).type


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    TF32 = 1
    VERSION_COMPATIBLE = 2


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE = 0
    AMPERE_PLUS = 1


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    USER_MANAGED = 2


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...

    def phase_finish(self, phase_name: str) -> None: ...


class ITensor:
    def __init__(self, name: str) -> None:
        self.name = name


class ParserError:
    def __init__(self, operator: str) -> None:
        self._operator = operator

    def desc(self) -> str:
        return "In parseNode:\n this operator is refused"

    def node_name(self) -> str:
        return "the_node"

    def node_operator(self) -> str:
        return self._operator


class INetworkDefinition:
    def __init__(self) -> None:
        self.model = b""
        self._inputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        outline = read_outline(model)
        self._errors = [ParserError(n.op) for n in outline.nodes if n.op == "Det"]
        self._network._inputs = [ITensor(v.name) for v in outline.inputs]
        self._network.model = model
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002 - the binding's own names
        self.shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"."


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.progress_monitor: IProgressMonitor | None = None
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.builder_optimization_level = 3
        self._timing: ITimingCache | None = None
        self._flags: set[Any] = set()

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None: ...

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if os.environ.get("ISTHMUS_SIMULATED_BUILD") == "other device" and cache._data:
            return False
        self._timing = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timing


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        order = os.environ.get("ISTHMUS_SIMULATED_BUILD", "")
        monitor = config.progress_monitor
        assert monitor is not None
        monitor.phase_start("Building engine", None, 2)
        if order == "crash":
            os.abort()
        if order == "hang":
            threading.Event().wait()
        if order == "words":
            print("a library that talks", flush=True)
        if order in ("nothing", "memory") or (order == "one profile" and len(config.profiles) > 1):
            self._logger.log(ILogger.Severity.ERROR, "out of memory" if order == "memory" else "no tactic")
            return None
        monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        shapes = [profile.shapes for profile in config.profiles]
        host_code = _WITH_HOST_CODE if BuilderFlag.VERSION_COMPATIBLE in config._flags else b""
        return _MAGIC + host_code + json.dumps(shapes).encode() + b"\n" + network.model


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        from simulated_gpu import GPU, Failure

        self._logger = logger
        self.engine_host_code_allowed = False
        try:
            GPU.call("runtime")
        except Failure as failure:
            self._say(failure.code)
            raise TypeError("pybind11::init(): factory function returned nullptr") from None

    def __del__(self) -> None:
        _let_go("a runtime")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(_MAGIC):
            self._logger.log(ILogger.Severity.ERROR, "magic tag does not match")
            return None
        from simulated_gpu import GPU, Failure

        try:
            GPU.call("deserialize")
        except Failure as failure:
            self._say(failure.code)
            return None
        GPU.plan_nbytes = len(serialized_engine)
        GPU.loading.wait()
        body = serialized_engine[len(_MAGIC) :]
        if body.startswith(_WITH_HOST_CODE):
            if not self.engine_host_code_allowed:
                self._logger.log(ILogger.Severity.ERROR, "the plan has host code, which is not allowed")
                return None
            body = body[len(_WITH_HOST_CODE) :]
        shapes, _, model = body.partition(b"\n")
        return self._engine(json.loads(shapes), model)

    def _say(self, code: str) -> None:
        for words in _WORDS.get(code, (code,)):
            self._logger.log(ILogger.Severity.ERROR, words)

    def _engine(self, profiles: Any, model: bytes) -> ICudaEngine:
        return ICudaEngine(profiles, model)


class ICudaEngine:
    def __init__(self, profiles: list[dict[str, Any]], model: bytes) -> None:
        import onnxruntime as ort

        outline = read_outline(model)
        self._io = {
            v.name: (mode, DataType[_ELEMENTS[v.element]])
            for mode, values in ((TensorIOMode.INPUT, outline.inputs), (TensorIOMode.OUTPUT, outline.outputs))
            for v in values
        }
        self._on_host = {name for node in outline.nodes if node.op in ("Shape", "Size") for name in node.outputs}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._profiles = profiles

    def __del__(self) -> None:
        _let_go("an engine")

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH_NBYTES

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._io[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._io[name][1]

    def get_tensor_location(self, name: str) -> Any:
        """Of tensors that hold shapes the real library may want or give the values on the host."""
        return types.SimpleNamespace(name="HOST" if name in self._on_host else "DEVICE")

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self._profiles[profile_index][name]]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext | None:
        from simulated_gpu import GPU, Failure

        try:
            GPU.call("context")
        except Failure:
            return None
        GPU.making.wait()
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        self._in_use = threading.Lock()

    def __del__(self) -> None:
        _let_go("a context")

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """By one thread at a time, with the device's context current."""
        from simulated_gpu import GPU

        if not self._in_use.acquire(blocking=False):
            GPU.violations.append("a context of TensorRT used by two threads at once")
        try:
            if not GPU.stacks.get(threading.get_ident()):
                GPU.violations.append("a context of TensorRT used without a current context")
            yield
        finally:
            self._in_use.release()

    def set_device_memory(self, memory: int, size: int) -> None:
        from simulated_gpu import GPU

        assert size >= SCRATCH_NBYTES
        with self._used():
            GPU.at(memory, size)
            self._memory = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        fits = len(shape) == len(least) and all(a <= s <= b for a, s, b in zip(least, shape, most, strict=True))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self) -> list[str]:
        inputs = [n for n, (mode, _) in self._engine._io.items() if mode == TensorIOMode.INPUT]
        return [name for name in inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        return dict(zip(self._outputs(), (a.shape for a in self._compute(None)), strict=True))[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        from simulated_gpu import GPU, Failure

        with self._used():
            try:
                GPU.call("enqueue")
            except Failure:
                return False
            if threading.get_ident() in GPU.last_errors:  # it takes another's error for its own
                GPU.last_errors.clear()
                return False
            if not self._memory or self._addresses.keys() != self._engine._io.keys():
                return False
            try:
                GPU.enqueue(stream_handle, self._run)
            except Failure:
                return False
            return True

    def _outputs(self) -> list[str]:
        return [n for n, (mode, _) in self._engine._io.items() if mode == TensorIOMode.OUTPUT]

    def _run(self) -> None:
        import numpy as np
        from simulated_gpu import GPU

        inputs = {}
        for name, shape in self._shapes.items():
            dtype = np.dtype(self._engine._io[name][1].value)
            nbytes = math.prod(shape) * dtype.itemsize
            data = ctypes.string_at(GPU.at(self._addresses[name], nbytes), nbytes)
            inputs[name] = np.frombuffer(data, dtype).reshape(shape)
        for name, array in zip(self._outputs(), self._compute(inputs), strict=True):
            data = np.ascontiguousarray(array).tobytes()
            ctypes.memmove(GPU.at(self._addresses[name], len(data)), data, len(data))

    def _compute(self, inputs: Any) -> list[Any]:
        import numpy as np

        if inputs is None:
            inputs = {n: np.zeros(s, np.dtype(self._engine._io[n][1].value)) for n, s in self._shapes.items()}
        return list(self._engine._session.run(self._outputs(), inputs))
