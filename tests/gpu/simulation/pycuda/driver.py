"""SIMULATION of `pycuda.driver`; see `simulated_gpu`.

What the real one calls without letting other threads run (memory, events) is not here: it goes to the driver itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from simulated_gpu import GPU, Failure


class Error(Exception):
    pass


class MemoryError(Error):  # noqa: A001 - pycuda's own name
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


# The driver's own sentences, where code is told by them.
_WORDS = {
    "CAPTURE": "cuCtxSynchronize failed: operation not permitted when stream is capturing",
    "CAPTURE_INVALIDATED": "failed: operation failed due to a previous error during capture",
}


@contextlib.contextmanager
def _call(name: str, *, needs_context: bool = True) -> Iterator[None]:
    try:
        GPU.call(name, needs_context=needs_context)
        yield
    except Failure as failure:
        kinds = {"OUT_OF_MEMORY": MemoryError, "ILLEGAL_ADDRESS": LaunchError, "LAUNCH_FAILED": LaunchError}
        raise kinds.get(failure.code, LogicError)(_WORDS.get(failure.code, str(failure))) from None


def init(flags: int = 0) -> None:
    with _call("init", needs_context=False):
        pass


class _Owned:
    def __init__(self) -> None:
        self._made_on = threading.get_ident()

    def __del__(self) -> None:
        GPU.freed(type(self).__name__, self._made_on)


class Context:
    def push(self) -> None:
        with _call("push", needs_context=False):
            GPU.push()

    @staticmethod
    def pop() -> None:
        GPU.pop()

    def detach(self) -> None:
        GPU.retained -= 1

    @staticmethod
    def synchronize() -> None:
        with _call("synchronize"):
            GPU.synchronize()


class Device:
    def __init__(self, index: int) -> None:
        assert index == 0

    def retain_primary_context(self) -> Context:
        with _call("retain", needs_context=False):
            GPU.retained += 1
            return Context()


class Stream(_Owned):
    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        assert flags == 1, "a stream that waits for the default stream overlaps with nothing"
        with _call("stream"):
            self.handle = GPU.new_stream()

    def __del__(self) -> None:
        super().__del__()
        GPU.streams.pop(getattr(self, "handle", 0), None)


def memcpy_htod_async(dest: int, src: Any, stream: Any = None) -> None:
    with _call("copy_in"):
        assert src.flags.c_contiguous
        host = src.ctypes.data
        GPU.copy(int(dest), host, src.nbytes, host=host, inwards=True, handle=stream.handle)


def memcpy_dtoh_async(dest: Any, src: int, stream: Any = None) -> None:
    with _call("copy_out"):
        host = dest.ctypes.data
        GPU.copy(host, int(src), dest.nbytes, host=host, inwards=False, handle=stream.handle)
