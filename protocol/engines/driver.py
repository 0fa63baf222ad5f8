"""Asks the NVIDIA driver what is there, through its C interface, before any GPU library is touched.

TensorRT without a usable driver does not raise: its runtime ends the process (measured), its builder gives a bare
TypeError. So whoever wants a GPU engine asks here first. Nothing is created: no context, no memory, no thread. A
driver must not be carried through `fork` once it was asked; what needs a process of its own starts one afresh.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import msgspec

LIBRARY = "libcuda.so.1"
LEAST_CUDA = 12_000  # what TensorRT 10 needs; the version is 1000 * major + 10 * minor

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_NO_DEVICE, _NOT_FOR_THIS_KERNEL = 100, 803
_UUID_NBYTES = 16


class Device(msgspec.Struct, frozen=True):
    """One GPU as its driver names it. `capability` is (major, minor): (9, 0) for Hopper."""

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    memory_nbytes: int


class Driver(msgspec.Struct, frozen=True):
    """A driver that answers, with at least one GPU. `cuda` is the newest CUDA it runs: 13000 for 13.0."""

    cuda: int
    devices: tuple[Device, ...]

    def __str__(self) -> str:
        names = ", ".join(device.name for device in self.devices)
        return f"driver for CUDA {self.cuda // 1000}.{self.cuda % 1000 // 10} with {names}"


def probe(*, least_cuda: int = LEAST_CUDA, load: Callable[[str], Any] = ctypes.CDLL) -> Driver | str:
    """The driver of this machine, or in one sentence why there is none that can be used.

    Costs a failed look for a library where there is none, otherwise tens of milliseconds the first time. Raises
    nothing. `load` opens the driver's library.
    """
    try:
        library = load(LIBRARY)
    except OSError as error:
        return f"no NVIDIA driver is installed ({str(error)[:200]}); install one, or choose an engine for the CPU"
    try:
        return _ask(library, least_cuda)
    except (AttributeError, _Refused) as error:
        return f"the NVIDIA driver does not answer as one should ({error}); install it again"


class _Refused(Exception):  # noqa: N818 - it never leaves this file
    pass


def _ask(library: Any, least_cuda: int) -> Driver | str:
    code = library.cuInit(0)
    if code == _NO_DEVICE:
        return "the NVIDIA driver finds no GPU; give this machine or container one (--gpus all)"
    if code == _NOT_FOR_THIS_KERNEL:
        return "the NVIDIA driver's library and its kernel module are of different versions (803); restart the machine"
    if code:
        return f"the NVIDIA driver does not start (cuInit: {_name(library, code)}); see nvidia-smi"
    version, count = ctypes.c_int(), ctypes.c_int()
    _check(library, "cuDriverGetVersion", ctypes.byref(version))
    if version.value < least_cuda:
        have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in (version.value, least_cuda))
        return f"the NVIDIA driver is for CUDA {have}, and {need} is needed; install a newer one"
    _check(library, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        return "the NVIDIA driver finds no GPU; give this machine or container one (--gpus all)"
    return Driver(version.value, tuple(_device(library, index) for index in range(count.value)))


def _device(library: Any, index: int) -> Device:
    handle, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(128)
    uuid = (ctypes.c_ubyte * _UUID_NBYTES)()
    _check(library, "cuDeviceGet", ctypes.byref(handle), index)
    _check(library, "cuDeviceGetName", name, len(name), handle)
    _check(library, "cuDeviceGetUuid", ctypes.byref(uuid), handle)
    _check(library, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, handle)
    _check(library, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, handle)
    _check(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    text = name.value.decode("utf-8", "replace")
    return Device(index, text, bytes(uuid).hex(), (major.value, minor.value), memory.value)


def _check(library: Any, function: str, *arguments: Any) -> None:
    code = getattr(library, function)(*arguments)
    if code:
        raise _Refused(f"{function}: {_name(library, code)}")


def _name(library: Any, code: int) -> str:
    text = ctypes.c_char_p()
    try:
        if library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value:
            return f"{text.value.decode('ascii', 'replace')} ({code})"
    except AttributeError:
        pass
    return f"error {code}"
