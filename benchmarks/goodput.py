"""Suite `goodput`: what an overloaded server still answers in time, and what it leaves to those it refuses.

Law: the rate is a share of the capacity that 32 closed-loop clients found in the same round; arrivals are a Poisson
process; a refusal that the gateway did not count is a miss. `--set tails=tail_fc` `--set peers=mosec,tritonserver`
`--set seconds=3` `--set loads=1.2,2` `--set budget_ms=50` `--set margin_ms=2`
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import tails
from benchmarks.open_loop import Agents, Connections, Outcome, offer, poisson
from benchmarks.peers.catalogue import SYSTEMS, Running, Stage, start
from benchmarks.peers.closed_loop import drive
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.http_client import HttpClient
from benchmarks.peers.processes import Cores, pinned
from benchmarks.peers.questions import Questions
from benchmarks.peers.suite import at_least, listed, prepare
from benchmarks.peers.zmq_client import AgentClient
from benchmarks.results import Options, Result

LOADS = ("0.3", "0.6", "0.9", "1.2", "1.5", "2")
CAPACITY_TARGETS = {1.2: 0.80, 2.0: 0.70}
SLACK_TARGET = 0.40  # of the budget, median over refused callers
AGENTS = 16
CONNECTIONS = 192  # more than any rate here times the budget
CLOSED_CLIENTS = 32


@dataclass(frozen=True, slots=True)
class Stretch:
    """One load in one round."""

    outcome: Outcome
    capacity_per_s: float
    window_s: float

    @property
    def of_capacity(self) -> float:
        return self.outcome.in_time / self.window_s / self.capacity_per_s

    @property
    def of_offered(self) -> float:
        return self.outcome.in_time / max(self.outcome.offered, 1)


def run(options: Options) -> list[Result]:
    """Measure our gateway, and the peers that were named, at every load on every tail."""
    settings = options.settings
    loads = tuple(float(text) for text in listed(settings, "loads", LOADS))
    systems = ("isthmus", *listed(settings, "peers", (), known=SYSTEMS))
    repeats = 2 if options.quick else options.repeats
    results: list[Result] = []
    for tail in listed(settings, "tails", ("tail_fc", "tail_r18"), known=tails.NAMES):
        with tempfile.TemporaryDirectory(prefix="isthmus-goodput-") as folder:
            model, bundle = prepare(tail, Path(folder))
            questions, cores = Questions.of(model), Cores.of_this_machine()
            for name in systems:
                stage = Stage(model, bundle, Path(folder) / name, questions, cores.server)
                bench = _Bench(
                    name=name,
                    stage=stage,
                    cores=cores,
                    window_s=float(settings.get("seconds", "1" if options.quick else "3")),
                    budget_s=float(settings.get("budget_ms", "50")) / 1e3,
                    margin_s=float(settings.get("margin_ms", "2")) / 1e3,
                )
                results += bench.measure(tail, loads, repeats)
    return results


@dataclass(frozen=True, slots=True)
class _Bench:
    name: str
    stage: Stage
    cores: Cores
    window_s: float
    budget_s: float
    margin_s: float

    def measure(self, tail: str, loads: Sequence[float], repeats: int) -> list[Result]:
        label = f"{tail}, {self.name}"
        try:
            running = start(self.name, self.stage)
        except UnavailableError as reason:
            return [Result.missing(f"{label}: not run", str(reason))]
        found: dict[float, list[Stretch]] = {load: [] for load in loads}
        with running.server:
            for number in range(repeats):
                for load, stretches in found.items():
                    # A machine that is shared changes by the second: each stretch has its own capacity beside it.
                    capacity_per_s = self._capacity_per_s(running)
                    due = poisson(load * capacity_per_s, self.window_s, seed=f"{number} {load}")
                    stretches.append(Stretch(self._offer(running, due), capacity_per_s, self.window_s))
        ours = self.name == "isthmus"
        print_stretches(label, found)
        return [*results_of(label, found, ours=ours), *([self._counted(label, found)] if ours else [])]

    def _capacity_per_s(self, running: Running) -> float:
        window_s, questions = self.window_s / 2, self.stage.questions
        load = drive(running, questions, self.cores, concurrency=CLOSED_CLIENTS, window_s=window_s)
        running.server.resume()
        return load.per_s

    def _offer(self, running: Running, due: Sequence[float]) -> Outcome:
        slots = AGENTS if self.name == "isthmus" else CONNECTIONS
        with pinned(self.cores.client):
            client = running.connect(slots)
            try:
                if isinstance(client, AgentClient):
                    return offer(Agents(client), due, budget_s=self.budget_s, margin_s=self.margin_s)
                if isinstance(client, HttpClient):
                    return offer(Connections(client, slots), due, budget_s=self.budget_s, margin_s=self.margin_s)
            finally:
                client.close()
        raise SystemExit(f"{self.name} has no open loop; name systems that speak HTTP")

    def _counted(self, label: str, found: Mapping[float, Sequence[Stretch]]) -> Result:
        """The gateway's own count of refusals, which it tells when it stops, against what callers received."""
        log = (self.stage.folder / "log").read_text("utf-8", "replace")
        counted = sum(int(number) for number in re.findall(r"rejected_[A-Z_]+\W+(\d+)", log))
        received = sum(s.outcome.refused.total() for stretches in found.values() for s in stretches)
        share, name = counted / max(received, 1), f"{label}: refusals counted by the gateway over received"
        return Result(name, "x", share, share, share, received, "= 1 x", counted == received)


