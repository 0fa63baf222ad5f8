"""Memory, streams and events through pycuda; the only module that imports it.

The laws of pycuda, each a crash or a leak where it is broken: never `pycuda.autoinit` (a private context); a context
that is still pushed when its thread ends aborts the process; what belongs to a context is freed on the thread that made
that context object, or not at all. So objects are made, used and freed on one thread; `wait` alone is for others.
Pinning goes to the driver itself: `pycuda.driver.register_host_memory` of 2026.1 crashes the process with numpy 2 (it
sets the base of an array that has one; found with the real pycuda on a simulated driver), and memory of pycuda's own
would be gone under whoever still looks at it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pycuda.driver as cuda

from protocol.engines.driver import LIBRARY
from protocol.engines.gpu_memory import Block
from protocol.engines.trt_options import GpuError
from protocol.tensors import Array

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda gives no name


_OUT_OF_MEMORY = 2


class PinError(Exception):
    """The driver does not pin memory; `code` is its own."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed with code {code}")
        self.code = code


class _Block:
    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation
        self.address = int(allocation)

    def free(self) -> None:
        self._allocation.free()


class PycudaMemory:
    """See `gpu_memory.GpuMemory`. One object may be attached to several threads; each has its own context object."""

    name = "pycuda"

    def __init__(self, device: int) -> None:
        self._device = device
        self._contexts: dict[int, Any] = {}  # by thread
        self._driver = ctypes.CDLL(LIBRARY)

    def attach(self) -> None:
        cuda.init()
        context = cuda.Device(self._device).retain_primary_context()
        context.push()
        self._contexts[threading.get_ident()] = context

    def detach(self) -> None:
        cuda.Context.pop()
        self._contexts.pop(threading.get_ident()).detach()

    def stream(self) -> Any:
        return cuda.Stream(_NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self) -> Any:
        return cuda.Event(cuda.event_flags.DISABLE_TIMING | cuda.event_flags.BLOCKING_SYNC)

    def drop(self, stream: Any, event: Any) -> None:
        """They go with the objects that hold them."""

    def allocate(self, nbytes: int) -> Block:
        return _Block(cuda.mem_alloc(max(nbytes, 1)))

    def pin(self, array: Array) -> Callable[[], None]:
        address = ctypes.c_void_p(array.ctypes.data)
        code = self._driver.cuMemHostRegister_v2(address, ctypes.c_size_t(array.nbytes), ctypes.c_uint(0))
        if code:
            raise PinError("cuMemHostRegister", code)

        def unpin() -> None:
            if failed := self._driver.cuMemHostUnregister(address):
                raise PinError("cuMemHostUnregister", failed)

        return unpin

    def copy_in(self, address: int, array: Array, stream: Any) -> None:
        cuda.memcpy_htod_async(address, array, stream)

    def copy_out(self, array: Array, address: int, stream: Any) -> None:
        cuda.memcpy_dtoh_async(array, address, stream)

    def record(self, event: Any, stream: Any) -> None:
        event.record(stream)

    def wait(self, event: Any) -> None:
        event.synchronize()

    def free_nbytes(self) -> int:
        return int(cuda.mem_get_info()[0])

    def synchronize(self) -> None:
        cuda.Context.synchronize()

    def explain(self, error: Exception) -> GpuError | None:
        if isinstance(error, cuda.MemoryError) or (isinstance(error, PinError) and error.code == _OUT_OF_MEMORY):
            return GpuError(f"the GPU has no memory left ({error})", "lower the memory that engines may take",
                            cause="out-of-memory")  # fmt: skip
        if not isinstance(error, cuda.Error | PinError):
            return None
        return GpuError(f"the GPU refuses a call ({error})", "", cause="run-failed")
