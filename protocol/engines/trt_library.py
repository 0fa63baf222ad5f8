"""TensorRT and TensorRT-RTX: the only module that imports either. What both do alike is told by either's name.

Nothing here touches the GPU but what a caller makes with the module it gets; ask `driver.probe` before.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from protocol.engines.causes import no_room_or
from protocol.engines.trt_options import Cause, Edition, GpuError

INSTALL = {
    "tensorrt": "install NVIDIA's TensorRT 10.3 or newer: pip install tensorrt, with pypi.nvidia.com as extra index",
    "tensorrt-rtx": "pip install tensorrt-rtx",
}
LEAST = (10, 3)
MOST_KEPT = 40
_LOCK = threading.Lock()
_LOGS: dict[str, tuple[Any, Any]] = {}  # by the library's name: the module, its log


def load(edition: Edition) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`. Raises GpuError ("no-library") where it cannot be had."""
    try:
        if edition == "tensorrt-rtx":
            import tensorrt_rtx as trt
        else:
            import tensorrt as trt
    except Exception as error:  # its loader raises whatever a missing shared object makes it raise
        raise GpuError(f"{edition} cannot be loaded ({_line(error)})", INSTALL[edition], cause="no-library") from error
    if edition == "tensorrt" and version(trt) < LEAST:
        raise GpuError(f"TensorRT is {trt.__version__}", "10.3 or newer is needed", cause="no-library")
    return trt


def version(trt: Any) -> tuple[int, int]:
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def log_of(trt: Any) -> Any:
    """The process's one logger for a library: it keeps the last warnings and errors, each with its thread.

    The library takes the logger that it is given first for all that is made later, so there is one, and it stays.
    """
    with _LOCK:
        known = _LOGS.get(trt.__name__)
        if known is None or known[0] is not trt:
            known = _LOGS[trt.__name__] = (trt, _new_log(trt))
        return known[1]


@contextlib.contextmanager
def telling(log: Any, what: str, otherwise: Cause) -> Iterator[None]:
    """The bindings refuse by False, by None, and now and then by raising; this turns the last into a GpuError."""
    log.forget()
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        words = f"{_line(error)}; {log.last()}"
        raise GpuError(f"{what} is refused: {words}", cause=no_room_or(words, otherwise)) from error


def _new_log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding demands it by name
            self.kept: list[tuple[int, str]] = []  # thread, text

        def log(self, severity: Any, msg: str) -> None:
            """Called from the library's own threads, where nothing may be raised."""
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.kept = [*self.kept[1 - MOST_KEPT :], (threading.get_ident(), msg[:500])]

        def forget(self) -> None:
            """This thread's messages: what is asked for next is told by its own."""
            self.kept = [each for each in self.kept if each[0] != threading.get_ident()]

        def last(self, count: int = 2) -> str:
            """The last messages in one line; of this thread, if it caused any: others may have had another trouble."""
            mine = [text for thread, text in self.kept if thread == threading.get_ident()]
            return "; ".join((mine or [text for _, text in self.kept])[-count:])[:900] or "it gives no reason"

    return Log()


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
