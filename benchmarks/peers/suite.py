"""Suite `peers`: what a request costs and how long it takes, here and in other serving systems, side by side.

Law: one round asks every system in turn; ratios are formed within a round and summarised over rounds. Servers on one
core, clients on another, one engine thread each, the same model, answers checked. `--set peers=mosec,...`
`--set tails=tail_fc` `--set concurrency=1,32` `--set seconds=2`
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import tails
from benchmarks.peers.catalogue import MAX_BATCH, SYSTEMS, Running, Stage, start
from benchmarks.peers.closed_loop import Load, drive
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.http_client import AnswerError
from benchmarks.peers.processes import Cores, pinned
from benchmarks.peers.questions import Questions, session_of
from benchmarks.results import Options, Result
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build

CPU_TARGET = 1.25  # ours over the bare reference, light tail, 32 clients
THROUGHPUT_TARGET = 0.95  # ours over ONNX Runtime called directly in full batches, tail_fc, 32 clients
STARTS = 3
Rounds = dict[tuple[str, int], dict[int, Load]]  # (system, concurrency) -> round -> what was measured


def run(options: Options) -> list[Result]:
    """Measure every system on every tail; a system that cannot run becomes a note, never a gap."""
    chosen = listed(options.settings, "peers", tuple(SYSTEMS), known=SYSTEMS)
    systems = tuple(dict.fromkeys(("bare", *chosen)))
    numbers = listed(options.settings, "concurrency", ("1", "8", "32"))
    window_s = float(options.settings.get("seconds", "0.5" if options.quick else "1.5"))
    repeats = 2 if options.quick else options.repeats
    results: list[Result] = []
    for tail in listed(options.settings, "tails", tails.NAMES, known=tails.NAMES):
        with tempfile.TemporaryDirectory(prefix="isthmus-peers-") as folder:
            results += _tail(tail, Path(folder), systems, [int(n) for n in numbers], window_s, repeats)
    return results


def prepare(tail: str, folder: Path) -> tuple[Path, Path]:
    """The tail as an ONNX file and as a bundle with a full-cloud placement."""
    model = tails.build(tail, folder)
    cuts = ((tails.CUTS[tail],),)
    order = Order(model=model, target=folder / "bundle", cuts=cuts, precision="fp32", bound=1.0)
    return model, build(order, Silent()).target


def _tail(
    tail: str, folder: Path, systems: Sequence[str], concurrencies: Sequence[int], window_s: float, repeats: int
) -> list[Result]:
    cores = Cores.of_this_machine()
    model, bundle = prepare(tail, folder)
    rounds: Rounds = {}
    direct: list[float] = []
    with _Field(folder, model, bundle, cores) as field:
        for name in systems:
            field.enter(name)
        for number in range(repeats):
            direct.append(_direct_per_s(model, cores, window_s))
            for concurrency in concurrencies:
                for name in tuple(field.running):
                    if (load := field.drive(name, concurrency, window_s)) is not None:
                        rounds.setdefault((name, concurrency), {})[number] = load
        memory = {name: running.server.rss_nbytes() / 1e6 for name, running in field.running.items()}
        absent = field.absent
    _print(tail, rounds, memory, absent)
    return rows(tail, rounds, direct, memory, absent)


class _Field:
    """The systems that run, paused but for one, and why others do not. Who falters is started anew, at most twice."""

    def __init__(self, folder: Path, model: Path, bundle: Path, cores: Cores) -> None:
        self.running: dict[str, Running] = {}
        self.absent: dict[str, str] = {}
        self._folder, self._model, self._bundle, self._cores = folder, model, bundle, cores
        self._questions = Questions.of(model)
        self._starts: Counter[str] = Counter()

    def enter(self, name: str) -> None:
        """Start a system, or note why not."""
        self._starts[name] += 1
        scratch = self._folder / f"{name}-{self._starts[name]}"
        try:
            running = start(name, Stage(self._model, self._bundle, scratch, self._questions, self._cores.server))
        except UnavailableError as reason:
            self.absent[name] = str(reason)
            return
        self.running[name] = running
        running.server.pause()

    def drive(self, name: str, concurrency: int, window_s: float) -> Load | None:
        """Measure one system for one window; None if it did not answer even after a new start."""
        while name in self.running:
            try:
                running = self.running[name]
                return drive(running, self._questions, self._cores, concurrency=concurrency, window_s=window_s)
            except (AnswerError, OSError) as error:
                self.running.pop(name).server.stop()
                if self._starts[name] < STARTS:
                    self.enter(name)
                else:
                    self.absent[name] = f"gave up at {concurrency} clients: {error}"
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for running in self.running.values():
            running.server.stop()


def _direct_per_s(model: Path, cores: Cores, window_s: float) -> float:
    """Items a second of ONNX Runtime in this process, on the servers' core, in full batches."""
    session = session_of(model)
    batch = np.random.default_rng(3).standard_normal((MAX_BATCH, *tails.INPUT), dtype=np.float32)
    with pinned(cores.server):
        session.run(None, {"x": batch})
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < window_s:
            session.run(None, {"x": batch})
            count += MAX_BATCH
        return count / (time.perf_counter() - began)


