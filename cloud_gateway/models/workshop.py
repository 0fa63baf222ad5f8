"""Where engines are made ready while others serve: one thread for all lanes, the GPU's memory, and the account of both.

Building a plan takes minutes and loading a session seconds; neither may hold up a request or the thread that keeps the
models. So each lane's engine has a list of what is to be loaded, tried again or given back, and this thread goes round
them. One thing is loaded at a time: what is timed on a busy GPU is timed wrongly.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from protocol.engines.causes import Cause

STOP_S = 5.0  # how long `stop` waits for what is being loaded
GIVE_UP_IVL_S = 0.1
MIB = 1024 * 1024


class Turning(Protocol):
    """One lane's engine."""

    def turn(self) -> bool:
        """Do one thing that waits. Whether there was one."""
        ...

    def give_up(self) -> None:
        """What is being loaded is no longer wanted."""
        ...

    def next_wake(self) -> float | None:
        """When the next thing is due (monotonic seconds)."""
        ...


class Failure(NamedTuple):
    kind: str
    cause: Cause


@dataclass
class EngineCounts:
    """What has happened to engines since the start, by kind. One lock holds for all of it."""

    failures: Counter[Failure] = field(default_factory=Counter)  # loading and running
    loads: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (kind, whether it succeeded)
    load_s: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)  # from one kind to another
    reruns: Counter[str] = field(default_factory=Counter)  # batches of another kind that this one ran instead

    def copy(self) -> EngineCounts:
        return EngineCounts(*(Counter(each) for each in vars(self).values()))


class GpuMemory:
    """What lanes may take of one GPU, in bytes. `total` says how much there is, None where nobody knows; it is asked
    when somebody wants some."""

    def __init__(self, total: Callable[[], int | None]) -> None:
        self._total = total
        self.total_nbytes: int | None = None
        self._taken: dict[Hashable, int] = {}

    @property
    def taken_nbytes(self) -> int:
        return sum(self._taken.values())

    def take(self, owner: Hashable, nbytes: int) -> str:
        """Reserve `nbytes` for `owner`, or say why not. What the owner held before is given back first."""
        if self.total_nbytes is None:
            self.total_nbytes = self._total()
        others = self.taken_nbytes - self._taken.get(owner, 0)
        if self.total_nbytes is not None and others + nbytes > self.total_nbytes:
            needs, left, total = (
                round(n / MIB) for n in (nbytes, max(self.total_nbytes - others, 0), self.total_nbytes)
            )
            return (
                f"it needs {needs} MiB of the GPU, and {left} of {total} are left; "
                "unload a model, or change engines.gpu_memory_mib or the model's gpu_memory_mib"
            )
        self._taken[owner] = nbytes
        return ""

    def give_back(self, owner: Hashable) -> None:
        self._taken.pop(owner, None)


class Workshop:
    """Thread-safe. The thread starts with the first engine that has something to do later, and ends with `stop`."""

    def __init__(
        self,
        *,
        told: Callable[[str, str], None] = lambda event, text: None,
        crashed: Callable[[BaseException], None] = lambda error: None,
        gpu_memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.told = told  # event and sentence, for the log
        self._crashed = crashed
        self._lock = threading.Condition()
        self._counts = EngineCounts()
        self._memory = GpuMemory(gpu_memory)
        self._engines: list[Turning] = []
        self._absent: set[tuple[str, str]] = set()  # told already
        self._woken = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    # ---- the account ------------------------------------------------------------------------------------------------

    def counts(self) -> EngineCounts:
        with self._lock:
            return self._counts.copy()

    def gpu_memory(self) -> tuple[int, int | None]:
        """Bytes that lanes have reserved, and how many there are for them."""
        with self._lock:
            return self._memory.taken_nbytes, self._memory.total_nbytes

    def absent(self, kind: str, reason: str) -> None:
        """An order names what this machine lacks: told once, however many lanes ask for it."""
        with self._lock:
            is_new = (kind, reason) not in self._absent
            self._absent.add((kind, reason))
        if is_new:
            self.told("engine_absent", f"{kind} was asked for and is not here: {reason}")

    def failed(self, kind: str, cause: Cause) -> None:
        with self._lock:
            self._counts.failures[Failure(kind, cause)] += 1

    def loaded(self, kind: str, seconds: float, *, ok: bool) -> None:
        with self._lock:
            self._counts.loads[kind, ok] += 1
            self._counts.load_s[kind] += seconds  # type: ignore[assignment]

    def moved(self, old: str, new: str) -> None:
        with self._lock:
            self._counts.moves[old, new] += 1

    def ran_instead(self, kind: str) -> None:
        with self._lock:
            self._counts.reruns[kind] += 1

    def take_memory(self, owner: Hashable, nbytes: int) -> str:
        """Reserve GPU memory, or say why not."""
        with self._lock:
            return self._memory.take(owner, nbytes) if nbytes else ""

    def give_memory_back(self, owner: Hashable) -> None:
        with self._lock:
            self._memory.give_back(owner)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def enter(self, engine: Turning) -> None:
        """Go round to it from now on."""
        with self._lock:
            if self._stopping:
                return
            self._engines.append(engine)
            if self._thread is None:
                self._thread = threading.Thread(target=self._main, name="isthmus-workshop", daemon=True)
                self._thread.start()
            self._wake()

    def leave(self, engine: Turning) -> None:
        with self._lock:
            if engine in self._engines:
                self._engines.remove(engine)

    def wake(self) -> None:
        """Something new is to be done."""
        with self._lock:
            self._wake()

    def stop(self) -> bool:
        """End the thread. False if something was still being loaded after `STOP_S`."""
        with self._lock:
            self._stopping = True
            engines = list(self._engines)
            self._lock.notify_all()
        if self._thread is None:
            return True
        end = time.monotonic() + STOP_S
        while self._thread.is_alive() and time.monotonic() < end:
            for engine in engines:  # again and again: a build may have begun only now
                engine.give_up()
            self._thread.join(GIVE_UP_IVL_S)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        self._woken = True
        self._lock.notify_all()

    def _main(self) -> None:
        try:
            while (engines := self._next_round()) is not None:
                for engine in engines:  # one thing each: a lane with much to load lets the others have their turn
                    if not self._stopping and engine.turn():
                        self.wake()
        except BaseException as error:  # the top of the thread
            self._crashed(error)

    def _next_round(self) -> list[Turning] | None:
        """Wait until something is due; None: stop."""
        while True:
            with self._lock:
                if self._stopping:
                    return None
                engines, woken, self._woken = list(self._engines), self._woken, False
            if woken:
                return engines
            # Without our lock: an engine's own is held by those who count here what happens to it.
            due = min((at for engine in engines if (at := engine.next_wake()) is not None), default=None)
            left_s = None if due is None else due - time.monotonic()
            if left_s is not None and left_s <= 0:
                return engines
            with self._lock:
                if not (self._woken or self._stopping):
                    self._lock.wait(left_s)
