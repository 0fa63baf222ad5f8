"""Suite `idle`: what a server costs while nobody asks: time to its first answer, resident memory, processor time.

Law: one model loaded, one client connected and silent. Memory is the tree's, over that of the bare reference started in
the same round. `--set peers=mosec,litserve` `--set tails=tail_fc` `--set seconds=20`
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tails
from benchmarks.peers.catalogue import SYSTEMS, Stage, start
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.processes import Cores
from benchmarks.peers.questions import Questions
from benchmarks.peers.suite import listed, prepare
from benchmarks.results import Options, Result

MEMORY_TARGET = 2.0
IDLE_TARGET_PERCENT = 1.0
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Rest:
    """One server, started and left alone."""

    ready_s: float
    rss_mb: float
    cpu_percent: float


def run(options: Options) -> list[Result]:
    """Start each system in turn, `options.repeats` times, at most three."""
    (tail,) = listed(options.settings, "tails", ("tail_light",), known=tails.NAMES)
    systems = dict.fromkeys(("bare", "isthmus", *listed(options.settings, "peers", (), known=SYSTEMS)))
    seconds = float(options.settings.get("seconds", "2" if options.quick else "20"))
    found: dict[str, list[Rest]] = {}
    results = []
    with tempfile.TemporaryDirectory(prefix="isthmus-idle-") as folder:
        model, bundle = prepare(tail, Path(folder))
        questions, cores = Questions.of(model), Cores.of_this_machine()
        for number in range(1 if options.quick else min(options.repeats, 3)):
            for name in systems:
                stage = Stage(model, bundle, Path(folder) / f"{name}-{number}", questions, cores.server)
                try:
                    found.setdefault(name, []).append(_rest(name, stage, seconds))
                except UnavailableError as reason:
                    results.append(Result.missing(f"{name}: not run", str(reason)))
    for name, rests in found.items():
        if rests:
            results += _results(name, rests, found["bare"])
    return results


def _rest(name: str, stage: Stage, seconds: float) -> Rest:
    running = start(name, stage)
    ready_s = time.monotonic() - running.server.started
    with running.server as server, contextlib.closing(running.connect(1)):
        time.sleep(SETTLE_S)
        rss_mb, before_s, began = server.rss_nbytes() / 1e6, server.cpu_s(), time.monotonic()
        time.sleep(seconds)
        return Rest(ready_s, rss_mb, (server.cpu_s() - before_s) / (time.monotonic() - began) * 100)


def _results(name: str, rests: list[Rest], bare: list[Rest]) -> list[Result]:
    ratios = [one.rss_mb / other.rss_mb for one, other in zip(rests, bare, strict=True)]
    percents, over = [one.cpu_percent for one in rests], f"{name}: memory over bare"
    ours = name == "isthmus"
    return [
        Result.of(f"{name}: start to first right answer", "s", [one.ready_s for one in rests]),
        Result.of(f"{name}: resident memory", "MB", [one.rss_mb for one in rests]),
        Result.bounded(over, "x", ratios, at_most=MEMORY_TARGET) if ours else Result.of(over, "x", ratios),
        Result.bounded(f"{name}: idle", "% of a core", percents, at_most=IDLE_TARGET_PERCENT)
        if ours
        else Result.of(f"{name}: idle", "% of a core", percents),
    ]
