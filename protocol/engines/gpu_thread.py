"""The thread that a GPU's work is given to, one a device in a process, and those that wait until it is done.

    engine threads --- launch ---> [ GPU thread ] --- event ---> [ watcher of that engine ] --- done ---> engine thread
         '--- aside ---> [ a thread of its own: plans are loaded, contexts made, graphs captured ] --- done ---'

Runs are enqueued, and memory, streams and events made and freed, on the GPU thread, one thing after the other: what
pycuda gives belongs to the thread that made it. It never waits for the GPU, so what comes next is copied while this
computes. A watcher only sleeps until an event has happened; each engine has its own, so that no answer waits behind
another engine's.

What takes long and enqueues nothing is done aside: loading a plan, making a context, for which some libraries compile,
and capturing. TensorRT allows that on any thread where the device's context is current, as long as no two use one
execution context at once; whoever holds a slot holds its contexts. So lanes that serve do not wait for one that loads.
The first run of a shape is enqueued on the GPU thread like any other and may take longer.

A device that fails a kernel, or does not answer in time, is lost to this process: every call from then on raises at
once, and nothing is given back, since freeing fails as well. Another process may find it well again. Its threads do not
end either: pycuda ends the process with a thread whose context is still there (tried). Whoever waits while something
slow goes on is given that time: a driver that loads code may hold up whoever launches some.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from protocol.engines.gpu_aside import Aside, forget_locals, stay
from protocol.engines.gpu_memory import GpuMemory, open_memory
from protocol.engines.gpu_quiet import QUIET
from protocol.engines.trt_options import GpuError

T = TypeVar("T")
STOP_WITHIN_S = 5.0
ASIDE_AT_MOST_S = 600.0
ATTACH_WITHIN_S = 120.0  # a driver that is well makes a context in seconds
_OF_THE_DEVICE = ("out-of-memory", "run-failed", "build-failed")  # what a lost device may have said instead


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
        self._why_lost = ""
        self._tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        self._is_slow = False  # what is being done may take long
        self._asides: dict[int, float] = {}  # since when things are being made ready
        self._slow_ended = -float("inf")
        attached = _Task(self.memory.attach)
        self._thread = threading.Thread(target=self._main, args=(attached,), name=f"isthmus-gpu-{device}", daemon=True)
        self._thread.start()
        if not attached.wait(ATTACH_WITHIN_S):
            self.lose(f"its context was not there within {ATTACH_WITHIN_S:.0f} s")
            raise self.lost  # type: ignore[misc]  # just set
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

    def begin_aside(self, work: Callable[[], T], *, discard: Callable[[T], object] = lambda result: None) -> Aside[T]:
        """Have `work`, which may take long and enqueues no run, done beside the GPU thread; `wait` for it.

        `discard` gives back what it returned once nobody wants that any more, on the same thread. Raises GpuError.
        """
        if self.lost is not None:
            raise self.lost

        def counted() -> T:
            mine = threading.get_ident()
            self._asides[mine] = time.monotonic()
            try:
                return work()
            finally:
                del self._asides[mine]
                self._slow_ended = time.monotonic()

        aside = Aside(self, counted, discard)
        aside.start()
        return aside

    def aside(self, work: Callable[[], T], *, timeout_s: float) -> T:
        """Have `work` done beside the GPU thread and wait for what it returns. Raises what it raises, GpuError."""
        return self.begin_aside(work).wait(timeout_s)

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
            now = time.monotonic()
            held_up = self._is_slow or now - self._slow_ended < timeout_s or self._loads(now)
            if self.lost is not None or is_slow or not held_up:
                self.lose(f"it has not answered within {timeout_s:.0f} s")
                break
        if self.lost is not None:
            raise self.lost
        if task.error is not None:
            raise task.error

    def _loads(self, now: float) -> bool:
        """Whether something is being made ready that may end: what hangs does not excuse others for ever."""
        return any(now - began < ASIDE_AT_MOST_S for began in tuple(self._asides.values()))

    @property
    def lost(self) -> GpuError | None:
        """Why nothing runs any more. A new error each time: one that is raised again and again keeps every frame."""
        if not self._why_lost:
            return None
        fact = f"the GPU is lost to this process ({self._why_lost})"
        return GpuError(fact, "restart it, and see dmesg", cause="device-lost")

    def lose(self, why: str) -> None:
        self._why_lost = self._why_lost or why or "nobody knows why"

    def explained(self, error: BaseException) -> BaseException:
        """What an error means; called where it was caught, on an attached thread.

        Whether the device is lost is found out by asking it: one that fails to say so is, unless somebody captures.
        """
        forget_locals(error)
        if not isinstance(error, Exception):
            return error
        found = error if isinstance(error, GpuError) else self.memory.explain(error)
        if found is None or found.cause not in _OF_THE_DEVICE:
            return found or error
        try:
            with QUIET.loud():
                self.memory.synchronize()
        except Exception as answer:
            if "captur" not in str(answer).lower():  # CUDA's errors 900 to 908: a library captures without our knowing
                self.lose(found.fact)
        return self.lost or found

    def not_attached_again(self, error: BaseException) -> BaseException:
        """What it means that a thread has no context while the GPU thread has one: that thread asks the device."""
        if not isinstance(error, Exception):
            return error
        with contextlib.suppress(Exception):  # what it finds out stands in `lost`
            self.call(self.memory.free_nbytes, timeout_s=STOP_WITHIN_S)
        found = self.lost or self.memory.explain(error)
        return error if found is None else found

    def stop(self) -> None:
        self._tasks.put(None)
        if self.lost is None:
            self._thread.join(STOP_WITHIN_S)

    def _main(self, attached: _Task[None]) -> None:
        try:
            self.memory.attach()
        except BaseException as error:  # whoever holds the thread is told
            attached.finish(self.unattached(error))
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
        if self.lost is not None:
            stay()
        self.memory.detach()

    def unattached(self, error: BaseException) -> BaseException:
        found = self.explained(error)
        return GpuError(found.fact, found.remedy, cause="no-driver") if isinstance(found, GpuError) else found


class Watcher:
    """Waits for the events of one engine, in the order in which they were recorded."""

    def __init__(self, gpu: GpuThread, name: str) -> None:
        self.gpu = gpu
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
                if self.gpu.lost is not None:
                    raise self.gpu.lost
                event = self.gpu.slowly(launch) if is_slow else launch()
            except BaseException as error:  # the caller's, on its own thread
                done.finish(self.gpu.explained(error))
            else:
                self._waiting.put((done, event))

        self.gpu.give(_Task(enqueue))
        self.gpu.wait(done, timeout_s, is_slow=is_slow)

    def stop(self) -> None:
        self._waiting.put(None)
        if self.gpu.lost is None:
            self._thread.join(STOP_WITHIN_S)

    def _main(self) -> None:
        memory = self.gpu.memory
        try:
            memory.attach()
        except Exception as error:
            self.gpu.lose(str(error))
        while (waiting := self._waiting.get()) is not None:
            done, event = waiting
            try:
                if self.gpu.lost is None:
                    memory.wait(event)
            except BaseException as error:
                done.finish(self.gpu.explained(error))
            else:
                done.finish()
            del waiting, event  # it belongs to the GPU thread
        if self.gpu.lost is not None:
            stay()
        memory.detach()


def _nothing() -> None: ...


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
