"""What people see: a table of placements, where each wins, and every note. Results go to stdout, progress to stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from partitioner.build import Built
from partitioner.inspection import Inspection
from partitioner.recheck import Verified
from protocol.bundle import Manifest, Measured, PlacementEntry
from protocol.tensors import describe


class Silent:
    """For --json: says nothing."""

    def stage(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass


class Bar:
    """A progress bar on stderr while it is a terminal; elsewhere nothing but the final result is printed."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def stage(self, text: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, description=text)

    def progress(self, done: int, total: int) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)


WIDE = 125  # columns that the whole table needs; on narrower terminals the metrics get lines of their own


def print_built(built: Built, console: Console) -> None:
    manifest = built.manifest
    conditions = manifest.conditions
    wide = console.width >= WIDE
    console.print(_placements(manifest, wide=wide))
    for entry in manifest.placements if not wide else ():
        console.print(f"{entry.id}: {_metric(entry)}", highlight=False)
    console.print(
        f"edge times are this machine's times {conditions.edge_slowdown:g} (declared); "
        f"threads: head {conditions.threads}, tail {conditions.tail_threads}; "
        f"round trip {conditions.rtt_s * 1e3:g} ms; bytes are means of coded samples"
    )
    if built.measured:
        console.print(_measured(built.measured))
    _print_notes(manifest, console)
    console.print(f"wrote {built.target} (manifest sha256 {built.digest[:16]}...)", highlight=False)


def _placements(manifest: Manifest, *, wide: bool) -> Table:
    table = Table(title=f"{manifest.model.name}: placements", title_justify="left")
    for heading in ("placement", "crosses", "head"):
        table.add_column(heading, overflow="fold")
    for heading in ("edge ms", "bytes up", "tail ms", "batch", "best at, Mbit/s"):
        table.add_column(heading, justify="right")
    if wide:
        table.add_column("metric (reference, bound)")
    for entry in manifest.placements:
        cells = _row(manifest, entry)
        table.add_row(*(cells if wide else cells[:-1]))
    return table


def _row(manifest: Manifest, entry: PlacementEntry) -> list[str]:
    cost = entry.cost
    crossing = ", ".join(f"{t.spec.name} {t.spec.dtype}" for t in entry.boundary) or "-"
    return [
        entry.id,
        crossing,
        entry.precision if entry.head else "-",
        f"{(cost.edge_s + cost.encode_s) * 1e3:.2f}",
        f"{cost.up_nbytes:,.0f}",
        f"{(cost.decode_s + cost.tail_s) * 1e3:.2f}" if entry.tail else "-",
        "-" if entry.batch is None else "yes" if entry.batch.batchable else "no",
        ", ".join(f"{low:.3g}..{high:.3g}" for name, high, low in manifest.plan if name == entry.id) or "never",
        _metric(entry),
    ]


def _metric(entry: PlacementEntry) -> str:
    seen = entry.certificate
    if seen is None:
        return "-"
    return f"{seen.metric} {seen.achieved:.4f} ({seen.reference:.4f}, {seen.bound:.4f}) on {seen.samples}"


def _measured(measured: tuple[Measured, ...]) -> Table:
    table = Table(title="cuts measured", title_justify="left")
    table.add_column("cut", overflow="fold")
    for heading in ("compute before", "head", "edge ms", "bytes up", "tail ms"):
        table.add_column(heading, justify="right")
    for cut in measured:
        cost = cut.cost
        table.add_row(
            ", ".join(cut.cut),
            f"{cut.share:.0%}",
            cut.precision,
            f"{(cost.edge_s + cost.encode_s) * 1e3:.2f}",
            f"{cost.up_nbytes:,.0f}",
            f"{(cost.decode_s + cost.tail_s) * 1e3:.2f}",
        )
    return table


def _print_notes(manifest: Manifest, console: Console) -> None:
    for note in manifest.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for entry in manifest.placements:
        for note in entry.notes:
            console.print(f"note: {entry.id}: {note}", highlight=False, markup=False)
        if entry.batch is not None and not entry.batch.batchable:
            text = f"note: {entry.id} runs at batch 1: {entry.batch.reason}"
            console.print(text, highlight=False, markup=False)


def print_verified(verified: Verified, console: Console) -> None:
    kind = "random inputs, so nothing is judged but equality" if verified.random_inputs else "the data given"
    table = Table(
        title=f"{verified.bundle}: {verified.files} files match their digests; answers on {kind}", title_justify="left"
    )
    for heading in ("placement", "metric", "reference", "achieved", "bound", "samples", "max |difference|"):
        table.add_column(heading)
    for seen in verified.placements:
        bound = "-" if seen.bound is None else f"{seen.bound:.4f}"
        numbers = (f"{seen.reference:.4f}", f"{seen.achieved:.4f}", bound, str(seen.samples))
        table.add_row(seen.id, seen.metric, *numbers, f"{seen.max_abs_difference:.3g}")
    console.print(table)


def print_inspection(seen: Inspection, console: Console) -> None:
    for word, specs in (("takes", seen.inputs), ("gives", seen.outputs)):
        console.print(f"{word} {'; '.join(describe(s) for s in specs)}", highlight=False, markup=False)
    size = "unknown" if seen.input_nbytes is None else f"{seen.input_nbytes:,} bytes"
    table = Table(
        title=f"{seen.name}: {len(seen.cuts)} cuts over {seen.nodes} nodes; raw input {size}", title_justify="left"
    )
    table.add_column("cut", overflow="fold")
    table.add_column("compute before", justify="right")
    table.add_column("bytes before coding", justify="right")
    for cut in seen.cuts:
        nbytes = "?" if cut.wire_nbytes is None else f"{cut.wire_nbytes:,}"
        table.add_row(", ".join(cut.cut), f"{cut.share:.1%}", nbytes)
    console.print(table)
