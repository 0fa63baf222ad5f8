"""Builds a plan in a process of its own: what crashes, hangs or fills the memory there is an error here, and no more.

    with PlanBuild(order, graph) as build:          # a private folder
        plan = build.run(timeout_s=1800, told=log)  # another thread may call build.cancel()

The child is started afresh, never forked: a driver that was asked does not survive a fork. Its folder is readable for
this user only and is removed in the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from protocol import children
from protocol.engines.trt_child import Line, Order
from protocol.engines.trt_options import GpuError
from protocol.graphs import external_of

Told = Callable[[str], None]


class Built(msgspec.Struct, frozen=True):
    """A plan is machine code of one library version: `version` is what the child had. `seconds` is how long it took."""

    plan: bytes
    timing: bytes
    version: str
    seconds: float
    warnings: tuple[str, ...]


class PlanBuild:
    """One build for GPU `device`. `graph` may have its large weights beside it (see `protocol.graphs`)."""

    def __init__(self, order: Order, graph: bytes, *, timing: bytes = b"", device: int = 0) -> None:
        self._order = order
        self._graph = graph
        self._timing = timing
        self._device = device
        self._folder: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._cancelled = False

    def __enter__(self) -> Self:
        try:
            self._folder = folder = Path(tempfile.mkdtemp(prefix="isthmus-plan-"))
            self._lay_out(folder)
        except OSError as error:
            self.__exit__(None, None, None)
            raise GpuError(
                f"there is no room to build a plan in {tempfile.gettempdir()} ({error.strerror or error})",
                "make room there, or name another folder in TMPDIR",
                cause="build-failed",
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _lay_out(self, folder: Path) -> None:
        (folder / "order.json").write_bytes(msgspec.json.encode(self._order))
        (folder / "graph.onnx").write_bytes(self._graph)
        for name, data in external_of(self._graph).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if self._timing:
            (folder / "timing").write_bytes(self._timing)

    def cancel(self) -> None:
        """Give up, from any thread: `run` then raises."""
        with self._lock:
            self._cancelled = True
        self._stop()

    def run(self, *, timeout_s: float, told: Told | None = None) -> Built:
        """The plan. Raises GpuError: what the library says, a crash with its signal, a build that took too long."""
        assert self._folder is not None, "a build is entered before it runs"
        began = time.monotonic()
        try:
            last = self._watch(self._folder, timeout_s, told)
        except OSError as error:  # no process, no memory, no disk
            raise GpuError(
                f"the plan cannot be built here ({error.strerror or error})", cause="build-failed"
            ) from error
        if last is None or not (last.done or last.fact):
            raise self._died(self._folder, time.monotonic() - began, timeout_s)
        if not last.done:
            raise GpuError(last.fact, last.remedy, cause=last.cause)
        timing = self._folder / "timing"
        return Built(
            (self._folder / "plan").read_bytes(),
            timing.read_bytes() if timing.exists() else b"",
            last.version,
            time.monotonic() - began,
            last.warnings,
        )

    def _watch(self, folder: Path, timeout_s: float, told: Told | None) -> Line | None:
        """Start the child and hear it to its end; a timer ends it if it takes too long."""
        with self._lock, (folder / "errors").open("wb") as errors:
            if self._cancelled:
                return None
            self._child = child = subprocess.Popen(
                [sys.executable, "-m", "protocol.engines.trt_child", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=environment(os.environ, self._device),
                start_new_session=True,
            )
        timer = threading.Timer(timeout_s, self._stop)
        timer.daemon = True
        timer.start()
        last = None
        try:
            assert child.stdout is not None
            for raw in child.stdout:
                last = _line(raw) or last
                if last is not None and told is not None and last.phase:
                    told(f"{last.phase}: {last.step} of {last.steps}")
            child.wait()
        finally:
            timer.cancel()
            self._stop()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        return last

    def _died(self, folder: Path, took_s: float, timeout_s: float) -> GpuError:
        if self._cancelled:
            return GpuError("the build was given up", "the engine was no longer wanted", cause="build-failed")
        if took_s >= timeout_s:
            return GpuError(
                f"the build took longer than {timeout_s:.0f} s and was ended",
                "look at what else this machine does, or leave the engine out of the order for this model",
                cause="build-timeout",
            )
        code = self._child.returncode if self._child is not None else 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        words = (folder / "errors").read_bytes()[-400:].decode("utf-8", "replace").split("\n")
        said = "; ".join(w.strip() for w in words if w.strip())
        return GpuError(f"the process that built the plan {how} ({said or 'it said nothing'})", cause="build-failed")

    def _stop(self) -> None:
        with self._lock:
            child = self._child
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()


def environment(mine: Mapping[str, str], device: int) -> dict[str, str]:
    """Ours, with the folder that our own packages lie in, so that the child finds them wherever it is started.

    A builder builds for the first GPU that it sees: of several it is shown only the one that the plan is for.
    """
    theirs = children.environment(mine)
    if device:
        seen = mine.get("CUDA_VISIBLE_DEVICES", "").split(",")
        theirs["CUDA_VISIBLE_DEVICES"] = seen[device].strip() if device < len(seen) else str(device)
    return theirs


def _line(raw: bytes) -> Line | None:
    """None for what a library prints on its own account."""
    try:
        return msgspec.json.decode(raw, type=Line)
    except msgspec.DecodeError:
        return None
