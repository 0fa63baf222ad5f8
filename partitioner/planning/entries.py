"""The manifest and the bytes of every file that it lists, from what was judged and measured."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from partitioner.int8.eight_bits import RecipeBook
from partitioner.int8.recipes import RecipeResult, by_damage
from partitioner.planning import select
from partitioner.planning.costs import EDGE_ONLY, FULL_CLOUD, id_of
from partitioner.planning.ends import Ends
from partitioner.planning.halving import Half
from partitioner.planning.joining import Joined
from partitioner.planning.known import make_known
from partitioner.planning.workshop import Segment, Variant, Workshop
from partitioner.planning.write import with_weights
from partitioner.solver.constraints import described
from protocol import bundle
from protocol.bundle import (
    CommonSuffix,
    Conditions,
    FileEntry,
    HalfTail,
    LayerLoss,
    Manifest,
    ModelInfo,
    PlacementEntry,
    TriedRecipe,
)
from protocol.engines import ort
from protocol.latency import PlacementCost
from protocol.messages import PlacementKind

if TYPE_CHECKING:
    from partitioner.planning.build import Order
    from partitioner.planning.choose import Findings

FULL, EDGE, SUFFIX, FULL_HALF = "full.onnx", "edge.onnx", "suffix.onnx", "full.fp16.onnx"
_VERSIONS = ("numpy", "onnx", "onnx-ir", "isthmus")


def compose(
    order: Order,
    shop: Workshop,
    ends: Ends,
    findings: Findings,
    joined: Joined | str | None = None,
    halves: Mapping[str, Half | str] | None = None,
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the bytes of every file it lists. `joined` is the common suffix, or why there is none; `halves`
    are tails in float16 by cut, or why there is none.
    """
    segments, costs = findings.kept, findings.costs
    notes = findings.notes if not isinstance(joined, str) else (*findings.notes, f"no common suffix: {joined}")
    files = {FULL: ends.full, EDGE: ends.edge}
    for name, segment in segments.items():
        files |= {f"{name}/head.onnx": segment.head, f"{name}/tail.onnx": segment.tail}
    if isinstance(joined, Joined):
        files |= {SUFFIX: joined.suffix} | {_bridge(name): graph for name, graph in joined.bridges.items()}
    halves = halves or {}
    files |= {_half(name): half.graph for name, half in halves.items() if isinstance(half, Half)}
    files = with_weights(files)
    entries = {name: FileEntry(bundle.sha256(content), len(content)) for name, content in files.items()}
    placements = [_full_entry(shop, ends, v, entries, costs) for v in ends.full_variants]
    for name, segment in segments.items():
        placements += [_cut_entry(name, segment, v, entries, costs) for v in segment.variants]
    placements = [p for p in (*placements, _edge_entry(ends, costs)) if p.id in costs]  # some break a constraint
    placements = [_with_half(p, halves) for p in placements]
    question = make_known(shop, tuple(placements), files) if order.known_answer else "it was not wanted"
    if isinstance(question, str):
        notes = (*notes, f"no known answer: {question}")
    else:
        files[question[0].file] = question[1]
        entries[question[0].file] = FileEntry(bundle.sha256(question[1]), len(question[1]))
    manifest = Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        model=ModelInfo(
            name=shop.model.name,
            digest=entries[FULL].sha256,
            source_digest=shop.model.source_digest,
            opset=shop.model.opset,
            inputs=shop.model.inputs,
            outputs=shop.model.outputs,
        ),
        files=entries,
        placements=tuple(placements),
        conditions=_conditions(order, shop, findings.slowdown),
        plan=tuple((s.id, s.from_mbit, s.to_mbit) for s in select.plan(costs, order.search.scope)),
        notes=(*shop.model.notes, *_data_notes(shop), *notes),
        measured=findings.measured,
        recipes=_recipes(shop.book),
        layers=_layers(shop.book),
        suffix=CommonSuffix(SUFFIX, joined.batch_axes, joined.output_axes, joined.difference)
        if isinstance(joined, Joined)
        else None,
        known=None if isinstance(question, str) else question[0],
    )
    return manifest, files


def _recipes(book: RecipeBook | None) -> tuple[TriedRecipe, ...]:
    if book is None:
        return ()
    chosen = book.whole.recipe if isinstance(book.whole, RecipeResult) else None
    return tuple(
        TriedRecipe(
            trial.recipe.title,
            trial.fit.metric if trial.fit else None,
            trial.holds,
            trial.ratio,
            trial.held_out.metric if trial.held_out else None,
            trial.recipe == chosen,
            trial.problem,
        )
        for trial in book.whole.trials
    )