def results_of(label: str, found: Mapping[float, Sequence[Stretch]], *, ours: bool) -> list[Result]:
    """The schema's rows for one system on one tail; only ours promises anything."""
    results = []
    for load, stretches in found.items():
        at, outcomes = f"{label}, {load:.0%} load", [s.outcome for s in stretches]
        shares = [s.of_capacity for s in stretches]
        results.append(
            _promised(Result.of(f"{at}: in time, of capacity", "x", shares), CAPACITY_TARGETS.get(load), ours=ours)
        )
        shares = [s.of_offered for s in stretches]
        results.append(Result.of(f"{at}: in time, of offered", "x", shares, note=_codes(outcomes)))
        for what, counts in (
            ("answered late", [float(o.late) for o in outcomes]),
            ("answered late by its own account", [float(o.overrun) for o in outcomes]),
            ("never answered", [float(o.unanswered) for o in outcomes]),
        ):
            name = f"{at}: {what}"
            results.append(
                Result.bounded(name, "requests", counts, at_most=0) if ours else Result.of(name, "requests", counts)
            )
        told = [float(np.median(o.slack)) for o in outcomes if o.slack]
        seen = [float(np.median(o.seen_slack)) for o in outcomes if o.seen_slack]
        for how, slack in (("as told", told), ("by its own clock", seen)):
            if slack:
                left = Result.of(f"{at}: slack of the refused, {how}", "x", slack)
                results.append(_promised(left, SLACK_TARGET, ours=ours))
        lags_ms = [o.lag_p99_s * 1e3 for o in outcomes]
        results.append(Result.of(f"{at}: client late, p99", "ms", lags_ms))
    return results


def _promised(plain: Result, bound: float | None, *, ours: bool) -> Result:
    return at_least(plain, bound) if ours and bound else plain


def _codes(outcomes: Sequence[Outcome]) -> str:
    codes: Counter[str] = Counter()
    for outcome in outcomes:
        codes += outcome.refused
        codes["not asked"] += outcome.dropped
    offered = sum(outcome.offered for outcome in outcomes)
    return ", ".join(f"{code} {count / offered:.1%}" for code, count in codes.most_common() if count)


def print_stretches(label: str, found: Mapping[float, Sequence[Stretch]]) -> None:
    """A line a load: medians over the rounds, sums of what should be nought."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    capacity = np.median([s.capacity_per_s for stretches in found.values() for s in stretches])
    title = f"{label}: capacity {capacity:.0f}/s; left: share of the budget left to a refused caller, told / seen"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in (
        "load",
        "in time, of capacity",
        "of offered",
        "late (its fault)",
        "never",
        "left",
        "client late p99",
        "refused",
    ):
        table.add_column(heading, no_wrap=heading != "refused")
    for load, stretches in found.items():
        outcomes = [s.outcome for s in stretches]
        table.add_row(
            f"{load:.0%}",
            f"{np.median([s.of_capacity for s in stretches]):.0%}",
            f"{np.median([s.of_offered for s in stretches]):.0%}",
            f"{sum(o.late for o in outcomes)} ({sum(o.overrun for o in outcomes)})",
            str(sum(o.unanswered for o in outcomes)),
            " / ".join(
                _middle(xs) for xs in (_joined(o.slack for o in outcomes), _joined(o.seen_slack for o in outcomes))
            ),
            f"{max(o.lag_p99_s for o in outcomes) * 1e3:.1f} ms",
            _codes(outcomes),
        )
    console.print(table)


def _joined(lists: Iterable[list[float]]) -> list[float]:
    return [share for shares in lists for share in shares]


def _middle(shares: Sequence[float]) -> str:
    return f"{np.median(shares):.0%}" if shares else "-"
