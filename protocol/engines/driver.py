"""Asks the NVIDIA driver what is there, through its C interface, before any GPU library is touched.

TensorRT without a usable driver does not raise: its runtime ends the process (measured), its builder gives a bare
TypeError. So whoever wants a GPU engine asks here first. Nothing is created: no context, no memory, no thread.

    probe      library? -> a process of its own asks (`python -m protocol.engines.driver`) -> one line of JSON
    ask        the questions themselves, in whatever process that is

A driver that is broken hangs or crashes in its first call (a GPU fallen off the bus, half of an update). That must end
neither a gateway nor its start, so the first call is made by a child with a limit on its time. It is started afresh: a
driver must not be carried through `fork` once it was asked.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from protocol import children

LIBRARY = "libcuda.so.1"
LEAST_CUDA = 12_000  # what TensorRT 10 needs; the version is 1000 * major + 10 * minor
WITHIN_S = 30.0  # a driver that nobody uses wakes its GPUs one after the other, and a machine may have many

_MAJOR, _MINOR, _INTEGRATED, _MODE = 75, 76, 18, 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_..., ..._COMPUTE_MODE
_PROHIBITED = 2  # a compute mode in which nobody gets a context
_CLOSED = "the GPUs of this machine are closed to everybody (compute mode PROHIBITED); nvidia-smi -c DEFAULT opens them"
_NO_GPU = "the NVIDIA driver finds no GPU; give this machine or container one (--gpus all)"
# What `cuInit` returns where the code alone tells what is to be done.
_STARTS_NOT = {
    34: f"the {LIBRARY} found here is the stub that programs are linked with; take its folder out of LD_LIBRARY_PATH",
    35: "the NVIDIA driver is older than its own library (35); install one driver, and restart the machine",
    100: _NO_GPU,
    802: "the GPUs of this machine are not ready yet (802); start nvidia-fabricmanager, then start again",
    803: "the NVIDIA driver's library and its kernel module are of different versions (803); restart the machine",
    804: "the CUDA compatibility library found here is not for this GPU (804); remove it, the driver's own will do",
}
_UUID_NBYTES = 16


class Device(msgspec.Struct, frozen=True):
    """One GPU as its driver names it. `capability` is (major, minor): (9, 0) for Hopper.

    One that `is_integrated` has no memory of its own: `memory_nbytes` is the processor's as well.
    """

    index: int
    name: str
    uuid: str
    capability: tuple[int, int]
    memory_nbytes: int
    is_integrated: bool = False


class Driver(msgspec.Struct, frozen=True):
    """A driver that answers, with at least one GPU. `cuda` is the newest CUDA it runs: 13000 for 13.0."""

    cuda: int
    devices: tuple[Device, ...]

    def __str__(self) -> str:
        names = ", ".join(device.name for device in self.devices)
        return f"driver for CUDA {self.cuda // 1000}.{self.cuda % 1000 // 10} with {names}"


@functools.cache
def probe(*, within_s: float = WITHIN_S) -> Driver | str:
    """The driver of this machine, or in one sentence why there is none that can be used. Raises nothing.

    Costs a failed look for a library where there is none, otherwise a process of tenths of a second, once: what is true
    of a driver stays so until this process ends.
    """
    if reason := _not_here(ctypes.CDLL):
        return reason
    return _asked_apart([sys.executable, "-P", "-m", "protocol.engines.driver"], within_s)


def load_library(name: str) -> object:
    """A library as every program finds it, by the system's loader. Raises OSError."""
    return ctypes.CDLL(name)


def ask(*, least_cuda: int = LEAST_CUDA, load: Callable[[str], Any] = ctypes.CDLL) -> Driver | str:
    """`probe` in this process, which ends or hangs if the driver does. `load` opens the driver's library."""
    if reason := _not_here(load):
        return reason
    try:
        return _ask(load(LIBRARY), least_cuda)
    except (AttributeError, DriverError) as error:
        return f"the NVIDIA driver does not answer as one should ({error}); install it again"


def _not_here(load: Callable[[str], Any]) -> str:
    try:
        load(LIBRARY)
    except OSError as error:
        why = str(error)[:200]
        if "No such file" in why or "cannot open shared object" in why:
            return f"no NVIDIA driver is installed ({why}); install one, or choose an engine for the CPU"
        return f"the NVIDIA driver's library cannot be loaded ({why}); install the driver again"
    return ""


