"""From an ONNX file to a bundle: load, calibrate, prove, choose, measure, write. Until it is written all is in memory.

1 load and normalise the model          5 assemble the cuts that were named, or plan (--auto)
2 read or draw samples                   6 time all kept placements in turn
3 observe ranges and true shapes         7 manifest and files, written atomically
4 judge the two ends: full-cloud, edge-only
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from partitioner.graph import inputs
from partitioner.graph.cuts import nearest, resolve, separate
from partitioner.graph.model import LoadedModel, load
from partitioner.int8.eight_bits import find_recipe
from partitioner.int8.recipes import HeadEngine
from partitioner.judging import data, verify
from partitioner.judging.observe import observed_topology, ranges
from partitioner.planning.assemble import assemble
from partitioner.planning.choose import Findings, explore, findings, finish
from partitioner.planning.clock import Clock, Machines
from partitioner.planning.ends import Ends, make_ends
from partitioner.planning.entries import compose
from partitioner.planning.explore import Search
from partitioner.planning.halving import halve
from partitioner.planning.joining import Joined, join
from partitioner.planning.workshop import SLOWER, Segment, Workshop
from partitioner.planning.write import check_target, write_bundle
from protocol.bench import Reporter
from protocol.bundle import Manifest, sha256
from protocol.errors import EngineError, InputError, ModelError
from protocol.profile import check


@dataclass(frozen=True)
class Order:
    """What the user asked for. `cuts` holds tensor or node names, one tuple per cut; empty means --auto."""

    model: Path
    target: Path
    cuts: tuple[tuple[str, ...], ...] = ()
    search: Search = Search(Machines(slowdown=8.0))
    precision: str = "auto"
    recipe_budget_s: float = 30.0  # for the search of an INT8 recipe
    bound: float = 0.01
    head_engine: HeadEngine = "onnxruntime"  # what runs heads, and so what they are made for
    threads: int = 1
    tail_threads: int = 1
    calibration: Path | None = None
    labels: str | None = None
    label_offset: int = 0
    stream: bool = False  # the samples are consecutive frames, and so will be the requests
    lossless_input: bool = False  # full-cloud may not send JPEG
    inputs: tuple[str, ...] = ()  # declared images, in the grammar of docs/inputs.md
    common_suffix: bool = False  # tails that end alike also as bridges to one suffix
    half_tails: bool = False  # tails also in float16, where that holds
    known_answer: bool = True  # one sample and its answers are shipped, for devices to try the bundle with
    force: bool = False
    source_digest: str = ""  # of the model that a plan was made for; "" accepts any


@dataclass(frozen=True)
class Built:
    """The bundle that was written."""

    target: Path
    digest: str
    manifest: Manifest


@dataclass(frozen=True)
class Decided:
    """Everything but the writing."""

    manifest: Manifest
    files: Mapping[str, bytes]


def build(order: Order, reporter: Reporter) -> Built:
    """Build and write a bundle. Raises IsthmusError subclasses; nothing is written then."""
    check_target(order.target, force=order.force)
    decided = decide(order, reporter)
    digest = write_bundle(order.target, decided.manifest, decided.files, force=order.force)
    return Built(order.target, digest, decided.manifest)


def decide(order: Order, reporter: Reporter) -> Decided:
    """Measure, prove and choose. Raises IsthmusError subclasses."""
    reporter.stage(f"reading {order.model}")
    model = load(order.model, inputs=inputs.parse(order.inputs))
    if order.source_digest not in ("", model.source_digest):
        raise InputError(f"the plan is of another model than {order.model}", "plan this one with `partitioner plan`")
    cuts = tuple(dict.fromkeys(resolve(model.topology, names) for names in order.cuts))
    for cut in cuts:
        separate(model.topology, cut)
    _check_search(order, model)
    samples = _samples(order, model)
    shop = workshop(order, model, samples, reporter)
    reporter.stage("judging full-cloud and edge-only")
    ends = make_ends(shop)
    found = _named_cuts(order, shop, ends, cuts, reporter) if cuts else explore(shop, ends, order.search, reporter)
    joined: Joined | str | None = None
    if order.common_suffix:
        reporter.stage("looking for the suffix that tails have in common")
        joined = join(shop, found.kept)
    halves = None
    if order.half_tails:
        reporter.stage("judging tails in float16")
        halves = halve(shop, ends, found.kept, found.costs, order.search.constraints.min_accuracy, reporter)
    return Decided(*compose(order, shop, ends, found, joined, halves))


def _check_search(order: Order, model: LoadedModel) -> None:
    """Profiles must be of this model, and pinned nodes must exist: said before minutes are spent."""
    search = order.search
    for role, profile in search.machines.profiles.items():
        threads = order.threads if role == "edge" else order.tail_threads
        check(profile, name=f"the --{role} profile", role=role, model_digest=sha256(model.data), threads=threads)
    names = {step.name for step in model.topology.steps}
    unknown = [name for name in search.constraints.on_device if name not in names]
    if unknown:
        raise InputError(
            f"the model has no node {unknown[0]!r} to keep on the device", nearest(unknown[0], list(names))
        )


def _samples(order: Order, model: LoadedModel) -> data.Samples:
    if order.calibration is None:
        return data.random(model.inputs)
    return data.load(
        order.calibration,
        model.inputs,
        labels=order.labels,
        label_offset=order.label_offset,
        classes=data.classes_of(model.outputs),
        consecutive=order.stream,
    )


def workshop(order: Order, model: LoadedModel, samples: data.Samples, reporter: Reporter) -> Workshop:
    """What all cuts of one build share: ranges, yardstick, INT8 recipe. Raises ModelError and EngineError."""
    reporter.stage("observing the model on calibration data")
    model = replace(model, topology=observed_topology(model, samples))
    seen = ranges(model, samples, threads=verify.JUDGING_THREADS, progress=reporter.progress)
    some = samples.held_out[: verify.PARITY_SAMPLES]
    exact = verify.run_all(model.data, samples, some, optimise=False)
    _check_normal_form(model, samples, exact)
    reporter.stage("running the whole model on the held-out samples")
    expected = verify.run_all(model.data, samples, samples.held_out)
    stick = verify.yardstick(expected, samples, model.topology.outputs[0], order.bound)
    precision, book, notes = order.precision, None, tuple[str, ...]()
    if precision != "fp32":
        reporter.stage("searching the fastest INT8 recipe that keeps the bound")
        most = math.inf if precision == "int8" else SLOWER  # asked for is asked for, however slow
        budget_s = order.recipe_budget_s
        try:
            book = find_recipe(
                model,
                samples,
                seen,
                stick,
                threads=order.threads,
                budget_s=budget_s,
                max_ratio=most,
                engine=order.head_engine,
            )
        except InputError as error:  # NaN inside the model, for example
            if precision == "int8":
                raise
            precision, notes = "fp32", (f"no INT8: {error.fact}",)
    return Workshop(
        model,
        samples,
        seen,
        stick,
        _calibrated(model, samples, stick),
        tuple(exact),
        book,
        precision,
        order.threads,
        order.tail_threads,
        notes,
        frozenset(i for i, step in enumerate(model.topology.steps) if step.name in order.search.constraints.on_device),
        order.lossless_input,
        order.head_engine,
    )


def _calibrated(model: LoadedModel, samples: data.Samples, stick: verify.Yardstick) -> verify.Yardstick | None:
    indices = samples.calibration
    if not len(indices):
        return None
    labels = None if samples.labels is None else samples.labels[list(indices)]
    return stick.like(verify.run_all(model.data, samples, indices), labels)


def _check_normal_form(model: LoadedModel, samples: data.Samples, exact: Sequence[verify.Outputs]) -> None:
    """The normal form must answer like the file that was handed in; raises ModelError if conversion changed it."""
    indices = samples.held_out[: len(exact)]
    try:
        given = samples if model.front is None else data.prepared(samples, model.front, indices)
        order = indices if given is samples else range(len(given))
        original = verify.run_all(model.source, given, order, optimise=False)
    except EngineError:  # too old for ONNX Runtime as it was: nothing to compare with
        return
    result = verify.difference(original, exact)
    if not result.within:
        raise ModelError(
            f"normalising the model changed its answers by {result.seen:.3g}",
            "export it with opset 17 and no functions",
        )


def _named_cuts(
    order: Order, shop: Workshop, ends: Ends, cuts: Sequence[tuple[str, ...]], reporter: Reporter
) -> Findings:
    segments: dict[str, Segment] = {}
    for done, cut in enumerate(cuts, 1):
        reporter.stage(f"splitting at {', '.join(cut)}")
        segments[f"cut-{done}"] = assemble(shop, cut)
        reporter.progress(done, len(cuts))
    reporter.stage("timing all placements")
    clock = Clock(shop, ends, order.search.machines, reporter)
    costs = finish(shop, ends, segments, clock, order.search, reporter)
    return findings({n: s for n, s in segments.items() if costs[n]}, costs, (), (), order.search.scope, clock.slowdown)
