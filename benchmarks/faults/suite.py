"""Suite `faults`: everything that can go wrong on the way, while 20 requests a second are asked, and what came of them.

Law: what is promised is a count that must be zero. Times depend on the machine and are shown beside it; two of them
are targets. `--set scenarios=blackhole,rst_storm` plays some, `--set seconds=30` lets each fault last longer,
`--set kills=1000` kills so often.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.faults.model import numbered_bundle
from benchmarks.faults.scenarios import SCENARIOS
from benchmarks.faults.scene import UnplayableError, Verdict
from benchmarks.peers.suite import listed
from benchmarks.results import PIPED_COLUMNS, Options, Result

SECONDS, QUICK_SECONDS = 6.0, 1.0
MOST_BACK_S = 5.0
MOST_READY_S = 3.0
MOST_ATTEMPTS = 1.2  # at total failure
TOTAL = ("no_gateway", "dark_no_local")


def run(options: Options) -> list[Result]:
    """Play the scenarios, print a row for each, and return what was promised."""
    names = listed(options.settings, "scenarios", tuple(SCENARIOS), known=tuple(SCENARIOS))
    seconds = float(options.settings.get("seconds", QUICK_SECONDS if options.quick else SECONDS))
    kills = int(options.settings.get("kills", "0"))
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="isthmus-faults-") as name:
        folder = Path(name)
        bundle = numbered_bundle(folder)
        for scenario in (SCENARIOS[name] for name in names):
            print(f"{scenario.name}: {scenario.does}", flush=True)
            try:
                verdicts.append(scenario.play(bundle, folder / scenario.name, seconds, kills=kills))
            except UnplayableError as reason:
                print(f"  skipped: {reason}", flush=True)
    _print(verdicts)
    return _results(verdicts)


def _results(verdicts: Sequence[Verdict]) -> list[Result]:
    def zero(what: str, count: Callable[[Verdict], float], note: str = "") -> Result:
        worst = max(verdicts, key=count)
        total = sum(count(verdict) for verdict in verdicts)
        return Result.bounded(what, "requests", [total], at_most=0, note=worst.name if total else note)

    asked = f"of {sum(v.asked for v in verdicts):,} in {len(verdicts)} scenarios"
    back = [v.back_s for v in verdicts if v.back_s is not None]
    ready = sorted(s for v in verdicts for s in v.ready_s)
    results = [
        zero("lost", lambda v: v.lost, asked),
        zero("told twice", lambda v: v.twice),
        zero("answered with another's answer", lambda v: v.wrong),
        zero("executed twice in one life of a gateway", lambda v: v.executed_twice),
        zero("late by more than 0.25 s", lambda v: v.late),
        zero("daemons that crashed", lambda v: bool(v.crashed)),
        Result.of("executed in several lives", "requests", [sum(v.executed_again for v in verdicts)]),
        Result.of("hedged", "requests", [sum(v.hedged for v in verdicts)]),
    ]
    if back:
        results.append(Result.bounded("back over the link after healing, worst", "s", [max(back)], at_most=MOST_BACK_S))
        results.append(Result.of("back over the link after healing", "s", back))
    if ready:
        p99 = ready[min(len(ready) - 1, int(0.99 * len(ready)))]
        note = f"{len(ready)} new lives"
        results.append(Result.bounded("ready again after a kill, p99", "s", [p99], at_most=MOST_READY_S, note=note))
    if failed := [v.attempts for v in verdicts if v.name in TOTAL and v.attempts is not None]:
        results.append(
            Result.bounded("sent for each asked, at total failure, worst", "x", [max(failed)], at_most=MOST_ATTEMPTS)
        )
    return results


def _print(verdicts: Sequence[Verdict]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_COLUMNS + 20
    table = Table(title="what became of every request", title_justify="left", box=box.SIMPLE_HEAD)
    columns: dict[str, Callable[[Verdict], object]] = {
        "stored": lambda v: v.stored or "",
        "asked": lambda v: v.asked,
        "gateway": lambda v: v.by_gateway,
        "device": lambda v: v.by_device,
        "refused": lambda v: v.refused,
        "late": lambda v: v.late,
        "lost": lambda v: v.lost,
        "caller killed": lambda v: v.gone,
        "told twice": lambda v: v.twice,
        "run twice": lambda v: v.executed_twice,
        "in other lives": lambda v: v.executed_again,
        "hedged": lambda v: v.hedged,
        "sent/asked": lambda v: "" if v.attempts is None else f"{v.attempts:.2f}",
        "silence s": lambda v: f"{v.longest_silence_s:.2f}",
        "back s": lambda v: "" if v.back_s is None else f"{v.back_s:.2f}",
    }
    table.add_column("scenario", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right")
    for verdict in verdicts:
        table.add_row(verdict.name, *(str(column(verdict)) for column in columns.values()))
    console.print(table)
