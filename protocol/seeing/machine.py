"""What the process and its machine use now, from /proc, /sys and the GPU's driver. What is not told is None, not 0."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from protocol.seeing.nvml import Gpu, open_nvml

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class MachineState:
    """Utilisations are shares of all processors since the reading before; None at the first."""

    process_memory_nbytes: int | None
    process_cpu_s: float | None  # since it began
    process_cpu_share: float | None  # of one processor: 2.0 is two whole ones
    process_threads: int | None
    process_open_files: int | None
    cpu_utilisation: float | None
    memory_total_nbytes: int | None
    memory_used_nbytes: int | None
    gpus: tuple[Gpu, ...]


class Machine:
    """Reads on demand, about 0.2 ms. `proc` and `sys` are other folders in tests."""

    def __init__(self, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc, self._sys = proc, sys
        self._nvml = open_nvml()
        self._busy: tuple[float, float] | None = None  # busy and all seconds of all processors
        self._spent: tuple[float, float] | None = None  # this process's seconds, and when

    def read(self, *, now: float) -> MachineState:
        memory_nbytes, cpu_s, threads = self._process()
        total, used = self._memory()
        return MachineState(
            process_memory_nbytes=memory_nbytes,
            process_cpu_s=cpu_s,
            process_cpu_share=self._share(cpu_s, now),
            process_threads=threads,
            process_open_files=self._open_files(),
            cpu_utilisation=self._utilisation(),
            memory_total_nbytes=total,
            memory_used_nbytes=used,
            gpus=self._nvml.gpus() if self._nvml is not None else self._gpus_of_sysfs(),
        )

    def _process(self) -> tuple[int | None, float | None, int | None]:
        try:
            # The name in brackets may hold spaces and brackets: count from the last one.
            fields = _text(self._proc / "self" / "stat").rpartition(")")[2].split()
            cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
            return int(fields[21]) * _PAGE_NBYTES, cpu_s, int(fields[17])
        except (OSError, ValueError, IndexError):
            return None, None, None

    def _share(self, cpu_s: float | None, now: float) -> float | None:
        before, self._spent = self._spent, None if cpu_s is None else (cpu_s, now)
        if before is None or self._spent is None or now <= before[1]:
            return None
        return (self._spent[0] - before[0]) / (now - before[1])

    def _open_files(self) -> int | None:
        try:
            return len(os.listdir(self._proc / "self" / "fd"))
        except OSError:
            return None

    def _utilisation(self) -> float | None:
        try:
            ticks = [int(x) for x in _text(self._proc / "stat").splitlines()[0].split()[1:9]]
        except (OSError, ValueError, IndexError):
            return None
        if len(ticks) < 5:
            return None
        idle, everything = ticks[3] + ticks[4], sum(ticks)
        before, self._busy = self._busy, (float(everything - idle), float(everything))
        if before is None or self._busy[1] <= before[1]:
            return None
        return (self._busy[0] - before[0]) / (self._busy[1] - before[1])

    def _memory(self) -> tuple[int | None, int | None]:
        try:
            lines = _text(self._proc / "meminfo").splitlines()
            kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
            return kib["MemTotal"] * 1024, (kib["MemTotal"] - kib["MemAvailable"]) * 1024
        except (OSError, ValueError, KeyError, IndexError):
            return None, None

    def _gpus_of_sysfs(self) -> tuple[Gpu, ...]:
        """Jetson (load in thousandths, memory is the machine's) and AMD (percent, bytes)."""
        found = []
        jetson = _number(self._sys / "devices" / "platform" / "gpu.0" / "load")
        if jetson is not None:
            found.append(Gpu("gpu.0", jetson / 1000.0, None, None))
        for card in sorted((self._sys / "class" / "drm").glob("card*/device/gpu_busy_percent")):
            device, load = card.parent, _number(card)
            found.append(
                Gpu(
                    device.parent.name,
                    None if load is None else load / 100.0,
                    _number(device / "mem_info_vram_total"),
                    _number(device / "mem_info_vram_used"),
                )
            )
        return tuple(found)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except (OSError, ValueError):
        return None