def _layers(book: RecipeBook | None) -> tuple[LayerLoss, ...]:
    """What each layer costs, worst first; infinite ratios (nothing lost) are None."""
    costs = by_damage(book.whole.layers) if book is not None else []
    return tuple(
        LayerLoss(c.layer.name, c.layer.op, _finite(c.own_db), _finite(c.outputs_db), c.saved, c.left_float)
        for c in costs
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _full_entry(
    shop: Workshop,
    ends: Ends,
    variant: Variant,
    entries: Mapping[str, FileEntry],
    costs: Mapping[str, PlacementCost],
) -> PlacementEntry:
    id_ = id_of(FULL_CLOUD, variant.rung)
    return PlacementEntry(
        id=id_,
        kind=PlacementKind.FULL_CLOUD,
        cut=tuple(s.name for s in shop.model.inputs),
        head=None,
        tail=FULL,
        segment=entries[FULL].sha256,
        precision="none",
        boundary=variant.boundary,
        head_outputs=(),
        batch=ends.full_batch,
        cost=costs.get(id_, PlacementCost()),
        certificate=variant.certificate,
    )


def _cut_entry(
    name: str,
    segment: Segment,
    variant: Variant,
    entries: Mapping[str, FileEntry],
    costs: Mapping[str, PlacementCost],
) -> PlacementEntry:
    head, tail, id_ = f"{name}/head.onnx", f"{name}/tail.onnx", id_of(name, variant.rung)
    return PlacementEntry(
        id=id_,
        kind=PlacementKind.CUT,
        cut=segment.cut,
        head=head,
        tail=tail,
        segment=bundle.segment_digest(entries[head].sha256, entries[tail].sha256, variant.boundary),
        precision=segment.precision,
        boundary=variant.boundary,
        head_outputs=segment.head_outputs,
        batch=segment.batch,
        cost=costs.get(id_, PlacementCost()),
        certificate=variant.certificate,
        notes=segment.notes if not variant.rung else (),
        bridge=_bridge(name) if _bridge(name) in entries else None,
    )


def _with_half(entry: PlacementEntry, halves: Mapping[str, Half | str]) -> PlacementEntry:
    name = entry.id.partition(".")[0]  # codings of a cut share its tail
    half = halves.get(name)
    if isinstance(half, Half):
        return structs.replace(entry, half=HalfTail(_half(name), half.certificates[entry.id]))
    if half is None or entry.id != name:
        return entry
    return structs.replace(entry, notes=(*entry.notes, f"no tail in float16: {half}"))


def _half(name: str) -> str:
    return FULL_HALF if name == FULL_CLOUD else f"{name}/tail.fp16.onnx"


def _bridge(name: str) -> str:
    return f"{name}/bridge.onnx"


def _edge_entry(ends: Ends, costs: Mapping[str, PlacementCost]) -> PlacementEntry:
    return PlacementEntry(
        id=EDGE_ONLY,
        kind=PlacementKind.EDGE_ONLY,
        cut=(),
        head=EDGE,
        tail=None,
        segment=None,
        precision=ends.edge_precision,
        boundary=(),
        head_outputs=(),
        batch=None,
        cost=costs.get(EDGE_ONLY, PlacementCost()),
        certificate=ends.edge_certificate,
        notes=ends.edge_notes,
    )


def _conditions(order: Order, shop: Workshop, slowdown: float) -> Conditions:
    edge = order.search.machines.profiles.get("edge")
    return Conditions(
        machine=f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        edge_slowdown=slowdown,
        threads=order.threads,
        tail_threads=order.tail_threads,
        rtt_s=order.search.scope.rtt_s,
        precision_asked=order.precision,
        head_engine=order.head_engine,
        versions={
            "python": platform.python_version(),
            "onnxruntime": ort.version(),
            **{name.replace("-", "_"): metadata.version(name) for name in _VERSIONS},
        },
        calibration_digest=shop.samples.digest,
        calibration_samples=len(shop.samples.calibration),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        label_offset=order.label_offset,
        stream=order.stream,
        device=edge.machine if edge is not None else None,
        declared_inputs=order.inputs,
        planned=order.search.scope,
        constraints=described(order.search.constraints),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _head_notes(shop: Workshop) -> tuple[str, ...]:
    if shop.times_heads:
        return ()
    return (
        "heads were made for TensorRT: the device's times are those of their float forms on this machine, times the "
        "slow-down; agents learn the true ones",
    )


def _data_notes(shop: Workshop) -> tuple[str, ...]:
    given = (*shop.samples.notes, *shop.notes, *_head_notes(shop))
    if not shop.samples.is_random:
        return given
    return (
        *given,
        f"inputs were random: {shop.yardstick.metric} is with the whole model, not with truth; "
        "give real samples with --calibration DATA.npz",
    )
