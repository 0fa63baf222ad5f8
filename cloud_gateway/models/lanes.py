"""Lanes: one tail, its engine and its measured cost. Segments whose tails are the same file share a lane.

A lane is keyed by the digest of its tail, not by the bundle, so that devices with different heads (another precision,
another build) still batch together. A segment is a lane plus the boundary that its requests must fit.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cloud_gateway.models.asking import kind_of, may_be_half, may_hang, serving_of
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.references import References
from cloud_gateway.models.trial import TryAnotherError
from cloud_gateway.scheduling.cost_curve import QUANTILE, CostCurve
from cloud_gateway.scheduling.lane_queue import AGEING_S
from cloud_gateway.seeing.figures import Scope
from protocol import drift
from protocol.bundle import BoundaryTensor
from protocol.engines.base import Engine
from protocol.errors import EngineError
from protocol.tensors import Array, TensorHeader, TensorSpec, shape_fits

# So many runs of a size that one stray slow run is no high quantile, unless they take longer than that together.
WARM_UP_RUNS = 11
WARM_UP_RUNS_S = 0.05
LEAST_RUNS = 3
# What a thread does for each batch besides the engine's run: taking, joining, splitting, counting (measured: 0.1 ms).
# Without it a light tail would seem to gain nothing from batches.
BATCH_OVERHEAD_S = 0.0001
WARM_UP_BUDGET_S = 1.5  # agents are already knocking: a slow lane is measured at its smaller batches only
PAST_THE_KNEE = 2  # so many doublings without a gain, and larger batches are not tried
MAX_ROWS = 16
MOST_FITTED = 64


@dataclass(frozen=True, slots=True)
class LaneRules:
    """How a lane is scheduled, as its model's configuration says."""

    max_rows: int = MAX_ROWS  # bound of a batch; where `find_knee`, the measured knee may be lower
    find_knee: bool = True
    instances: int = 1  # batches that may run at the same time
    delay_s: float = 0.0  # opt-in efficiency delay
    own_delay: bool = False  # the model asked for it: the gateway's own setting does not touch it
    sizes: tuple[int, ...] = ()  # an engine's profile sizes, ascending
    most_requests: int | None = None  # that may wait
    ageing_s: float = AGEING_S
    margin: float = 1.0  # predictions are so many times what was measured
    quantile: float = QUANTILE  # of the durations measured
    warm_up_s: float = WARM_UP_BUDGET_S


class Fit(NamedTuple):
    """What batches take on the engines that a lane runs on now, and how large they may be."""

    curve: CostCurve
    max_rows: int


