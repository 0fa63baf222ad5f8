"""Can this machine do the work: its processor, its heat, its memory, its clock?"""

from __future__ import annotations

import os
import resource
import time
from datetime import datetime

from edge_agent.device.tree import fields
from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import UnmetError, Verdict, fail, ok, skip, together, warn

# The agent itself over a bare ONNX Runtime process, and that process: see the benchmark `footprint`.
BASE_NBYTES = 200 * 2**20
LEAST_FILES = 1024
NEAR_C, VERY_NEAR_C = 15.0, 5.0  # degrees below the point where the machine slows down
BUSY = 1.2  # runnable processes for each core, over a minute
WORN, WORN_OUT = 0.8, 1.0
CREDIBLE = 1_767_225_600.0  # 2026-01-01: no clock of a machine that runs this shows less
LEAST_ENTROPY = 64
_SAVING_ON_DEMAND = ("intel_pstate", "amd-pstate-epp")  # their "powersave" raises the clock when there is work
_MIB = 2**20


def board(case: Case) -> Verdict:
    view = case.board
    known = [view.model or "a board without a name", view.processor or "", f"family {view.family}"]
    seen = f"{len(view.zones)} temperatures, {len(view.rails)} power rails, {len(view.fans)} fans"
    return ok(f"{', '.join(text for text in known if text)}; {seen}")


def instructions(case: Case) -> Verdict:
    """8-bit products need instructions that add in 32 bits; without them pairs saturate, or are made exact slowly."""
    first = fields(case.tree.lines("proc/cpuinfo"))
    flags = set((first.get("flags") or first.get("Features") or "").split())
    if not flags:
        return skip("this system does not list the processor's instruction sets")
    if "flags" in first:
        exact = sorted(flags & {"avx512_vnni", "avx_vnni", "avxvnni", "amx_int8"})
        if exact:
            return ok(f"8-bit products are exact and fast ({', '.join(exact)})")
        if "avx2" in flags:
            return warn(
                "AVX2 without VNNI: 8-bit products would saturate, so exact ones are used, which are slower",
                "measure this device (`edge-agent profile`) and plan with that: fp32 heads may be as fast",
            )
        return warn("neither AVX2 nor VNNI: heads run slowly", "prefer full-cloud, or another device")
    exact = sorted(flags & {"asimddp", "i8mm", "sve2"})
    if exact:
        return ok(f"8-bit products are fast ({', '.join(exact)})")
    return warn(
        "no dot-product instructions (asimddp): INT8 heads gain little over fp32",
        "measure this device (`edge-agent profile`) and plan with that",
    )


def cores(case: Case) -> Verdict:
    here, threads = len(os.sched_getaffinity(0)), case.settings.device.threads
    quota = _quota(case)
    usable = min(float(here), quota) if quota else float(here)
    fact = f"{here} cores{f', of which a quota leaves {quota:g}' if quota and quota < here else ''}; {threads} threads"
    if threads > usable:
        return warn(fact, f"set device.threads to {max(int(usable), 1)}: more threads than cores wait for each other")
    return ok(fact)


def _quota(case: Case) -> float | None:
    """Cores that the control group may use, None for no limit."""
    words = (case.tree.text(f"{_group(case)}/cpu.max") or "").split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _group(case: Case) -> str:
    """The folder of this process's control group (version 2)."""
    line = next((line for line in case.tree.lines("proc/self/cgroup") if line.startswith("0::/")), "0::/")
    return f"sys/fs/cgroup/{line.removeprefix('0::/')}".rstrip("/")


def governor(case: Case) -> Verdict:
    if not case.board.clocks:
        return skip("the kernel does not scale this processor's clock, or does not say so")
    verdicts = []
    for clock in case.board.clocks:
        driver = case.tree.text(f"sys/devices/system/cpu/cpufreq/{clock.name}/scaling_driver") or ""
        name = f"{clock.name}: {clock.governor}"
        if clock.governor == "powersave" and driver not in _SAVING_ON_DEMAND:
            remedy = "cpupower frequency-set -g schedutil (or performance)"
            verdicts.append(warn(f"{name} holds the lowest clock", remedy))
        elif clock.capped:
            share = (clock.allowed_hz or 0) / (clock.most_hz or 1)
            remedy = "raise it if that is not meant: another power mode, or scaling_max_freq"
            verdicts.append(warn(f"{name}, capped at {share:.0%} of what the cores can do", remedy))
        else:
            verdicts.append(ok(name))
    return together(verdicts)


def throttling(case: Case) -> Verdict:
    seen = case.board.throttling
    if seen.now:
        return warn(
            "; ".join(seen.reasons), "better cooling or supply; until then the planner moves work to the gateway"
        )
    if seen.since_start:
        return warn(f"since the start: {'; '.join(seen.since_start)}", "better cooling or a stronger supply")
    if seen.now is None and seen.events is None:
        return skip("this board does not say whether it is slowed down")
    return ok(f"not slowed down{f', {seen.events} times since the start' if seen.events else ''}")


def temperature(case: Case) -> Verdict:
    zone = case.board.hottest
    if zone is None:
        return skip("this board has no temperature that can be read")
    fact = f"{zone.name} {zone.celsius:.0f} C"
    if zone.headroom_c is None:
        return ok(fact)
    fact += f", {zone.headroom_c:.0f} C below its limit"
    if zone.headroom_c < VERY_NEAR_C:
        return fail(fact, "cool it: at the limit it is slowed down, then switched off")
    if zone.headroom_c < NEAR_C:
        return warn(fact, "better cooling, or fewer requests")
    return ok(fact)


