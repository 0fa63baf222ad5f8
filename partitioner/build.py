"""From an ONNX file to a bundle: load, calibrate, prove, choose, measure, write. Until it is written all is in memory.

1 load and normalise the model          5 assemble the cuts that were named, or explore (--auto)
2 read or draw samples                   6 time all kept placements in turn
3 observe ranges and true shapes         7 manifest and files, written atomically
4 judge the two ends: full-cloud, edge-only
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from partitioner import batch, data, select, verify
from partitioner.assemble import Segment, Workshop, assemble, assemble_edge, boundary_of, proven_batch
from partitioner.costs import EDGE_ONLY, FULL_CLOUD, time_placements
from partitioner.cuts import resolve, separate
from partitioner.explore import Ends, Findings, Measured, Reporter, Search, explore
from partitioner.measure import CODEC_SAMPLES, Coding, choose_coding
from partitioner.model import LoadedModel, load
from partitioner.observe import observed_topology, ranges
from partitioner.write import check_target, write_bundle
from protocol import bundle
from protocol.bundle import (
    BoundaryTensor,
    Conditions,
    FileEntry,
    Manifest,
    ModelInfo,
    ParityCertificate,
    PlacementEntry,
)
from protocol.engines import ort
from protocol.errors import EngineError, ModelError
from protocol.latency import PlacementCost
from protocol.messages import PlacementKind
from protocol.tensors import TensorSpec

FULL, EDGE = "full.onnx", "edge.onnx"
_VERSIONS = ("numpy", "onnx", "onnx-ir", "isthmus")


@dataclass(frozen=True)
class Order:
    """What the user asked for. `cuts` holds tensor or node names, one tuple per cut; empty means --auto."""

    model: Path
    target: Path
    cuts: tuple[tuple[str, ...], ...] = ()
    budget_s: float = 60.0
    edge_slowdown: float = 8.0
    rtt_s: float = 0.010
    precision: str = "auto"
    bound: float = 0.01
    threads: int = 1
    tail_threads: int = 1
    calibration: Path | None = None
    labels: str | None = None
    force: bool = False
    keep_best: bool = False


@dataclass(frozen=True)
class Built:
    """The bundle that was written, and every cut that --auto measured."""

    target: Path
    digest: str
    manifest: Manifest
    measured: tuple[Measured, ...]


class _Ends(NamedTuple):
    """The placements at the model's two ends, as they ship."""

    full: bytes
    full_boundary: tuple[BoundaryTensor, ...]
    full_batch: bundle.BatchProof
    full_coding: Coding
    edge: bytes
    edge_precision: str
    edge_certificate: ParityCertificate
    edge_notes: tuple[str, ...]


def build(order: Order, reporter: Reporter) -> Built:
    """Build and write a bundle. Raises IsthmusError subclasses; nothing is written then."""
    check_target(order.target, force=order.force)
    reporter.stage(f"reading {order.model}")
    model = load(order.model)
    cuts = tuple(dict.fromkeys(resolve(model.topology, names) for names in order.cuts))
    for cut in cuts:
        separate(model.topology, cut)
    samples = _samples(order, model)
    shop = _workshop(order, model, samples, reporter)
    reporter.stage("judging full-cloud and edge-only")
    ends = _ends(shop)
    if cuts:
        findings = _named_cuts(order, shop, ends, cuts, reporter)
    else:
        search = Search(order.budget_s, order.edge_slowdown, order.rtt_s, order.keep_best)
        findings = explore(shop, Ends(ends.full, ends.full_coding, ends.edge), search, reporter)
    manifest, files = _finish(order, shop, ends, findings)
    digest = write_bundle(order.target, manifest, files, force=order.force)
    return Built(order.target, digest, manifest, findings.measured)


def _samples(order: Order, model: LoadedModel) -> data.Samples:
    if order.calibration is None:
        return data.random(model.inputs)
    return data.load(order.calibration, model.inputs, labels=order.labels)


def _workshop(order: Order, model: LoadedModel, samples: data.Samples, reporter: Reporter) -> Workshop:
    reporter.stage("observing the model on calibration data")
    model = replace(model, topology=observed_topology(model, samples))
    seen = ranges(model, samples, threads=verify.JUDGING_THREADS, progress=reporter.progress)
    some = samples.held_out[: verify.PARITY_SAMPLES]
    exact = verify.run_all(model.data, samples, some, optimise=False)
    _check_normal_form(model, samples, exact)
    reporter.stage("running the whole model on the held-out samples")
    expected = verify.run_all(model.data, samples, samples.held_out)
    stick = verify.yardstick(expected, samples, model.topology.outputs[0], order.bound)
    return Workshop(model, samples, seen, stick, tuple(exact), order.precision, order.threads, order.tail_threads)


def _check_normal_form(model: LoadedModel, samples: data.Samples, exact: Sequence[verify.Outputs]) -> None:
    """The normal form must answer like the file that was handed in; raises ModelError if conversion changed it."""
    try:
        original = verify.run_all(model.source, samples, samples.held_out[: len(exact)], optimise=False)
    except EngineError:  # too old for ONNX Runtime as it was: nothing to compare with
        return
    result = verify.difference(original, exact)
    if not result.within:
        raise ModelError(
            f"normalising the model changed its answers by {result.seen:.3g}",
            "export it with opset 17 and no functions",
        )