class Lane:
    """A tail with its engine. What waits for it lies in the scheduler.

    Each engine of an order of preference has a cost curve of its own: what a GPU took says nothing about the processor.
    `curve` and `max_rows` are those of what serves; `refit` changes them when another engine serves.
    """

    def __init__(
        self,
        key: str,
        engine: Engine,
        *,
        boundary: tuple[BoundaryTensor, ...],
        output_axes: Mapping[str, int],
        batchable: bool,
        rules: LaneRules,
        unbatched: str = "",
    ) -> None:
        """`unbatched` says why requests do not share a batch, where they do not."""
        self.key = key
        self.unbatched = unbatched
        self.engine = engine
        self.boundary = boundary
        self.batch_axes = {b.spec.name: b.batch_axis for b in boundary}
        self.output_axes = output_axes
        self.batchable = batchable
        self.rules = rules
        self.curve = CostCurve(rules.quantile)
        self.max_rows = rules.max_rows if batchable else 1
        self._fits: dict[tuple[str, ...], Fit] = {}  # by what ran them
        self.references = References()
        self.references_lock = threading.Lock()  # several threads may run batches of this lane
        self.users = 0  # loaded tails that are this one
        self.is_open = False  # at the desk: it may be offered requests

    def deactivate(self) -> None:
        """Give back what it runs on."""
        self.engine.deactivate()

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Everything that a batch of this lane runs on."""
        return (self.engine,)

    def warm_up(self) -> None:
        """Run every batch size a few times: the first run of a shape is slow, and L(b) is wanted before traffic comes.

        So does every engine that stands by: should the lane move to it, its cost is known. One that does not run is no
        longer counted on. A tail whose free dimensions cannot all be 1 starts cold, runs at batch 1 and learns what
        that costs. Raises EngineError if the tail does not run.
        """
        for engine in self.engines:
            if isinstance(engine, PreferredEngine):
                for kind in engine.ready():
                    self._try_out(engine, kind)
        if self._running() not in self._fits or not any(self._running()):
            self.measure()
        self.refit()

    def measure(self) -> None:
        """Learn what batches take on what this thread runs them on; `refit` uses it once that serves.

        Raises EngineError if the tail does not run; where shapes had to be guessed that says nothing.
        """
        try:
            fit = self._measured()
        except EngineError:
            if not self.is_guessed:
                raise
            fit = Fit(CostCurve(self.rules.quantile), 1)
        self._fits[self._running()] = fit

    def measure_if_new(self) -> None:
        """The same, where what serves now was never measured together."""
        fit = self._fits.get(self._running())
        if fit is None or not fit.curve.is_known:
            self.measure()

    @property
    def is_measured(self) -> bool:
        """Whether it was warmed up."""
        return bool(self._fits)

    def refit(self) -> None:
        """Take the curve and the bound of what serves now. What was never measured begins unknown, in small batches."""
        serving = tuple(serving_of(engine) for engine in self.engines)  # whatever this thread tries out
        if serving not in self._fits:
            # A copy: the workshop may measure another engine meanwhile.
            least = min((fit.max_rows for fit in tuple(self._fits.values())), default=1)
            self._fits.setdefault(serving, Fit(CostCurve(self.rules.quantile), least))
        self.curve, self.max_rows = self._fits[serving]

    def expected_s(self, rows: int) -> float:
        """What a batch takes on what this thread runs it on; 0 where nothing is known."""
        fit = self._fits.get(self._running())
        return fit.curve.predict(self.padded(rows)) if fit else 0.0

    def _try_out(self, engine: PreferredEngine, kind: str) -> None:
        """Measure the lane with its `engine` on `kind`, or count on that no longer."""
        while True:
            try:
                with engine.using(kind, on_trial=True):
                    self.measure()
            except TryAnotherError as error:  # not the one on trial: another part of this lane
                error.engine.reject(error.failed, error)
            except EngineError as error:
                engine.reject(kind, error)
                return
            else:
                return

    def _running(self) -> tuple[str, ...]:
        return tuple(kind_of(engine) for engine in self.engines)

    def padded(self, rows: int) -> int:
        """The batch size that `rows` rows are run at: the engine's next larger profile, where it has profiles."""
        return next((size for size in self.rules.sizes if size >= rows), rows) if self.batchable else rows

    def zeros(self, rows: int) -> dict[str, Array]:
        """Inputs of that many rows, all zero."""
        return zeros(self.engine.inputs, self.batch_axes, rows)

    @property
    def is_guessed(self) -> bool:
        """Whether some dimension other than the batch is free: it had to be guessed, and what a row costs varies."""
        return any(
            not isinstance(d, int) and i != self.batch_axes.get(spec.name)
            for spec in self.engine.inputs
            for i, d in enumerate(spec.shape)
        )

    @property
    def may_hang(self) -> bool:
        """Whether something that serves it is on a GPU, where a run may hang."""
        return any(may_hang(engine) for engine in self.engines)

    @property
    def may_be_half(self) -> bool:
        """Whether its answers may be those of the float16 form."""
        return any(may_be_half(engine) for engine in self.engines)

    def _sizes(self, most: int) -> list[int]:
        """Batches to measure: an engine's profiles where it has some, else powers of two, up to the bound."""
        if self.rules.sizes and self.batchable:
            return [size for size in self.rules.sizes if size <= most] or [self.rules.sizes[0]]
        return [1 << n for n in range(most.bit_length()) if 1 << n <= most]

    def trial(self, rows: int) -> Callable[[], object]:
        """What a batch of that many rows runs."""
        return functools.partial(self.engine.infer, self.zeros(rows))

    def _measured(self) -> Fit:
        curve, most = CostCurve(self.rules.quantile), self.rules.max_rows if self.batchable else 1
        began = time.monotonic()
        for size in self._sizes(most):
            if time.monotonic() - began > self.rules.warm_up_s and size > 1:
                break
            if self.rules.find_knee and size > curve.knee(size) << PAST_THE_KNEE:
                break
            trial = self.trial(size)
            trial()
            first = time.perf_counter()
            for run in range(WARM_UP_RUNS):
                start = time.perf_counter()
                if run >= LEAST_RUNS and start - first > WARM_UP_RUNS_S:
                    break
                trial()
                curve.observe(size, time.perf_counter() - start + BATCH_OVERHEAD_S)
        return Fit(curve, curve.knee(most) if self.rules.find_knee else most)


