"""`partitioner profile`: measures a model on this machine, at a few cuts that represent all others.

kernels of two runs (as optimised, without fusion) -> weights of the steps
heads (edge) or tails (cloud) at a few anchors, whole -> what the weights are scaled to
anchors are added, about twice as many each time, until they predict each other or the budget is spent
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import onnx_ir as ir

from partitioner.graph import inputs
from partitioner.graph.cuts import Sides, separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import split
from partitioner.int8.quantise import quantise
from partitioner.judging import batch, data
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges, observed_topology, ranges
from partitioner.measuring.anchors import FIRST_ANCHORS, GOOD_ERROR, MOST_ANCHORS, Predictor, choose, plain_steps
from protocol import sensors
from protocol.bench import Bench, Job, Reporter, kernels
from protocol.bundle import sha256
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError, ModelError
from protocol.outputs import write_output
from protocol.profile import SCHEMA_VERSION, Energy, Profile, Role, Side, StepCost, decode, encode, step_costs
from protocol.tensors import Tensors


@dataclass(frozen=True)
class ProfileOrder:
    """What `partitioner profile` was asked for. `precisions` may hold "int8" for heads (role edge)."""

    model: Path
    role: Role
    budget_s: float = 60.0
    threads: int = 1
    precisions: tuple[str, ...] = ("fp32",)
    calibration: Path | None = None
    memory: bool = True
    batches: bool = True
    most_anchors: int = MOST_ANCHORS
    inputs: tuple[str, ...] = ()  # declared images, in the grammar of docs/inputs.md


def profile(order: ProfileOrder, reporter: Reporter) -> Profile:
    """Measure what `order` asks for. Raises InputError, ModelError or EngineError."""
    return measure(*load_for(order, reporter), order, reporter)


def load_for(order: ProfileOrder, reporter: Reporter) -> tuple[LoadedModel, Samples]:
    """The model, with the shapes that a sample shows, and the samples. Raises InputError or ModelError."""
    reporter.stage("loading the model")
    model = load(order.model, inputs=inputs.parse(order.inputs))
    samples = data.random(model.inputs) if order.calibration is None else data.load(order.calibration, model.inputs)
    return replace(model, topology=observed_topology(model, samples)), samples


def measure(model: LoadedModel, samples: Samples, order: ProfileOrder, reporter: Reporter) -> Profile:
    """`profile` for a model that is loaded already, its topology with the shapes that a sample shows."""
    with Survey(model, samples, order, reporter) as survey:
        cuts = survey.grow()
        survey.finish(cuts)
        return survey.profile()


class Survey:
    """Measures segments of one model on this machine, side by side with the model itself.

    with Survey(model, samples, order, reporter) as survey:
        survey.grow()          # anchors until they predict each other
        survey.profile()

    The model's topology must hold the shapes that a sample shows (`observed_topology`).
    """

    def __init__(self, model: LoadedModel, samples: Samples, order: ProfileOrder, reporter: Reporter) -> None:
        self.order = order
        self.segments = Segments(model, samples, threads=order.threads)
        self.bench = Bench(model.data, samples.feed(0), threads=order.threads)
        self._model = model
        self._feed = samples.feed(0)
        self._reporter = reporter
        self._costs: dict[str, StepCost] = {}
        self._energy: Energy | None = None

    def __enter__(self) -> Self:
        self.bench.__enter__()
        self._costs = weigh(self._model, self._feed, self.order.threads, self._reporter)
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.__exit__()

    def grow(self) -> list[tuple[str, ...]]:
        """Measure a few cuts, then about twice as many, until they predict each other or the budget is spent."""
        started = time.monotonic()
        self.bench.measure(whole_jobs(self.segments, self.order), budget_s=0.0, reporter=self._reporter)
        taken: list[tuple[str, ...]] = []
        count = FIRST_ANCHORS
        while cuts := choose(self._model.topology, self._costs, count, taken=taken):
            left = self.order.budget_s - (time.monotonic() - started)
            if taken and left <= 0.0:
                break
            taken += cuts
            self.time(cuts, budget_s=left)
            count *= 2
            if count > self.order.most_anchors or Predictor(self.profile(), self._model.topology).error <= GOOD_ERROR:
                break
        return taken

    def time(self, cuts: Sequence[tuple[str, ...]], *, budget_s: float) -> None:
        """Measure this role's segments at these cuts. Raises ModelError for a cut that does not separate."""
        jobs = anchor_jobs(self.segments, self.order, cuts)
        self.bench.measure(jobs, budget_s=budget_s, reporter=self._reporter)

    def finish(self, cuts: Sequence[tuple[str, ...]]) -> None:
        """What is measured once: batches of the whole model and of the middle cut (cloud), memory, energy."""
        if self.order.batches and self.order.role == "cloud":
            self.bench.measure_batches(self.segments.batch_jobs(cuts[2:3] or cuts[:1]), reporter=self._reporter)
        if self.order.memory:
            wholes = [self.segments.whole(), *whole_jobs(self.segments, self.order)]
            jobs = [*wholes, *anchor_jobs(self.segments, self.order, cuts[:FIRST_ANCHORS])]
            self.bench.measure_memory(jobs, reporter=self._reporter)
        self._energy = self.bench.energy(reporter=self._reporter)

    def profile(self) -> Profile:
        """What was measured so far."""
        return Profile(
            schema_version=SCHEMA_VERSION,
            role=self.order.role,
            model=self._model.name,
            model_digest=sha256(self._model.data),
            machine=sensors.machine(),
            threads=self.order.threads,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            steps=self._costs,
            anchors=self.bench.anchors(),
            energy=self._energy,
            notes=self._model.notes,
        )


