"""What an engine needs of a GPU besides its library: memory, streams, events. Two libraries give it; either will do.

    pycuda        `cuda_memory.py`, the driver's interface; built from source where it is installed
    cuda-python   `cuda_runtime.py`, the runtime's interface; it has wheels, so a gateway can be installed by pip alone

Both use the *primary* context, which is the one that TensorRT, ONNX Runtime and every other library of the process use;
a private one (`pycuda.autoinit` makes it) could not share memory with them. A context is current on a thread or not:
everything here but `aligned` and `wait` is called on the thread that called `attach`, and `wait` on any that did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from protocol.engines.trt_options import GpuError
from protocol.tensors import Array

PAGE_NBYTES = 4096


class Block(Protocol):
    """Memory of the GPU."""

    @property
    def address(self) -> int: ...

    def free(self) -> None: ...


class GpuMemory(Protocol):
    """One device through one library. What fails raises the library's own errors; `explain` says what they mean."""

    name: str

    def attach(self) -> None:
        """Make the device's primary context current on this thread, which must `detach` before it ends."""
        ...

    def detach(self) -> None: ...

    def stream(self) -> Any:
        """A queue of work that does not wait for any other's."""
        ...

    def handle(self, stream: Any) -> int:
        """The stream as other libraries take it."""
        ...

    def event(self) -> Any: ...

    def drop(self, stream: Any, event: Any) -> None:
        """Give both back, where they were made, once nobody uses them any more."""
        ...

    def allocate(self, nbytes: int) -> Block: ...

    def pin(self, array: Array) -> Callable[[], None]:
        """Let the device reach an array of `aligned` without a copy in between, until what is returned is called.

        The array stays ordinary memory throughout: whoever still holds it afterwards reads what it held.
        """
        ...

    def copy_in(self, address: int, array: Array, stream: Any) -> None:
        """Begin to copy a contiguous array to the device. It must not change before the stream has come so far."""
        ...

    def copy_out(self, array: Array, address: int, stream: Any) -> None: ...

    def record(self, event: Any, stream: Any) -> None:
        """Let the event happen when the stream has done what it was given so far."""
        ...

    def wait(self, event: Any) -> None:
        """Sleep until the event has happened; other threads run meanwhile."""
        ...

    def free_nbytes(self) -> int: ...

    def synchronize(self) -> None:
        """Wait for everything on the device. Raises when the device is not well: after a failed kernel it never is."""
        ...

    def explain(self, error: Exception) -> GpuError | None:
        """What one of the library's errors means by itself; None for an error of another kind."""
        ...


def aligned(nbytes: int) -> Array:
    """Fresh memory, uint8, that begins and ends at a page, so that it can be pinned without its neighbours."""
    rounded = -(-max(nbytes, 1) // PAGE_NBYTES) * PAGE_NBYTES
    raw = np.zeros(rounded + PAGE_NBYTES, np.uint8)  # zeros: the pages are there when the first request comes
    start = -raw.ctypes.data % PAGE_NBYTES
    return raw[start : start + rounded]


def open_memory(device: int) -> GpuMemory:
    """pycuda where it is installed, else cuda-python. Raises GpuError ("no-library") where neither is."""
    try:
        from protocol.engines.cuda_memory import PycudaMemory

        return PycudaMemory(device)
    except ImportError as error:
        first = error
    try:
        from protocol.engines.cuda_runtime import RuntimeMemory

        return RuntimeMemory(device)
    except ImportError as error:
        raise GpuError(
            f"neither pycuda ({first}) nor cuda-python ({error}) can be imported",
            "pip install cuda-bindings, or build pycuda",
            cause="no-library",
        ) from error
