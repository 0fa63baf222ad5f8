"""Suite `deciding-live`: how well agents choose for real, beside the simulator in the same scenes.

Law: real agents, a real gateway process, emulated links; the free agent and one for every placement live through each
scene at the same time (`deciding_stage`). The oracle takes for each request whatever placement answered it first, or
one placement throughout, whichever is better: it also takes the luckiest of several measurements. The simulator replays
the same traces with the costs that were measured here. The device is this machine, declared `SLOWDOWN` times slower.

    regret     mean latency over the oracle's, less 1; `steady` in medians, since a busy machine's outliers are nobody's
               choice
    reaction   requests until one is answered, undegraded, by the new best placement or one as good
    flapping   changes of placement over a link that is off by up to 20 % every half second

`--set scenes=steady,steps,noise,lte,outage` `--set per_s=4` `--set stretch=1` (how long scenes take)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.deciding import reaction_result
from benchmarks.deciding_model import SLOWDOWN, frames, make_bundle
from benchmarks.deciding_stage import DEADLINE_S, FREE, Stage
from benchmarks.results import Options, Result
from partitioner.people import traces
from partitioner.people.replay import Drive, Simulated, reactions, simulate
from partitioner.people.traces import BYTES_PER_MBIT, Trace, steps
from partitioner.people.world import Outcome, Scene, requests
from protocol.control.planner import Candidate
from protocol.latency import PlacementCost

SCENES = ("steady", "steps", "noise", "lte", "outage")
RTT_S = 0.02
STEADY_MBIT = (100.0, 5.0, 0.2)
NOISE_MBIT = (20.0, 5.0)  # the first is near a breakpoint
NOISE = 0.2
WARM_UP_S = 4.0
FLAPS_PER_100 = 2


class Played(NamedTuple):
    """One trace, lived through and simulated."""

    trace: Trace
    outcomes: Mapping[str, Sequence[Outcome]]
    switches: int
    simulated: Simulated


def run(options: Options) -> list[Result]:
    """The suite."""
    wanted = options.settings.get("scenes", ",".join(SCENES)).split(",")
    per_s = float(options.settings.get("per_s", 4.0))
    stretch = float(options.settings.get("stretch", 0.25 if options.quick else 1.0))
    with tempfile.TemporaryDirectory(prefix="isthmus-deciding-") as name:
        folder = Path(name)
        bundle = make_bundle(folder)
        with Stage(bundle, folder, frames(8), rtt_s=RTT_S, slowdown=SLOWDOWN) as stage:
            stage.play(steps("warm-up", [(WARM_UP_S, 20.0)]), per_s)
            player = _Director(stage, folder, per_s)
            return [result for scene in wanted for result in _SCENES[scene](player, stretch)]


class _Director:
    def __init__(self, stage: Stage, folder: Path, per_s: float) -> None:
        self.stage, self.per_s = stage, per_s
        self._folder = folder
        self.costs: Mapping[str, PlacementCost] = stage.costs()

    def play(self, trace: Trace) -> Played:
        print(f"{trace.name}: {trace.length_s:g} s", file=sys.stderr, flush=True)
        before = self.stage.free.look().switches
        outcomes = self.stage.play(trace, self.per_s)
        switches = self.stage.free.look().switches - before
        self.costs = self.stage.costs()
        return Played(trace, outcomes, switches, self._simulated(trace))

    def _simulated(self, trace: Trace) -> Simulated:
        file = self._folder / "trace.csv"
        rows = zip(trace.starts_s, trace.bytes_per_s, strict=True)
        lines = [f"{at!r},{rate / BYTES_PER_MBIT!r}\n" for at, rate in rows]
        if len(lines) == 1:  # a table's last row lasts as long as the one before it
            lines.append(f"{trace.length_s / 2!r},{trace.bytes_per_s[0] / BYTES_PER_MBIT!r}\n")
        file.write_text("".join(lines))
        order = Drive(str(file), requests_per_s=self.per_s, deadline_s=DEADLINE_S)
        return simulate("deciding", dict(self.costs), RTT_S, order, files=self.stage.files)

    def reactions(self, played: Played, outcomes: Sequence[Outcome]) -> list[float]:
        candidates = tuple(Candidate(id_, cost) for id_, cost in self.costs.items())
        scene = Scene(played.trace, candidates, RTT_S, self.per_s, DEADLINE_S)
        asked = requests(scene, np.random.default_rng(1))[: len(outcomes)]
        found = reactions(scene, asked, outcomes)
        return [float("inf") if r.requests is None else float(r.requests) for r in found]


# ---- scenes ---------------------------------------------------------------------------------------------------------


def _steady(director: _Director, stretch: float) -> Iterable[Result]:
    for mbit in STEADY_MBIT:
        length_s = 12.0 * stretch
        played = director.play(steps(f"{mbit:g} Mbit/s", [(length_s, mbit)]))
        skipped = int(director.per_s * min(3.0, length_s / 4))  # the scene before is still in the estimate
        medians = {n: statistics.median(o.latency_s for o in seen[skipped:]) for n, seen in played.outcomes.items()}
        best = min((n for n in medians if n != FREE), key=medians.__getitem__)
        percent = 100 * (medians[FREE] / medians[best] - 1)
        n = len(played.outcomes[FREE]) - skipped
        note = f"{_shares(played.outcomes[FREE])}; best {best} {1e3 * medians[best]:.1f} ms"
        yield Result(f"regret, {mbit:g} Mbit/s, live", "%", percent, percent, percent, n, note=note)
        yield _simulated_regret(f"regret, {mbit:g} Mbit/s", played)


def _steps(director: _Director, stretch: float) -> Iterable[Result]:
    played = director.play(steps("steps", [(8.0 * stretch, mbit) for mbit in (100, 10, 0.2, 10, 100)]))
    yield from _regrets("steps 100-10-0.2-10-100", played)
    counts = director.reactions(played, played.outcomes[FREE])
    simulated = [float("inf") if r.requests is None else float(r.requests) for r in played.simulated.reactions]
    for where, found in (("live", counts), ("simulated", simulated)):
        yield reaction_result(f"reaction, {where}", found, note=", ".join(f"{count:g}" for count in found))


def _noise(director: _Director, stretch: float) -> Iterable[Result]:
    chance = np.random.default_rng(5)
    for mbit in NOISE_MBIT:
        count = int(30 * stretch)
        pieces = [(0.5, mbit * float(off)) for off in 1 + NOISE * chance.uniform(-1, 1, count)]
        played = director.play(steps(f"{mbit:g} Mbit/s +-20 %", pieces))
        requests_ = len(played.outcomes[FREE])
        least = max(1, int(FLAPS_PER_100 * requests_ / 100))
        seen = sum(a.placement != b.placement for a, b in pairwise(played.outcomes[FREE]))
        for where, changes in (("live", seen), ("simulated", played.simulated.switches)):
            yield Result(
                f"flapping, {mbit:g} Mbit/s +-20 %, {where}",
                "changes",
                changes,
                changes,
                changes,
                requests_,
                target=f"<= {least}",
                ok=changes <= least,
                note=_shares(played.outcomes[FREE]) if where == "live" else "",
            )
        yield from _regrets(f"{mbit:g} Mbit/s +-20 %", played)


def _lte(director: _Director, stretch: float) -> Iterable[Result]:
    """The first part of the built-in trace: log-AR(1) with fades."""
    whole = traces.lte(np.random.default_rng(4))
    count = int(40.0 * stretch / traces.LTE_STEP_S)
    part = Trace("lte", whole.starts_s[:count], whole.bytes_per_s[:count], count * traces.LTE_STEP_S)
    yield from _regrets("lte", director.play(part))


def _outage(director: _Director, stretch: float) -> Iterable[Result]:
    pieces = [(s * stretch, mbit) for s, mbit in ((8, 20), (2, 0), (10, 20), (6, 0), (10, 20))]
    yield from _regrets("outage", director.play(steps("outage", pieces)))


_SCENES = {"steady": _steady, "steps": _steps, "noise": _noise, "lte": _lte, "outage": _outage}


# ---- figures --------------------------------------------------------------------------------------------------------


def _regrets(what: str, played: Played) -> Iterable[Result]:
    means = {name: statistics.fmean(o.latency_s for o in seen) for name, seen in played.outcomes.items()}
    fixed = {name: mean for name, mean in means.items() if name != FREE}
    each = [[o.latency_s for o in seen] for name, seen in played.outcomes.items() if name != FREE]
    hindsight = statistics.fmean(min(together) for together in zip(*each, strict=True))
    oracle, best = min(hindsight, min(fixed.values())), min(fixed, key=fixed.__getitem__)
    percent = 100 * (means[FREE] / oracle - 1)
    ours = played.outcomes[FREE]
    note = (
        f"{1e3 * means[FREE]:.0f} ms, oracle {1e3 * oracle:.0f}, best alone {best} {1e3 * fixed[best]:.0f}; "
        f"late {sum(o.late for o in ours)}; {played.switches} switches; {_shares(ours)}"
    )
    yield Result(f"regret, {what}, live", "%", percent, percent, percent, len(ours), note=note)
    yield _simulated_regret(f"regret, {what}", played)


def _simulated_regret(what: str, played: Played) -> Result:
    seen = played.simulated
    percent = 100 * seen.regret
    best = min(seen.fixed, key=lambda run: run.mean_s)
    shares = ", ".join(f"{id_} {share:.0%}" for id_, share in seen.isthmus.shares.items())
    note = (
        f"{1e3 * seen.isthmus.mean_s:.0f} ms, oracle {1e3 * seen.oracle.mean_s:.0f}, best alone {best.name} "
        f"{1e3 * best.mean_s:.0f}; late {seen.isthmus.late}; {seen.switches} switches; {shares}"
    )
    return Result(f"{what}, simulated", "%", percent, percent, percent, seen.requests, note=note)


def _shares(outcomes: Sequence[Outcome]) -> str:
    names = [o.placement for o in outcomes if not o.late]
    return ", ".join(f"{id_} {names.count(id_) / len(outcomes):.0%}" for id_ in sorted(set(names)))
