"""SIMULATION of one GPU: no figure and no result of it says anything about a real one.

It keeps the laws that are easily broken, and remembers who broke them: a call needs a context that is current on its
thread; a copy to or from unpinned memory is no asynchronous copy; nothing that was enqueued has happened before
somebody waits for it (until then, outputs hold what they held before); what is recorded in a capture does not run; what
pycuda gives is freed on the thread that made it; whoever waits for the device while a stream is captured fails, and
spoils the capture; what TensorRT gives is used by one thread at a time, and freed where a context is current; after a
failed kernel every call fails.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

Operation = Callable[[], None]
STICKY = ("ILLEGAL_ADDRESS", "LAUNCH_FAILED")  # every call fails from then on, as with the real ones


_NAMES = {
    1: "INVALID_VALUE", 2: "OUT_OF_MEMORY", 101: "INVALID_DEVICE", 201: "INVALID_CONTEXT", 700: "ILLEGAL_ADDRESS",
    719: "LAUNCH_FAILED", 801: "NOT_SUPPORTED", 900: "STREAM_CAPTURE_UNSUPPORTED",
}  # fmt: skip


class Failure(Exception):  # noqa: N818
    """`code` is the name of CUDA's error."""

    def __init__(self, call: str, code: str) -> None:
        super().__init__(f"{call} failed: {code}")
        self.code = code


class Stream:
    def __init__(self) -> None:
        self.queue: deque[Operation] = deque()
        self.capturing: list[Operation] | None = None
        self.is_spoilt = False  # the capture, by somebody who waited for the whole device


class Event:
    """Has happened when `stream` has done its first `after` operations."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.marker: object = None


class Gpu:
    def __init__(self, memory_nbytes: int = 1 << 30) -> None:
        self.memory_nbytes = memory_nbytes
        self.blocks: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.pinned: dict[int, int] = {}
        self.stacks: dict[int, list[str]] = {}
        self.retained = 0
        self.events = 0
        self.of_driver: dict[int, Event] = {}  # events by the driver's handles
        self.calls: Counter[str] = Counter()
        self.violations: list[str] = []
        self.sticky = ""
        self.faults: dict[str, tuple[int, str]] = {}  # call -> (in how many calls, code)
        self.hangs = False
        self.last_errors: set[int] = set()  # threads of the runtime's that were told of one and did not ask for it
        self.uncapturable = False
        self.pins_nothing = False
        self.plan_nbytes = 0  # of the last that was loaded
        self.launched_on: set[str] = set()
        self._addresses = itertools.count(1 << 40, 1 << 32)
        self._handles = itertools.count(1000)
        self.lock = threading.RLock()
        self.paused = threading.Event()  # cleared: nothing that was enqueued happens
        self.loading = threading.Event()  # cleared: no plan is loaded to its end
        self.making = threading.Event()  # cleared: no context of TensorRT is made to its end
        self.recording = threading.Event()  # cleared: no capture ends
        for event in (self.paused, self.loading, self.making, self.recording):
            event.set()

    # ---- laws -------------------------------------------------------------------------------------------------------

    def call(self, name: str, *, needs_context: bool = True) -> None:
        """Count a call; fail it if it was told to, or if its thread has no context."""
        self.calls[name] += 1
        if self.sticky:
            raise Failure(name, self.sticky)
        if name in self.faults:
            left, code = self.faults[name]
            self.faults[name] = (left - 1, code)
            if left <= 0:
                del self.faults[name]
                self.sticky = code if code in STICKY else ""
                raise Failure(name, code)
        if needs_context and not self.stacks.get(threading.get_ident()):
            self.violations.append(f"{name} without a current context on {threading.current_thread().name}")
            raise Failure(name, "INVALID_CONTEXT")

    def fail(self, call: str, code: str, *, after: int = 0) -> None:
        """Let the call fail once, after so many that do not."""
        self.faults[call] = (after, code)

    def freed(self, what: str, made_on: int) -> None:
        if threading.get_ident() != made_on:
            self.violations.append(f"{what} freed on {threading.current_thread().name}, which did not make it")

    def let_go(self, what: str) -> None:
        """Something of TensorRT's is destroyed, which frees memory of the GPU."""
        if not self.stacks.get(threading.get_ident()) and not self.sticky and not self.hangs:
            self.violations.append(f"{what} destroyed on {threading.current_thread().name} without a current context")

    def ended_attached(self) -> int:
        """Threads that have ended with a context: pycuda would have ended the process with them."""
        alive = {thread.ident for thread in threading.enumerate()}
        return sum(1 for thread, stack in self.stacks.items() if stack and thread not in alive)

    def clean(self) -> list[str]:
        """What was broken or left behind."""
        left = [f"{len(stack)} contexts still pushed on thread {t}" for t, stack in self.stacks.items() if stack]
        left += [f"{len(self.blocks)} blocks of memory not freed"] if self.blocks else []
        left += [f"{len(self.pinned)} arrays still pinned"] if self.pinned else []
        left += [f"{len(self.streams)} streams not destroyed"] if self.streams else []
        left += [f"{self.events} events not destroyed"] if self.events else []
        return self.violations + left + ([f"{self.retained} contexts still retained"] if self.retained else [])

    # ---- what calls do ----------------------------------------------------------------------------------------------

    def push(self) -> None:
        self.stacks.setdefault(threading.get_ident(), []).append("primary")

    def pop(self) -> None:
        self.stacks[threading.get_ident()].pop()

    def allocate(self, nbytes: int) -> int:
        if sum(len(b) for b in self.blocks.values()) + nbytes > self.memory_nbytes:
            raise Failure("allocate", "OUT_OF_MEMORY")
        address = next(self._addresses)
        self.blocks[address] = ctypes.create_string_buffer(b"\xee" * nbytes, nbytes)  # what nobody wrote is no zero
        return address

    def free(self, address: int) -> None:
        if self.blocks.pop(address, None) is None:
            self.violations.append(f"{address} freed twice")

    def at(self, address: int, nbytes: int) -> int:
        """Where the bytes of a block really lie. A kernel that reaches beyond a block loses the device."""
        for start, block in self.blocks.items():
            if start <= address and address + nbytes <= start + len(block):
                return ctypes.addressof(block) + address - start
        self.sticky = "ILLEGAL_ADDRESS"
        raise Failure("kernel", self.sticky)

    def new_stream(self) -> int:
        handle = next(self._handles)
        self.streams[handle] = Stream()
        return handle

    def enqueue(self, handle: int, operation: Operation, *, is_work: bool = True) -> None:
        with self.lock:
            stream = self.streams[handle]
            if stream.is_spoilt:
                raise Failure("enqueue", "CAPTURE_INVALIDATED")
            if is_work and stream.capturing is None:
                self.launched_on.add(threading.current_thread().name)
            (stream.queue if stream.capturing is None else stream.capturing).append(operation)

    def copy(self, to: int, source: int, nbytes: int, *, host: int, inwards: bool, handle: int) -> None:
        if not self.pins_nothing and not any(
            start <= host and host + nbytes <= start + size for start, size in self.pinned.items()
        ):
            self.violations.append("an asynchronous copy from or to memory that is not pinned")

        def operation() -> None:
            if inwards:
                ctypes.memmove(self.at(to, nbytes), source, nbytes)
            else:
                ctypes.memmove(to, self.at(source, nbytes), nbytes)

        self.enqueue(handle, operation)

    def record(self, event: Event, handle: int) -> None:
        marker = object()
        event.stream, event.marker = self.streams[handle], marker

        def operation() -> None:
            if event.marker is marker:
                event.marker = None

        self.enqueue(handle, operation, is_work=False)

    def wait(self, event: Event) -> None:
        """Do what its stream was given, up to the event."""
        if self.hangs:
            threading.Event().wait()
        self.paused.wait()
        with self.lock:
            while event.marker is not None and event.stream is not None:
                event.stream.queue.popleft()()
        if self.sticky:
            raise Failure("wait", self.sticky)

    def begin_capture(self, handle: int) -> None:
        self.streams[handle].capturing = []

    def end_capture(self, handle: int) -> list[Operation]:
        self.recording.wait()
        with self.lock:
            stream = self.streams[handle]
            recorded, was_spoilt = stream.capturing, stream.is_spoilt
            stream.capturing, stream.is_spoilt = None, False
        if was_spoilt or recorded is None:
            raise Failure("end_capture", "CAPTURE_INVALIDATED")
        return recorded

    def synchronize(self) -> None:
        with self.lock:
            captured = [stream for stream in self.streams.values() if stream.capturing is not None]
            for stream in captured:
                stream.is_spoilt = True
            if captured:
                raise Failure("synchronize", "CAPTURE")
            for stream in self.streams.values():
                while stream.queue:
                    stream.queue.popleft()()


