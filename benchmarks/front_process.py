"""Suite `front`: what it costs that the gateway's front is a process of its own.

Law: the same gateway with its front as a thread, in the same minute, serving the same bytes with an engine that does as
good as nothing. Processor time is that of the whole tree. Then the front is killed, again and again, and somebody who
knocks at that very moment waits for an answer, without the configured pause of 0.2 s. `--set sizes=1024,409600`
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.catalogue import gateway
from benchmarks.peers.processes import Cores, ServerProcess, pinned
from benchmarks.peers.suite import listed
from benchmarks.peers.zmq_client import AgentClient
from benchmarks.results import Options, Result
from benchmarks.roundtrip import null_bundle
from protocol.bundle import Bundle

SIZES = ("1024", "102400", "409600", "1600000")
WAIT_S = 10.0
IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Cost:
    p50_s: float
    cpu_s: float  # of the server, for one request


def run(options: Options) -> list[Result]:
    """Measure both in turn; then kill the one that can be killed."""
    rounds = 2 if options.quick else options.repeats
    count = int(options.settings.get("count", "50" if options.quick else "300"))
    sizes = [int(text) for text in listed(options.settings, "sizes", SIZES)]
    cores = Cores.of_this_machine()
    with tempfile.TemporaryDirectory(prefix="isthmus-front-") as name:
        folder = Path(name)
        bundles = [null_bundle(folder, nbytes) for nbytes in sizes]
        results: list[Result] = []
        with (
            _serving("thread", bundles, folder, cores) as (thread, here),
            _serving("process", bundles, folder, cores) as (process, apart),
        ):
            for nbytes, bundle in zip(sizes, bundles, strict=True):
                with _asking(here, bundle, nbytes) as ask_here, _asking(apart, bundle, nbytes) as ask_apart:
                    costs = [
                        (_cost(thread, ask_here, cores, count), _cost(process, ask_apart, cores, count))
                        for _ in range(rounds)
                    ]
                results += _compared(f"{nbytes} B", costs)
            results += _at_rest(thread, process, 1.0 if options.quick else IDLE_S)
            asking = functools.partial(_asking, apart, bundles[0], sizes[0])
            results.append(_killed(process, asking, 3 if options.quick else 8))
    return results


@contextlib.contextmanager
def _serving(front: str, bundles: Sequence[Path], folder: Path, cores: Cores) -> Iterator[tuple[ServerProcess, str]]:
    variables = {"ISTHMUS_GATEWAY__ZMQ__FRONT": front, "ISTHMUS_GATEWAY__SUPERVISE__PAUSE_S": "0"}
    os.environ.update(variables)  # a server inherits them
    try:
        server = gateway(*bundles, core=cores.server, log=folder / front)
    finally:
        for name in variables:
            del os.environ[name]
    with server:
        yield server, server.ready_line()


@contextlib.contextmanager
def _asking(endpoint: str, bundle: Path, nbytes: int) -> Iterator[Callable[[], None]]:
    tensor = np.zeros((1, nbytes // 4), np.float32)
    with contextlib.closing(AgentClient(endpoint, Bundle.open(bundle), [tensor], 1)) as agent:

        def ask() -> None:
            agent.send(0, 0)
            if not agent.arrived(WAIT_S):
                raise TimeoutError(f"no answer within {WAIT_S:.0f} s")

        yield ask


def _cost(server: ServerProcess, ask: Callable[[], None], cores: Cores, count: int) -> Cost:
    with pinned(cores.client):
        for _ in range(max(count // 10, 3)):
            ask()
        before_s, seconds = server.cpu_s(), []
        for _ in range(count):
            began = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - began)
    return Cost(statistics.median(seconds), (server.cpu_s() - before_s) / count)


def _compared(label: str, costs: Sequence[tuple[Cost, Cost]]) -> list[Result]:
    return [
        Result.of(f"{label}: p50, thread", "us", [here.p50_s * 1e6 for here, _ in costs]),
        Result.of(f"{label}: p50 that the process adds", "us", [(b.p50_s - a.p50_s) * 1e6 for a, b in costs]),
        Result.of(f"{label}: processor time a request, thread", "us", [here.cpu_s * 1e6 for here, _ in costs]),
        Result.of(f"{label}: processor time that it adds", "us", [(b.cpu_s - a.cpu_s) * 1e6 for a, b in costs]),
    ]


def _at_rest(thread: ServerProcess, process: ServerProcess, seconds: float) -> list[Result]:
    before_s, began = [server.cpu_s() for server in (thread, process)], time.monotonic()
    time.sleep(seconds)
    passed_s = time.monotonic() - began
    one, other = (
        (server.cpu_s() - was) / passed_s * 100 for server, was in zip((thread, process), before_s, strict=True)
    )
    more_mb = (process.rss_nbytes() - thread.rss_nbytes()) / 1e6
    return [
        Result.of("at rest: thread", "% of a core", [one]),
        Result.of("at rest: that the process adds", "% of a core", [other - one]),
        Result.of("resident memory that it adds", "MB", [more_mb]),
    ]


def _killed(server: ServerProcess, asking: Callable[[], AbstractContextManager[Callable[[], None]]], n: int) -> Result:
    """A client knocks at once: the kernel lets it wait where the next front will find it."""
    waits = []
    for _ in range(n):
        os.kill(_front_of(server), signal.SIGKILL)
        began = time.monotonic()
        with asking() as ask:
            ask()
        waits.append(time.monotonic() - began)
    return Result.of("killed with -9: until the next answer", "ms", [wait * 1e3 for wait in waits])


def _front_of(server: ServerProcess) -> int:
    """The one process of the tree that runs the relay."""
    for pid in server.pids():
        with contextlib.suppress(OSError):
            if b"cloud_gateway.doors.relay" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise RuntimeError(f"there is no front: {server.tail_of_log()}")