def _ends(shop: Workshop) -> _Ends:
    edge, precision, certificate, notes = assemble_edge(shop)
    feeds = list(shop.samples.feeds(shop.samples.held_out[:CODEC_SAMPLES]))
    axes: batch.Axes = {s.name: None if s.name in shop.samples.whole else 0 for s in shop.model.inputs}
    full, proof = proven_batch(shop.model.graph, feeds[: batch.PROOF_BATCH], axes)
    if not proof.batchable or shop.free_batch:
        full = shop.model.data
    coding = choose_coding(feeds)
    boundary = boundary_of(_inputs_of(full), coding, axes, proof, {})
    return _Ends(full, boundary, proof, coding, edge, precision, certificate, notes)


def _inputs_of(model: bytes) -> tuple[TensorSpec, ...]:
    with ort.OrtEngine(model, label=FULL, optimise=False) as engine:
        return engine.inputs


def _named_cuts(
    order: Order, shop: Workshop, ends: _Ends, cuts: Sequence[tuple[str, ...]], reporter: Reporter
) -> Findings:
    segments: dict[str, Segment] = {}
    for done, cut in enumerate(cuts, 1):
        reporter.stage(f"splitting at {', '.join(cut)}")
        segments[f"cut-{done}"] = assemble(shop, cut)
        reporter.progress(done, len(cuts))
    reporter.stage("timing all placements")
    costs = time_placements(shop, ends.full, ends.full_coding, ends.edge, segments, slowdown=order.edge_slowdown)
    return Findings(segments, costs, (), ())


def _finish(order: Order, shop: Workshop, ends: _Ends, findings: Findings) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the bytes of every file it lists."""
    segments, costs = findings.kept, findings.costs
    files = {FULL: ends.full, EDGE: ends.edge}
    for name, segment in segments.items():
        files |= {f"{name}/head.onnx": segment.head, f"{name}/tail.onnx": segment.tail}
    entries = {name: FileEntry(bundle.sha256(content), len(content)) for name, content in files.items()}
    placements = [_full_entry(shop, ends, entries, costs)]
    placements += [_cut_entry(name, segment, entries, costs[name]) for name, segment in segments.items()]
    placements.append(_edge_entry(ends, costs))
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
        conditions=_conditions(order, shop),
        plan=tuple((s.id, s.from_mbit, s.to_mbit) for s in select.plan(costs, rtt_s=order.rtt_s)),
        notes=(*shop.model.notes, *_data_notes(shop), *findings.notes),
    )
    return manifest, files


def _full_entry(
    shop: Workshop, ends: _Ends, entries: Mapping[str, FileEntry], costs: Mapping[str, PlacementCost]
) -> PlacementEntry:
    stick = shop.yardstick
    certificate = ParityCertificate(
        fp32_max_abs_difference=0.0,
        fp32_bound=verify.PARITY_BOUND,
        metric=stick.metric,
        reference=stick.reference,
        achieved=stick.reference,
        bound=stick.bound,
        samples=len(stick.expected),
        random_inputs=shop.samples.is_random,
    )
    return PlacementEntry(
        id=FULL_CLOUD,
        kind=PlacementKind.FULL_CLOUD,
        cut=tuple(s.name for s in shop.model.inputs),
        head=None,
        tail=FULL,
        segment=entries[FULL].sha256,
        precision="none",
        boundary=ends.full_boundary,
        head_outputs=(),
        batch=ends.full_batch,
        cost=costs[FULL_CLOUD],
        certificate=certificate,
    )


def _cut_entry(name: str, segment: Segment, entries: Mapping[str, FileEntry], cost: PlacementCost) -> PlacementEntry:
    head, tail = f"{name}/head.onnx", f"{name}/tail.onnx"
    return PlacementEntry(
        id=name,
        kind=PlacementKind.CUT,
        cut=segment.cut,
        head=head,
        tail=tail,
        segment=bundle.segment_digest(entries[head].sha256, entries[tail].sha256, segment.boundary),
        precision=segment.precision,
        boundary=segment.boundary,
        head_outputs=segment.head_outputs,
        batch=segment.batch,
        cost=cost,
        certificate=segment.certificate,
        notes=segment.notes,
    )


def _edge_entry(ends: _Ends, costs: Mapping[str, PlacementCost]) -> PlacementEntry:
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
        cost=costs[EDGE_ONLY],
        certificate=ends.edge_certificate,
        notes=ends.edge_notes,
    )


def _conditions(order: Order, shop: Workshop) -> Conditions:
    return Conditions(
        machine=f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        edge_slowdown=order.edge_slowdown,
        threads=order.threads,
        tail_threads=order.tail_threads,
        rtt_s=order.rtt_s,
        precision_asked=order.precision,
        versions={
            "python": platform.python_version(),
            "onnxruntime": ort.version(),
            **{name.replace("-", "_"): metadata.version(name) for name in _VERSIONS},
        },
        calibration_digest=shop.samples.digest,
        calibration_samples=len(shop.samples.calibration),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _data_notes(shop: Workshop) -> tuple[str, ...]:
    if not shop.samples.is_random:
        return ()
    return (
        f"inputs were random: {shop.yardstick.metric} is with the whole model, not with truth; "
        "give real samples with --calibration DATA.npz",
    )
