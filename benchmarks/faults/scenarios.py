"""The faults, each as a setting and a script. `seconds` is how long one lasts; a short one is as true, only less."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.faults.scene import Scene, Setting, Verdict
from benchmarks.faults.squatters import noise, web_server
from benchmarks.link import Side

KILL_EVERY_S = 1.0
RESET_EVERY_S = 0.05
REMOTE = Setting(agent={"placements": ("full-cloud", "cut-1")})
SLOW = replace(REMOTE, busy_s=0.05, per_s=40.0)
DAY_S = 86_400
APART = Setting(apart=True)
STORE = replace(APART, store=True)
CLOCKS = replace(STORE, clocks=True)
DISK = replace(STORE, disk_mib=24, stored_rows=24)
LOSSY = Setting(apart=True, loss=0.02, rtt_ms=10.0)
KEYED = Setting(keyed=True)
HEDGED = Setting(agent={"hedge": True, "placements": ("full-cloud", "edge-only")})


@dataclass(frozen=True, slots=True)
class Scenario:
    """`script` breaks and mends; `does` says what, for people."""

    name: str
    does: str
    script: Callable[[Scene, float], None]
    setting: Setting = Setting()

    def play(self, bundle: Path, folder: Path, seconds: float, *, kills: int = 0) -> Verdict:
        """`kills`: as many where something is killed again and again, however long it takes.

        Raises TimeoutError if it never heals, UnplayableError.
        """
        scene = Scene(bundle, folder, replace(self.setting, kills=kills))
        with scene:
            self.script(scene, seconds)
        return scene.verdict(self.name)


def calm(scene: Scene, seconds: float) -> None:
    scene.wait(seconds)


def sigkill_gateway(scene: Scene, seconds: float) -> None:
    """Again and again, at a moment that is nobody's choice, and started again at once."""
    until, kills = time.monotonic() + seconds, 0
    while kills < max(1, scene.setting.kills) or (not scene.setting.kills and time.monotonic() < until):
        scene.wait(scene.chance.uniform(0.2, 1.0) * KILL_EVERY_S)
        scene.gateways[0].kill()
        scene.gateways[0].start()
        scene.gateways[0].wait_ready()
        kills += 1
    scene.healed()


def sigstop_gateway(scene: Scene, seconds: float) -> None:
    scene.gateways[0].signal(signal.SIGSTOP)
    scene.wait(seconds)
    scene.gateways[0].signal(signal.SIGCONT)
    scene.healed()


def blackhole(scene: Scene, seconds: float) -> None:
    scene.links[0].blackhole()
    scene.wait(seconds)
    scene.links[0].blackhole(False)
    scene.healed()


def half_open(side: Side) -> Callable[[Scene, float], None]:
    """What goes this way is swallowed; the other way everything arrives."""

    def script(scene: Scene, seconds: float) -> None:
        scene.links[0].blackhole(side=side)
        scene.wait(seconds)
        scene.links[0].blackhole(False, side=side)
        scene.healed()

    return script


