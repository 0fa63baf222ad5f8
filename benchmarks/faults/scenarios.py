"""The faults, each as a setting and a script. `seconds` is how long one lasts; a short one is as true, only less."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.scene import Scene, Setting, Verdict

KILL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """`script` breaks and mends; `does` says what, for people."""

    name: str
    does: str
    script: Callable[[Scene, float], None]
    setting: Setting = Setting()

    def play(self, bundle: Path, folder: Path, seconds: float) -> Verdict:
        """Raises TimeoutError if it never heals."""
        scene = Scene(bundle, folder, self.setting)
        with scene:
            self.script(scene, seconds)
        return scene.verdict(self.name)


def calm(scene: Scene, seconds: float) -> None:
    scene.wait(seconds)


def sigkill_gateway(scene: Scene, seconds: float) -> None:
    """Again and again, at a moment that is nobody's choice, and started again at once."""
    until = time.monotonic() + seconds
    while True:
        scene.wait(scene.chance.uniform(0.2, 1.0) * KILL_EVERY_S)
        scene.gateways[0].kill()
        scene.gateways[0].start()
        scene.gateways[0].wait_ready()
        if time.monotonic() > until:
            break
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


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("calm", "nothing is broken", calm),
        Scenario("sigkill_gateway", "the gateway is killed and started again, all the time", sigkill_gateway),
        Scenario("sigstop_gateway", "the gateway's process stands still, its connections do not", sigstop_gateway),
        Scenario("blackhole", "the link carries nothing, and nobody says so", blackhole),
    )
}