def rows(
    tail: str, rounds: Rounds, direct: Sequence[float], memory: Mapping[str, float], absent: Mapping[str, str]
) -> list[Result]:
    """The schema's rows for one tail. `direct` is ONNX Runtime's own items a second, one value per round."""
    results = []
    for (name, concurrency), by_round in rounds.items():
        label, loads = f"{tail}, c={concurrency}, {name}", tuple(by_round.values())
        base = rounds["bare", concurrency]
        if name != "bare" and (ratios := [one.cpu_ms / base[n].cpu_ms for n, one in by_round.items() if n in base]):
            over = f"{label}: server CPU over bare"
            promised = (tail, concurrency, name) == ("tail_light", 32, "isthmus")
            results.append(
                Result.bounded(over, "x", ratios, at_most=CPU_TARGET) if promised else Result.of(over, "x", ratios)
            )
        results += [
            Result.of(f"{label}: server CPU", "ms/request", [one.cpu_ms for one in loads], note=_note(loads)),
            Result.of(f"{label}: throughput", "1/s", [one.per_s for one in loads]),
            Result.of(f"{label}: p50", "ms", [one.p50_ms for one in loads]),
            Result.of(f"{label}: p99", "ms", [one.p99_ms for one in loads]),
        ]
        if concurrency == 32 and tail != "tail_light":
            share = [one.per_s / direct[n] for n, one in by_round.items()]
            results.append(_share(f"{label}: throughput over direct ORT", share, tail, name))
    results += [Result.of(f"{tail}, {name}: resident memory", "MB", [mb]) for name, mb in memory.items()]
    return results + [
        Result.missing(f"{tail}, {name}: not run", reason, ok=_ours(name, reason)) for name, reason in absent.items()
    ]


def _ours(name: str, reason: str) -> bool | None:
    """What the others do is their own affair; that ours gives up is a miss."""
    return False if name in ("bare", "isthmus", "isthmus_http") and reason.startswith("gave up") else None


def _share(name: str, share: Sequence[float], tail: str, system: str) -> Result:
    plain = Result.of(name, "x", share)
    if (tail, system) != ("tail_fc", "isthmus"):
        return plain
    return at_least(plain, THROUGHPUT_TARGET)


def at_least(plain: Result, bound: float) -> Result:
    """The same result with a lower bound on its median."""
    target = f">= {bound:g} {plain.unit}"
    return Result(plain.name, plain.unit, plain.median, plain.low, plain.high, plain.n, target, plain.median >= bound)


def _note(loads: Sequence[Load]) -> str:
    wrong, busiest = sum(one.wrong for one in loads), max(one.client_cores for one in loads)
    said = [f"{wrong} WRONG ANSWERS"] if wrong else []
    return "; ".join(said + ([f"client {busiest:.2f} of a core"] if busiest > 0.9 else []))


def _print(tail: str, rounds: Rounds, memory: Mapping[str, float], absent: Mapping[str, str]) -> None:
    """A table that one can read: a line a system, medians over the rounds."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    concurrencies = sorted({concurrency for _, concurrency in rounds})
    title = f"{tail}: server CPU ms/request | requests/s | p50 / p99 ms"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("system", *(f"{c} client{'s' * (c > 1)}" for c in concurrencies), "MB"):
        table.add_column(heading, no_wrap=True)
    for name in dict.fromkeys(name for name, _ in rounds):
        cells = [_cell(tuple(rounds.get((name, concurrency), {}).values())) for concurrency in concurrencies]
        table.add_row(name, *cells, f"{memory[name]:.0f}" if name in memory else "-")
    console.print(table)
    for name, reason in absent.items():
        console.print(f"  {name}: not run: {reason}", highlight=False, markup=False)


def _cell(loads: Sequence[Load]) -> str:
    if not loads:
        return "-"
    cpu, per_s, p50, p99 = np.median([(one.cpu_ms, one.per_s, one.p50_ms, one.p99_ms) for one in loads], axis=0)
    return f"{cpu:.2f} | {per_s:.0f} | {p50:.1f} / {p99:.1f}"


def listed(
    settings: Mapping[str, str], key: str, default: Sequence[str], *, known: Mapping[str, object] | Sequence[str] = ()
) -> tuple[str, ...]:
    """The setting `key` as a list. Raises SystemExit if one of its names is not among those `known`."""
    wanted = tuple(settings[key].split(",")) if key in settings else tuple(default)
    if known and (unknown := [name for name in wanted if name not in known]):
        raise SystemExit(f"{key}={','.join(wanted)}: {unknown[0]} is unknown; known are {', '.join(known)}")
    return wanted