def anchor_jobs(segments: Segments, order: ProfileOrder, cuts: Sequence[tuple[str, ...]]) -> list[Job]:
    """The role's segments at these cuts: heads in every precision asked for, or tails."""
    if order.role == "cloud":
        return [segments.job(cut, "tail") for cut in cuts]
    return [segments.job(cut, "head", precision) for cut in cuts for precision in order.precisions]


def whole_jobs(segments: Segments, order: ProfileOrder) -> list[Job]:
    """The whole model in the precisions besides fp32, which is the yardstick and measured anyway."""
    return [segments.whole(p) for p in order.precisions if p != "fp32"] if order.role == "edge" else []


def weigh(model: LoadedModel, feed: Tensors, threads: int, reporter: Reporter) -> dict[str, StepCost]:
    """Seconds of every live step by name, from the kernels of two profiled runs."""
    reporter.stage("timing kernels")
    topology = model.topology
    optimised = kernels(model.data, feed, threads=threads, optimise=True)
    plain = kernels(model.data, feed, threads=threads, optimise=False)
    work = {topology.steps[i].name: topology.work[i] for i in topology.live_steps}
    return step_costs(plain_steps(topology), optimised, plain, work)


def read(path: Path) -> Profile:
    """Read a profile file. Raises InputError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "give a file of `partitioner profile`") from error
    return decode(raw, name=str(path))


def describe(made: Profile) -> str:
    """One line for people."""
    whole = made.anchors[0].time
    half = (whole.high_s - whole.low_s) / 2.0
    energy = "no energy sensor" if made.energy is None else f"{made.energy.joules * 1e3:.1f} mJ a run"
    return (
        f"{made.model} takes {whole.median_s * 1e3:.3f} +- {half * 1e3:.3f} ms here; "
        f"{len(made.anchors) - 1} segments measured, {energy}"
    )


def write(path: Path, made: Profile) -> None:
    """Write a profile file. Raises InputError when it cannot be written."""
    write_output(path, encode(made))


class Segments:
    """Makes the segments of one model on demand: none is kept, since each may be as large as the model."""

    def __init__(self, model: LoadedModel, samples: Samples, *, threads: int) -> None:
        self._model = model
        self._samples = samples
        self._threads = threads
        self._ranges: Ranges | None = None

    def job(self, cut: tuple[str, ...], side: Side, precision: str = "fp32") -> Job:
        """Raises ModelError when `cut` does not separate."""
        sides = separate(self._model.topology, cut)
        return Job(cut, side, precision, lambda: self._load(sides, side, precision))

    def whole(self, precision: str = "fp32") -> Job:
        """The whole model, as edge-only or full-cloud run it."""
        return Job((), "whole", precision, lambda: (self._in(self._model.graph, precision), self._samples.feed(0)))

    def batch_jobs(self, cuts: Sequence[tuple[str, ...]]) -> list[Job]:
        """The whole model and the tails at `cuts`, as far as they were shown to take batches."""
        return [job for cut in ((), *cuts) if (job := self._batch_job(cut)) is not None]

    def _batch_job(self, cut: tuple[str, ...]) -> Job | None:
        feeds = batch.alike(self._samples)
        graph, free = self._model.graph, self._free_batch
        axes: batch.Axes = dict.fromkeys(self._model.topology.inputs, 0 if free else None)
        if cut:
            halves = split(self._model, separate(self._model.topology, cut))
            graph = halves.tail
            with OrtEngine(serialise(halves.head), label="head", threads=self._threads) as engine:
                axes = batch.crossing_axes(engine, cut, feeds, free)
                feeds = [{n: made[n] for n in cut} for made in map(engine.infer, feeds)]
        taking_batches, proof = batch.proven_batch(graph, feeds, axes)
        if not proof.batchable:
            return None
        known = {name: axis for name, axis in axes.items() if axis is not None}
        return Job(cut, "tail" if cut else "whole", "fp32", lambda: (taking_batches, feeds[0]), known)

    @property
    def _free_batch(self) -> bool:
        """Whether every model input leaves its first dimension free."""
        whole = self._samples.whole
        return all(s.name not in whole and s.shape and not isinstance(s.shape[0], int) for s in self._model.inputs)

    def _load(self, sides: Sides, side: Side, precision: str) -> tuple[bytes, Tensors]:
        halves = split(self._model, sides)
        feed = self._samples.feed(0)
        if side == "tail":
            return serialise(halves.tail), self._crossing(serialise(halves.head), sides.cut, feed)
        try:
            return self._in(halves.head, precision), feed
        except ModelError:  # an early head with nothing in it that may become eight bits
            return serialise(halves.head), feed

    def _in(self, graph: ir.Model, precision: str) -> bytes:
        return serialise(quantise(graph, self._seen_ranges()) if precision == "int8" else graph)

    def _crossing(self, head: bytes, cut: tuple[str, ...], feed: Tensors) -> Tensors:
        with OrtEngine(head, label="head", optimise=False) as engine:
            made = engine.infer(feed)
        return {name: made[name] for name in cut}

    def _seen_ranges(self) -> Ranges:
        if self._ranges is None:
            self._ranges = ranges(self._model, self._samples, threads=self._threads)
        return self._ranges
