"""What `simulate` and `explain` print in a terminal, readable at 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from partitioner.people.explain import Explanation
from partitioner.people.replay import Reaction, Run, Simulated
from partitioner.people.sentences import sentences

if TYPE_CHECKING:  # `explain` and `simulate` answer without the workbench's heavy libraries
    from partitioner.planning.plans import PlanDocument

MOST_ROWS = 20


def print_explained(seen: Explanation, console: Console) -> None:
    """The sentences, and below them where the time of each placement goes."""
    for sentence in sentences(seen):
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    table = Table(title=f"ms at {seen.mbit:g} Mbit/s", title_justify="left")
    table.add_column("placement", overflow="fold")
    for heading in ("in all", "device", "coding", "up", "trip", "cloud", "down"):
        table.add_column(heading, justify="right")
    for ranked in seen.ranking[:MOST_ROWS]:
        stages = ranked.stages.named().values()
        table.add_row(ranked.id, *(f"{seconds * 1e3:.1f}" for seconds in (ranked.total_s, *stages)))
    console.print(table)
    if len(seen.ranking) > MOST_ROWS:
        console.print(f"and {len(seen.ranking) - MOST_ROWS} slower ones; --json lists them all", highlight=False)


def print_simulated(seen: Simulated, console: Console) -> None:
    console.print(
        f"{seen.model} over the trace {seen.trace}: {seen.length_s:g} s, {seen.mean_mbit:.3g} Mbit/s in the mean; "
        f"{seen.requests} requests, {seen.requests_per_s:g} a second, {seen.deadline_s * 1e3:g} ms each; "
        f"round trip {seen.rtt_s * 1e3:g} ms; seed {seen.seed}",
        highlight=False,
        markup=False,
    )
    console.print(_runs(seen))
    shares = ", ".join(f"{id_} {share:.0%}" for id_, share in seen.isthmus.shares.items())
    console.print(f"isthmus answered with: {shares or 'nothing'}", highlight=False, markup=False)
    console.print(
        f"regret against the oracle {seen.regret:.1%}; the placement changed {_times(seen.switches)}", highlight=False
    )
    for reaction in seen.reactions:
        console.print(_reaction(reaction), highlight=False, markup=False)


def print_plan(made: PlanDocument, console: Console) -> None:
    """The stretches with their exact switching bandwidths, every row, the front if one was asked for, and the notes."""
    table = Table(title=f"{made.model}: who is best where", title_justify="left")
    table.add_column("placement", overflow="fold")
    for heading in ("from Mbit/s", "down to"):
        table.add_column(heading, justify="right")
    for stretch in made.table.stretches:
        table.add_row(stretch.id, f"{stretch.from_mbit:.4g}", f"{stretch.to_mbit:.4g}")
    console.print(table)
    console.print(_rows_of_plan(made))
    if made.front is not None:
        what = ", ".join(made.front.objectives)
        console.print(f"no other beats these in {what} at {made.front.mbit:g} Mbit/s: {', '.join(made.front.rows)}")
    for note in made.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def _rows_of_plan(made: PlanDocument) -> Table:
    table = Table(title="every placement, measured", title_justify="left")
    table.add_column("placement", overflow="fold")
    for heading in ("device ms", "bytes up", "cloud ms", "device MB", "cloud MB", "J", "metric"):
        table.add_column(heading, justify="right")
    for row in made.table.rows:
        c = row.cost
        table.add_row(
            row.id,
            f"{(c.edge_s + c.encode_s) * 1e3:.2f}",
            f"{c.up_nbytes:,.0f}",
            f"{(c.decode_s + c.tail_s) * 1e3:.2f}",
            _or_dash(c.edge_memory_nbytes, 1e-6, ".1f"),
            _or_dash(c.cloud_memory_nbytes, 1e-6, ".1f"),
            _or_dash(c.energy_j, 1.0, ".3g"),
            _or_dash(row.attributes.get("accuracy"), 1.0, ".4f"),
        )
    return table


def _or_dash(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)


def _runs(seen: Simulated) -> Table:
    table = Table(title="mean, p50 and p95 in ms; what is late counts with its whole budget", title_justify="left")
    table.add_column("placement", overflow="fold")
    for heading in ("mean", "p50", "p95", "late", "isthmus is"):
        table.add_column(heading, justify="right")
    table.add_row(*_row(seen.isthmus, ""), style="bold")
    table.add_row(*_row(seen.oracle, compared(seen.regret)), end_section=True)
    for run in sorted(seen.fixed, key=lambda r: r.mean_s):
        table.add_row(*_row(run, compared(seen.versus[run.name])))
    return table


def _row(run: Run, compared: str) -> list[str]:
    times = [f"{seconds * 1e3:.1f}" for seconds in (run.mean_s, run.p50_s, run.p95_s)]
    return [run.name, *times, str(run.late), compared]


def compared(share: float) -> str:
    if abs(share) < 0.0005:
        return "as fast"
    if share >= 1:
        return f"{1 + share:.2f} x as long"
    return f"{share:.1%} slower" if share > 0 else f"{1 / (1 + share):.2f} x faster"


def _reaction(seen: Reaction) -> str:
    step = f"at {seen.at_s:g} s, {seen.from_mbit:g} to {seen.to_mbit:g} Mbit/s"
    if seen.requests is None:
        return f"{step}: {seen.best} would have been best and was not chosen in time"
    when = "at once" if seen.requests == 0 else f"after {seen.requests} request{'s' * (seen.requests != 1)}"
    chosen = seen.best if seen.chosen == seen.best else f"{seen.chosen}, about as good as {seen.best},"
    return f"{step}: {chosen} was chosen {when}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
