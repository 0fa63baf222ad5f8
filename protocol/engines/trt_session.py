"""A plan at work on one GPU. Everything here but `stage` and `results` happens on the GPU thread.

    plan -> engine -> slots, each with a stream, memory for inputs, outputs and scratch, and pinned rows on the host
                      '- buckets: one execution context for each set of shapes that came, all in the slot's memory

Shapes and addresses are set once, when a bucket is made: a run sets nothing, copies in, enqueues, copies out and
records an event. A bucket's first run is enqueued plainly; before its second it is captured as a CUDA graph, where
cuda-python is installed and the stream can be captured; from then on one call replays it. Of many shapes the bucket
unused for longest goes. Two slots are two batches in flight: the second is copied while the first computes.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protocol.engines.gpu_memory import Block, GpuMemory, aligned
from protocol.engines.trt_options import GpuError, TrtOptions
from protocol.tensors import DTYPES, Array, TensorSpec

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in their order
Capture = Callable[[int, Callable[[], bool]], Any]


class Bucket(NamedTuple):
    """One set of input shapes, ready to run. `graph` holds one item: None until captured, False where it cannot be."""

    context: Any
    outputs: tuple[tuple[int, ...], ...]
    graph: list[Any]


class Pinned(NamedTuple):
    """Memory of the host that the GPU reads directly; it must live until it is released."""

    array: Array
    release: Callable[[], None]


class Slot:
    """What one batch in flight needs. Its pinned rows are written and read by whoever holds the slot."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.handle = 0
        self.event: Any = None
        self.scratch: Block | None = None
        self.blocks: dict[str, Block] = {}
        self.rows: dict[str, Array] = {}  # pinned, uint8
        self.buckets: OrderedDict[Shapes, Bucket] = OrderedDict()
        self.unpin: list[Callable[[], None]] = []
        self.outputs: tuple[tuple[int, ...], ...] = ()  # shapes of what the last run gave