def zeros(specs: Sequence[TensorSpec], batch_axes: Mapping[str, int | None], rows: int) -> dict[str, Array]:
    """Tensors of that many rows, all zero."""
    tensors = {}
    for spec in specs:
        axis = batch_axes.get(spec.name)
        # A free dimension other than the batch is unknown before traffic; 1 is always a legal guess to try.
        shape = [rows if i == axis else d if isinstance(d, int) else 1 for i, d in enumerate(spec.shape)]
        tensors[spec.name] = np.zeros(shape, spec.numpy_dtype)
    return tensors


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """What one cut's tail has before the suffix that its lane runs; see `models/joining.py`."""

    key: str  # sha256 of its graph
    engine: Engine
    boundary: tuple[BoundaryTensor, ...]

    @property
    def batch_axes(self) -> dict[str, int | None]:
        return {b.spec.name: b.batch_axis for b in self.boundary}


@dataclass(slots=True, eq=False)
class Segment:
    """What a digest, or the name of a model, in a request stands for."""

    lane: Lane
    boundary: tuple[BoundaryTensor, ...]
    bundle: str
    precision: str
    placement: str
    scope: Scope  # under which it is counted
    pending: int = field(default=0)  # admitted and not yet ended; the desk's lock guards it
    default_priority: int = 4
    default_timeout_s: float | None = None
    may_cache: bool = True  # its answers may be kept
    bridge: Bridge | None = None  # runs before the lane's engine, which several cuts share then
    # Shapes that fitted before: most requests are like the last one.
    _fitted: dict[tuple[tuple[str, str, tuple[int, ...]], ...], tuple[int, tuple[tuple[int, ...], ...]]] = field(
        default_factory=dict, repr=False
    )

    def has_drifted(self, outer_ppm: int | None) -> bool:
        """Whether far more of a request's codes lie at the ends of their range than calibration showed."""
        if outer_ppm is None:
            return False
        expected = drift.expected_ppm(self.boundary)
        return expected is not None and drift.has_drifted(outer_ppm, expected)

    def fit(self, headers: Sequence[TensorHeader]) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """Rows and layout of a request with these tensors. Raises ValueError in words if they do not fit."""
        key = tuple([(h.name, h.dtype, h.shape) for h in headers])
        known = self._fitted.get(key)
        if known is None:
            known = self._fit(headers)
            if len(self._fitted) < MOST_FITTED:
                self._fitted[key] = known
        return known

    def _fit(self, headers: Sequence[TensorHeader]) -> tuple[int, tuple[tuple[int, ...], ...]]:
        boundary = self.boundary
        if [h.name for h in headers] != [b.spec.name for b in boundary]:
            wanted = ", ".join(b.spec.name for b in boundary)
            raise ValueError(f"tensors are {', '.join(h.name for h in headers) or 'missing'}; wanted {wanted}")
        rows: set[int] = set()
        layout = []
        for header, tensor in zip(headers, boundary, strict=True):
            spec, axis = tensor.spec, tensor.batch_axis
            if header.dtype != spec.dtype or not shape_fits(header.shape, spec.shape):
                raise ValueError(
                    f"tensor {header.name!r} is {header.dtype} {list(header.shape)}; wanted {spec.dtype} "
                    f"{['?' if d is None else d for d in spec.shape]}"
                )
            if axis is None:
                layout.append(header.shape)
            else:
                rows.add(header.shape[axis])
                layout.append(header.shape[:axis] + header.shape[axis + 1 :])
        if len(rows) > 1 or 0 in rows:
            raise ValueError(f"the tensors disagree about the batch: {sorted(rows)} rows")
        # What a bridge gives to the lane has one shape whatever came in: requests of all bridges may share a batch.
        return (rows.pop() if rows else 1), () if self.bridge is not None else tuple(layout)