def power_mode(case: Case) -> Verdict:
    mode = case.board.power_mode
    if mode is None:
        return skip("this board has no power modes")
    fact = f"mode {mode.number}{f' ({mode.name})' if mode.name else ''}"
    if mode.others and mode.name is not None and "MAXN" not in mode.name:
        others = ", ".join(mode.others)
        return warn(
            f"{fact}, of which the board has others: {others}", "nvpmodel -m NUMBER, and measure the device anew"
        )
    return ok(fact)


def memory(case: Case) -> Verdict:
    seen = case.board.memory
    if seen is None or seen.available_nbytes is None:
        return skip("this system does not say how much memory is free")
    limit = case.tree.number(f"{_group(case)}/memory.max")
    free = min(seen.available_nbytes, int(limit)) if limit else seen.available_nbytes
    needed = BASE_NBYTES + _heads_nbytes(case)
    fact = f"{free // _MIB} MiB can be had of {seen.total_nbytes // _MIB}, about {needed // _MIB} are needed"
    if free < needed:
        return fail(fact, "free some, or name fewer placements (bundle.placements): each head is held ready")
    if free < 2 * needed:
        return warn(fact, "leave room for a second agent: a new bundle is tried beside the old one")
    return ok(fact)


def _heads_nbytes(case: Case) -> int:
    bundle = case.bundle_or_none()
    if bundle is None:
        return 0
    peaks = {e.head: e.cost.edge_memory_nbytes or 0 for e in bundle.manifest.placements if e.head}
    return sum(peaks.values())


def swap(case: Case) -> Verdict:
    seen = case.board.memory
    if seen is None or seen.swap_total_nbytes is None or seen.swap_free_nbytes is None:
        return skip("this system does not say")
    if not seen.swap_total_nbytes:
        return ok("no swap: what does not fit is ended at once, and its supervisor starts it again")
    used = 1 - seen.swap_free_nbytes / seen.swap_total_nbytes
    fact = f"{used:.0%} of {seen.swap_total_nbytes // _MIB} MiB in use"
    return warn(fact, "heads that were swapped out answer late: free memory") if used > 0.5 else ok(fact)


def load(case: Case) -> Verdict:
    words = (case.tree.text("proc/loadavg") or "").split()
    try:
        per_core = float(words[0]) / max(len(os.sched_getaffinity(0)), 1)
    except (IndexError, ValueError):
        return skip("this system does not say")
    fact = f"{per_core:.2f} runnable processes for each core over the last minute"
    return warn(fact, "something else takes the processor: see `top`") if per_core > BUSY else ok(fact)


def clock(case: Case) -> Verdict:
    """Deadlines do not need it (they are monotonic), but certificates, expiry dates and logs do."""
    now = time.time()
    bundle = case.bundle_or_none()
    newest = CREDIBLE if bundle is None else max(CREDIBLE, _moment(bundle.manifest.conditions.created_utc))
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < newest - 86_400:
        return fail(f"the clock shows {shown}, which is past", "set it, and let it be kept by NTP")
    return ok(shown)


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def clock_kept(case: Case) -> Verdict:
    if case.tree.matches("run/systemd/timesync/synchronized"):
        return ok("systemd-timesyncd keeps it")
    for folder, who in (("run/chrony", "chrony"), ("run/ntpd.pid", "ntpd"), ("run/openntpd.pid", "openntpd")):
        if case.tree.matches(folder):
            return ok(f"{who} keeps it")
    if case.tree.matches("run/systemd/system"):
        return warn("nothing is seen that keeps the clock", "timedatectl set-ntp true, or install chrony")
    return skip("nothing says whether the clock is kept (a container's is its host's)")


def entropy(case: Case) -> Verdict:
    try:
        os.getrandom(16, os.GRND_NONBLOCK)
    except BlockingIOError:
        return fail("the system's randomness is not ready: keys made now would wait", "wait, or install rng-tools")
    bits = case.tree.number("proc/sys/kernel/random/entropy_avail")
    if bits is not None and bits < LEAST_ENTROPY:
        return warn(f"{bits:g} bits of entropy", "install rng-tools, or enable the board's random source")
    return ok("the system's randomness is ready" + (f", {bits:g} bits" if bits is not None else ""))


def open_files(_: Case) -> Verdict:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fact = f"{soft} files may be open at once"
    if 0 <= soft < LEAST_FILES:
        return warn(fact, f"LimitNOFILE={LEAST_FILES} in the unit: every connection of an application is one")
    return ok(fact)


def wear(case: Case) -> Verdict:
    if not case.board.wear:
        return skip("this storage does not report its wear")
    verdicts = []
    for one in case.board.wear:
        fact = f"{one.device}: up to {one.used:.0%} of its life is used"
        if one.used > WORN_OUT:
            verdicts.append(fail(fact, "replace it: it may lose what is written"))
        elif one.used >= WORN:
            verdicts.append(warn(fact, "plan to replace it; durable requests write most (store)"))
        else:
            verdicts.append(ok(fact))
    return together(verdicts)


def same_machine(case: Case) -> Verdict:
    """Whether the plan's times are this machine's."""
    from protocol import sensors
    from protocol.profile import elsewhere

    conditions = case.bundle().manifest.conditions
    if conditions.device is None:
        declared = f", {conditions.edge_slowdown:g} times slower" if conditions.edge_slowdown != 1 else ""
        raise UnmetError(
            f"the plan was made for a declared device ({conditions.machine}{declared}), not a measured one"
        )
    difference = elsewhere(conditions.device, sensors.machine())
    if difference:
        return warn(difference, "`edge-agent profile KIT` here, then `partitioner split --edge PROFILE`")
    return ok(f"the plan was made for {conditions.device.processor}")