class Session:
    """One engine and its slots. Made on the GPU thread; raises GpuError, and the memory library's errors."""

    def __init__(
        self,
        trt: Any,
        log: Any,
        plan: bytes,
        memory: GpuMemory,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: TrtOptions,
        capture: Capture | None,
    ) -> None:
        self._trt = trt
        self._log = log
        self._memory = memory
        self._inputs = inputs
        self._outputs = outputs
        self._options = options
        self._capture = capture
        self.slots: list[Slot] = []
        self.captured = 0
        self.uncaptured = ""  # why plain enqueues are used
        self._pinned: dict[int, Pinned] = {}  # by address
        self._runtime = trt.Runtime(log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise GpuError(f"the plan is refused: {log.last()}", "remove it from the cache", cause="build-failed")
        try:
            self._profiles = list(self._limits())
            self._check_tensors()
            self._take(len(plan))
        except BaseException:
            self.close()
            raise

    # ---- by whoever holds a slot ------------------------------------------------------------------------------------

    def stage(self, slot: Slot, tensors: Mapping[str, Array]) -> list[Array]:
        """The inputs where the GPU can reach them: copied into the slot's rows, unless they lie in pinned memory."""
        staged = []
        for spec in self._inputs:
            array = tensors[spec.name]
            if not self._is_pinned(array):
                rows = slot.rows[spec.name][: array.nbytes].view(array.dtype).reshape(array.shape)
                np.copyto(rows, array)
                array = rows
            staged.append(array)
        return staged

    def is_new(self, slot: Slot, staged: Sequence[Array]) -> bool:
        """Whether the slot has not run these shapes yet: then much has to be made, and may have to be compiled."""
        return tuple(array.shape for array in staged) not in slot.buckets

    def results(self, slot: Slot) -> dict[str, Array]:
        """Copies of what the slot's last run gave."""
        found = {}
        for spec, shape in zip(self._outputs, slot.outputs, strict=True):
            nbytes = math.prod(shape) * spec.numpy_dtype.itemsize
            found[spec.name] = slot.rows[spec.name][:nbytes].view(spec.numpy_dtype).reshape(shape).copy()
        return found

    def profile_of(self, shapes: Shapes) -> int:
        """The narrowest profile that takes these shapes. Raises GpuError ("bad-input")."""
        for index, (least, most) in enumerate(self._profiles):
            if all(_within(s, a, b) for s, a, b in zip(shapes, least, most, strict=True)):
                return index
        largest = self._profiles[-1][1]
        names = ", ".join(
            f"{spec.name!r} {list(shape)} (at most {list(most)})"
            for spec, shape, most in zip(self._inputs, shapes, largest, strict=True)
        )
        raise GpuError(f"no profile takes {names}", "raise max_batch, or send less", cause="bad-input")

    # ---- on the GPU thread ------------------------------------------------------------------------------------------

    def launch(self, slot: Slot, staged: Sequence[Array]) -> Any:
        """Enqueue one run and return the event that happens when its outputs lie in the slot's rows."""
        shapes = tuple(array.shape for array in staged)
        bucket = slot.buckets.get(shapes)
        is_new = bucket is None
        if bucket is None:
            bucket = self._bucket(slot, shapes)
        slot.buckets.move_to_end(shapes)
        for spec, array in zip(self._inputs, staged, strict=True):
            self._memory.copy_in(slot.blocks[spec.name].address, array, slot.stream)
        self._enqueue(slot, bucket, is_new=is_new)
        for spec, shape in zip(self._outputs, bucket.outputs, strict=True):
            nbytes = math.prod(shape) * spec.numpy_dtype.itemsize
            self._memory.copy_out(slot.rows[spec.name][:nbytes], slot.blocks[spec.name].address, slot.stream)
        slot.outputs = bucket.outputs
        self._memory.record(slot.event, slot.stream)
        return slot.event

    def pin(self, array: Array) -> None:
        """Let inputs that lie in this memory be copied from where they are, until `unpin` of its address."""
        self._pinned[array.ctypes.data] = Pinned(array, self._memory.pin(array))

    def unpin(self, address: int) -> None:
        pinned = self._pinned.pop(address, None)
        if pinned is not None:
            with contextlib.suppress(Exception):  # the device is gone, and its pins with it
                pinned.release()

    def close(self) -> None:
        """Give everything back, children before parents. What cannot be given back is left: the device is gone."""
        slots, self.slots = self.slots, []
        for slot in slots:
            for bucket in slot.buckets.values():
                self._drop(bucket)
            slot.buckets.clear()
            for block in (*slot.blocks.values(), slot.scratch):
                with contextlib.suppress(Exception):
                    if block is not None:
                        block.free()
            for unpin in slot.unpin:
                with contextlib.suppress(Exception):
                    unpin()
            slot.event = slot.stream = slot.scratch = None
            slot.blocks = {}
            slot.unpin = []
        for address in list(self._pinned):
            self.unpin(address)
        self._engine = self._runtime = None

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _enqueue(self, slot: Slot, bucket: Bucket, *, is_new: bool) -> None:
        graph = bucket.graph[0]
        if graph is None and self._capture is not None and not is_new:
            graph = bucket.graph[0] = self._captured(slot, bucket)
        if graph:
            graph.launch(slot.handle)
        elif not bucket.context.execute_async_v3(slot.handle):
            raise GpuError(f"the run was not enqueued: {self._log.last()}", "", cause="run-failed")

    def _captured(self, slot: Slot, bucket: Bucket) -> Any:
        """The bucket as a graph; False where it cannot be one, which is no error: plain enqueues do the same."""
        assert self._capture is not None
        try:
            graph = self._capture(slot.handle, lambda: bool(bucket.context.execute_async_v3(slot.handle)))
        except Exception as error:  # of the library that captures, which this module does not import
            self.uncaptured = str(error)[:300]
            return False
        self.captured += 1
        return graph

    def _bucket(self, slot: Slot, shapes: Shapes) -> Bucket:
        """A context with these shapes, in the slot's memory."""
        while len(slot.buckets) >= max(self._options.most_graphs, 1):
            self._drop(slot.buckets.popitem(last=False)[1])
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise GpuError(f"no context can be made: {self._log.last()}", "", cause="out-of-memory")
        if slot.scratch is not None:
            context.set_device_memory(slot.scratch.address, self._scratch_nbytes())
        profile = self.profile_of(shapes)
        if self._engine.num_optimization_profiles > 1 and not context.set_optimization_profile_async(
            profile, slot.handle
        ):
            raise self._refused(f"profile {profile}")
        for spec, shape in zip(self._inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise self._refused(f"shape {list(shape)} of {spec.name!r}")
        unknown = context.infer_shapes()
        if unknown:
            raise self._refused(f"what is known of {', '.join(unknown)}")
        for spec in (*self._inputs, *self._outputs):
            if not context.set_tensor_address(spec.name, slot.blocks[spec.name].address):
                raise self._refused(f"the address of {spec.name!r}")
        outputs = tuple(tuple(context.get_tensor_shape(spec.name)) for spec in self._outputs)
        bucket = slot.buckets[shapes] = Bucket(context, outputs, [None])
        return bucket

    def _refused(self, what: str) -> GpuError:
        return GpuError(f"{what} is refused: {self._log.last()}", "", cause="run-failed")

    def _drop(self, bucket: Bucket) -> None:
        if bucket.graph[0]:
            with contextlib.suppress(Exception):
                bucket.graph[0].destroy()

    def _is_pinned(self, array: Array) -> bool:
        if not self._pinned or not array.flags.c_contiguous:
            return False
        address: int = array.__array_interface__["data"][0]
        return any(
            start <= address and address + array.nbytes <= start + pinned.array.nbytes
            for start, pinned in tuple(self._pinned.items())
        )

    def _limits(self) -> Iterator[tuple[Shapes, Shapes]]:
        """Least and most shapes of each profile, narrowest first, as the builder was given them."""
        for index in range(self._engine.num_optimization_profiles):
            shapes = [self._engine.get_tensor_profile_shape(spec.name, index) for spec in self._inputs]
            yield tuple(tuple(s[0]) for s in shapes), tuple(tuple(s[2]) for s in shapes)

    def _check_tensors(self) -> None:
        """That the plan takes and gives what the graph says: names and element types."""
        engine, mode = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for kind, specs in ((mode.INPUT, self._inputs), (mode.OUTPUT, self._outputs)):
            theirs = {name for name in names if engine.get_tensor_mode(name) == kind}
            if theirs != {spec.name for spec in specs}:
                raise GpuError(f"the plan has {sorted(theirs)}, the graph {sorted(s.name for s in specs)}",
                               "build it again", cause="build-failed")  # fmt: skip
            for spec in specs:
                dtype = np.dtype(self._trt.nptype(engine.get_tensor_dtype(spec.name)))
                if dtype != DTYPES[spec.dtype]:
                    raise GpuError(f"the plan has {spec.name!r} as {dtype}, the graph as {spec.dtype}",
                                   "let it cross as it is", cause="unsupported-graph")  # fmt: skip

    def _scratch_nbytes(self) -> int:
        return int(self._engine.device_memory_size_v2)

    def _take(self, plan_nbytes: int) -> None:
        """Take the memory of all slots, if it is within what the engine may have."""
        sizes = self._most_nbytes()
        a_slot = self._scratch_nbytes() + sum(sizes.values())
        need = plan_nbytes + self._options.slots * a_slot  # weights are most of a plan
        most = self._options.memory_nbytes
        if most is not None and need > most:
            raise GpuError(
                f"the engine needs {need >> 20} MiB of the GPU and may have {most >> 20}",
                "give it more, or lower its batch or slots",
                cause="out-of-memory",
            )
        for _ in range(self._options.slots):
            slot = Slot()
            self.slots.append(slot)
            slot.stream, slot.event = self._memory.stream(), self._memory.event()
            slot.handle = self._memory.handle(slot.stream)
            if self._scratch_nbytes():
                slot.scratch = self._memory.allocate(self._scratch_nbytes())
            for name, nbytes in sizes.items():
                slot.blocks[name] = self._memory.allocate(nbytes)
                slot.rows[name] = aligned(nbytes)
                slot.unpin.append(self._memory.pin(slot.rows[name]))

    def _most_nbytes(self) -> dict[str, int]:
        """The largest size of every input and output over all profiles, in bytes, as the engine itself says."""
        sizes: dict[str, int] = {}
        for index, (_, most) in enumerate(self._profiles):
            context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if context is None:
                raise GpuError(f"no context can be made: {self._log.last()}", "", cause="out-of-memory")
            if index and not context.set_optimization_profile_async(index, 0):
                raise self._refused(f"profile {index}")
            for spec, shape in zip(self._inputs, most, strict=True):
                if not context.set_input_shape(spec.name, shape):
                    raise self._refused(f"shape {list(shape)} of {spec.name!r}")
            for spec in (*self._inputs, *self._outputs):
                shape = tuple(context.get_tensor_shape(spec.name))
                if any(d < 0 for d in shape):
                    raise GpuError(f"the size of {spec.name!r} depends on values", "cut before it",
                                   cause="unsupported-graph")  # fmt: skip
                sizes[spec.name] = max(sizes.get(spec.name, 1), math.prod(shape) * spec.numpy_dtype.itemsize)
        return sizes


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(a <= s <= b for s, a, b in zip(shape, least, most, strict=True))
