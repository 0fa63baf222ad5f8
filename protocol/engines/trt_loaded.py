"""A plan as its library loaded it, and the execution contexts made from it. Nothing here enqueues a run.

Everything is called where the device's context is current; on any thread, since the library allows that for an engine,
and contexts are made one at a time. A context belongs to whoever asked for it: no two threads may use it at once.

TensorRT-RTX compiles for the GPU that it finds when a plan is at work. `compiled` is what it compiled so far: given to
the next load of the same plan, it need not do so again. Kernels are compiled for each shape as it comes first
("eager"): left to compile in the background, a CUDA graph would be captured with the general kernels, and stay so.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from protocol.engines.causes import no_room_or
from protocol.engines.gpu_memory import GpuMemory
from protocol.engines.gpu_quiet import QUIET
from protocol.engines.trt_library import telling
from protocol.engines.trt_options import GpuError
from protocol.tensors import DTYPES, TensorSpec

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in their order
MOST_COMPILED_NBYTES = 256 << 20  # kept of one plan: each shape that ever came adds to it


class LoadedPlan:
    """One engine of the library. Raises GpuError ("build-failed" where the plan is refused), the memory's errors."""

    def __init__(
        self,
        trt: Any,
        log: Any,
        plan: bytes,
        memory: GpuMemory,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        compiles: bool = False,
        compiled: bytes = b"",
        has_host_code: bool = False,
    ) -> None:
        """`compiles`: the library does so at run time, as TensorRT-RTX does; `compiled` is what it once gave.

        `has_host_code`: a plan that outlives updates brings code for the processor, which is run only if it may be.
        """
        self._trt = trt
        self._log = log
        self.inputs, self.outputs = inputs, outputs
        self.nbytes = len(plan)  # weights are most of it
        self.took_compiled = False  # what was kept fits this machine
        self._lock = threading.Lock()  # contexts are made one at a time
        self._config: Any = None
        self._compiled: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        try:
            with QUIET.loud(), telling(log, "the plan", "build-failed"):
                self._load(plan, memory, compiles=compiles, compiled=compiled, has_host_code=has_host_code)
        except BaseException:
            self.close()
            raise

    def profile_of(self, shapes: Shapes) -> int:
        """The narrowest profile that takes these shapes. Raises GpuError ("bad-input")."""
        for index, (least, most) in enumerate(self._profiles):
            if all(_within(s, a, b) for s, a, b in zip(shapes, least, most, strict=True)):
                return index
        largest = self._profiles[-1][1]
        names = ", ".join(
            f"{spec.name!r} {list(shape)} (at most {list(most)})"
            for spec, shape, most in zip(self.inputs, shapes, largest, strict=True)
        )
        raise GpuError(f"no profile takes {names}", "raise max_batch, or send less", cause="bad-input")

    def context(self, shapes: Shapes, addresses: Mapping[str, int], scratch: int, stream: int) -> Any:
        """A context for these shapes, which takes and gives at `addresses`. It may first run on `stream` alone."""
        profile = self.profile_of(shapes)
        with QUIET.loud(), telling(self._log, "a context", "run-failed"):
            context = self._shaped(profile, shapes, stream, scratch)
            unknown = context.infer_shapes()
        if unknown:
            raise self.refused(f"what is known of {', '.join(unknown)}")
        for spec in (*self.inputs, *self.outputs):
            if not context.set_tensor_address(spec.name, addresses[spec.name]):
                raise self.refused(f"the address of {spec.name!r}")
        return context

    def shapes_of(self, context: Any) -> Shapes:
        """Of the outputs."""
        return tuple(tuple(context.get_tensor_shape(spec.name)) for spec in self.outputs)

    def refused(self, what: str) -> GpuError:
        words = self._log.last()
        return GpuError(f"{what} is refused: {words}", "", cause=no_room_or(words, "run-failed"))

    def compiled(self) -> bytes:
        """What was compiled for this GPU so far; empty where the library compiles nothing, or too much to be kept."""
        with self._lock:
            if self._compiled is None:
                return b""
            data = self._compiled.serialize()
            if data is None or memoryview(data).nbytes > MOST_COMPILED_NBYTES:
                return b""
            return bytes(memoryview(data))

    def close(self) -> None:
        """Children before parents; contexts are gone by then."""
        with QUIET.loud():
            self._config = self._compiled = None
            self._engine = None
            self._runtime = None

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _load(
        self, plan: bytes, memory: GpuMemory, *, compiles: bool, compiled: bytes, has_host_code: bool
    ) -> None:  # fmt: skip
        self._runtime = self._trt.Runtime(self._log)
        if has_host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:  # damaged, of another version, or no room for it
            words = self._log.last()
            cause = no_room_or(words, "build-failed")
            remedy = "remove it from the cache" if cause == "build-failed" else "lower the memory that engines may take"
            raise GpuError(f"the plan is refused: {words}", remedy, cause=cause)
        if compiles:
            self._configure(compiled)
        self._profiles = list(self._limits())
        self._check_tensors()
        self.scratch_nbytes = int(self._engine.device_memory_size_v2)
        self.most_nbytes = self._most_nbytes(memory)

    def _configure(self, compiled: bytes) -> None:
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        cache = config.create_runtime_cache()
        if compiled:  # made by another version or driver, or for another GPU, it is refused: then all is compiled again
            self.took_compiled = bool(cache.deserialize(compiled))
        if config.set_runtime_cache(cache):
            self._compiled = cache
        self._config = config

    def _shaped(self, profile: int, shapes: Shapes, stream: int, scratch: int = 0) -> Any:
        with self._lock:
            context = self._engine.create_execution_context(
                self._config or self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            )
        if context is None:
            raise GpuError(f"no context can be made: {self._log.last()}", "", cause="out-of-memory")
        if scratch:
            context.set_device_memory(scratch, self.scratch_nbytes)
        if len(self._profiles) > 1 and not context.set_optimization_profile_async(profile, stream):
            raise self.refused(f"profile {profile}")
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise self.refused(f"shape {list(shape)} of {spec.name!r}")
        return context

    def _limits(self) -> Iterator[tuple[Shapes, Shapes]]:
        """Least and most shapes of each profile, narrowest first, as the builder was given them."""
        for index in range(self._engine.num_optimization_profiles):
            shapes = [self._engine.get_tensor_profile_shape(spec.name, index) for spec in self.inputs]
            yield tuple(tuple(s[0]) for s in shapes), tuple(tuple(s[2]) for s in shapes)

    def _check_tensors(self) -> None:
        """That the plan takes and gives what the graph says, names and element types, in the GPU's memory."""
        engine, mode = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for kind, specs in ((mode.INPUT, self.inputs), (mode.OUTPUT, self.outputs)):
            theirs = {name for name in names if engine.get_tensor_mode(name) == kind}
            if theirs != {spec.name for spec in specs}:
                raise GpuError(f"the plan has {sorted(theirs)}, the graph {sorted(s.name for s in specs)}",
                               "build it again", cause="build-failed")  # fmt: skip
            for spec in specs:
                if engine.get_tensor_location(spec.name).name == "HOST":  # such as the shape of another tensor
                    raise GpuError(f"{spec.name!r} is a tensor of the processor's for the library",
                                   "cut where no shape crosses", cause="unsupported-graph")  # fmt: skip
                dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(spec.name)))
                if dtype != DTYPES[spec.dtype]:
                    raise GpuError(f"the plan has {spec.name!r} as {dtype}, the graph as {spec.dtype}",
                                   "let it cross as it is", cause="unsupported-graph")  # fmt: skip

    def _most_nbytes(self, memory: GpuMemory) -> dict[str, int]:
        """The largest size of every input and output over all profiles, in bytes, as the engine itself says."""
        sizes: dict[str, int] = {}
        stream, event = memory.stream(), memory.event()  # a profile is chosen on a stream: not on one others wait for
        try:
            for index, (_, most) in enumerate(self._profiles):
                context = self._shaped(index, most, memory.handle(stream))
                for spec in (*self.inputs, *self.outputs):
                    shape = tuple(context.get_tensor_shape(spec.name))
                    if any(d < 0 for d in shape):
                        raise GpuError(f"the size of {spec.name!r} depends on values", "cut before it",
                                       cause="unsupported-graph")  # fmt: skip
                    sizes[spec.name] = max(sizes.get(spec.name, 1), math.prod(shape) * spec.numpy_dtype.itemsize)
                memory.record(event, stream)
                memory.wait(event)  # before the context goes, nothing of it may be on the way
                del context
        finally:
            memory.drop(stream, event)
        return sizes


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(a <= s <= b for s, a, b in zip(shape, least, most, strict=True))
