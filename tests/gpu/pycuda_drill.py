"""Real pycuda on a SIMULATED driver: `python -m tests.gpu.pycuda_drill`, in an environment that has pycuda. Needs gcc.

Our threads make, use and free what the engine makes, uses and frees, through the real pycuda. It leaves with 0 if every
count of the simulated driver is back at zero, no law was broken, and the process ended without pycuda's complaints: it
warns of what is freed on a foreign thread, and aborts when a context is left pushed.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.engines.driver import Driver, ask
from protocol.engines.gpu_memory import aligned, open_memory
from protocol.engines.gpu_thread import GpuThreads, Watcher
from protocol.engines.trt_options import GpuError

HERE = Path(__file__).parent
COUNTS = ("contexts retained", "contexts pushed", "blocks", "pinned arrays", "streams", "events")


def build(folder: Path) -> Any:
    """The simulated driver, loaded so that pycuda finds it under the driver's name."""
    packages = Path(sysconfig.get_paths()["platlib"]) / "pycuda"
    extension = next(packages.glob("_driver*.so"), None)
    if extension is None:
        sys.exit("not run: pycuda is not installed in this environment; tests/gpu/gate.sh builds it")
    listing = subprocess.run(["nm", "-D", "--undefined-only", extension], check=True, capture_output=True, text=True)
    wanted = {line.split()[-1] for line in listing.stdout.splitlines() if line.split()[-1].startswith("cu")}
    source = (HERE / "simulated_driver.c").read_text()
    there = set(re.findall(r"^result (cu\w+)\(", source, re.MULTILINE))
    rest = "".join(f"result {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in sorted(wanted - there))
    (folder / "simulated_driver_rest.h").write_text(rest)
    target = folder / "libcuda.so.1"
    command = ["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", f"-I{folder}", "-o", target]
    subprocess.run([*command, HERE / "simulated_driver.c"], check=True)
    return ctypes.CDLL(str(target), os.RTLD_GLOBAL | os.RTLD_NOW)


class Bench:
    """What an engine has on the GPU: made, used and freed on the GPU thread."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.rows = [aligned(10_000), aligned(10_000)]

    def make(self) -> None:
        self.stream, self.event = self.memory.stream(), self.memory.event()
        self.block = self.memory.allocate(10_000)
        self.unpin = [self.memory.pin(row) for row in self.rows]

    def launch(self, value: int) -> Any:
        sent, got = (row[:9000] for row in self.rows)
        sent[:] = value
        self.memory.copy_in(self.block.address, sent, self.stream)
        self.memory.copy_out(got, self.block.address, self.stream)
        self.memory.record(self.event, self.stream)
        return self.event

    def free(self) -> None:
        self.block.free()
        for unpin in self.unpin:
            unpin()
        self.memory.drop(self.stream, self.event)
        del self.event, self.stream


def beside(memory: Any) -> str:
    """What loading a plan takes: a stream and an event of that thread's own, which go before its context does."""
    stream, event = memory.stream(), memory.event()
    memory.record(event, stream)
    memory.wait(event)
    memory.drop(stream, event)
    return "done"


def drill(threads: GpuThreads) -> None:
    gpu = threads.hold(0)
    assert gpu.memory.name == "pycuda", gpu.memory.name
    watchers = [Watcher(gpu, str(n)) for n in range(2)]
    bench = Bench(gpu.memory)
    gpu.call(bench.make, timeout_s=10)
    for value in range(1, 50):
        watchers[value % 2].run(lambda v=value: bench.launch(v), timeout_s=10)  # type: ignore[misc]
        assert np.all(bench.rows[1][:9000] == value)
    asides = [gpu.begin_aside(lambda: beside(gpu.memory)) for _ in range(8)]  # as plans are loaded, side by side
    for value in range(50, 60):
        watchers[value % 2].run(lambda v=value: bench.launch(v), timeout_s=10)  # type: ignore[misc]
    assert [aside.wait(10) for aside in asides] == ["done"] * 8
    with pytest.raises(GpuError) as refused:
        gpu.call(lambda: gpu.memory.allocate(1 << 40), timeout_s=10)
    assert refused.value.cause == "out-of-memory", refused.value
    gpu.call(bench.free, timeout_s=10)
    for watcher in watchers:
        watcher.stop()
    threads.release(0)


def lose() -> None:
    """A device is lost while threads hold its context; the process goes on, and ends well."""
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        gpu = GpuThreads().hold(0)
        watcher = Watcher(gpu, "lost")
        watcher.run(lambda: _event(gpu.memory), timeout_s=10)
        gpu.begin_aside(lambda: gpu.lose("the drill says so")).wait(10)
        watcher.stop()
        for thread in threading.enumerate():  # one that ended would take the process with it
            if thread.name.startswith("isthmus-gpu"):
                thread.join(0.2)
                assert thread.is_alive(), f"{thread.name} ended with the context of a lost device"
        print("a lost device: the process goes on")


def holds_up_nobody(driver: Any) -> None:
    """Whatever the driver waits for, other Python threads run: else a kernel that hangs stops the whole process."""
    memory, ended = open_memory(0), threading.Event()

    def tick() -> None:
        while not ended.wait(0.0005):
            driver.isthmus_tick()

    ticking = threading.Thread(target=tick)
    ticking.start()
    driver.isthmus_watch(1)
    rows = aligned(10_000)
    steps: dict[str, Callable[[], Any]] = {
        "attach": memory.attach, "stream": memory.stream, "event": memory.event,
        "allocate": lambda: memory.allocate(rows.nbytes), "pin": lambda: memory.pin(rows),
        "copy_in": lambda: memory.copy_in(made["allocate"].address, rows, made["stream"]),
        "copy_out": lambda: memory.copy_out(rows, made["allocate"].address, made["stream"]),
        "record": lambda: memory.record(made["event"], made["stream"]), "wait": lambda: memory.wait(made["event"]),
        "free_nbytes": memory.free_nbytes, "synchronize": memory.synchronize, "unpin": lambda: made["pin"](),
        "free": lambda: made["allocate"].free(), "drop": lambda: memory.drop(made.pop("stream"), made["event"]),
        "detach": memory.detach,
    }  # fmt: skip
    made: dict[str, Any] = {}
    stopped: list[str] = []
    try:
        for name, step in steps.items():
            before = driver.isthmus_stopped()
            made[name] = step()
            stopped += [name] * (driver.isthmus_stopped() > before)
    finally:
        driver.isthmus_watch(0)
        ended.set()
        ticking.join()
    assert not stopped, f"{', '.join(stopped)} stopped every other thread"


def _event(memory: Any) -> Any:
    stream, event = memory.stream(), memory.event()
    memory.record(event, stream)
    return event


def main() -> int:
    if sys.argv[1:] == ["lose"]:
        lose()
        return 0
    if subprocess.run([sys.executable, "-m", "tests.gpu.pycuda_drill", "lose"], check=False).returncode:
        print("a lost device ended the process")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        driver = build(Path(folder))
        found = ask()  # in this process, which has loaded the simulated one
        assert isinstance(found, Driver), found
        print(f"{found} (simulated)")
        holds_up_nobody(driver)
        threads = GpuThreads()
        for _ in range(3):  # a device can be held again after it was given back
            drill(threads)
        left = {name: driver.isthmus_left(n) for n, name in enumerate(COUNTS) if driver.isthmus_left(n)}
        # pycuda pushes a primary context that it releases and leaves it there: it goes with its thread
        left.pop("contexts pushed", None)
        print(f"left behind: {left or 'nothing'}; laws broken: {driver.isthmus_broken()}")
        return 1 if left or driver.isthmus_broken() else 0


if __name__ == "__main__":
    sys.exit(main())
