"""What choosing costs, and how well it chooses: the controller that agents run, over traces, steps, noise and load.

Law: whatever is judged here is the agent's own code (`protocol/control`), driven by the simulator that ships with the
partitioner, with seeds: regret, reaction and flapping are exact and repeat on any machine; only times depend on it.

    regret       mean latency over the oracle's, less 1: on steady links, over traces, and where requests come faster
                 than some placements can answer. The oracle knows trace, queues and luck: over a trace that steps and
                 fades nobody who has to measure can be as good, so that only steady links have a target
    reaction     requests placed before the new best placement (or one as good) is chosen, after steps up and down
    flapping     changes of placement in 200 requests over a link that is off by up to 20 % each time
    disturbed    mean latency over the best fixed placement's, less 1, on steady links while something else takes the
                 device for one to four requests in a row now and then, which then take up to 3.5 times as long
    throttling   requests before the cut moves when the device becomes three times slower, and back
    choice       microseconds of one decision with a fresh estimate of the link
    switch       microseconds of a decision that changes the placement
"""

from __future__ import annotations

import math
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from benchmarks.results import Options, Result
from partitioner.people import replay, traces
from partitioner.people.replay import Drive, Simulated, reactions, run_of
from partitioner.people.simulate import Replay
from partitioner.people.traces import Trace, steps
from partitioner.people.world import P95, Scene, hindsight, requests
from protocol.control.demand import NO_DEMAND, Demand
from protocol.control.link import LinkEstimator
from protocol.control.planner import Candidate, Planner
from protocol.latency import LinkState, PlacementCost

CHOICE_US, SWITCH_US = 20.0, 1000.0
REACTION_REQUESTS = 10
FLAPS = 2
SPREAD = 0.1
DISTURBED_SHARE = 0.04  # of requests at which a disturbance begins
NOTHING: Mapping[str, float] = MappingProxyType({})
REGRET_PERCENT = {"mean": 1.0, "p95": 5.0, "max": 15.0}


def _cost(edge_ms: float, encode_ms: float, up_kb: float, tail_ms: float, down_kb: float = 0.1) -> PlacementCost:
    return PlacementCost(
        edge_s=edge_ms / 1e3,
        encode_s=encode_ms / 1e3,
        up_nbytes=up_kb * 1e3,
        tail_s=tail_ms / 1e3,
        down_nbytes=down_kb * 1e3 if up_kb else 0.0,
        edge_spread=SPREAD,
        tail_spread=SPREAD,
    )


# Three devices: a classifier that is worth splitting, one with a rung of codecs, a slow device with a heavy detector.
BUNDLES: dict[str, dict[str, PlacementCost]] = {
    "classifier": {
        "edge-only": _cost(100, 0, 0, 0),
        "cut-1": _cost(30, 2, 10, 10),
        "full-cloud": _cost(0, 1, 150, 15),
    },
    "codecs": {
        "edge-only": _cost(60, 0, 0, 0),
        "cut-1": _cost(18, 1, 22, 9),
        "cut-1.q4": _cost(18, 3, 7, 10),
        "cut-2": _cost(35, 1, 9, 6),
        "full-cloud": _cost(0, 0.1, 150, 14),
        "full-cloud.jpeg90": _cost(0, 4, 24, 16),
    },
    "detector": {
        "edge-only": _cost(400, 0, 0, 0, 4),
        "cut-1": _cost(90, 3, 60, 25, 4),
        "cut-2": _cost(210, 2, 25, 14, 4),
        "full-cloud.jpeg90": _cost(0, 8, 90, 32, 4),
    },
}
RATES = (1.0, 2.0, 5.0)  # requests per second that every placement of every bundle but the detector's can answer
BUSY = (
    ("classifier", 9.0),
    ("classifier", 12.0),
    ("codecs", 15.0),
    ("codecs", 20.0),
    ("detector", 3.0),
    ("detector", 5.0),
)
STEADY_MBIT = (0.5, 1.1, 2.0, 3.0, 5.85, 10.0, 18.88, 50.0, 100.0, 300.0)
STEADY_S = 60.0
UP_AND_DOWN = ((100, 10), (10, 100), (20, 1), (1, 20), (50, 0.5), (0.5, 50))


class Situation(NamedTuple):
    bundle: str
    trace: str | float  # a built-in one, or a steady rate in Mbit/s
    per_s: float
    seed: int


def run(options: Options) -> list[Result]:
    """The suite `deciding`."""
    seeds = range(1, 2 if options.quick else 4)
    calm = [Situation(b, t, rate, s) for b in BUNDLES for t in sorted(traces.BUILT_IN) for rate in RATES for s in seeds]
    calm = [s for s in calm if s.bundle != "detector" or s.per_s <= 2.0]
    busy = [Situation(b, t, rate, s) for b, rate in BUSY for t in sorted(traces.BUILT_IN) for s in seeds]
    links = [Situation(b, mbit, 2.0, 1) for b in BUNDLES for mbit in STEADY_MBIT]
    return [
        *_regrets("steady links", links, targets=REGRET_PERCENT),
        *_regrets("traces", calm),
        *_regrets("busy", busy),
        _disturbed(seeds),
        _reaction(0.0),
        _reaction(0.1),
        _flapping("at a breakpoint", 2.126, range(5 if options.quick else 20)),
        _flapping("off it", 8.0, range(5 if options.quick else 20)),
        _throttling(),
        *_times(options),
    ]


