"""What tests of GPU engines stand on: a real GPU, or the simulation, never one taken for the other.

A test marked `gpu` needs a real one and is skipped, with the driver's own reason, where there is none. A test that
takes `simulated_gpu` runs everywhere; TensorRT, pycuda and cuda-python are the packages of `simulation/` for it, here
and in the children that build plans.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.engines.driver import LIBRARY, Device, Driver, probe
from protocol.engines.gpu_thread import GpuThreads
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_cache import KEY_FILE
from tests.gpu.tiny import MODEL, OPTIONS, Make

SIMULATION = Path(__file__).parent / "simulation"
_SIMULATED = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda", "simulated_gpu"}
_DOORS = {"protocol.engines.cuda_memory", "protocol.engines.cuda_runtime"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and isinstance(reason := probe(), str):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


def simulated_driver() -> Driver:
    return Driver(13_000, (Device(0, "Simulated GPU", "00" * 16, (9, 0), 1 << 30),))


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in _SIMULATED or name in _DOORS:
            del sys.modules[name]


@pytest.fixture
def simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `simulation.simulated_gpu.Gpu`; at the end nothing may have been broken or left behind on it."""
    _forget()
    monkeypatch.syspath_prepend(str(SIMULATION))
    monkeypatch.setenv("PYTHONPATH", str(SIMULATION), prepend=os.pathsep)
    import simulated_gpu

    load = ctypes.CDLL
    driver = simulated_gpu.Driver(simulated_gpu.GPU)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *more: driver if name == LIBRARY else load(name, *more))
    yield simulated_gpu.GPU
    _forget()


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built plans: each graph is built once for all tests."""
    return tmp_path_factory.mktemp("cache") / "plans"


@pytest.fixture
def kept(make: Make, plans: Path, tmp_path: Path) -> Callable[..., Path]:
    """A test's own folder of plans, in which the engine's with these options already lies, and nothing else."""

    def folder(**changes: Any) -> Path:
        with make(**changes):
            pass
        own = tmp_path / "plans"
        own.mkdir(mode=0o700)
        for path in plans.iterdir():
            if path.name == KEY_FILE or b"simulated plan" in path.read_bytes():
                shutil.copy2(path, own)
        return own

    return folder


@pytest.fixture
def make(simulated_gpu: Any, plans: Path) -> Iterator[Make]:
    """Makes engines on the simulated GPU that share its thread."""
    made: list[TensorRtEngine] = []

    def make_one(
        model: bytes = MODEL, *, threads: GpuThreads | None = None, label: str = "tiny", **changes: Any
    ) -> TensorRtEngine:
        options = msgspec.structs.replace(OPTIONS, **{"cache": plans, **changes})
        engine = TensorRtEngine(
            model, label=label, options=options, driver=simulated_driver, threads=threads or shared
        )  # fmt: skip
        made.append(engine)
        return engine

    shared = GpuThreads()
    yield make_one
    for event in (simulated_gpu.paused, simulated_gpu.loading, simulated_gpu.making, simulated_gpu.recording):
        event.set()  # where a test failed before it did
    for engine in made:
        engine.deactivate()
