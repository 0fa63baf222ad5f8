"""Suite `policies`: the gateway's real scheduler beside other servers' rules, in simulated time.

Law: every figure is one seed replayed exactly, so it is the same on every machine; its spread is that of the seeds. The
tail is the one on which batching pays five times (303 rows/s alone, 1,600 in sixteens); durations vary by 10 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.policy_doubles import DropExpired, Greedy, Predictive, RestartingTimer, ShrinkingEdf, Timer
from benchmarks.results import Options, Result
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.scheduling.lane_queue import LaneQueue
from cloud_gateway.scheduling.scheduler import Scheduler
from cloud_gateway.scheduling.simulation import (
    NoisyEngines,
    Policy,
    Request,
    Summary,
    Tail,
    bursts,
    poisson,
    simulate,
    summarise,
)

MOST_ROWS = 16
TIMER_S = 0.010
PAYS = Tail(fixed_s=0.00285, row_s=0.00045)  # fully connected: a batch reads the weights once
PAYS_NOTHING = Tail(fixed_s=0.0001, row_s=0.0032)  # convolutions on a CPU
UNBOUNDED = Limits(10**9, 10**15, 10**9, 10**15)  # the comparison is about time, not about room
OURS = "work-conserving (ours)"
REQUESTS, QUICK_REQUESTS = 12_000, 2_000


@dataclass(frozen=True)
class Scene:
    """What comes, and what it runs on. `load` is of the capacity with full batches on every thread."""

    load: float
    budget_s: float = math.inf
    tails: dict[str, Tail] = field(default_factory=lambda: {"tail": PAYS})
    threads: int = 1
    noise: float = 0.1
    spike: float = 1.0
    spike_chance: float = 0.0
    burst: float = 1.0  # requests that come together, in the mean
    tenants: int = 1
    priorities: Sequence[int] = (4,)
    count: int = REQUESTS

    @property
    def rows_per_s(self) -> float:
        """Capacity when every tail is asked for equally often."""
        return self.threads * len(self.tails) / sum(1 / tail.rows_per_s(MOST_ROWS) for tail in self.tails.values())

    def requests(self, chance: np.random.Generator) -> list[Request]:
        rate = self.load * self.rows_per_s
        if self.burst > 1:
            times = bursts(chance, rate=rate, count=self.count, size=self.burst, within_s=0.002)
        else:
            times = poisson(chance, rate=rate, count=self.count)
        lanes = list(self.tails)
        picks = chance.integers(0, (len(lanes), self.tenants, len(self.priorities)), (self.count, 3)).tolist()
        return [
            Request(lanes[lane], at, self.budget_s, tenant=f"agent-{who}", priority=self.priorities[rank])
            for at, (lane, who, rank) in zip(times, picks, strict=True)
        ]


Rule = Callable[[Scene, NoisyEngines], Policy]


def ours(scene: Scene, engines: NoisyEngines) -> Scheduler[Request]:
    """The gateway's scheduler, its lanes warmed up as the gateway warms them up."""
    scheduler: Scheduler[Request] = Scheduler(UNBOUNDED, threads=scene.threads)
    for key, curve in engines.curves.items():
        queue: LaneQueue[Request] = LaneQueue(curve, max_rows=engines.warm_up(key, MOST_ROWS))
        scheduler.open(key, queue, instances=scene.threads)
    return scheduler


RULES: dict[str, Rule] = {
    OURS: ours,
    "greedy": lambda scene, _: Greedy(_cost(scene), most=MOST_ROWS),
    "10 ms timer": lambda scene, _: Timer(_cost(scene), most=MOST_ROWS, delay_s=TIMER_S),
    "timer that restarts": lambda scene, _: RestartingTimer(_cost(scene), most=MOST_ROWS, delay_s=TIMER_S),
    "drop expired": lambda scene, _: DropExpired(_cost(scene), most=MOST_ROWS),
    "EDF, shrinking": lambda scene, _: ShrinkingEdf(_cost(scene), most=MOST_ROWS),
    "predictive drop": lambda scene, _: Predictive(_cost(scene), most=MOST_ROWS),
}


