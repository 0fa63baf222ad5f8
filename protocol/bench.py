"""Times segments in ONNX Runtime and reads its kernels' times: the one runner of workbench and device.

A segment is visited several times, each time with a session of its own (where the allocator happens to place a weight
moves a session by some per cent), so that its repeats are spread over the whole measurement. The model itself stays
loaded: it is the yardstick of every visit.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np

from protocol import sensors
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError
from protocol.profile import Anchor, Energy, Kernel, Side, Timing
from protocol.tensors import Array, Tensors
from protocol.timing import MIN_REPEATS, ROUNDS, Ratios, clock_for, summary, timed, visit

BATCHES = (1, 2, 4, 8, 16)
LEAST_VISITS = 3
MAX_REPEATS = 40
ENOUGH_FOR_SLOW = 9  # repeats of a model that takes this many seconds
_SLOW_S = 0.1
_KERNEL_RUNS = 12
_KERNEL_BUDGET_S = 4.0
_ENERGY_S = 2.0


class Reporter(Protocol):
    """Hears what is going on; never asked anything."""

    def stage(self, text: str) -> None: ...
    def progress(self, done: int, total: int) -> None: ...


_Key = tuple[tuple[str, ...], Side, str]  # cut, side, precision


class Silent:
    """Says nothing."""

    def stage(self, text: str) -> None:
        pass

    def progress(self, done: int, total: int) -> None:
        pass


class Job(NamedTuple):
    """One segment to measure. `load` gives its serialised graph and what it runs on, whenever it is visited.

    With `batch_axes` (input name -> axis) not empty, the graph takes any batch and is timed at BATCHES too.
    """

    cut: tuple[str, ...]
    side: Side
    precision: str
    load: Callable[[], tuple[bytes, Tensors]]
    batch_axes: dict[str, int] = {}  # noqa: RUF012 - never written to

    def __str__(self) -> str:
        return f"{self.side} at {', '.join(self.cut)}" if self.cut else "the whole model"


class Bench:
    """Measures segments of one model against that model.

    with Bench(model, feed, threads=1) as bench:
        bench.measure(jobs, budget_s=30.0, reporter=reporter)
        bench.anchors()
    """

    def __init__(self, model: bytes, feed: Tensors, *, threads: int) -> None:
        self.threads = threads
        self._feed = feed
        self._whole = OrtEngine(model, label="the whole model", threads=threads)
        self._paces: list[float] = []
        self._jobs: dict[_Key, Job] = {}
        self._seen: dict[_Key, Ratios] = defaultdict(Ratios)
        self._peaks: dict[_Key, int | None] = {}
        self._batches: dict[_Key, tuple[tuple[int, float], ...]] = {}

    def __enter__(self) -> Self:
        self._whole.activate()
        self._run_whole()
        self._run_whole()
        clock = clock_for(self.threads)
        self._paces += [timed(self._run_whole, clock) for _ in range(MIN_REPEATS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._whole.deactivate()

    @property
    def whole(self) -> Timing:
        return summary(self._paces)

    def measure(self, jobs: Sequence[Job], *, budget_s: float, reporter: Reporter) -> None:
        """Visit every job until its median is known narrowly; least visits are made even beyond the budget.

        Raises EngineError when a segment does not run.
        """
        deadline = time.monotonic() + budget_s
        enough = MIN_REPEATS if self.whole.median_s < _SLOW_S else ENOUGH_FOR_SLOW
        self._jobs |= {_key(job): job for job in jobs}
        open_jobs, done = list(jobs), 0
        while open_jobs:
            for job in open_jobs:
                if self.repeats(job) < enough or time.monotonic() < deadline:
                    reporter.stage(f"timing the {job}" if job.cut else f"timing {job}")
                    self._visit(job, enough)
                done += 1
                reporter.progress(done, len(jobs) * LEAST_VISITS)
            late = time.monotonic() >= deadline
            open_jobs = [j for j in open_jobs if self.repeats(j) < enough or not (late or self._is_done(j))]

    def repeats(self, job: Job) -> int:
        return len(self._seen[_key(job)].ratios)

    def _is_done(self, job: Job) -> bool:
        return self._seen[_key(job)].is_narrow or self.repeats(job) >= MAX_REPEATS

    def measure_batches(self, jobs: Iterable[Job], *, reporter: Reporter) -> None:
        """Seconds by batch size of every job that takes batches, scaled to its own time at batch 1."""
        for job in jobs:
            if job.batch_axes:
                reporter.stage(f"batches through the {job}")
                self._batches[_key(job)] = self._curve(job)

    def measure_memory(self, jobs: Iterable[Job], *, reporter: Reporter) -> None:
        """Peak memory of every job, in a fresh process each."""
        for job in jobs:
            reporter.stage(f"memory of the {job}")
            self._peaks[_key(job)] = sensors.peak_memory_nbytes(*job.load(), threads=self.threads)

    def timing(self, job: Job) -> Timing:
        return self._seen[_key(job)].timing(self.whole.median_s)

    def anchors(self) -> tuple[Anchor, ...]:
        """Everything measured so far, the whole model first."""
        key: _Key = ((), "whole", "fp32")
        first = Anchor((), "whole", "fp32", self.whole, self._peaks.get(key), self._batches.get(key, ()))
        measured = [
            Anchor(k[0], k[1], k[2], s.timing(self.whole.median_s), self._peaks.get(k), self._batches.get(k, ()))
            for k, s in self._seen.items()
        ]
        return (first, *measured)

    def energy(self, *, reporter: Reporter) -> Energy | None:
        """Joules of one run of the whole model, or None where no sensor can be read."""
        meter = sensors.energy_meter()
        if meter is None:
            return None
        reporter.stage("energy of the whole model")
        meter.start()
        runs = 0
        while meter.seconds < _ENERGY_S:
            self._run_whole()
            meter.read()
            runs += 1
        return Energy(meter.sensor, meter.joules / runs, meter.joules / meter.seconds)

    def _run_whole(self) -> None:
        self._whole.infer(self._feed)

    def _visit(self, job: Job, enough: int) -> None:
        """A few rounds; more at once where loading takes longer than they do (AlexNet's weights: seconds)."""
        started = time.monotonic()
        data, feed = job.load()
        with OrtEngine(data, label=str(job), threads=self.threads) as engine:
            engine.infer(feed)
            loading_s, ratios = time.monotonic() - started, self._seen[_key(job)]
            least = -(-enough // LEAST_VISITS)
            rounds = min(max(math.ceil(loading_s / (2.0 * self.whole.median_s)), least), enough)
            visit(lambda: engine.infer(feed), self._run_whole, ratios, self._paces, threads=self.threads, rounds=rounds)

    def _curve(self, job: Job) -> tuple[tuple[int, float], ...]:
        data, feed = job.load()
        clock = clock_for(self.threads)
        with OrtEngine(data, label=str(job), threads=self.threads) as engine:
            feeds = {b: tile(feed, job.batch_axes, b) for b in BATCHES}
            times: dict[int, list[float]] = {b: [] for b in BATCHES}
            try:
                for batch in BATCHES:
                    engine.infer(feeds[batch])
            except EngineError:  # a Reshape with the batch baked in, for example
                return ()
            for _ in range(ROUNDS):
                for batch in BATCHES:
                    times[batch].append(timed(lambda b=batch: engine.infer(feeds[b]), clock))  # type: ignore[misc]
        one = statistics.median(times[1])
        at_one = self.whole.median_s if not job.cut else self.timing(job).median_s
        return tuple((batch, statistics.median(seen) / one * at_one) for batch, seen in times.items())


def tile(feed: Tensors, axes: dict[str, int], batch: int) -> dict[str, Array]:
    """The same sample `batch` times along each input's batch axis."""
    return {n: np.concatenate([a] * batch, axis=axes[n]) if n in axes else a for n, a in feed.items()}


def kernels(model: bytes, feed: Tensors, *, threads: int, optimise: bool) -> list[Kernel]:
    """Least seconds of every kernel of the model, in order of execution, as ONNX Runtime's profiler saw them.

    The profiler reads the wall's clock: the least stands for a run that nothing disturbed, and only proportions count.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-") as folder:
        engine = _Profiled(model, folder, threads=threads, optimise=optimise)
        with engine:
            started = time.monotonic()
            for done in range(_KERNEL_RUNS):
                engine.infer(feed)
                if done >= 3 and time.monotonic() - started > _KERNEL_BUDGET_S:
                    break
            written = engine.finish()
        return _kernels_in(json.loads(Path(written).read_bytes()))


class _Profiled(OrtEngine):
    """A session that writes down when each of its kernels ran."""

    def __init__(self, model: bytes, folder: str, *, threads: int, optimise: bool) -> None:
        super().__init__(model, label="the model under the profiler", threads=threads, optimise=optimise)
        self._folder = folder

    def finish(self) -> str:
        """End profiling and return the file that was written."""
        assert self._session is not None
        return str(self._session.end_profiling())

    def _options(self):  # type: ignore[no-untyped-def]  # onnxruntime has no types
        options = super()._options()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder) / "ort")
        return options


def _kernels_in(events: list[dict[str, object]]) -> list[Kernel]:
    seen: dict[str, list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            seen.setdefault(name.removesuffix("_kernel_time"), []).append(float(str(event["dur"])) * 1e-6)
    return [Kernel(name, min(times)) for name, times in seen.items()]


def _key(job: Job) -> _Key:
    return (job.cut, job.side, job.precision)
