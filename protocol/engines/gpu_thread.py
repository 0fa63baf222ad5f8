"""The thread that a GPU's work is given to, one a device in a process, and those that wait until it is done.

    engine threads --- launch ---> [ GPU thread ] --- event ---> [ watcher of that engine ] --- done ---> engine thread

Everything that makes, frees or enqueues happens on the GPU thread, one thing after the other: contexts of pycuda and of
TensorRT belong to threads. It never waits for the GPU, so what comes next is copied while this computes. A watcher only
sleeps until an event has happened; each engine has its own, so that no answer waits behind another engine's.

A device that fails a kernel, or does not answer in time, is lost to this process: every call from then on raises at
once, and nothing is given back, since freeing fails as well. Another process may find it well again. Loading a plan and
the first run of a shape may take long (some libraries compile then); whoever waits behind them is given that time.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from protocol.engines.gpu_memory import GpuMemory, open_memory
from protocol.engines.trt_options import GpuError

T = TypeVar("T")
STOP_WITHIN_S = 5.0
_OF_THE_DEVICE = ("out-of-memory", "run-failed")  # what a lost device may have said instead


class _Task(Generic[T]):
    """What one caller waits for. A plain lock is the fastest way to be woken that Python has."""

    __slots__ = ("_done", "error", "result", "work")

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.result: T | None = None
        self.error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def finish(self, error: BaseException | None = None) -> None:
        self.error = error
        self._done.release()

    def wait(self, timeout_s: float) -> bool:
        return self._done.acquire(timeout=timeout_s)


class GpuThread:
    """One device. Made by `GpuThreads.hold`."""

    def __init__(self, device: int, memory: Callable[[int], GpuMemory] = open_memory) -> None:
        """Raises GpuError when the device's context cannot be had."""
        self.memory = memory(device)
        self.lost: GpuError | None = None
        self._tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        self._is_slow = False  # what is being done may take long
        self._slow_ended = -float("inf")
        attached = _Task(self.memory.attach)
        self._thread = threading.Thread(
            target=self._main, args=(attached,), name=f"isthmus-gpu-{device}", daemon=True
        )  # fmt: skip
        self._thread.start()
        attached.wait(-1)
        if attached.error is not None:
            raise attached.error

    def call(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """Run `work`, which may take long, on the GPU thread and wait for what it returns.

        Raises what it raises, GpuError for the GPU's.
        """

        def unless_lost() -> T:
            if self.lost is not None:
                raise self.lost
            return self.slowly(work)

        task = _Task(unless_lost)
        self.give(task)
        self.wait(task, timeout_s, is_slow=True)
        return task.result  # type: ignore[return-value]  # it ran

    def later(self, work: Callable[[], None]) -> None:
        """Run `work` on the GPU thread some time; nobody hears of it. May be called while garbage is collected."""
        self._tasks.put(_Task(work))

    def give(self, task: _Task[Any]) -> None:
        """Have a task run on the GPU thread; `wait` for it later."""
        if self.lost is not None:
            raise self.lost
        self._tasks.put(task)

    def slowly(self, work: Callable[[], T]) -> T:
        """Do what may take long, on the GPU thread."""
        self._is_slow = True
        try:
            return work()
        finally:
            self._slow_ended = time.monotonic()
            self._is_slow = False

    def wait(self, task: _Task[T], timeout_s: float, *, is_slow: bool = False) -> None:
        """Raises what the task raised, and GpuError ("device-lost") if it is not done in time: then nothing ever is.

        Time in which the GPU thread did something slow for another does not count, unless the task itself `is_slow`.
        """
        while not task.wait(timeout_s):
            held_up = self._is_slow or time.monotonic() - self._slow_ended < timeout_s
            if self.lost is not None or is_slow or not held_up:
                self.lose(f"it has not answered within {timeout_s:.0f} s")
                break
        if self.lost is not None:
            raise self.lost
        if task.error is not None:
            raise task.error

    def lose(self, why: str) -> None:
        if self.lost is None:
            self.lost = GpuError(
                f"the GPU is lost to this process ({why})", "restart it, and see dmesg", cause="device-lost"
            )

    def explained(self, error: BaseException) -> BaseException:
        """What an error means; called where it was caught, on an attached thread.

        Whether the device is lost is found out by asking it: one that fails to say so is.
        """
        if not isinstance(error, Exception):
            return error
        found = error if isinstance(error, GpuError) else self.memory.explain(error)
        if found is None or found.cause not in _OF_THE_DEVICE:
            return found or error
        try:
            self.memory.synchronize()
        except Exception:
            self.lose(found.fact)
        return self.lost or found

    def stop(self) -> None:
        self._tasks.put(None)
        if self.lost is None:
            self._thread.join(STOP_WITHIN_S)

    def _main(self, attached: _Task[None]) -> None:
        try:
            self.memory.attach()
        except BaseException as error:  # whoever holds the thread is told
            attached.finish(self._unattached(error))
            return
        attached.finish()
        while (task := self._tasks.get()) is not None:
            try:
                task.result = task.work()
            except BaseException as error:  # the caller's, on its own thread
                task.finish(self.explained(error))
            else:
                task.finish()
            del task  # what it holds belongs to this thread, and goes before the next is waited for
        if self.lost is None:
            self.memory.detach()

    def _unattached(self, error: BaseException) -> BaseException:
        found = self.explained(error)
        return GpuError(found.fact, found.remedy, cause="no-driver") if isinstance(found, GpuError) else found


class Watcher:
    """Waits for the events of one engine, in the order in which they were recorded."""

    def __init__(self, gpu: GpuThread, name: str) -> None:
        self._gpu = gpu
        self._waiting: queue.SimpleQueue[tuple[_Task[None], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name=f"isthmus-gpu-wait-{name}"[:60], daemon=True)
        self._thread.start()

    def run(self, launch: Callable[[], Any], *, timeout_s: float, is_slow: bool = False) -> None:
        """Have `launch` enqueue work on the GPU thread and record an event, which it returns; wait until it happened.

        Raises what it raised, or GpuError for what the GPU says.
        """
        done: _Task[None] = _Task(_nothing)

        def enqueue() -> None:
            try:
                if self._gpu.lost is not None:
                    raise self._gpu.lost
                event = self._gpu.slowly(launch) if is_slow else launch()
            except BaseException as error:  # the caller's, on its own thread
                done.finish(self._gpu.explained(error))
            else:
                self._waiting.put((done, event))

        self._gpu.give(_Task(enqueue))
        self._gpu.wait(done, timeout_s, is_slow=is_slow)

    def stop(self) -> None:
        self._waiting.put(None)
        if self._gpu.lost is None:
            self._thread.join(STOP_WITHIN_S)

    def _main(self) -> None:
        memory = self._gpu.memory
        try:
            memory.attach()
        except Exception as error:
            self._gpu.lose(str(error))
        while (waiting := self._waiting.get()) is not None:
            done, event = waiting
            try:
                if self._gpu.lost is None:
                    memory.wait(event)
            except BaseException as error:
                done.finish(self._gpu.explained(error))
            else:
                done.finish()
            del waiting, event  # it belongs to the GPU thread
        if self._gpu.lost is None:
            memory.detach()


def _nothing() -> None:
    pass


class GpuThreads:
    """The threads of this process by device. A device that was lost stays lost."""

    def __init__(self, memory: Callable[[int], GpuMemory] = open_memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._held: dict[int, tuple[GpuThread, int]] = {}

    def hold(self, device: int) -> GpuThread:
        """The device's thread, started for its first holder. Raises GpuError."""
        with self._lock:
            thread, holders = self._held.get(device) or (GpuThread(device, self._memory), 0)
            if thread.lost is not None:
                raise thread.lost
            self._held[device] = (thread, holders + 1)
            return thread

    def release(self, device: int) -> None:
        """The last one to release a device stops its thread."""
        with self._lock:
            thread, holders = self._held[device]
            self._held[device] = (thread, holders - 1)
            if holders > 1 or thread.lost is not None:
                return
            del self._held[device]
        thread.stop()


THREADS = GpuThreads()