def rst_storm(scene: Scene, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        scene.links[0].reset_all()
        scene.wait(RESET_EVERY_S)
    scene.healed()


def one_byte_per_s(scene: Scene, seconds: float) -> None:
    scene.links[0].set_rate(8e-6)
    scene.wait(seconds)
    scene.links[0].set_rate(scene.setting.uplink_mbit_per_s)
    scene.healed()


def stranger_on_port(stands_there: Callable[[int], AbstractContextManager[None]]) -> Callable[[Scene, float], None]:
    """The gateway dies, somebody else takes its port for a while, then the gateway has it again."""

    def script(scene: Scene, seconds: float) -> None:
        gateway = scene.gateways[0]
        gateway.kill()
        with stands_there(gateway.port):
            scene.wait(seconds)
        gateway.start()
        gateway.wait_ready()
        scene.healed()

    return script


def no_gateway(scene: Scene, seconds: float) -> None:
    """Total failure, and nobody mends it."""
    scene.gateways[0].kill()
    scene.wait(seconds)


def one_of_two_dies(scene: Scene, seconds: float) -> None:
    """The one that is in use."""
    used = next(i for i, view in enumerate(scene.agent.look(10.0).gateways) if view.in_use)
    scene.gateways[used].kill()
    scene.healed()
    scene.wait(seconds)


def wrong_server_key(scene: Scene, seconds: float) -> None:
    """The gateway comes back with another key than the device knows, until somebody brings the new one."""
    assert scene.keys is not None
    gateway = scene.gateways[0]
    gateway.kill()
    scene.keys.exchange_the_gateways()
    gateway.start()
    gateway.wait_ready()
    scene.wait(seconds)
    scene.keys.know_the_gateway()
    scene.healed()


def revoked_key(scene: Scene, seconds: float) -> None:
    """The device is thrown out while it asks, and later let in with a new key."""
    assert scene.keys is not None
    scene.keys.throw_out()
    scene.wait(seconds)
    scene.keys.let_in()
    scene.healed()


def sigkill_agent(scene: Scene, seconds: float) -> None:
    """Again and again; what it was asked is gone with it, what it has stored is not."""
    until, kills = time.monotonic() + seconds, 0
    while kills < max(1, scene.setting.kills) or (not scene.setting.kills and time.monotonic() < until):
        scene.wait(scene.chance.uniform(0.2, 1.0) * KILL_EVERY_S)
        scene.device.kill()
        scene.device.start()
        kills += 1
    scene.healed()


def sigstop_agent(scene: Scene, seconds: float) -> None:
    scene.device.signal(signal.SIGSTOP)
    scene.wait(seconds)
    scene.device.signal(signal.SIGCONT)
    scene.healed()


def clock_jumps(scene: Scene, seconds: float) -> None:
    """The wall clock of both is put a day forward, then two days back, then right."""
    for shift_s in (DAY_S, -DAY_S, 0):
        scene.clock.put(shift_s)
        scene.wait(seconds / 3)
    scene.healed()


def full_disk(scene: Scene, seconds: float) -> None:
    """Somebody else fills it to the last block; what the store has room for in its own files it takes."""
    scene.disk.fill()
    scene.wait(seconds)
    scene.disk.free()
    scene.healed()


def network_dark(scene: Scene, seconds: float) -> None:
    """Every packet is dropped: both ends believe that they are connected."""
    scene.network.blackhole()
    scene.wait(seconds)
    scene.network.blackhole(False)
    scene.healed()


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("calm", "nothing is broken", calm),
        Scenario("sigkill_gateway", "the gateway is killed and started again, all the time", sigkill_gateway),
        Scenario("no_gateway", "the gateway is killed and stays away: total failure", no_gateway),
        Scenario("one_of_two_dies", "of two gateways the one in use is killed", one_of_two_dies, Setting(gateways=2)),
        Scenario("sigstop_gateway", "the gateway's process stands still, its connections do not", sigstop_gateway),
        Scenario("slow_gateway", "it is asked twice as much as it can do, and the device can do nothing", calm, SLOW),
        Scenario("blackhole", "the link carries nothing, and nobody says so", blackhole),
        Scenario("dark_no_local", "the link carries nothing, and the device can do nothing alone", blackhole, REMOTE),
        Scenario("half_open_up", "what the device sends is swallowed", half_open("up")),
        Scenario("half_open_down", "what the gateway sends is swallowed", half_open("down")),
        Scenario("hedge", "the link goes dark while the device also asks itself", blackhole, HEDGED),
        Scenario("rst_storm", "every connection is reset, 20 times a second", rst_storm),
        Scenario("one_byte_per_s", "the link carries a byte a second", one_byte_per_s),
        Scenario("http_on_port", "a web server has the gateway's port", stranger_on_port(web_server)),
        Scenario("garbage_on_port", "random bytes come from the gateway's port", stranger_on_port(noise)),
        Scenario(
            "sigkill_agent", "the agent, which also stores requests, is killed and started again", sigkill_agent, STORE
        ),
        Scenario("sigstop_agent", "the agent's process stands still, and with it its caller", sigstop_agent, APART),
        Scenario("clock_jumps", "the wall clock jumps by days under agent, store and gateway", clock_jumps, CLOCKS),
        Scenario("full_disk", "somebody fills the store's disk to the last block", full_disk, DISK),
        Scenario("loss_2_percent", "a network of packets loses every fiftieth", calm, LOSSY),
        Scenario("network_dark", "a network of packets drops all of them for a while", network_dark, LOSSY),
        Scenario("wrong_server_key", "the device knows the gateway by a wrong key", wrong_server_key, KEYED),
        Scenario("revoked_key", "the device's key is revoked, and it gets a new one", revoked_key, KEYED),
    )
}
