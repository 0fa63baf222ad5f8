"""Memory of the host that an engine's inputs are written into, and from which the GPU copies them by itself.

It is pinned until nobody holds it any more, or the engine is deactivated; then it stays memory, only slower to copy
from.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np

from protocol.engines.gpu_memory import aligned
from protocol.engines.gpu_thread import GpuThread
from protocol.engines.trt_options import GpuError
from protocol.engines.trt_session import Session
from protocol.tensors import Array


def pinned(gpu: GpuThread, session: Session, nbytes: int, timeout_s: float, told: Callable[[str], None]) -> Array:
    """uint8 [at least `nbytes`]. Where it cannot be pinned it is memory all the same, and `told` hears why."""
    array = aligned(nbytes)
    try:
        gpu.call(lambda: session.pin(array), timeout_s=timeout_s)
    except GpuError as error:
        told(f"rows are not pinned, {error}")
        return array
    # The base of a view is the memory's owner. This owner is no array of numpy's, so every view keeps it alive.
    owner = _Rows(array)
    let_go = weakref.finalize(owner, _let_go, gpu, weakref.ref(session), array.ctypes.data)
    let_go.atexit = False
    return np.asarray(owner)


class _Rows:
    """Stands between pinned memory, which it keeps, and the arrays that look at it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = array.__array_interface__


def _let_go(gpu: GpuThread, session: weakref.ref[Session], address: int) -> None:
    """Have the GPU thread unpin memory that nobody holds any more; the session keeps it until then."""

    def unpin() -> None:
        if (alive := session()) is not None:
            alive.unpin(address)

    gpu.later(unpin)
