"""SIMULATION of `pycuda.driver`; see `simulated_gpu`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from simulated_gpu import GPU, Failure
from simulated_gpu import Event as _Event


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


class event_flags:  # noqa: N801 - pycuda's own name
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2


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


class Event(_Owned):
    def __init__(self, flags: int = 0) -> None:
        super().__init__()
        with _call("event"):
            self._event = _Event()
            GPU.events += 1

    def __del__(self) -> None:
        super().__del__()
        GPU.events -= hasattr(self, "_event")

    def record(self, stream: Any = None) -> Event:
        with _call("record"):
            GPU.record(self._event, stream.handle)
        return self

    def synchronize(self) -> Event:
        with _call("wait"):
            GPU.wait(self._event)
        return self


class DeviceAllocation:
    def __init__(self, address: int) -> None:
        self._address = address
        self._made_on = threading.get_ident()

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        with _call("free"):
            GPU.freed("memory", self._made_on)
            GPU.free(self._address)


def mem_alloc(nbytes: int) -> DeviceAllocation:
    with _call("allocate"):
        return DeviceAllocation(GPU.allocate(nbytes))


def mem_get_info() -> tuple[int, int]:
    with _call("info"):
        return GPU.memory_nbytes - sum(len(b) for b in GPU.blocks.values()), GPU.memory_nbytes


def memcpy_htod_async(dest: int, src: Any, stream: Any = None) -> None:
    with _call("copy_in"):
        assert src.flags.c_contiguous
        host = src.ctypes.data
        GPU.copy(int(dest), host, src.nbytes, host=host, inwards=True, handle=stream.handle)


def memcpy_dtoh_async(dest: Any, src: int, stream: Any = None) -> None:
    with _call("copy_out"):
        host = dest.ctypes.data
        GPU.copy(host, int(src), dest.nbytes, host=host, inwards=False, handle=stream.handle)
