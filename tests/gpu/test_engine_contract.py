"""The contract of all engines (`tests/unit/test_protocol_engines.py`), run on TensorRT over the SIMULATED GPU.

On a machine with a GPU that file itself runs it on every real engine that is there.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.engines.gpu_thread import GpuThreads
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_options import TrtOptions
from tests.gpu.conftest import simulated_driver
from tests.unit import test_protocol_engines as contract


@pytest.fixture(params=["pycuda", "cuda-python"])
def make(
    request: pytest.FixtureRequest, simulated_gpu: Any, plans: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], TensorRtEngine]]:
    if request.param == "cuda-python":
        monkeypatch.setitem(sys.modules, "pycuda", None)
    options, threads = TrtOptions(max_batch=8, cache=plans), GpuThreads()
    yield lambda: TensorRtEngine(
        contract.MODEL, label="tiny", options=options, driver=simulated_driver, threads=threads
    )  # fmt: skip
    assert simulated_gpu.violations == []


def _with_our_make(function: types.FunctionType) -> types.FunctionType:
    """The same test, with `make` from the fixture above."""
    copy = types.FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.pytestmark = [m for m in function.pytestmark if m.args[:1] != ("make",)]  # type: ignore[attr-defined]
    return copy


globals().update(
    (name, _with_our_make(function))
    for name, function in vars(contract).items()
    if name.startswith("test_") and any(m.args[:1] == ("make",) for m in getattr(function, "pytestmark", ()))
)
