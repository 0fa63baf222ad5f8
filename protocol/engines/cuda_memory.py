"""Memory, streams and events through pycuda; the only module that imports it.

The laws of pycuda, each a crash or a leak where it is broken: never `pycuda.autoinit` (a private context); a context
that is still pushed when its thread ends aborts the process; what belongs to a context is freed on the thread that made
that context object, or not at all. So objects are made, used and freed on one thread; `wait` alone is for others.

pycuda lets other Python threads run while it copies and waits, and in no other call. One that has to wait in the driver
(the first context takes seconds, freeing waits for what runs, all wait while code is loaded) would stop the whole
process, for ever where a kernel hangs. Those calls go to the driver itself, by ctypes, which always lets others run.
Pinning does so too: `pycuda.driver.register_host_memory` of 2026.1 crashes the process with numpy 2 (it sets the base
of an array that has one; found with the real pycuda on a simulated driver), and memory of pycuda's own would be gone
under whoever still looks at it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

import pycuda.driver as cuda

from protocol.engines.driver import LIBRARY, DriverError, call
from protocol.engines.gpu_memory import Block
from protocol.engines.trt_options import GpuError
from protocol.tensors import Array

# CU_STREAM_NON_BLOCKING, which pycuda gives no name; CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING
_NON_BLOCKING, _SLEEPS_UNTIMED = 1, 3
_OUT_OF_MEMORY = 2


class _Block:
    def __init__(self, driver: Any, nbytes: int) -> None:
        pointer = ctypes.c_uint64()
        call(driver, "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        self._driver = driver
        self.address = int(pointer.value)

    def free(self) -> None:
        call(self._driver, "cuMemFree_v2", ctypes.c_uint64(self.address))


class PycudaMemory:
    """See `gpu_memory.GpuMemory`. One object may be attached to several threads; each has its own context object."""

    name = "pycuda"

    def __init__(self, device: int) -> None:
        self._device = device
        self._contexts: dict[int, Any] = {}  # by thread
        self._driver = ctypes.CDLL(LIBRARY)
        self._handle = ctypes.c_int()  # the driver's, of the device

    def attach(self) -> None:
        cuda.init()
        primary = ctypes.c_void_p()
        call(self._driver, "cuDeviceGet", ctypes.byref(self._handle), self._device)
        call(self._driver, "cuDevicePrimaryCtxRetain", ctypes.byref(primary), self._handle)  # made here, or before
        try:
            context = cuda.Device(self._device).retain_primary_context()
            context.push()
        except BaseException:
            self._release()
            raise
        self._contexts[threading.get_ident()] = context

    def detach(self) -> None:
        cuda.Context.pop()
        self._contexts.pop(threading.get_ident()).detach()
        self._release()  # after pycuda's, so that it ends here, where others run meanwhile

    def stream(self) -> Any:
        return cuda.Stream(_NON_BLOCKING)

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def event(self) -> Any:
        event = ctypes.c_void_p()
        call(self._driver, "cuEventCreate", ctypes.byref(event), ctypes.c_uint(_SLEEPS_UNTIMED))
        return event

    def drop(self, stream: Any, event: Any) -> None:
        """The stream goes with the object that holds it."""
        call(self._driver, "cuEventDestroy_v2", event)

    def allocate(self, nbytes: int) -> Block:
        return _Block(self._driver, max(nbytes, 1))

    def pin(self, array: Array) -> Callable[[], None]:
        address = ctypes.c_void_p(array.ctypes.data)
        call(self._driver, "cuMemHostRegister_v2", address, ctypes.c_size_t(array.nbytes), ctypes.c_uint(0))

        def unpin() -> None:
            call(self._driver, "cuMemHostUnregister", address)

        return unpin

    def copy_in(self, address: int, array: Array, stream: Any) -> None:
        cuda.memcpy_htod_async(address, array, stream)

    def copy_out(self, array: Array, address: int, stream: Any) -> None:
        cuda.memcpy_dtoh_async(array, address, stream)

    def record(self, event: Any, stream: Any) -> None:
        call(self._driver, "cuEventRecord", event, ctypes.c_void_p(int(stream.handle)))

    def wait(self, event: Any) -> None:
        call(self._driver, "cuEventSynchronize", event)

    def free_nbytes(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        call(self._driver, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return int(free.value)

    def synchronize(self) -> None:
        cuda.Context.synchronize()

    def explain(self, error: Exception) -> GpuError | None:
        if isinstance(error, cuda.MemoryError) or (isinstance(error, DriverError) and error.code == _OUT_OF_MEMORY):
            return GpuError(f"the GPU has no memory left ({error})", "lower the memory that engines may take",
                            cause="out-of-memory")  # fmt: skip
        if not isinstance(error, cuda.Error | DriverError):
            return None
        return GpuError(f"the GPU refuses a call ({error})", "", cause="run-failed")

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        call(self._driver, "cuDevicePrimaryCtxRelease_v2", self._handle)