def _regrets(name: str, situations: Sequence[Situation], targets: Mapping[str, float] = NOTHING) -> Iterable[Result]:
    found = [(100 * seen.regret, s, seen) for s in situations for seen in (_simulated(s),)]
    percents = sorted(percent for percent, *_ in found)
    worst = max(found, key=lambda f: f[0])
    late = sum(seen.isthmus.late for *_, seen in found)
    least = sum(seen.oracle.late for *_, seen in found)
    count = sum(seen.requests for *_, seen in found)
    note = f"worst: {worst[1].bundle}, {worst[1].trace}, {worst[1].per_s:g}/s; late {late} of {count}, oracle {least}"
    p95 = percents[int(0.95 * (len(percents) - 1))]
    for figure, value in {"mean": statistics.fmean(percents), "p95": p95, "max": percents[-1]}.items():
        bound = targets.get(figure)
        yield Result(
            f"regret, {name}, {figure}",
            "%",
            value,
            percents[0],
            percents[-1],
            len(percents),
            target=None if bound is None else f"<= {bound:g} %",
            ok=None if bound is None else value <= bound,
            note=note if figure == "max" else "",
        )


def _disturbed(seeds: range) -> Result:
    percents = [_over_fixed(costs, mbit, seed) for costs in BUNDLES.values() for mbit in STEADY_MBIT for seed in seeds]
    mean, note = statistics.fmean(percents), f"median {statistics.median(percents):.2g} %"
    return Result(
        "over the best fixed, disturbed device", "%", mean, min(percents), max(percents), len(percents), note=note
    )


def _over_fixed(costs: dict[str, PlacementCost], mbit: float, seed: int) -> float:
    candidates = tuple(Candidate(id_, cost) for id_, cost in costs.items())
    scene = Scene(steps("steady", [(2 * STEADY_S, mbit)]), candidates, 0.02, 2.0, 10.0)
    chance, asked, left, luck = random.Random(seed), [], 0, 0.0
    for request in requests(scene, np.random.default_rng(seed)):
        if left == 0 and chance.random() < DISTURBED_SHARE:
            left, factor = chance.randint(1, 4), chance.uniform(1.8, 3.5)
            luck = math.log(factor) * P95 / math.log1p(SPREAD)
        asked.append(request._replace(edge_luck=luck) if left else request)
        left = max(left - 1, 0)
    ours = run_of("isthmus", Replay(scene, asked).run()).mean_s
    return 100 * (ours / min(run_of(c.id, hindsight(scene, asked, (c,))).mean_s for c in candidates) - 1)


def _simulated(at: Situation) -> Simulated:
    if isinstance(at.trace, str):
        order = Drive(at.trace, seed=at.seed, requests_per_s=at.per_s, deadline_s=2.0)
        return replay.simulate(at.bundle, BUNDLES[at.bundle], 0.02, order)
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.write(f"0,{at.trace}\n{STEADY_S / 2},{at.trace}\n")
        file.flush()
        order = Drive(file.name, seed=at.seed, requests_per_s=at.per_s, deadline_s=10.0)
        return replay.simulate(at.bundle, BUNDLES[at.bundle], 0.02, order)


def _reaction(noise: float) -> Result:
    """Steps both ways, the link steady or off by up to `noise` for every half second."""
    counts: list[float] = []
    for costs in BUNDLES.values():
        for before, after in UP_AND_DOWN:
            chance = np.random.default_rng(3)
            off = 1 + noise * chance.uniform(-1, 1, 60)
            pieces = [(0.5, mbit * float(off[i])) for i, mbit in enumerate([before] * 30 + [after] * 30)]
            counts += _after_step(costs, steps("step", pieces), steps("plain", [(15.0, before), (15.0, after)]))
    name = f"reaction, link off by up to {noise:.0%}" if noise else "reaction"
    return reaction_result(name, counts)


def reaction_result(name: str, counts: Sequence[float], note: str = "") -> Result:
    """Requests until the best placement answers, after each of several changes."""
    return Result(
        name,
        "requests",
        statistics.median(counts),
        min(counts),
        max(counts),
        len(counts),
        target=f"all <= {REACTION_REQUESTS}",
        ok=max(counts) <= REACTION_REQUESTS,
        note=note,
    )


def _after_step(costs: dict[str, PlacementCost], trace: Trace, plain: Trace) -> Iterable[float]:
    candidates = tuple(Candidate(id_, cost) for id_, cost in costs.items())
    scene = Scene(trace, candidates, 0.02, 2.0, 2.0)
    asked = requests(scene, np.random.default_rng(1))
    outcomes = Replay(scene, asked).run()
    for reaction in reactions(Scene(plain, candidates, 0.02, 2.0, 2.0), asked, outcomes):
        yield float("inf") if reaction.requests is None else float(reaction.requests)