def _asked_apart(command: Sequence[str], within_s: float) -> Driver | str:
    """What a process of its own says. It is given up on after `within_s`, even if nothing can end it."""
    try:
        child = subprocess.Popen(
            [*command, str(within_s)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=children.environment(os.environ),
            start_new_session=True,  # an interrupt is for us, who then end it
        )
    except OSError as error:
        return f"the NVIDIA driver was not asked, for no process could be started ({error}); start again"
    try:
        said, complained = child.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        return (
            f"the NVIDIA driver has not answered for {within_s:.0f} s; "
            "see nvidia-smi and dmesg, and restart the machine if they hang too"
        )
    finally:
        child.kill()  # nobody waits for its end: one that hangs in the kernel has none
        child.poll()
    for line in reversed(said.splitlines()):  # a driver may print on its own account
        try:
            return msgspec.json.decode(line, type=Driver | str)
        except msgspec.DecodeError:
            continue
    if child.returncode < 0:
        how = f"crashes when it is asked ({_signal(-child.returncode)})"
    else:
        words = complained.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        how = f"ends the process that asks it (code {child.returncode}: {words or 'it says nothing'})"
    return f"the NVIDIA driver {how}; see dmesg, install it again, or choose an engine for the CPU"


def _signal(number: int) -> str:
    return signal.strsignal(number) or f"signal {number}"


class DriverError(Exception):
    """A call of the driver's that did not succeed; `code` is its own."""

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function} failed: {name}")
        self.code = code


def _ask(library: Any, least_cuda: int) -> Driver | str:
    code = library.cuInit(0)
    if code in _STARTS_NOT:
        return _STARTS_NOT[code]
    if code:
        return f"the NVIDIA driver does not start (cuInit: {_error_name(library, code)}); see nvidia-smi"
    version, count = ctypes.c_int(), ctypes.c_int()
    call(library, "cuDriverGetVersion", ctypes.byref(version))
    if version.value < least_cuda:
        have, need = (f"{v // 1000}.{v % 1000 // 10}" for v in (version.value, least_cuda))
        return f"the NVIDIA driver is for CUDA {have}, and {need} is needed; install a newer one"
    call(library, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        return _NO_GPU
    found = tuple(each for index in range(count.value) if (each := _device(library, index)) is not None)
    return Driver(version.value, found) if found else _CLOSED


def _device(library: Any, index: int) -> Device | None:
    """None where nobody may use it."""
    handle, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(128)
    uuid = (ctypes.c_ubyte * _UUID_NBYTES)()
    call(library, "cuDeviceGet", ctypes.byref(handle), index)
    mode, integrated = ctypes.c_int(), ctypes.c_int()
    call(library, "cuDeviceGetAttribute", ctypes.byref(mode), _MODE, handle)
    if mode.value == _PROHIBITED:
        return None
    call(library, "cuDeviceGetAttribute", ctypes.byref(integrated), _INTEGRATED, handle)
    call(library, "cuDeviceGetName", name, len(name), handle)
    call(library, "cuDeviceGetUuid", ctypes.byref(uuid), handle)
    call(library, "cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, handle)
    call(library, "cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, handle)
    call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    text = name.value.decode("utf-8", "replace")
    return Device(index, text, bytes(uuid).hex(), (major.value, minor.value), memory.value, bool(integrated.value))


def call(library: Any, function: str, *arguments: Any) -> None:
    """Call the driver; other Python threads run meanwhile. Raises DriverError."""
    code = getattr(library, function)(*arguments)
    if code:
        raise DriverError(function, code, _error_name(library, code))


def _error_name(library: Any, code: int) -> str:
    """What the driver calls one of its codes, with the code."""
    text = ctypes.c_char_p()
    try:
        if library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value:
            return f"{text.value.decode('ascii', 'replace')} ({code})"
    except AttributeError:
        pass
    return f"error {code}"


def main() -> None:
    """Ask, and say the answer as one line of JSON. The time limit holds even if whoever asked is gone by then."""
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]) + 1.0)  # SIGALRM ends the process, whatever it hangs in
    line = msgspec.json.encode(ask()) + b"\n"
    os.write(1, b"\n" + line)
    os._exit(0)  # what the driver would do at the end is of no interest


if __name__ == "__main__":
    main()
