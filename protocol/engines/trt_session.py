"""A plan at work on one GPU: its slots, their memory, and what was made ready for each set of shapes.

    plan -> slots, each with a stream, memory for inputs, outputs and scratch, and pinned rows on the host
            '- buckets: one execution context for each set of shapes that came, all in the slot's memory

Shapes and addresses are set once, when a bucket is made: a run sets nothing, copies in, enqueues, copies out and
records an event. A bucket's first run is enqueued plainly; before its second it is captured as a CUDA graph, where
cuda-python is installed and the stream can be captured; from then on one call replays it. What another thread does may
spoil a capture (`gpu_quiet`), so one that failed is tried again, three times, ever more seldom. Of many shapes the
bucket unused for longest goes. Two slots are two batches in flight: the second is copied while the first computes.

    whoever holds the slot    stage, results
    beside the GPU thread     prepare: contexts are made and graphs captured, which may take seconds
    on the GPU thread         made, launch, pin, close
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from protocol.engines.gpu_memory import Block, GpuMemory, aligned
from protocol.engines.gpu_quiet import QUIET
from protocol.engines.trt_loaded import LoadedPlan, Shapes
from protocol.engines.trt_options import GpuError, TrtOptions
from protocol.tensors import Array

Capture = Callable[[int, Callable[[], bool]], Any]
_PINS_NONE = (800, 801)  # not permitted, not supported: as the driver and the runtime both count
MOST_TRIES = 3  # of one set of shapes to be captured
QUIET_WITHIN_S = 0.05  # an engine thread waits for it


class Bucket:
    """One set of input shapes, ready to run."""

    __slots__ = ("context", "graph", "outputs", "runs", "tries")

    def __init__(self, context: Any, outputs: Shapes) -> None:
        self.context = context
        self.outputs = outputs
        self.runs = 0  # plainly: what a first run prepares cannot be captured
        self.tries = 0  # of capturing, that failed
        self.graph: Any = None

    @property
    def is_due(self) -> bool:
        """Whether it is to be captured before the next run: after 1, 3, 7, 15, ... of them."""
        return self.graph is None and self.tries < MOST_TRIES and self.runs > 0 and not self.runs & (self.runs + 1)


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
        self.outputs: Shapes = ()  # shapes of what the last run gave


class Session:
    """One loaded plan, which it closes, and its slots. Made on the GPU thread; raises GpuError, the memory's errors."""

    def __init__(
        self, plan: LoadedPlan, memory: GpuMemory, *, options: TrtOptions, capture: Capture | None
    ) -> None:  # fmt: skip
        self.plan = plan
        self._memory = memory
        self._options = options
        self._capture = capture
        self.slots: list[Slot] = []
        self.made = 0  # buckets so far
        self.captured = 0
        self.uncaptured = ""  # why plain enqueues are used
        self.unpinned = ""  # why the slots' rows are not pinned: what is copied then waits
        self._preparing = threading.Lock()  # one bucket at a time
        self._pinned: dict[int, Pinned] = {}  # by address
        try:
            self.nbytes = self._take()
        except BaseException:
            self.close()
            raise

    # ---- by whoever holds a slot ------------------------------------------------------------------------------------

    def stage(self, slot: Slot, tensors: Mapping[str, Array]) -> list[Array]:
        """The inputs where the GPU can reach them: copied into the slot's rows, unless they lie in pinned memory."""
        staged = []
        for spec in self.plan.inputs:
            array = tensors[spec.name]
            if not self._is_pinned(array):
                rows = slot.rows[spec.name][: array.nbytes].view(array.dtype).reshape(array.shape)
                np.copyto(rows, array)
                array = rows
            staged.append(array)
        return staged

    def is_prepared(self, slot: Slot, shapes: Shapes) -> bool:
        """Whether nothing is to be made or captured before these shapes are run."""
        bucket = slot.buckets.get(shapes)
        return bucket is not None and (self._capture is None or not bucket.is_due)

    def is_first(self, slot: Slot, shapes: Shapes) -> bool:
        """Whether the slot has not run these shapes yet: the driver may have code to load."""
        bucket = slot.buckets.get(shapes)
        return bucket is None or not bucket.runs

    def results(self, slot: Slot) -> dict[str, Array]:
        """Copies of what the slot's last run gave."""
        found = {}
        for spec, shape in zip(self.plan.outputs, slot.outputs, strict=True):
            nbytes = math.prod(shape) * spec.numpy_dtype.itemsize
            found[spec.name] = slot.rows[spec.name][:nbytes].view(spec.numpy_dtype).reshape(shape).copy()
        return found

    # ---- beside the GPU thread, by whoever holds the slot -----------------------------------------------------------

    def prepare(self, slot: Slot, shapes: Shapes) -> None:
        """Make what is missing before these shapes are run: a context, or the graph of one that has run."""
        with self._preparing:
            bucket = slot.buckets.get(shapes)
            if bucket is None:
                while len(slot.buckets) >= max(self._options.most_graphs, 1):
                    self._drop(slot.buckets.popitem(last=False)[1])
                addresses = {name: block.address for name, block in slot.blocks.items()}
                scratch = slot.scratch.address if slot.scratch is not None else 0
                context = self.plan.context(shapes, addresses, scratch, slot.handle)
                slot.buckets[shapes] = Bucket(context, self.plan.shapes_of(context))
                self.made += 1
            elif bucket.is_due and self._capture is not None:
                with QUIET.capture(QUIET_WITHIN_S) as is_quiet:
                    if is_quiet:
                        bucket.graph = self._captured(self._capture, slot, bucket)

    # ---- on the GPU thread ------------------------------------------------------------------------------------------

    def launch(self, slot: Slot, staged: Sequence[Array]) -> Any:
        """Enqueue one run and return the event that happens when its outputs lie in the slot's rows."""
        shapes = tuple(array.shape for array in staged)
        bucket = slot.buckets[shapes]
        slot.buckets.move_to_end(shapes)
        for spec, array in zip(self.plan.inputs, staged, strict=True):
            self._memory.copy_in(slot.blocks[spec.name].address, array, slot.stream)
        if bucket.graph is not None:
            bucket.graph.launch(slot.handle)
        elif not bucket.context.execute_async_v3(slot.handle):
            raise self.plan.refused("the run")
        for spec, shape in zip(self.plan.outputs, bucket.outputs, strict=True):
            nbytes = math.prod(shape) * spec.numpy_dtype.itemsize
            self._memory.copy_out(slot.rows[spec.name][:nbytes], slot.blocks[spec.name].address, slot.stream)
        slot.outputs = bucket.outputs
        self._memory.record(slot.event, slot.stream)
        bucket.runs += bucket.graph is None
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
            with contextlib.suppress(Exception):
                if slot.event is not None:
                    self._memory.drop(slot.stream, slot.event)
            slot.event = slot.stream = slot.scratch = None
            slot.blocks = {}
            slot.unpin = []
        for address in list(self._pinned):
            self.unpin(address)
        self.plan.close()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _captured(self, capture: Capture, slot: Slot, bucket: Bucket) -> Any:
        """The bucket as a graph; None where it cannot be one, which is no error: plain enqueues do the same."""
        context = bucket.context
        asked = getattr(context, "is_stream_capturable", None)  # TensorRT-RTX knows before
        if asked is not None and not asked(slot.handle):
            self.uncaptured = "the library says that this plan cannot be captured"
            bucket.tries = MOST_TRIES
            return None
        try:
            graph = capture(slot.handle, lambda: bool(context.execute_async_v3(slot.handle)))
        except Exception as error:  # of the library that captures, which this module does not import
            self.uncaptured = str(error)[:300]
            bucket.tries += 1
            return None
        self.captured += 1
        self.uncaptured = ""
        return graph

    def _drop(self, bucket: Bucket) -> None:
        if bucket.graph is not None:
            with contextlib.suppress(Exception):
                bucket.graph.destroy()
        bucket.context = bucket.graph = None

    def _is_pinned(self, array: Array) -> bool:
        if not self._pinned or not array.flags.c_contiguous:
            return False
        address: int = array.__array_interface__["data"][0]
        return any(
            start <= address and address + array.nbytes <= start + pinned.array.nbytes
            for start, pinned in tuple(self._pinned.items())
        )

    def _take(self) -> int:
        """Take the memory of all slots, if it is within what the engine may have. How many bytes, plan included."""
        sizes, scratch_nbytes = self.plan.most_nbytes, self.plan.scratch_nbytes
        need = self.plan.nbytes + self._options.slots * (scratch_nbytes + sum(sizes.values()))
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
            if scratch_nbytes:
                slot.scratch = self._memory.allocate(scratch_nbytes)
            for name, nbytes in sizes.items():
                slot.blocks[name] = self._memory.allocate(nbytes)
                slot.rows[name] = aligned(nbytes)
                self._pin_rows(slot, slot.rows[name])
        return need

    def _pin_rows(self, slot: Slot, rows: Array) -> None:
        """Not every device pins memory that is there already (HOST_REGISTER_SUPPORTED); it is copied all the same."""
        try:
            slot.unpin.append(self._memory.pin(rows))
        except Exception as error:
            if getattr(error, "code", None) not in _PINS_NONE:
                raise
            self.unpinned = str(error)
