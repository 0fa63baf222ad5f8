"""A server under measurement: started in a process group of its own, on a core of its own, and ended as a whole.

Law: only what was started here is signalled, by its process group. Processor time counts the whole tree, since some
servers do their work in children. A server that is not being measured is paused: idle is not free everywhere.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
READY_LIMIT_S = 90.0
STOP_WAIT_S = 15.0
PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; both None on a machine with a single core, where nothing can be kept apart."""

    server: int | None
    client: int | None

    @classmethod
    def of_this_machine(cls) -> Cores:
        mine = sorted(os.sched_getaffinity(0))
        return cls(mine[-1], mine[0]) if len(mine) > 1 else cls(None, None)


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """The calling thread, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class ServerProcess:
    """A running server. Leaving the `with` block ends its whole process group.

    Args:
        command: an argument list, never a shell.
        core: the only core it may use, or None.
        env: variables on top of ours.
        log: where its standard error goes, and its standard output unless it is asked for its `ready` line.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        core: int | None,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        says_ready: bool = False,
    ) -> None:
        self.log = log
        self.started = time.monotonic()
        with pinned(core), log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if says_ready else out,
                stderr=out,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        self._paused = False
        _share_our_priority(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready_line(self, limit_s: float = READY_LIMIT_S) -> str:
        """The rest of its line `ready ...`. Raises RuntimeError, with the end of its log, if none comes."""
        assert self._process.stdout is not None
        give_up, said = time.monotonic() + limit_s, b""
        while select.select([self._process.stdout], [], [], max(give_up - time.monotonic(), 0.0))[0]:
            if not (piece := os.read(self._process.stdout.fileno(), 65_536)):
                break
            said += piece
            for line in said.split(b"\n")[:-1]:
                if line.startswith(b"ready"):
                    return line.decode().removeprefix("ready").strip()
        self.stop()
        raise RuntimeError(f"the server was never ready: {self.tail_of_log()}")

    def tail_of_log(self) -> str:
        return self.log.read_text("utf-8", "replace").strip()[-600:] or "it said nothing"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def pids(self) -> list[int]:
        """The whole tree: everything in its session, and every descendant."""
        parents: dict[int, int] = {}
        found = set()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = Path(f"/proc/{entry}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry)] = int(fields[1])
            if int(fields[3]) == self.pid and fields[0] != "Z":
                found.add(int(entry))
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
            found |= more
            grown = bool(more)
        return sorted(found)

    def cpu_s(self) -> float:
        """Processor seconds of the tree so far, user and system, in nanosecond steps."""
        return sum(_process_cpu_s(pid) for pid in self.pids())

    def rss_nbytes(self) -> int:
        """Resident memory of the tree; shared pages count once per process."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_NBYTES
        return total

    def pause(self) -> None:
        if not self._paused and self.running:
            os.killpg(self.pid, signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        if self._paused:
            os.killpg(self.pid, signal.SIGCONT)
            self._paused = False

    def stop(self) -> None:
        """Ask politely, wait, then insist."""
        self.resume()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_WAIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # also what its leader left behind
        self._process.wait(STOP_WAIT_S)
        give_up = time.monotonic() + STOP_WAIT_S
        while self.pids() and time.monotonic() < give_up:
            time.sleep(0.01)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def python(*arguments: str) -> list[str]:
    """This interpreter with these arguments."""
    return [sys.executable, *arguments]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _share_our_priority(pid: int) -> None:
    """Give a server the priority that the benchmark was started with, if that is a raised one.

    Linux may schedule sessions against each other, and then niceness counts only within one: a server's is its own.
    """
    if (ours := os.getpriority(os.PRIO_PROCESS, 0)) < 0:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text(str(ours))


def _process_cpu_s(pid: int) -> float:
    # Linux makes the clock of another process from its id: /proc counts in ticks of 10 ms, this one in nanoseconds.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
