"""Temperatures, fans, and whether the chip has been slowed down. Everything in degrees Celsius and Hz."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.device.tree import Tree

ABSOLUTE_ZERO_C, HOTTEST_C = -273.0, 200.0  # what lies outside is no temperature but a mark for "none"
_SLOWING = ("throttle", "cpufreq", "processor", "devfreq", "gpufreq", "hot-surface")
# Bits of get_throttled as the firmware of a Raspberry Pi documents them; 16 bits higher: it happened since the start.
_PI_BITS = {
    0: "under-voltage: the power supply is too weak",
    1: "the clock is capped",
    2: "the processor is throttled",
    3: "the soft temperature limit is active",
}


@dataclass(frozen=True, slots=True)
class Zone:
    """One thermal zone. `slows_at_c` is where the kernel begins to slow down, `stops_at_c` where it shuts down."""

    name: str
    celsius: float
    slows_at_c: float | None = None
    stops_at_c: float | None = None

    @property
    def headroom_c(self) -> float | None:
        """Degrees until the machine slows down, or stops; None where no trip point says when."""
        limits = [limit for limit in (self.slows_at_c, self.stops_at_c) if limit is not None]
        return min(limits) - self.celsius if limits else None


@dataclass(frozen=True, slots=True)
class Fan:
    """`duty` is the share of full power, 0 to 1."""

    name: str
    rpm: float | None
    duty: float | None


@dataclass(frozen=True, slots=True)
class Throttling:
    """`now` is None where nothing tells; `reasons` say what slows the chip down at this moment.

    `since_start` says what did so at some time since the machine was started; `events` is the sum of the counters that
    the processor keeps of that, None where it keeps none.
    """

    now: bool | None
    reasons: tuple[str, ...] = ()
    since_start: tuple[str, ...] = ()
    events: int | None = None


def zones(tree: Tree) -> tuple[Zone, ...]:
    """Every zone that can be read now; a part that is switched off has no temperature."""
    found = []
    for folder in tree.matches("sys/class/thermal/thermal_zone*"):
        celsius = _celsius(tree.number(f"{folder}/temp"))
        if celsius is None:
            continue
        slows, stops = [], []
        for path in tree.matches(f"{folder}/trip_point_*_type"):
            at = _celsius(tree.number(f"{path.removesuffix('_type')}_temp"))
            kind = tree.text(path)
            if at is not None and at > 0.0:
                if kind in ("passive", "hot"):
                    slows.append(at)
                elif kind == "critical":
                    stops.append(at)
        name = tree.text(f"{folder}/type") or folder.rpartition("/")[2]
        found.append(Zone(name, celsius, min(slows, default=None), min(stops, default=None)))
    return tuple(found)


def fans(tree: Tree) -> tuple[Fan, ...]:
    found = []
    for chip in tree.matches("sys/class/hwmon/hwmon*"):
        label = tree.text(f"{chip}/name") or chip.rpartition("/")[2]
        for number in range(1, 9):
            rpm = tree.number(f"{chip}/fan{number}_input")
            if rpm is None and number == 1:
                rpm = tree.number(f"{chip}/rpm")  # the tachometer of Jetson boards
            pwm = tree.number(f"{chip}/pwm{number}")
            if rpm is not None or pwm is not None:
                duty = None if pwm is None or not 0 <= pwm <= 255 else pwm / 255
                found.append(Fan(f"{label}{'' if number == 1 else f' {number}'}", rpm, duty))
    return tuple(found)


def throttling(tree: Tree) -> Throttling:
    """What slows this machine down: cooling devices at work, over-current alarms, the firmware of a Raspberry Pi."""
    reasons, since, told = [], [], False
    for folder in tree.matches("sys/class/thermal/cooling_device*"):
        kind, state = tree.text(f"{folder}/type"), tree.number(f"{folder}/cur_state")
        if kind is None or state is None or not any(word in kind.lower() for word in _SLOWING):
            continue
        told = True
        if state > 0:
            reasons.append(f"{kind} is active (step {state:g})")
    for path in tree.matches("sys/class/hwmon/hwmon*/oc*_throt_en"):
        events = tree.number(f"{path.removesuffix('_throt_en')}_event_cnt")
        if events:
            since.append(f"over-current {path.rpartition('/')[2].removesuffix('_throt_en')}: {events:g} times")
    bits = _pi_bits(tree)
    if bits is not None:
        told = True
        reasons += [text for bit, text in _PI_BITS.items() if bits >> bit & 1]
        since += [text for bit, text in _PI_BITS.items() if bits >> (bit + 16) & 1]
    events = _events(tree)
    return Throttling(bool(reasons) if told else None, tuple(reasons), tuple(since), events)


def _events(tree: Tree) -> int | None:
    """How often cores were slowed down since the start; a package's counter stands at each of its cores."""
    cores = [tree.number(p) for p in tree.matches("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    alarms = [tree.number(p) for p in tree.matches("sys/class/hwmon/hwmon*/oc*_event_cnt")]
    counted = [int(number) for number in (*cores, *alarms) if number is not None]
    return sum(counted) if counted else None


def _pi_bits(tree: Tree) -> int | None:
    for path in tree.matches("sys/devices/platform/soc/*/get_throttled"):
        text = tree.text(path) or ""
        try:
            return int(text, 16)
        except ValueError:
            continue
    return None


def _celsius(millidegrees: float | None) -> float | None:
    if millidegrees is None:
        return None
    celsius = millidegrees / 1e3
    return celsius if ABSOLUTE_ZERO_C < celsius < HOTTEST_C else None
