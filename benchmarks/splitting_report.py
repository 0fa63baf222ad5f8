"""The tables and figures of the suite `splitting`, from its cells.

Law: nothing is measured here, and nothing is left out: whoever wins a cell is named in it, with the factor by which the
best split beats (above 1) or misses (below 1) the best baseline.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.results import PIPED_COLUMNS, Result
from benchmarks.splitting_cells import (
    CONTESTS,
    JPEG_Q90,
    MBITS,
    NEAR,
    STRICTLY,
    Candidate,
    Cell,
    count,
    thrift,
    winners,
)

SAME_ACCURACY, PRIVATE = CONTESTS[1], CONTESTS[3]
WORSE = 0.02


class Block(NamedTuple):
    """One model under one title, as measured; `notes` are for people."""

    model: str
    title: str
    candidates: tuple[Candidate, ...]
    cells: list[Cell]
    notes: tuple[str, ...]


def latency_cell(cell: Cell) -> str:
    """Who answers first, and how the best split fares against the best baseline."""
    return f"{cell.winner(JPEG_Q90).label} {cell.gain(JPEG_Q90):.2f}"


def thrift_cell(cell: Cell) -> str:
    """Who spares the gateway most, and how many times less than cloud-only JPEG a split needs (where one is near)."""
    found = thrift(cell)
    return found.winner.label + (f" /{found.saved:.1f}" if found.saved is not None else "")


def print_blocks(blocks: Sequence[Block], rtt_s: float) -> None:
    """Two tables for each model and title, and one summary for each title."""
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    for block in blocks:
        console.print(f"\n[bold]{block.model}, {block.title}[/]", highlight=False)
        for note in block.notes:
            console.print(f"  {note}", highlight=False, markup=False)
        console.print("  first answer, and the better of edge-only and JPEG q90 over the best split")
        console.print(_grid(block, latency_cell))
        console.print(
            f"  fewest gateway seconds within {NEAR:g} of it; /n: a split that near needs n times fewer than JPEG"
        )
        console.print(_grid(block, thrift_cell))
    for title in dict.fromkeys(block.title for block in blocks):
        cells = cells_of(blocks, title)
        console.print(_summary(f"{title}: {len(cells)} cells, round trip {rtt_s * 1e3:g} ms", cells))
        console.print("\n".join(sentences(cells)), highlight=False, markup=False)


def cells_of(blocks: Sequence[Block], title: str) -> list[Cell]:
    """All models' cells under a title."""
    return [cell for block in blocks if block.title == title for cell in block.cells]


