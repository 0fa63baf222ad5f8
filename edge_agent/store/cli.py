"""`edge-agent store`: what waits on this device for a late answer, and what came of it. Works beside a running daemon.

Exit codes: 0 done; 2 a wrong command line; 3 no such ticket, or a file that cannot be written; 12 there is no store,
or the disk does not let it be read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_agent.store.states import State
from protocol.errors import InputError
from protocol.outputs import check_output, write_output
from protocol.terminal import print_json

if TYPE_CHECKING:
    from edge_agent.outcomes import Answer
    from edge_agent.store.journal import Journal
    from edge_agent.store.tickets import Ticket
    from protocol.tensors import Tensors

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Requests stored for late answers.")

StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="ISTHMUS_AGENT__STATE_DIR", help="The daemon's state directory.")
]
Name = Annotated[str, typer.Argument(metavar="TICKET", help="As `put` returned it.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
STATE_DIR = Path("/var/lib/isthmus")


@app.command("list")
def list_(
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only those with a larger sequence number.")] = 0,
    most: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many, the oldest first.")] = 1000,
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Show tickets in the order they were stored, and how much lies there in all."""
    with _store(state_dir) as journal:
        found, totals = journal.entries(state=state, after=after, most=most), journal.totals()
    if json:
        tickets = {name.value: count for name, count in totals.tickets.items()}
        print_json({"totals": {"tickets": tickets, "nbytes": totals.nbytes}, "tickets": [_document(t) for t in found]})
        return
    for ticket in found:
        print(
            f"{ticket.id:<28} {ticket.state:<9} {ticket.priority} {_ago(ticket)} {ticket.nbytes:>12,} B {_told(ticket)}"
        )
    counts = ", ".join(f"{count} {name}" for name, count in totals.tickets.items())
    print(f"{counts}; {totals.nbytes:,} bytes")


@app.command()
def show(ticket: Name, state_dir: StateDir = STATE_DIR, json: Json = False) -> None:
    """Show one ticket: its tensors, or its answer's, and where that was made. The answer stays."""
    with _store(state_dir) as journal:
        found = _known(journal.look(ticket), ticket)
        inputs = journal.inputs(ticket)
    if json:
        answer = found.answer
        print_json(
            {
                **_document(found),
                "inputs": None if inputs is None else _shapes(inputs),
                "answer": None if answer is None else {**_made(answer), "outputs": _shapes(answer.outputs)},
            }
        )
        return
    print(f"{found.id} {found.state} {_told(found)}".rstrip())
    for name, tensor in (_shapes(inputs) if inputs is not None else {}).items():
        print(f"  input  {name}: {tensor['dtype']} {tensor['shape']}")
    if found.answer is not None:
        for name, tensor in _shapes(found.answer.outputs).items():
            print(f"  output {name}: {tensor['dtype']} {tensor['shape']}")
        print(", ".join(f"{name} {value}" for name, value in _made(found.answer).items()))


@app.command()
def drop(
    tickets: Annotated[list[str], typer.Argument(metavar="TICKET...", help="As `put` returned them.")],
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Forget tickets, whether they wait or have ended. An answer that is on its way comes to nothing."""
    with _store(state_dir) as journal:
        dropped = [found for ticket in tickets if (found := journal.drop(ticket)) is not None]
    if json:
        print_json({"dropped": [_document(ticket) for ticket in dropped]})
    else:
        print(f"{len(dropped)} of {len(tickets)} dropped")


@app.command()
def export(
    ticket: Name,
    output: Annotated[Path, typer.Option("-o", "--output", help="An .npz file.", show_default=False)],
    state_dir: StateDir = STATE_DIR,
    json: Json = False,
) -> None:
    """Write a ticket's tensors to a file: its answer's outputs, or its inputs while it waits. Nothing is removed."""
    import numpy as np

    check_output(output)
    with _store(state_dir) as journal:
        found = _known(journal.look(ticket), ticket)
        tensors = found.answer.outputs if found.answer is not None else journal.inputs(ticket)
    if tensors is None:
        raise InputError(f"ticket {ticket} is {found.state}: it has no tensors", "`edge-agent store show` says why")
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **tensors)
    write_output(output, file.getvalue())
    if json:
        print_json({"ticket": found.id, "state": found.state, "output": str(output), "tensors": _shapes(tensors)})
    else:
        print(f"{output}: {', '.join(tensors)}")


@contextmanager
def _store(state_dir: Path) -> Iterator[Journal]:
    from edge_agent.store.journal import Journal

    with Journal(state_dir / "store", owner=False) as journal:
        yield journal


def _known(found: Ticket | None, ticket: str) -> Ticket:
    if found is None:
        raise InputError(f"ticket {ticket} is not known here, or not any more", "see `edge-agent store list`")
    return found


def _document(ticket: Ticket) -> dict[str, Any]:
    names = (
        "id",
        "state",
        "model",
        "tenant",
        "priority",
        "attempts",
        "unreturned",
        "nbytes",
        "left_s",
        "code",
        "reason",
    )
    stored = datetime.fromtimestamp(ticket.stored_wall_s, UTC).isoformat(timespec="seconds")
    return {**{name: getattr(ticket, name) for name in names}, "stored": stored}


def _made(answer: Answer) -> dict[str, Any]:
    return {
        name: getattr(answer, name) for name in ("placement", "precision", "engine", "bundle", "degraded", "causes")
    }


def _shapes(tensors: Tensors) -> dict[str, dict[str, Any]]:
    from protocol.tensors import dtype_name

    return {name: {"dtype": dtype_name(name, array), "shape": list(array.shape)} for name, array in tensors.items()}


def _ago(ticket: Ticket) -> str:
    return datetime.fromtimestamp(ticket.stored_wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _told(ticket: Ticket) -> str:
    if ticket.state is State.WAITING:
        return f"{ticket.model} tried {ticket.attempts} times, {ticket.left_s:.0f} s left".strip()
    return f"{ticket.model} {ticket.reason}".strip()
