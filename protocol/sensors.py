"""What a machine says about itself: processor, versions, peak memory of a segment, energy. What it keeps back is None.

Energy comes from RAPL counters (powercap) or from the INA power monitors of a Jetson; both need read permission, which
distributions often keep for root. A sensor's domain is a package or a board, so idle power is part of every figure.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from protocol.engines.ort import version
from protocol.graphs import external_of
from protocol.profile import Machine
from protocol.rails import Rail, input_rail
from protocol.tensors import Tensors

SYS = Path("/sys")
_FOOTPRINT_LIMIT_S = 120.0
# Instruction sets that decide which kernels run (x86, then ARM).
_DECISIVE = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_DECISIVE_ARM = ("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine."""
    fields = _cpuinfo(cpuinfo)
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        processor=fields.get("model name") or _device_tree() or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        onnxruntime=version(),
        instruction_sets=tuple(f for f in (*_DECISIVE, *_DECISIVE_ARM) if f in flags),
    )


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's fields."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _device_tree() -> str:
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_memory_nbytes(model: bytes, feed: Tensors, *, threads: int) -> int | None:
    """Peak resident bytes of a fresh process that loads `model` and runs it twice, above one that only imports.

    The serialised graph is part of it, as it is in the agent. None where the platform does not tell.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-") as name:
        folder = Path(name)
        _lay_out(folder, model, feed)
        command = [sys.executable, "-m", "protocol.footprint", name, str(threads)]
        root = Path(__file__).parents[1]  # `-m` finds us from there, installed or not
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, timeout=_FOOTPRINT_LIMIT_S, check=True)
            return int(done.stdout)
        except (subprocess.SubprocessError, OSError, ValueError):
            return None


def _lay_out(folder: Path, model: bytes, feed: Tensors) -> None:
    """model.onnx and the weights beside it; the arrays as a0, a1, ... with their names (which may hold anything)."""
    external = external_of(model)
    (folder / "model.onnx").write_bytes(model)
    for name, content in external.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    arrays: dict[str, Any] = {f"a{i}": array for i, array in enumerate(feed.values())}
    np.savez(folder / "feed.npz", **arrays)
    listed = {"feed": list(feed), "external": list(external)}
    (folder / "names.json").write_text(json.dumps(listed), encoding="utf-8")


# ---- energy ----------------------------------------------------------------------------------------------------------


class EnergyMeter:
    """Reads one sensor. `read` after every few milliseconds of work; `joules` is what came together since the first."""

    def __init__(self, sensor: str, counters: list[tuple[Path, float]], powers: list[Rail]) -> None:
        self.sensor = sensor
        self._counters = counters  # (energy counter in microjoules, range at which it wraps)
        self._powers = powers
        self._last: list[float] = []
        self._at = 0.0
        self.joules = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        """Raises OSError or ValueError when the sensor cannot be read."""
        self._last = self._values()
        self._at = time.monotonic()
        self.joules = self.seconds = 0.0

    def read(self) -> None:
        values, now = self._values(), time.monotonic()
        passed = now - self._at
        if self._counters:
            for (_, wraps_at), old, new in zip(self._counters, self._last, values, strict=True):
                self.joules += (new - old if new >= old else new - old + wraps_at) * 1e-6
        else:
            self.joules += (sum(self._last) + sum(values)) / 2.0 * passed
        self.seconds += passed
        self._last, self._at = values, now

    def _values(self) -> list[float]:
        if self._counters:
            return [float(path.read_text()) for path, _ in self._counters]
        return [rail.watts() for rail in self._powers]


def energy_meter(sys_folder: Path = SYS) -> EnergyMeter | None:
    """The machine's energy sensor, or None where none can be read."""
    for meter in (_rapl(sys_folder), _ina(sys_folder)):
        if meter is None:
            continue
        try:
            meter.start()
        except (OSError, ValueError):
            continue
        return meter
    return None


def _rapl(sys_folder: Path) -> EnergyMeter | None:
    """All processor packages: `intel-rapl:0`, not its parts `intel-rapl:0:0`."""
    counters = []
    for zone in sorted((sys_folder / "class" / "powercap").glob("intel-rapl:*")):
        if zone.name.count(":") == 1:
            try:
                counters.append((zone / "energy_uj", float((zone / "max_energy_range_uj").read_text())))
            except (OSError, ValueError):
                return None
    return EnergyMeter("rapl", counters, []) if counters else None


def _ina(sys_folder: Path) -> EnergyMeter | None:
    rail = input_rail(sys_folder)
    return None if rail is None else EnergyMeter("ina", [], [rail])
