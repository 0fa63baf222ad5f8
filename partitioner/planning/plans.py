"""A plan on paper: the table, how it was found, the cuts to build. `partitioner plan` writes it, `split --plan` reads.

Everything in it was built and measured; what is missing to a bundle is only the files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from partitioner.planning.build import Order, decide
from protocol.bench import Reporter
from protocol.bundle import Conditions, Manifest, Measured
from protocol.documents import decode_document
from protocol.errors import InputError
from protocol.latency import LinkState
from protocol.messages import PlacementKind
from protocol.outputs import write_output
from protocol.plan import OBJECTIVES, PlanTable, Row, plan_table

SCHEMA_VERSION = 1
ACCURACY = "accuracy"  # the metric that each row achieved, whichever it is


class Front(msgspec.Struct, frozen=True):
    """The rows that no other row beats in all objectives together, over one link."""

    objectives: tuple[str, ...]
    mbit: float
    rows: tuple[str, ...]
    values: dict[str, dict[str, float]]  # objective -> placement id -> value


class PlanDocument(msgspec.Struct, frozen=True):
    schema_version: int
    model: str
    source_digest: str  # of the model file
    table: PlanTable
    cuts: tuple[tuple[str, ...], ...]  # of the families kept, in order of depth
    conditions: Conditions
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]
    front: Front | None = None


def make_plan(order: Order, objectives: tuple[str, ...], mbit: float, reporter: Reporter) -> PlanDocument:
    """Find the plan. Raises InputError for constraints that conflict and for unknown objectives, ModelError, ..."""
    known = (*OBJECTIVES, ACCURACY)
    if unknown := [name for name in objectives if name not in known]:
        raise InputError(f"{unknown[0]!r} is no objective of --pareto", f"give some of {', '.join(known)}")
    manifest = decide(order, reporter).manifest
    table = table_of(manifest, order)
    return PlanDocument(
        SCHEMA_VERSION,
        manifest.model.name,
        manifest.model.source_digest,
        table,
        tuple(dict.fromkeys(p.cut for p in manifest.placements if p.kind is PlacementKind.CUT)),
        manifest.conditions,
        manifest.measured,
        manifest.notes,
        front_of(table, objectives, mbit) if objectives else None,
    )


def table_of(manifest: Manifest, order: Order) -> PlanTable:
    """The manifest's placements as a table, the metric that each achieved as attribute `accuracy`."""
    rows = [
        Row(p.id, p.cost, {} if p.certificate is None else {ACCURACY: p.certificate.achieved})
        for p in manifest.placements
    ]
    return plan_table(rows, order.search.scope)


def front_of(table: PlanTable, objectives: tuple[str, ...], mbit: float) -> Front:
    rate = mbit * 1e6 / 8
    conditions = table.conditions
    link = LinkState(rate, conditions.rtt_s, rate / conditions.up_over_down if conditions.up_over_down else 1e18)
    rows = table.pareto(objectives, link, greatest=(ACCURACY,))
    return Front(objectives, mbit, rows, {o: table.values(o, link) for o in objectives})


def write_plan(path: Path, document: PlanDocument) -> None:
    """Raises InputError when the file cannot be written."""
    write_output(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def read_plan(path: Path) -> PlanDocument:
    """Raises InputError for what is no plan, or one of another version."""
    remedy = "write a plan with `partitioner plan MODEL -o PLAN.json`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", remedy) from error
    return decode_document(data, PlanDocument, version=SCHEMA_VERSION, name=str(path), error=InputError, remedy=remedy)


def followed(order: Order, document: PlanDocument) -> Order:
    """The order to build a plan's cuts; where either of the two says so, heads are made for TensorRT."""
    made_for = {order.head_engine, document.conditions.head_engine}
    return replace(
        order,
        cuts=document.cuts,
        source_digest=document.source_digest,
        head_engine="tensorrt" if "tensorrt" in made_for else order.head_engine,
    )


def to_build(path: Path) -> PlanDocument:
    """A plan that asks for cuts. Raises InputError if it says not to split."""
    document = read_plan(path)
    if not document.cuts:
        raise InputError(f"{path} says not to split", "see its notes, or name a cut with --cut")
    return document