class Driver:
    """What of libcuda is called directly; functions return their codes. Pointers come as ctypes has them."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def cuGetErrorName(self, code: int, text: Any) -> int:
        text._obj.value = f"CUDA_ERROR_{_NAMES[code]}".encode()
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        def retain() -> None:
            self._gpu.retained += 1

        return self._code("retain", retain, needs_context=False)

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self._gpu.retained -= 1
        return 0

    def cuMemAlloc_v2(self, address: Any, nbytes: Any) -> int:
        def allocate() -> None:
            address._obj.value = self._gpu.allocate(nbytes.value)

        return self._code("allocate", allocate)

    def cuMemFree_v2(self, address: Any) -> int:
        return self._code("free", lambda: self._gpu.free(address.value))

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        def tell() -> None:
            total._obj.value = self._gpu.memory_nbytes
            free._obj.value = total._obj.value - sum(len(b) for b in self._gpu.blocks.values())

        return self._code("info", tell)

    def cuEventCreate(self, event: Any, flags: Any) -> int:
        def create() -> None:
            self._gpu.events += 1
            event._obj.value = next(self._gpu._handles)
            self._gpu.of_driver[event._obj.value] = Event()

        return self._code("event", create)

    def cuEventDestroy_v2(self, event: Any) -> int:
        def destroy() -> None:
            self._gpu.events -= 1
            del self._gpu.of_driver[event.value]

        return self._code("destroy_event", destroy)

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        return self._code("record", lambda: self._gpu.record(self._gpu.of_driver[event.value], stream.value))

    def cuEventSynchronize(self, event: Any) -> int:
        return self._code("wait", lambda: self._gpu.wait(self._gpu.of_driver[event.value]))

    def cuMemHostRegister_v2(self, address: Any, nbytes: Any, flags: Any) -> int:
        assert address.value % 4096 == nbytes.value % 4096 == 0, "memory is pinned by whole pages"

        def pin() -> None:
            if self._gpu.pins_nothing:
                raise Failure("pin", "NOT_SUPPORTED")
            self._gpu.pinned[address.value] = nbytes.value

        return self._code("pin", pin)

    def cuMemHostUnregister(self, address: Any) -> int:
        return self._code("unpin", lambda: self._gpu.pinned.pop(address.value))

    def _code(self, call: str, work: Callable[[], object], *, needs_context: bool = True) -> int:
        try:
            self._gpu.call(call, needs_context=needs_context)
            work()
        except Failure as failure:
            return next((code for code, name in _NAMES.items() if name == failure.code), 1)
        return 0


GPU = Gpu()