def _grid(block: Block, text: Callable[[Cell], str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("device slower by", *(f"{mbit:g} Mbit/s" for mbit in MBITS)):
        table.add_column(heading, no_wrap=True)
    for slowdown, row in _rows(block.cells):
        table.add_row(f"{slowdown:g}", *map(text, row))
    return table


def _rows(cells: Sequence[Cell]) -> Iterator[tuple[float, list[Cell]]]:
    for slowdown in dict.fromkeys(cell.slowdown for cell in cells):
        yield slowdown, [cell for cell in cells if cell.slowdown == slowdown]


def _summary(title: str, cells: Sequence[Cell]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("against", f"won by {STRICTLY - 1:.0%}", "at all", "8-bit + zstd alone", "at all", "factors"):
        table.add_column(heading, no_wrap=True)
    table.add_column("who wins how many cells")
    for contest in CONTESTS:
        new, old = count(cells, contest), count(cells, contest, old=True)
        table.add_row(
            contest.name, str(new.strictly), str(new.at_all), str(old.strictly), str(old.at_all), _factors(new.gains),
            ", ".join(f"{name} {n}" for name, n in winners(cells, contest).items()),
        )  # fmt: skip
    return table


def _factors(gains: Sequence[float]) -> str:
    if not gains:
        return "-"
    return f"{gains[-1]:.2f}-{gains[0]:.2f}, median {statistics.median(gains):.2f}"


def sentences(cells: Sequence[Cell]) -> list[str]:
    """What the summary does not tell: the plan's regret, and what splits save at the gateway."""
    found = [thrift(cell) for cell in cells]
    saved = [t.saved for t in found if t.winner.kind == "split" and t.saved is not None]
    beside = [t.saved for t in found if t.over_cloud and t.saved is not None]
    fast = [t for t in found if t.over_cloud]
    lines = []
    for contest in (JPEG_Q90, SAME_ACCURACY):
        regrets = [cell.regret(contest) for cell in cells]
        within = sum(r <= WORSE for r in regrets)
        lines.append(
            f"The plan is at most {WORSE:.0%} slower than the best of {contest.meaning} in {within} of {len(cells)} "
            f"cells, {max(regrets):+.1%} at worst."
        )
    lines.append(
        f"Gateway seconds, within {NEAR:g} times the best baseline's latency: a split needs the fewest in "
        f"{len(saved)} of {len(cells)} cells ({_spread(saved)} times fewer than cloud-only JPEG), edge-only (none) in "
        f"{sum(t.winner.kind == 'edge' for t in found)}, cloud-only in {sum(t.winner.kind == 'cloud' for t in found)}."
    )
    lines.append(
        f"Where cloud-only JPEG is the fastest baseline ({len(fast)} cells), a split is that near in {len(beside)} "
        f"and needs {_spread(beside)} times fewer gateway seconds."
    )
    return lines


def _spread(factors: Sequence[float]) -> str:
    return f"{min(factors):.2f}-{max(factors):.1f}, median {statistics.median(factors):.2f}" if factors else "-"


def results(blocks: Sequence[Block]) -> list[Result]:
    """A row for each model, title and slowness with all its cells, then the counts. Only what was built has targets."""
    found = [result for block in blocks for result in _model_results(block)]
    for number, title in enumerate(dict.fromkeys(block.title for block in blocks)):
        found += _counts(title, cells_of(blocks, title), promised=number == 0)
    return found


def _model_results(block: Block) -> Iterator[Result]:
    for slowdown, row in _rows(block.cells):
        note = "; ".join(
            f"{c.mbit:g}: {latency_cell(c)}, old {c.gain(JPEG_Q90, old=True):.2f}, gateway {thrift_cell(c)}"
            for c in row
        )
        name = f"{block.title}: {block.model} x{slowdown:g}"
        yield Result.of(name, "x", [c.gain(JPEG_Q90) for c in row], note=note)


def _counts(title: str, cells: Sequence[Cell], *, promised: bool) -> Iterator[Result]:
    for contest in CONTESTS:
        new, old = count(cells, contest), count(cells, contest, old=True)
        least = {JPEG_Q90.name: 15.0, PRIVATE.name: 50.0}.get(contest.name) if promised else None
        note = (
            f"{new.strictly} of {new.cells} by 5 %, {new.at_all} at all; 8-bit + zstd: {old.strictly}, {old.at_all}; "
            f"winners: {', '.join(f'{name} {n}' for name, n in winners(cells, contest).items())}"
        )
        yield _share(f"{title}: split wins, {contest.name}", 100 * new.share, least, note)
    found = [thrift(cell) for cell in cells]
    share = 100 * sum(t.winner.kind == "split" for t in found) / len(cells)
    yield _share(f"{title}: split spares gateway", share, 50.0 if promised else None, sentences(cells)[2])
    for contest in (JPEG_Q90, SAME_ACCURACY):
        worst = 100 * max(cell.regret(contest) for cell in cells)
        within = sum(cell.regret(contest) <= WORSE for cell in cells)
        note = f"within {WORSE:.0%} in {within} of {len(cells)} cells; against {contest.meaning}"
        name = f"{title}: plan at worst, {contest.name}"
        target = f"<= {100 * WORSE:g} %" if promised else None
        ok = worst <= 100 * WORSE if promised else None
        yield Result(name, "%", worst, worst, worst, len(cells), target, ok, note)


def _share(name: str, percent: float, least: float | None, note: str) -> Result:
    target, ok = (None, None) if least is None else (f">= {least:g} %", percent >= least)
    return Result(name, "%", percent, percent, percent, 1, target, ok, note)
