"""Sensors of process, machine and GPU: from folders and a library made for the test, and from this very machine."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from protocol.seeing.machine import Machine
from protocol.seeing.nvml import Gpu, Nvml

STAT = "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 0 0 1 0 0 0 0 0 0\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n"


def folders(tmp_path: Path, *, cpu_ticks: int = 0, busy: int = 0, idle: int = 0) -> tuple[Path, Path]:
    (tmp_path / "proc" / "self" / "fd").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc" / "self" / "fd" / "0").touch()
    fields = ["S", *["0"] * 10, str(cpu_ticks), "0", *["0"] * 4, "7", "0", "0", "0", "50", *["0"] * 20]
    (tmp_path / "proc" / "self" / "stat").write_text(f"12 (a name) with ) in it) {' '.join(fields)}\n")
    (tmp_path / "proc" / "stat").write_text(STAT.format(busy=busy, idle=idle))
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    return tmp_path / "proc", tmp_path / "sys"


def test_memory_threads_and_files_are_read_whatever_the_process_is_called(tmp_path: Path) -> None:
    seen = Machine(*folders(tmp_path)).read(now=0.0)
    assert seen.process_memory_nbytes == 50 * os.sysconf("SC_PAGE_SIZE")
    assert (seen.process_threads, seen.process_open_files) == (7, 1)
    assert (seen.memory_total_nbytes, seen.memory_used_nbytes) == (1000 * 1024, 600 * 1024)


def test_utilisation_is_that_between_two_readings_and_unknown_at_the_first(tmp_path: Path) -> None:
    machine = Machine(*folders(tmp_path, busy=100, idle=100))
    first = machine.read(now=10.0)
    assert (first.cpu_utilisation, first.process_cpu_share) == (None, None)
    folders(tmp_path, cpu_ticks=os.sysconf("SC_CLK_TCK"), busy=130, idle=170)
    second = machine.read(now=12.0)
    assert second.cpu_utilisation == pytest.approx(0.3)
    assert second.process_cpu_share == pytest.approx(0.5)


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    seen = Machine(tmp_path / "nowhere", tmp_path / "nothing").read(now=0.0)
    assert (seen.process_memory_nbytes, seen.process_cpu_s, seen.cpu_utilisation) == (None, None, None)
    assert (seen.memory_total_nbytes, seen.process_open_files) == (None, None)


def test_this_very_process_uses_memory(tmp_path: Path) -> None:
    seen = Machine().read(now=0.0)
    assert seen.process_memory_nbytes is not None
    assert seen.process_memory_nbytes > 5_000_000
    assert seen.process_cpu_s is not None
    assert seen.process_cpu_s > 0.0


def test_a_jetsons_load_is_in_thousandths_and_an_amd_cards_in_percent(tmp_path: Path) -> None:
    proc, sys = folders(tmp_path)
    jetson = sys / "devices" / "platform" / "gpu.0"
    jetson.mkdir(parents=True)
    (jetson / "load").write_text("250\n")
    card = sys / "class" / "drm" / "card1" / "device"
    card.mkdir(parents=True)
    (card / "gpu_busy_percent").write_text("40\n")
    (card / "mem_info_vram_total").write_text("1000\n")
    machine = Machine(proc, sys)
    machine._nvml = None
    assert machine.read(now=0.0).gpus == (Gpu("gpu.0", 0.25, None, None), Gpu("card1", 0.4, 1000, None))


class Library:
    """Two GPUs, as the driver's library shows them; the second tells nothing, as on Jetson."""

    NOT_SUPPORTED = 3

    def __init__(self, *, init: int = 0) -> None:
        self._init = init

    def nvmlInit_v2(self) -> int:
        return self._init

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, device: Any) -> int:
        device._obj.value = 100 + index.value
        return 0

    def nvmlDeviceGetUUID(self, device: ctypes.c_void_p, text: Any, length: ctypes.c_uint) -> int:
        text.value = b"GPU-%d" % (device.value or 0)
        return 0

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, memory: Any) -> int:
        memory._obj.total, memory._obj.free, memory._obj.used = 1000, 600, 400
        return 0 if device.value == 100 else self.NOT_SUPPORTED

    def nvmlDeviceGetUtilizationRates(self, device: ctypes.c_void_p, load: Any) -> int:
        load._obj.gpu = 75
        return 0 if device.value == 100 else self.NOT_SUPPORTED


def test_what_a_gpu_does_not_tell_is_none_and_not_zero() -> None:
    gpus = Nvml(Library()).gpus()  # type: ignore[arg-type]
    assert gpus == (Gpu("GPU-100", 0.75, 1000, 400), Gpu("GPU-101", None, None, None))


def test_a_driver_that_does_not_answer_is_none() -> None:
    with pytest.raises(OSError, match="does not answer"):
        Nvml(Library(init=9))  # type: ignore[arg-type]
