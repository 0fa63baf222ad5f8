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
import traceback
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from protocol.engines.gpu_memory import GpuMemory, open_memory
from protocol.engines.trt_options import GpuError

T = TypeVar("T")
STOP_WITHIN_S = 5.0
ATTACH_WITHIN_S = 120.0  # a driver that is well makes a context in seconds
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


class Aside(Generic[T]):
    """Work on a thread of its own with the device's context current. Made by `GpuThread.begin_aside`."""

    def __init__(self, gpu: GpuThread, work: Callable[[], T], discard: Callable[[T], object]) -> None:
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
            _stay()

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


class GpuThread:
    """One device. Made by `GpuThreads.hold`."""

    def __init__(self, device: int, memory: Callable[[int], GpuMemory] = open_memory) -> None:
        """Raises GpuError when the device's context cannot be had."""
        self.memory = memory(device)
        self.lost: GpuError | None = None
        self._tasks: queue.SimpleQueue[_Task[Any] | None] = queue.SimpleQueue()
        self._is_slow = False  # what is being done may take long
        self._aside = 0  # how many things are being made ready
        self._slow_ended = -float("inf")
        self._lock = threading.Lock()  # of what is counted
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
            with self._lock:
                self._aside += 1
            try:
                return work()
            finally:
                with self._lock:
                    self._aside -= 1
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
            held_up = self._is_slow or self._aside or time.monotonic() - self._slow_ended < timeout_s
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
        _forget_locals(error)
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
            _stay()
        self.memory.detach()

    def unattached(self, error: BaseException) -> BaseException:
        found = self.explained(error)
        return GpuError(found.fact, found.remedy, cause="no-driver") if isinstance(found, GpuError) else found


def _forget_locals(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold: it is to be freed where the context is current, not by who reads it.

    Frames that still run are left alone.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


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
            _stay()
        memory.detach()


def _stay() -> None:
    """The thread of a lost device: its context cannot be given back, and so it may not end."""
    threading.Event().wait()


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
