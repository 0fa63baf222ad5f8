"""The demo on a screen: one row per phase, live on a terminal, a line per finished phase elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.demo.record import Record, Stats

REFRESHES_PER_S = 4
REASON_WIDTH = 44
COUNTS = "a/r/l"
NARROW_TITLES = {"p50 ms": "p50", "p95 ms": "p95", "bytes up": "bytes", "accuracy": "acc."}
WIDE, MEDIUM = 158, 112  # characters for all columns, and for all but the reasons
FRAME_LINES, ROW_LINES = 5, 2.4  # of a table, and of a typical row in it
COLUMNS = ("phase", "placement", "p50 ms", "p95 ms", "bytes up", "accuracy", "answered", "refused", "lost", "degraded")


class Screen:
    """Shows a record while it grows. Finished phases are computed once; the others with every refresh."""

    def __init__(self, console: Console, record: Record, colours: Mapping[str, str]) -> None:
        self._console = console
        self._record = record
        self._colours = colours
        self._finished: list[Stats] = []
        self._live = (
            Live(console=console, get_renderable=self._table, refresh_per_second=REFRESHES_PER_S, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase_ended(self) -> None:
        """The current phase is over: its row is final."""
        stats = self._record.phase(len(self._finished))
        self._finished.append(stats)
        if self._live is None:
            self._console.print(sentence(stats, self._record.truth.word), highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        rows = list(self._finished)
        if len(self._record.acts) > len(rows):
            rows.append(self._record.phase(len(rows)))
        fitting = max(int((self._console.height - FRAME_LINES) / ROW_LINES), 1)
        rows = rows[-fitting:]  # on a small screen the latest are what matters; the end shows all
        return build(rows, None, self._record.truth.word, self._colours, width=self._console.width)


def build(rows: list[Stats], total: Stats | None, word: str, colours: Mapping[str, str], *, width: int = WIDE) -> Table:
    """The table of `rows`, and of `total` beneath a line; with fewer columns where `width` cannot hold them all."""
    narrow = width < MEDIUM
    shown = [c for c in COLUMNS if width >= WIDE or c != "degraded"]
    shown = [c for c in shown if not narrow or c not in ("bytes up", "answered", "refused", "lost")] + [COUNTS] * narrow
    key = f"acc. {word}; a/r/l answered, refused, lost; times in ms" if narrow else None
    table = Table(
        caption=key, header_style="bold", border_style="dim", box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD
    )
    titles = NARROW_TITLES if narrow else {"accuracy": word}
    for column in shown:
        left = column in ("phase", "placement", "degraded")
        table.add_column(titles.get(column, column), justify="left" if left else "right", no_wrap=True)
    for stats in rows:
        table.add_row(*_cells(stats, colours, shown))
    if total is not None:
        table.add_section()
        table.add_row(*_cells(total, colours, shown), style="bold")
    return table


def sentence(stats: Stats, word: str) -> str:
    """One line for a log: the same facts as a row."""
    where = ", ".join(f"{id_} {share(part)}" for id_, part in stats.shares.items()) or "nothing answered"
    reasons = shortened(stats.reasons)
    return (
        f"{stats.name}: {where}; p50 {number(stats.p50_ms)} ms, p95 {number(stats.p95_ms)} ms; "
        f"{number(stats.up_nbytes, 0)} bytes up; {word} {percent(stats.accuracy)}; "
        f"answered {stats.answered}, refused {stats.refused}, lost {stats.lost}" + (f"; {reasons}" if reasons else "")
    )


def _cells(stats: Stats, colours: Mapping[str, str], shown: list[str]) -> list[Text | str]:
    placement = Text()
    for id_, part in stats.shares.items():
        placement.append("\n" if placement else "").append("● ", style=colours.get(id_, "")).append(id_)
        placement.append(f" {share(part)}", style="dim")
    alarm = "bold red" if stats.lost else ""
    cells: dict[str, Text | str] = {
        "phase": Text(stats.name),
        "placement": placement,
        "p50 ms": number(stats.p50_ms),
        "p95 ms": number(stats.p95_ms),
        "bytes up": number(stats.up_nbytes, 0),
        "accuracy": percent(stats.accuracy),
        "answered": str(stats.answered),
        "refused": str(stats.refused),
        "lost": Text(str(stats.lost), style=alarm),
        COUNTS: Text(f"{stats.answered}/{stats.refused}/{stats.lost}", style=alarm),
        "degraded": Text(shortened(stats.reasons, joint="\n"), style="dim"),
    }
    return [cells[column] for column in shown]


def shortened(reasons: Mapping[str, int], *, most: int = 2, joint: str = "; ") -> str:
    """The most frequent reasons with their counts, each cut to what a column holds."""
    first = list(reasons.items())[:most]
    left = sum(reasons.values()) - sum(n for _, n in first)
    lines = [f"{n}x {_cut(why)}" for why, n in first]
    return joint.join([*lines, f"{left}x other"] if left else lines)


def _cut(text: str) -> str:
    return text if len(text) <= REASON_WIDTH else text[: REASON_WIDTH - 1].rstrip() + "…"


def number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def share(part: float) -> str:
    """`100 %` is kept for all of them, `<1 %` for hardly any."""
    return "<1 %" if part < 0.01 else ">99 %" if 0.99 < part < 1 else f"{part:.0%}".replace("%", " %")
