"""SIMULATION of a machine with a GPU, for whole processes and their children: put this folder first in PYTHONPATH.

Python imports a `sitecustomize` by itself when it starts. This one lets `libcuda.so.1` be found and answer, TensorRT,
TensorRT-RTX, pycuda and cuda-python be those of the folder above, and `onnxruntime` be the one beside this file. No
result of it says anything about a GPU: it proves that what is to run on one runs at all.

Where the process broke a law of the simulated GPU, it says so as it ends, and ends with code 70.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

MEMORY_NBYTES = 8 << 30
_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_load = ctypes.CDLL


class _Driver:
    """What `protocol.engines.driver` asks; memory is pinned by the simulated GPU's own."""

    def __getattr__(self, name: str) -> Any:
        import simulated_gpu

        return getattr(simulated_gpu.Driver(simulated_gpu.GPU), name)

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13_000
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"Simulated GPU"
        return 0

    def cuDeviceGetUuid(self, uuid: Any, device: Any) -> int:
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = 9 if attribute == _MAJOR else 0
        return 0

    def cuDeviceTotalMem_v2(self, nbytes: Any, device: Any) -> int:
        nbytes._obj.value = MEMORY_NBYTES
        return 0


_LIBRARIES = {"libcuda.so.1": _Driver(), "libnvinfer.so.10": object()}


def _found(name: Any, *more: Any, **options: Any) -> Any:
    return _LIBRARIES[name] if name in _LIBRARIES else _load(name, *more, **options)


def _say_what_was_broken() -> None:
    simulated = sys.modules.get("simulated_gpu")
    if simulated is not None and simulated.GPU.violations:
        print("broken on the simulated GPU:", *simulated.GPU.violations[:5], sep="\n  ", file=sys.stderr, flush=True)
        os._exit(70)


ctypes.CDLL = _found  # type: ignore[assignment, misc]
sys.path.insert(1, str(Path(__file__).parents[1]))
atexit.register(_say_what_was_broken)
