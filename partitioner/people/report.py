"""What people see: a table of placements, where each wins, and every note. Results go to stdout, progress to stderr."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from partitioner.people.eight_bits import Grid, grids
from partitioner.people.explain import family_of
from partitioner.people.inspection import Inspection
from partitioner.planning.build import Built
from partitioner.planning.recheck import Verified
from protocol.bundle import Manifest, Measured, PlacementEntry
from protocol.graphs import WEIGHTS
from protocol.phrases import number
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


WIDE = 140  # columns that the whole table needs; on narrower terminals what crosses and the metrics come below it
MOST_MEASURED = 30
MOST_LAYERS = 8


def print_built(built: Built, console: Console) -> None:
    manifest = built.manifest
    conditions = manifest.conditions
    wide = console.width >= WIDE
    console.print(_placements(manifest, wide=wide))
    for line in () if wide else _below(manifest):
        console.print(line, highlight=False, markup=False)
    console.print(
        f"edge times are this machine's times {conditions.edge_slowdown:g} (declared); "
        f"threads: head {conditions.threads}, tail {conditions.tail_threads}; "
        f"round trip {conditions.rtt_s * 1e3:g} ms; bytes are means of coded samples"
    )
    for line in _halves(manifest):
        console.print(line, highlight=False, markup=False)
    if manifest.measured:
        _print_measured(manifest.measured, console, wide=wide)
    for grid in grids(manifest, most_layers=MOST_LAYERS):
        _print_grid(grid, console)
    _print_notes(manifest, console)
    console.print(f"wrote {built.target} (manifest sha256 {built.digest[:16]}...)", highlight=False, markup=False)


def _placements(manifest: Manifest, *, wide: bool) -> Table:
    """One row for each placement, a line between families: codecs of one cut share what is said about the cut."""
    table = Table(title=Text(f"{manifest.model.name}: placements"), title_justify="left")
    table.add_column("placement", overflow="fold")
    if wide:
        table.add_column("crosses", overflow="fold")
    table.add_column("head")
    for heading in ("edge ms", "bytes up", "tail ms", "best at, Mbit/s"):
        table.add_column(heading, justify="right")
    if wide:
        table.add_column("metric (reference, bound)", no_wrap=True)
    families = [family_of(entry.id) for entry in manifest.placements]
    for at, entry in enumerate(manifest.placements):
        first, last = families[at] not in families[:at], families[at] not in families[at + 1 :]
        table.add_row(*map(Text, _row(manifest, entry, wide=wide, first=first)), end_section=last)
    return table


def _row(manifest: Manifest, entry: PlacementEntry, *, wide: bool, first: bool) -> list[str]:
    """`first` of its family: its siblings leave out what they share."""
    cost = entry.cost
    cells = [entry.id]
    if wide:
        cells.append((_crossing(entry) or "-") if first else "")
    cells += [
        (entry.precision if entry.head else "-") if first else "",
        f"{(cost.edge_s + cost.encode_s) * 1e3:.2f}",
        f"{cost.up_nbytes:,.0f}",
        f"{(cost.decode_s + cost.tail_s) * 1e3:.2f}" if entry.tail else "-",
        ", ".join(f"{number(low)}..{number(high)}" for name, high, low in manifest.plan if name == entry.id) or "never",
    ]
    if wide:
        cells.append(_metric(entry))
    return cells


def _crossing(entry: PlacementEntry) -> str:
    return ", ".join(f"{t.spec.name} {t.spec.dtype}" for t in entry.boundary)


def _below(manifest: Manifest) -> list[str]:
    """What a narrow table has no columns for: what crosses, and the metrics; once for codings that agree."""
    families: dict[str, list[PlacementEntry]] = {}
    for entry in manifest.placements:
        families.setdefault(family_of(entry.id), []).append(entry)
    lines = []
    for family, entries in families.items():
        crossing = f"{_crossing(entries[0])} crosses; " if entries[0].boundary else ""
        first = _metric(entries[0])
        lines.append(f"{family}: {crossing}{first}")
        lines += [f"{entry.id}: {_metric(entry)}" for entry in entries[1:] if _metric(entry) != first]
    return lines


def _halves(manifest: Manifest) -> list[str]:
    """Tails in float16, with the worst that one achieves under any coding of its cut."""
    lines = []
    for family in dict.fromkeys(family_of(entry.id) for entry in manifest.placements):
        mine = [entry for entry in manifest.placements if family_of(entry.id) == family]
        halves = [entry.half for entry in mine if entry.half is not None]
        if not halves:
            continue
        half, tail = manifest.files[halves[0].file], manifest.files[mine[0].tail or ""]
        worst = min((each.certificate for each in halves), key=lambda proof: proof.achieved)
        sizes = f", {half.nbytes / 1e6:.2f} instead of {tail.nbytes / 1e6:.2f} MB"
        if any(name.startswith(f"{WEIGHTS}/") for name in manifest.files):
            sizes = ""  # the weights lie beside, and cuts share them
        lines.append(f"{family}: tail in float16 too{sizes}, {worst.metric} {worst.achieved:.4f} at worst")
    return lines


def _metric(entry: PlacementEntry) -> str:
    seen = entry.certificate
    if seen is None:
        return "-"
    return f"{seen.metric} {seen.achieved:.4f} ({seen.reference:.4f}, {seen.bound:.4f}) on {seen.samples}"


def _print_measured(measured: Sequence[Measured], console: Console, *, wide: bool) -> None:
    """The cuts in their order in the model; many codings of many cuts are cut short to those with the fewest bytes."""
    shown = sorted(measured, key=lambda m: m.cost.up_nbytes)[:MOST_MEASURED]
    table = Table(title="cuts measured", title_justify="left")
    table.add_column("cut", overflow="fold")
    for heading in ("before", "head", "coding", "edge ms", "bytes up", "tail ms", *(["kept as"] if wide else [])):
        table.add_column(heading, justify="right")
    for seen in sorted(shown, key=lambda m: m.share):
        cost = seen.cost
        cells = [
            ", ".join(seen.cut),
            f"{seen.share:.0%}",
            seen.precision,
            seen.rung or "lossless",
            f"{(cost.edge_s + cost.encode_s) * 1e3:.2f}",
            f"{cost.up_nbytes:,.0f}",
            f"{(cost.decode_s + cost.tail_s) * 1e3:.2f}",
            *([seen.kept_as or "-"] if wide else []),
        ]
        table.add_row(*map(Text, cells), style="bold" if seen.kept_as else None)
    console.print(table)
    if len(measured) > len(shown):
        console.print(f"and {len(measured) - len(shown)} that send more; the manifest lists all", highlight=False)


def _print_grid(grid: Grid, console: Console) -> None:
    table = Table(title=grid.title, title_justify="left")
    for heading in grid.headings:
        figure = heading.startswith("#")
        table.add_column(heading.removeprefix("#"), justify="right" if figure else "left", no_wrap=figure)
    for at, cells in enumerate(grid.rows):
        table.add_row(*map(Text, cells), style="bold" if at in grid.chosen else None)
    console.print(table)
    console.print(grid.about, highlight=False, markup=False)


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
    said = f"{verified.bundle}: {verified.files} files match their digests; answers on {kind}"
    console.print(said, highlight=False, markup=False)
    console.print(f"signature: {verified.signature.sentence}", highlight=False, markup=False)
    table = Table()
    halves = ("in float16",) if any(seen.half is not None for seen in verified.placements) else ()
    for heading in ("placement", "metric", "reference", "achieved", *halves, "bound", "samples", "max |difference|"):
        table.add_column(heading)
    for seen in verified.placements:
        bound = "-" if seen.bound is None else f"{seen.bound:.4f}"
        half = ("-" if seen.half is None else f"{seen.half:.4f}",) if halves else ()
        numbers = (f"{seen.reference:.4f}", f"{seen.achieved:.4f}", *half, bound, str(seen.samples))
        table.add_row(*map(Text, (seen.id, seen.metric, *numbers, f"{seen.max_abs_difference:.3g}")))
    console.print(table)


def print_inspection(seen: Inspection, console: Console) -> None:
    for word, specs in (("takes", seen.inputs), ("gives", seen.outputs)):
        console.print(f"{word} {'; '.join(describe(s) for s in specs)}", highlight=False, markup=False)
    size = "unknown" if seen.input_nbytes is None else f"{seen.input_nbytes:,} bytes"
    said = f"{seen.name}: {len(seen.cuts)} cuts over {seen.nodes} nodes; raw input {size}"
    console.print(said, highlight=False, markup=False)
    table = Table()
    table.add_column("cut", overflow="fold")
    table.add_column("compute before", justify="right")
    table.add_column("bytes before coding", justify="right")
    for cut in seen.cuts:
        nbytes = "?" if cut.wire_nbytes is None else f"{cut.wire_nbytes:,}"
        table.add_row(*map(Text, (", ".join(cut.cut), f"{cut.share:.1%}", nbytes)))
    console.print(table)
    for note in seen.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
