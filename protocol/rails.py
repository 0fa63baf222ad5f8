"""Power rails that an INA monitor of the board watches: where each is read, and in which unit.

Two forms are in use: the kernel's own driver under hwmon (millivolts and milliamperes, or microwatts), and the older
one of Jetson boards under iio (milliwatts).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_TO_WATTS = {"uW": 1e-6, "mW": 1e-3}


class Rail(NamedTuple):
    """`first` alone is a power in `unit`; with `second` they are millivolts and milliamperes."""

    label: str
    first: Path
    second: Path | None = None
    unit: str = "uW"

    def watts(self) -> float:
        """Raises OSError or ValueError when it cannot be read."""
        value = float(self.first.read_text(encoding="ascii"))
        if self.second is None:
            return value * _TO_WATTS[self.unit]
        return value * float(self.second.read_text(encoding="ascii")) * 1e-6


def rails(sys_folder: Path) -> list[Rail]:
    """Every rail of every monitor, in the order of their names."""
    found = []
    for chip in sorted((sys_folder / "class" / "hwmon").glob("hwmon*")):
        if _text(chip / "name").startswith("ina"):
            found += _hwmon(chip)
    for device in sorted((sys_folder / "bus" / "i2c" / "drivers" / "ina3221x").glob("*/iio:device*")):
        for name in sorted(device.glob("rail_name_*")):
            power = device / f"in_power{name.name.rpartition('_')[2]}_input"
            if power.exists():
                found.append(Rail(_text(name), power, unit="mW"))
    return found


def input_rail(sys_folder: Path) -> Rail | None:
    """What feeds the whole board (VDD_IN), else the first rail."""
    found = rails(sys_folder)
    return next((rail for rail in found if "VDD_IN" in rail.label.upper()), found[0] if found else None)


def _hwmon(chip: Path) -> list[Rail]:
    if (chip / "power1_input").exists():
        return [Rail(_text(chip / "power1_label") or chip.name, chip / "power1_input")]
    found = []
    for current in sorted(chip.glob("curr*_input")):
        channel = current.name[len("curr") : -len("_input")]
        if (volts := chip / f"in{channel}_input").exists():
            found.append(Rail(_text(chip / f"in{channel}_label") or f"{chip.name}.{channel}", volts, current))
    return found


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            return ""  # a pipe would hang us
        with path.open("rb") as file:
            return file.read(200).decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""
