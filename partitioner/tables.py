"""What `simulate` and `explain` print in a terminal, readable at 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from partitioner.explain import Explanation
from partitioner.replay import Reaction, Run, Simulated
from partitioner.sentences import sentences

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


def _runs(seen: Simulated) -> Table:
    table = Table(title="mean, p50 and p95 in ms; what is late counts with its whole budget", title_justify="left")
    table.add_column("placement", overflow="fold")
    for heading in ("mean", "p50", "p95", "late", "isthmus is"):
        table.add_column(heading, justify="right")
    table.add_row(*_row(seen.isthmus, ""), style="bold")
    table.add_row(*_row(seen.oracle, _compared(seen.regret)), end_section=True)
    for run in sorted(seen.fixed, key=lambda r: r.mean_s):
        table.add_row(*_row(run, _compared(seen.versus[run.name])))
    return table


def _row(run: Run, compared: str) -> list[str]:
    times = [f"{seconds * 1e3:.1f}" for seconds in (run.mean_s, run.p50_s, run.p95_s)]
    return [run.name, *times, str(run.late), compared]


def _compared(share: float) -> str:
    if abs(share) < 0.0005:
        return "as fast"
    return f"{share:.1%} slower" if share > 0 else f"{1 / (1 + share):.2f} x faster"


def _reaction(seen: Reaction) -> str:
    step = f"at {seen.at_s:g} s, {seen.from_mbit:g} to {seen.to_mbit:g} Mbit/s"
    if seen.requests is None:
        return f"{step}: {seen.best} would have been best and was never chosen"
    when = "at once" if seen.requests == 0 else f"after {seen.requests} request{'s' * (seen.requests != 1)}"
    return f"{step}: {seen.best} or what is as good came {when}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
