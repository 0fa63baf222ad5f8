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

from partitioner import data
from partitioner.anchors import FIRST_ANCHORS, GOOD_ERROR, MOST_ANCHORS, Predictor, choose, plain_steps
from partitioner.cuts import Sides, separate
from partitioner.data import Samples
from partitioner.model import LoadedModel, load
from partitioner.observe import Ranges, observed_topology, ranges
from partitioner.quantise import quantise
from partitioner.split import split
from partitioner.weights import serialise
from protocol import sensors
from protocol.bench import Bench, Job, Reporter, kernels
from protocol.bundle import sha256
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError
from protocol.profile import SCHEMA_VERSION, Profile, Role, Side, StepCost, decode, encode, step_costs
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


def profile(order: ProfileOrder, reporter: Reporter) -> Profile:
    """Measure what `order` asks for. Raises InputError, ModelError or EngineError."""
    reporter.stage("loading the model")
    model = load(order.model)
    samples = data.random(model.inputs) if order.calibration is None else data.load(order.calibration, model.inputs)
    return measure(model, samples, order, reporter)


def measure(model: LoadedModel, samples: Samples, order: ProfileOrder, reporter: Reporter) -> Profile:
    """`profile` for a model and samples that are loaded already."""
    model = replace(model, topology=observed_topology(model, samples))
    with Survey(model, samples, order, reporter) as survey:
        survey.grow()
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

    def __enter__(self) -> Self:
        self.bench.__enter__()
        self._costs = weigh(self._model, self._feed, self.order.threads, self._reporter)
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.__exit__()

    def grow(self) -> list[tuple[str, ...]]:
        """Measure a few cuts, then about twice as many, until they predict each other or the budget is spent."""
        started = time.monotonic()
        taken: list[tuple[str, ...]] = []
        count = FIRST_ANCHORS
        while cuts := choose(self._model.topology, self._costs, count, taken=taken):
            left = self.order.budget_s - (time.monotonic() - started)
            if taken and left <= 0.0:
                break
            taken += cuts
            self.time(cuts, budget_s=left)
            count *= 2
            if count > MOST_ANCHORS or Predictor(self.profile(), self._model.topology).error <= GOOD_ERROR:
                break
        return taken

    def time(self, cuts: Sequence[tuple[str, ...]], *, budget_s: float) -> None:
        """Measure this role's segments at these cuts. Raises ModelError for a cut that does not separate."""
        sides: tuple[Side, ...] = ("head",) if self.order.role == "edge" else ("tail",)
        jobs = [
            self.segments.job(cut, side, precision)
            for cut in cuts
            for side in sides
            for precision in (self.order.precisions if side == "head" else ("fp32",))
        ]
        self.bench.measure(jobs, budget_s=budget_s, reporter=self._reporter)

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
            notes=self._model.notes,
        )


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


def write(path: Path, made: Profile) -> None:
    """Write a profile file. Raises InputError when it cannot be written."""
    try:
        path.write_bytes(encode(made))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", "choose another place") from error


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

    def _load(self, sides: Sides, side: Side, precision: str) -> tuple[bytes, Tensors]:
        halves = split(self._model, sides)
        feed = self._samples.feed(0)
        if side == "tail":
            return serialise(halves.tail), self._crossing(serialise(halves.head), sides.cut, feed)
        return serialise(quantise(halves.head, self._seen_ranges()) if precision == "int8" else halves.head), feed

    def _crossing(self, head: bytes, cut: tuple[str, ...], feed: Tensors) -> Tensors:
        with OrtEngine(head, label="head", optimise=False) as engine:
            made = engine.infer(feed)
        return {name: made[name] for name in cut}

    def _seen_ranges(self) -> Ranges:
        if self._ranges is None:
            self._ranges = ranges(self._model, self._samples, threads=self._threads)
        return self._ranges