def _flapping(where: str, mbit: float, seeds: range) -> Result:
    """The classifier's breakpoint between cut-1 and edge-only is at 2.126 Mbit/s."""
    counts = [float(_flaps(mbit, seed)) for seed in seeds]
    return Result(
        f"flapping, {where}",
        "changes",
        statistics.median(counts),
        min(counts),
        max(counts),
        len(counts),
        target=f"all <= {FLAPS}",
        ok=max(counts) <= FLAPS,
    )


def _flaps(mbit: float, seed: int) -> int:
    chance, estimator = random.Random(seed), LinkEstimator()
    planner = Planner([Candidate(id_, cost) for id_, cost in BUNDLES["classifier"].items()])
    now, chosen = 0.0, []
    for i in range(220):
        now += 0.2
        estimator.observe(nbytes=60, round_trip_s=0.02, residence_s=0.0, now=now)
        transfer_s = 10_000 * 8 / (mbit * 1e6 * chance.uniform(0.8, 1.2))
        estimator.observe(nbytes=10_000, round_trip_s=0.02 + transfer_s, residence_s=0.0, now=now)
        decision = _decide(planner, estimator.estimate(now), now)
        if i >= 20:
            chosen.append(decision)
    return sum(a != b for a, b in pairwise(chosen))


def _decide(planner: Planner, link: LinkState | None, now: float) -> str:
    decision = planner.decide(link, {}, now=now)
    assert decision is not None
    return decision.id


def _throttling() -> Result:
    """The device becomes three times slower while edge-only is in use, then as fast as before."""
    link, chance, counts = LinkState(3e6 / 8, 0.02, 3e6 / 8), random.Random(1), []
    costs = BUNDLES["codecs"]
    planner = Planner([Candidate(id_, cost) for id_, cost in costs.items()])
    before: str | None = None
    now = 0.0
    for slowness in (1.0, 3.0, 1.0):
        chosen = []
        for _ in range(100):
            now += 0.2
            chosen.append(_decide(planner, link, now))
            cost = costs[chosen[-1]]
            planner.observe_edge(chosen[-1], (cost.edge_s + cost.encode_s) * slowness * chance.uniform(0.95, 1.05))
        if before is not None:
            counts.append(float(next((i for i, id_ in enumerate(chosen) if id_ != before), len(chosen))))
        before = chosen[-1]
    return reaction_result("throttling", counts)


def _times(options: Options) -> Iterable[Result]:
    """Medians of many, per repeat; every decision has a link that differs from the last one's."""
    count = 2_000 if options.quick else 10_000
    for name, costs in (("6 placements", BUNDLES["codecs"]), ("20 placements", _many(20))):
        samples = [_choice_us(costs, count) for _ in range(options.repeats)]
        yield Result.bounded(f"choice, {name}", "us", samples, at_most=CHOICE_US, note="median of each repeat")
        busy = [_choice_us(costs, count, Demand(5.0, 1.0, 0.01, 0.01)) for _ in range(options.repeats)]
        yield Result.bounded(f"choice, {name}, queues", "us", busy, at_most=CHOICE_US, note="median of each repeat")
    switches = [_switch_us(count // 10) for _ in range(options.repeats)]
    yield Result.bounded("switch", "us", switches, at_most=SWITCH_US, note="a decision that changes the placement")


def _many(count: int) -> dict[str, PlacementCost]:
    cuts = {f"cut-{i}": _cost(10 + 4 * i, 1, 100 / (1 + i), 12) for i in range(count - 2)}
    return {"edge-only": _cost(100, 0, 0, 0), **cuts, "full-cloud": _cost(0, 1, 150, 15)}


def _choice_us(costs: dict[str, PlacementCost], count: int, demand: Demand = NO_DEMAND) -> float:
    planner, chance = Planner([Candidate(id_, cost) for id_, cost in costs.items()]), random.Random(1)
    took = []
    for i in range(count):
        rate = 8e6 / 8 * chance.uniform(0.9, 1.1)
        link = LinkState(rate, 0.02, rate)
        began = time.perf_counter()
        planner.decide(link, {}, demand=demand, now=i * 0.2)
        took.append(time.perf_counter() - began)
    return 1e6 * statistics.median(took)


def _switch_us(count: int) -> float:
    planner = Planner([Candidate(id_, cost) for id_, cost in BUNDLES["codecs"].items()])
    took = []
    for i in range(count):
        rate = (100e6 if i % 2 else 0.3e6) / 8
        link, before = LinkState(rate, 0.02, rate), planner.current
        began = time.perf_counter()
        planner.decide(link, {}, now=i * 10.0)
        seconds = time.perf_counter() - began
        assert before is None or planner.current != before
        took.append(seconds)
    return 1e6 * statistics.median(took)