def play(rule: str, scene: Scene, *, seed: int) -> Summary:
    """One simulation; the same seed brings the same requests to every rule."""
    engines = NoisyEngines(
        scene.tails,
        np.random.default_rng([seed, 1]),
        noise=scene.noise,
        spike=scene.spike,
        spike_chance=scene.spike_chance,
    )
    policy = RULES[rule](scene, engines)
    return summarise(simulate(policy, scene.requests(np.random.default_rng(seed)), engines, threads=scene.threads))


def run(options: Options) -> list[Result]:
    """Latency without deadlines, goodput with a budget of 50 ms, and the scheduler alone under harder conditions."""
    seeds = range(1 if options.quick else options.repeats)
    count = QUICK_REQUESTS if options.quick else REQUESTS
    results = []
    for rule in (OURS, "10 ms timer", "timer that restarts"):
        for load in (0.02, 0.3, 0.6, 0.9):
            played = [play(rule, Scene(load, count=count), seed=seed) for seed in seeds]
            results.append(Result.of(f"mean latency, {load:.0%} load, {rule}", "ms", [s.mean_s * 1e3 for s in played]))
    for rule in RULES:
        for load in (1.2, 1.5, 2.0):
            scene = Scene(load, budget_s=0.050, count=count)
            results += _overload(f"{load:.0%} load, {rule}", scene, [play(rule, scene, seed=s) for s in seeds], rule)
    for name, scene in harder(count).items():
        results += _overload(f"{scene.load:.0%}, {name}", scene, [play(OURS, scene, seed=s) for s in seeds], "")
    return results


def harder(count: int = REQUESTS) -> dict[str, Scene]:
    """Overloads that are less kind than one lane, one thread and steady arrivals."""
    two = {"pays": PAYS, "pays nothing": PAYS_NOTHING}
    return {
        "noise 30 %": Scene(1.2, 0.050, noise=0.3, count=count),
        "bursts of 20": Scene(1.2, 0.050, burst=20.0, count=count),
        "budget 25 ms": Scene(1.2, 0.025, count=count),
        "1 batch in 200 takes 10x": Scene(1.2, 0.050, spike=10.0, spike_chance=0.005, count=count),
        "four threads": Scene(1.2, 0.050, threads=4, count=count),
        "two lanes": Scene(1.2, 0.100, tails=two, count=count),
        "two lanes, two threads": Scene(1.2, 0.100, tails=two, threads=2, count=count),
        "eight lanes": Scene(1.2, 0.100, tails={f"tail-{i}": PAYS for i in range(8)}, count=count),
    }


def _overload(name: str, scene: Scene, played: Sequence[Summary], rule: str) -> list[Result]:
    goodput = [100 * s.of_capacity(scene.rows_per_s) for s in played]
    door = sum(s.refused_at_door.total() for s in played)
    note = f"{sum(s.late for s in played)} late, {door} refused at the door, {sum(s.dropped for s in played)} dropped"
    if rule != OURS:
        return [Result.of(f"goodput, {name}", "% of capacity", goodput, note=note)]
    least = 80.0 if scene.load < 1.5 else 70.0
    return [
        _at_least(f"goodput, {name}", "% of capacity", goodput, least, note),
        # of all seeds together: a median would hide the one that was late
        Result.bounded(f"answered late, {name}", "requests", [float(sum(s.late for s in played))], at_most=0.0),
        _at_least(f"slack, {name}", "% of budget", [100 * s.slack_share for s in played], 40.0),
    ]


def _at_least(name: str, unit: str, samples: Sequence[float], least: float, note: str = "") -> Result:
    plain = Result.of(name, unit, samples)
    return Result(
        name, unit, plain.median, plain.low, plain.high, plain.n, f">= {least:g} {unit}", plain.median >= least, note
    )


def _cost(scene: Scene) -> Callable[[int], float]:
    (tail,) = scene.tails.values()
    return tail.cost_s
