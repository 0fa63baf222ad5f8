"""A daemon from its first line to its last: signals, the log, settings that change, an end in good order.

SIGTERM, SIGINT     finish what is held, then end; while it starts, end at once: nobody is served yet
SIGHUP              read the settings again; what may change is applied, a wrong file changes nothing
a bug               the process ends with 1, and its supervisor starts it again
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Protocol, TypeVar

from protocol.terminal import print_json

if TYPE_CHECKING:
    from protocol.seeing.logs import Logs

# Who logs by Python's own way.
LIBRARIES = ("isthmus", "uvicorn", "watchfiles", "asyncio", "grpc", "opentelemetry")
_LOOK_S = 0.2
# What threads are called that may be in an engine's C++ when all is over: a GPU that hangs or is lost, a run on it.
_HELD = ("isthmus-gpu", "isthmus-deputy")


class Daemon(Protocol):
    """What serves."""

    @property
    def fatal(self) -> BaseException | None: ...

    def start(self) -> None: ...

    def close(self) -> None: ...


class Steering(Protocol):
    """What brings new settings to it."""

    def start(self) -> None: ...

    def now(self) -> None: ...

    def stop(self) -> None: ...


D = TypeVar("D", bound=Daemon)


def run_until_told(
    make: Callable[[], tuple[D, Steering]],
    *,
    logs: Logs,
    ready: Callable[[D], bool],
    stopped: Callable[[D], None],
) -> None:
    """Make, start and close a daemon; returns when it has been told to end. Call it in the main thread, once.

    `ready` tells people where it serves, and is called again from time to time until it returns True; `stopped` has the
    last word. Raises what making and starting raise, and SystemExit(1) after a bug.
    """
    wanted, starting = threading.Event(), threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        is_first = not wanted.is_set()
        wanted.set()
        if is_first and starting.is_set():  # nobody is served yet: nobody has to be waited for
            raise _EndedEarly

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing yet that could be changed
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    bridge(logs)
    try:
        daemon, steering = make()
        signal.signal(signal.SIGHUP, lambda _signal, _frame: steering.now())
        starting.set()
        try:
            daemon.start()
            starting.clear()
        except _EndedEarly:
            daemon.close()
            print("ended before it was ready", file=sys.stderr)
            return
        steering.start()
        gc.collect()
        gc.freeze()  # what is there now stays: later collections need not look at it again
        told = ready(daemon)
        while not wanted.wait(_LOOK_S) and daemon.fatal is None:
            told = told or ready(daemon)
        steering.stop()
        daemon.close()
        stopped(daemon)
    finally:
        logs.close()
    if daemon.fatal is not None:
        raise SystemExit(1)


def end_with(run: Callable[[], None], *, held: tuple[str, ...] = ()) -> None:
    """Run, as the last thing of a process; where a thread is left that nobody can wait for, the process ends here.

    Such a thread is on a GPU, or its name begins as one of `held`. Python's own end would unwind it through C++, which
    ends the process with SIGABRT, and let libraries free what is on a lost GPU, which hangs or crashes. All is closed
    and said by then.
    """
    try:
        run()
    except SystemExit as ended:
        _end_if_held(held, ended.code if isinstance(ended.code, int) else 1)
        raise
    _end_if_held(held, 0)


def _end_if_held(held: tuple[str, ...], code: int) -> None:
    if any(thread.name.startswith(_HELD + held) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _EndedEarly(BaseException):
    """Asked to end while models are still being loaded."""


def bridge(logs: Logs, libraries: Iterable[str] = LIBRARIES) -> None:
    """What libraries and the doors on the ground floor log comes to the daemon's own log."""
    for name in libraries:
        logger = logging.getLogger(name)
        logger.addHandler(logs.bridge())
        logger.propagate = False


def tell_stopped(counts: Mapping[str, int], *, name: str, json: bool) -> None:
    """The last word: what was counted, on stderr, or under `name` in a JSON line."""
    if json:
        print_json({"event": "stopped", name: counts})
        return
    said = ", ".join(f"{what} {n}" for what, n in sorted(counts.items()))
    print(f"stopped: {said or 'no requests'}", file=sys.stderr)
