"""Memory, streams, events and CUDA graphs through cuda-python; the only module that imports it.

Its functions raise nothing: every one returns its error code first. The runtime uses the primary context by itself once
a thread has chosen its device, so a stream's number means the same here, in pycuda and in TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cuda import bindings
from cuda.bindings import runtime as cuda

from protocol.engines.gpu_memory import Block
from protocol.engines.trt_options import GpuError
from protocol.tensors import Array

LEAST = (12, 9, 1)  # the first that lets other Python threads run while it waits for the GPU
_OLD_DRIVER = (35, 36)  # cudaErrorInsufficientDriver, cudaErrorCallRequiresNewerDriver


class CudaError(Exception):
    """A call that did not succeed: its name and what it returned."""

    def __init__(self, call: str, code: Any) -> None:
        super().__init__(f"{call}: {getattr(code, 'name', code)}")
        self.code = code


def version() -> str:
    return str(getattr(bindings, "__version__", "") or "0")


def checked(call: str, returned: tuple[Any, ...]) -> Any:
    """What a call returned besides its code. Raises CudaError."""
    code, *values = returned
    if code != cuda.cudaError_t.cudaSuccess:
        cuda.cudaGetLastError()  # or the next library on this thread that looks for an error of its own finds this one
        raise CudaError(call, code)
    return values[0] if len(values) == 1 else tuple(values)


class _Block:
    def __init__(self, address: int) -> None:
        self.address = address

    def free(self) -> None:
        checked("cudaFree", cuda.cudaFree(self.address))


class RuntimeMemory:
    """See `gpu_memory.GpuMemory`."""

    name = "cuda-python"

    def __init__(self, device: int) -> None:
        """Raises GpuError ("no-library") where the installed version would stop the whole process at each wait."""
        have = version()
        if tuple(int(part) for part in re.findall(r"\d+", have)[:3]) < LEAST:
            raise GpuError(
                f"cuda-bindings is {have}, which lets no other thread run while it waits for the GPU",
                f"pip install 'cuda-bindings>={'.'.join(map(str, LEAST))}'",
                cause="no-library",
            )
        self._device = device

    def attach(self) -> None:
        checked("cudaSetDevice", cuda.cudaSetDevice(self._device))
        checked("cudaFree", cuda.cudaFree(0))  # makes the primary context now, not within the first request

    def detach(self) -> None:
        """A thread that ends takes its choice with it; the primary context lives as long as the process."""

    def stream(self) -> Any:
        return checked("cudaStreamCreateWithFlags", cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))

    def handle(self, stream: Any) -> int:
        return int(stream)

    def event(self) -> Any:
        flags = cuda.cudaEventDisableTiming | cuda.cudaEventBlockingSync
        return checked("cudaEventCreateWithFlags", cuda.cudaEventCreateWithFlags(flags))

    def drop(self, stream: Any, event: Any) -> None:
        try:
            checked("cudaEventDestroy", cuda.cudaEventDestroy(event))
        finally:
            checked("cudaStreamDestroy", cuda.cudaStreamDestroy(stream))

    def allocate(self, nbytes: int) -> Block:
        return _Block(int(checked("cudaMalloc", cuda.cudaMalloc(max(nbytes, 1)))))

    def pin(self, array: Array) -> Callable[[], None]:
        address = array.ctypes.data
        flags = cuda.cudaHostRegisterDefault
        checked("cudaHostRegister", cuda.cudaHostRegister(address, array.nbytes, flags))

        def unpin() -> None:
            checked("cudaHostUnregister", cuda.cudaHostUnregister(address))

        return unpin

    def copy_in(self, address: int, array: Array, stream: Any) -> None:
        kind = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked("cudaMemcpyAsync", cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, stream))

    def copy_out(self, array: Array, address: int, stream: Any) -> None:
        kind = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked("cudaMemcpyAsync", cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, stream))

    def record(self, event: Any, stream: Any) -> None:
        checked("cudaEventRecord", cuda.cudaEventRecord(event, stream))

    def wait(self, event: Any) -> None:
        checked("cudaEventSynchronize", cuda.cudaEventSynchronize(event))

    def free_nbytes(self) -> int:
        return int(checked("cudaMemGetInfo", cuda.cudaMemGetInfo())[0])

    def synchronize(self) -> None:
        checked("cudaDeviceSynchronize", cuda.cudaDeviceSynchronize())

    def explain(self, error: Exception) -> GpuError | None:
        if not isinstance(error, CudaError):
            return None
        if error.code == cuda.cudaError_t.cudaErrorMemoryAllocation:
            return GpuError(f"the GPU has no memory left ({error})", "lower the memory that engines may take",
                            cause="out-of-memory")  # fmt: skip
        if error.code in _OLD_DRIVER:
            return GpuError(
                f"the NVIDIA driver is older than the installed CUDA libraries are made for ({error})",
                "install a newer driver, or libraries for an older CUDA",
                cause="no-driver",
            )
        return GpuError(f"the GPU refuses a call ({error})", "", cause="run-failed")


class Graph:
    """What a stream was given between `capture`'s begin and end, to be given again in one call.

    Addresses and shapes are part of it. Made, launched and destroyed on one thread.
    """

    def __init__(self, executable: Any) -> None:
        self._executable = executable

    def launch(self, stream: int) -> None:
        checked("cudaGraphLaunch", cuda.cudaGraphLaunch(self._executable, stream))

    def destroy(self) -> None:
        checked("cudaGraphExecDestroy", cuda.cudaGraphExecDestroy(self._executable))


def capture(stream: int, enqueue: Callable[[], bool]) -> Graph:
    """Record what `enqueue` gives the stream, which runs nothing. Raises CudaError where it cannot be recorded.

    Enqueue once for real before: what a first run of a shape prepares cannot be recorded.
    """
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    checked("cudaStreamBeginCapture", cuda.cudaStreamBeginCapture(stream, mode))
    taken = False
    try:
        taken = enqueue()
    finally:  # a stream that stays in capture takes no work any more
        ended = cuda.cudaStreamEndCapture(stream)
    graph = checked("cudaStreamEndCapture", ended)
    try:
        if not taken:
            raise CudaError("enqueue", "refused while it was recorded")
        return Graph(checked("cudaGraphInstantiate", cuda.cudaGraphInstantiate(graph, 0)))
    finally:
        cuda.cudaGraphDestroy(graph)
