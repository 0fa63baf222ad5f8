"""What takes long on a GPU and enqueues no run, done beside the GPU's thread with the device's context current.

It ends, or is given up by whoever waited for it, or hangs and loses the device to this process. What its frames hold of
the GPU goes while the context is still current; and no thread ends with a context that cannot be given back.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from protocol.engines.gpu_memory import GpuMemory
from protocol.engines.trt_options import GpuError

T = TypeVar("T")


class Device(Protocol):
    """Of `gpu_thread.GpuThread` what is needed here."""

    memory: GpuMemory

    @property
    def lost(self) -> GpuError | None: ...

    def lose(self, why: str) -> None: ...

    def explained(self, error: BaseException) -> BaseException: ...

    def not_attached_again(self, error: BaseException) -> BaseException: ...


class Aside(Generic[T]):
    """Work on a thread of its own with the device's context current. Made by `GpuThread.begin_aside`."""

    def __init__(self, gpu: Device, work: Callable[[], T], discard: Callable[[T], object]) -> None:
        self._gpu = gpu
        self._work: Callable[[], T] | None = work
        self._discard = discard
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_decided = False  # done, or given up: what comes first holds
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="isthmus-gpu-aside", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout_s: float) -> T:
        """What the work returned. Raises what it raised, GpuError for the GPU's, and "device-lost" if it hangs."""
        if not self._ended.wait(timeout_s):
            self._gpu.lose(f"what was to be made ready did not end within {timeout_s:.0f} s")
            assert self._gpu.lost is not None
            self._decide(None, self._gpu.lost)
            raise self._gpu.lost
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it ran

    def give_up(self) -> None:
        """Whoever waits is told at once; what the work returns later is discarded where it was made."""
        if self._decide(None, given_up()):
            self._ended.set()

    def _decide(self, result: T | None, error: BaseException | None) -> bool:
        with self._lock:
            if self._is_decided:
                return False
            self._is_decided, self._result, self._error = True, result, error
            return True

    def _main(self) -> None:
        gpu, memory = self._gpu, self._gpu.memory
        try:
            memory.attach()
        except BaseException as failed:  # whoever waits is told
            self._decide(None, gpu.not_attached_again(failed))
            self._ended.set()
            return
        assert self._work is not None
        try:
            result = self._work()
        except BaseException as failed:  # the caller's, on its own thread
            self._decide(None, gpu.explained(failed))
        else:
            if not self._decide(result, None):
                self._give_back(result)
            del result
        self._work = None  # what it holds goes before the context does
        if gpu.lost is None:
            memory.detach()
        self._ended.set()
        if gpu.lost is not None:
            stay()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def _give_back(self, result: T) -> None:
        try:
            self._discard(result)
        except BaseException as failed:  # nobody is left to be told
            self._gpu.explained(failed)


def given_up() -> GpuError:
    return GpuError("it was given up", "the engine was no longer wanted", cause="build-failed")


def forget_locals(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: it is to be freed where the context is current, not by who reads it.

    Frames that still run are left alone.
    """
    seen: set[int] = set()  # causes and contexts may form a ring
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def stay() -> None:
    """The thread of a lost device: its context cannot be given back, and so it may not end."""
    threading.Event().wait()
