"""NVIDIA's management library through its C interface: memory and load of every GPU. No package, no subprocess.

Eight functions of an interface that has been stable since 2013, each with a checked return code. What a GPU does not
tell (NotSupported on Jetson, a lost device) is None; without the library or a driver there are no GPUs.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_UUID_NBYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Load(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU now; None is what it does not tell, which is not 0."""

    uuid: str
    utilisation: float | None  # share of the last sample period in which a kernel ran
    memory_total_nbytes: int | None
    memory_used_nbytes: int | None


class Nvml:
    """Open for the life of the process. `gpus` costs well under a millisecond for each GPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            raise OSError("the NVIDIA driver does not answer")
        self._devices = [d for i in range(count.value) if (d := self._device(i)) is not None]

    def _device(self, index: int) -> tuple[ctypes.c_void_p, str] | None:
        device, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(_UUID_NBYTES)
        if self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)):
            return None
        if self._library.nvmlDeviceGetUUID(device, uuid, ctypes.c_uint(_UUID_NBYTES)):
            return device, f"gpu-{index}"
        return device, uuid.value.decode("ascii", "replace")

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(self._read(device, uuid) for device, uuid in self._devices)

    def _read(self, device: ctypes.c_void_p, uuid: str) -> Gpu:
        memory, load = _Memory(), _Load()
        knows_memory = self._library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0
        knows_load = self._library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(load)) == 0
        return Gpu(
            uuid,
            load.gpu / 100.0 if knows_load else None,
            memory.total if knows_memory else None,
            memory.used if knows_memory else None,
        )


def open_nvml() -> Nvml | None:
    """None where there is no NVIDIA driver, or one that does not answer."""
    try:
        return Nvml(ctypes.CDLL("libnvidia-ml.so.1"))
    except (OSError, AttributeError):
        return None
