"""The board as it is at this moment, from sysfs and procfs: `look()` reads everything anew and never fails.

Nothing is remembered between two looks: a driver that is loaded later, or a sensor that wakes up, appears by itself.
What a board does not tell is None or an empty tuple, which is not 0.

    view = look()                    # or look(root) on a recorded tree
    view.model, view.gpu_load, view.throttling.now
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from edge_agent.device.heat import Fan, Throttling, Zone, fans, throttling, zones
from edge_agent.device.power import PowerMode, RailPower, power_mode, rails
from edge_agent.device.tree import Tree, fields

# Where the load of a Jetson's GPU stands in thousandths, by release of its system, newest first.
_GPU_LOADS = (
    "sys/devices/platform/bus@0/*.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/platform/*.gpu/load",
    "sys/devices/gpu.0/load",
    "sys/devices/*.gv11b/load",
    "sys/devices/*.gp10b/load",
)
_GPU_SHARES = ("sys/class/drm/card*/device/gpu_busy_percent",)


class Family(enum.StrEnum):
    """Boards whose own files are known; every other one is read as far as the kernel's standard goes."""

    JETSON = "jetson"
    RASPBERRY_PI = "raspberry-pi"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Clock:
    """One group of cores with a common clock. `allowed_hz` is the ceiling that is set, `most_hz` what they can do."""

    name: str
    governor: str | None
    hz: float | None
    allowed_hz: float | None
    most_hz: float | None

    @property
    def capped(self) -> bool:
        """Whether the ceiling lies below what the cores can do."""
        return self.allowed_hz is not None and self.most_hz is not None and self.allowed_hz < 0.999 * self.most_hz


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. `available` is what could be had without swapping."""

    total_nbytes: int
    available_nbytes: int | None
    swap_total_nbytes: int | None
    swap_free_nbytes: int | None


@dataclass(frozen=True, slots=True)
class Wear:
    """How much of a flash memory's life is used up, at most, 0 to 1; more than 1 means beyond what it is made for."""

    device: str
    used: float


@dataclass(frozen=True, slots=True)
class BoardView:
    """Everything at one moment."""

    family: Family
    model: str | None
    processor: str | None
    clocks: tuple[Clock, ...]
    gpu_load: float | None  # 0 to 1
    power_mode: PowerMode | None
    zones: tuple[Zone, ...]
    throttling: Throttling
    fans: tuple[Fan, ...]
    memory: Memory | None
    rails: tuple[RailPower, ...]
    wear: tuple[Wear, ...]

    @property
    def hottest(self) -> Zone | None:
        """The zone that is nearest to its limit; where no limits are known the warmest."""
        limited = [(zone.headroom_c, zone) for zone in self.zones if zone.headroom_c is not None]
        if limited:
            return min(limited, key=lambda pair: pair[0])[1]
        return max(self.zones, key=lambda zone: zone.celsius, default=None)

    @property
    def watts(self) -> float | None:
        """What the whole board draws, where one rail stands for it."""
        return next((rail.watts for rail in self.rails if "VDD_IN" in rail.name.upper()), None)


def look(root: Path = Path("/")) -> BoardView:
    """Read the board whose files lie under `root`. Takes milliseconds; raises nothing."""
    tree = Tree(root)
    model = tree.text("proc/device-tree/model") or tree.text("sys/firmware/devicetree/base/model")
    return BoardView(
        family=_family(tree, model),
        model=model or tree.text("sys/class/dmi/id/product_name"),
        processor=_processor(tree),
        clocks=_clocks(tree),
        gpu_load=_gpu_load(tree),
        power_mode=power_mode(tree),
        zones=zones(tree),
        throttling=throttling(tree),
        fans=fans(tree),
        memory=_memory(tree),
        rails=rails(tree),
        wear=_wear(tree),
    )


def _family(tree: Tree, model: str | None) -> Family:
    compatible = tree.text("proc/device-tree/compatible") or tree.text("sys/firmware/devicetree/base/compatible") or ""
    if "nvidia,tegra" in compatible or "jetson" in (model or "").lower():
        return Family.JETSON
    if "raspberrypi," in compatible or (model or "").startswith("Raspberry Pi"):
        return Family.RASPBERRY_PI
    return Family.OTHER


def _processor(tree: Tree) -> str | None:
    first = fields(tree.lines("proc/cpuinfo"))
    return first.get("model name") or first.get("Model") or None


def _clocks(tree: Tree) -> tuple[Clock, ...]:
    found = []
    for folder in tree.matches("sys/devices/system/cpu/cpufreq/policy*"):
        names = ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
        hz, allowed, most = (_hz(tree.number(f"{folder}/{name}")) for name in names)
        governor = tree.text(f"{folder}/scaling_governor")
        if governor is not None or hz is not None:
            found.append(Clock(folder.rpartition("/")[2], governor, hz, allowed, most))
    return tuple(found)


def _hz(kilohertz: float | None) -> float | None:
    return None if kilohertz is None or kilohertz <= 0 else kilohertz * 1e3


def _gpu_load(tree: Tree) -> float | None:
    thousandths, percent = tree.first_number(*_GPU_LOADS), tree.first_number(*_GPU_SHARES)
    share = thousandths / 1e3 if thousandths is not None else percent / 1e2 if percent is not None else None
    return share if share is not None and 0.0 <= share <= 1.0 else None


def _memory(tree: Tree) -> Memory | None:
    table = fields(tree.lines("proc/meminfo"))

    def nbytes(key: str) -> int | None:
        number = table.get(key, "").removesuffix("kB").strip()
        return int(number) * 1024 if number.isascii() and number.isdigit() and len(number) < 16 else None

    total = nbytes("MemTotal")
    if not total:
        return None
    return Memory(total, nbytes("MemAvailable"), nbytes("SwapTotal"), nbytes("SwapFree"))


def _wear(tree: Tree) -> tuple[Wear, ...]:
    """eMMC reports tenths of its life (JEDEC: 1 is up to 10 %, 11 is beyond); the worse of its two areas counts."""
    found = []
    for path in tree.matches("sys/block/mmcblk*/device/life_time"):
        tenths = [_hex(word) for word in (tree.text(path) or "").split()]
        known = [tenth for tenth in tenths if tenth is not None and 1 <= tenth <= 11]
        if known:
            found.append(Wear(path.split("/")[2], max(known) / 10))
    return tuple(found)


def _hex(word: str) -> int | None:
    try:
        return int(word, 16)
    except ValueError:
        return None
