"""Lanes: one tail, its engine, its queue and its measured cost. Segments whose tails are the same file share a lane.

A lane is keyed by the digest of its tail, not by the bundle, so that devices with different heads (another precision,
another build) still batch together. A segment is a lane plus the boundary that its requests must fit.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cloud_gateway.models.references import References
from cloud_gateway.scheduling.batcher import Batcher
from cloud_gateway.scheduling.cost_curve import CostCurve
from protocol import drift
from protocol.bundle import BoundaryTensor, Bundle, PlacementEntry
from protocol.engines.base import Engine
from protocol.engines.ort import OrtEngine
from protocol.errors import BundleError, EngineError
from protocol.messages import Infer, PlacementKind
from protocol.tensors import Array, TensorHeader, shape_fits
from protocol.wire import Buffer

WARM_UP_RUNS = 5
WARM_UP_BUDGET_S = 1.5  # agents are already knocking: a slow lane is measured at its smaller batches only
PAST_THE_KNEE = 2  # so many doublings without a gain, and larger batches are not tried
MAX_ROWS = 16


@dataclass(slots=True)
class Item:
    """One admitted request, as it waits in a lane."""

    infer: Infer
    parts: list[Buffer]
    nbytes: int
    rows: int
    layout: tuple[tuple[int, ...], ...]
    arrived: float
    deadline: float
    segment: Segment

    @property
    def priority(self) -> int:
        return self.infer.priority


class Lane:
    """A tail with its engine, batcher and condition. The frontend offers, the lane's worker takes."""

    def __init__(self, key: str, engine: Engine, entry: PlacementEntry, *, max_rows: int) -> None:
        self.key = key
        self.engine = engine
        self.output_axes = entry.batch.output_axes if entry.batch else {}
        self.batch_axes = {b.spec.name: b.batch_axis for b in entry.boundary}
        self.batchable = bool(entry.batch and entry.batch.batchable)
        self.curve = CostCurve()
        self.batcher: Batcher[Item] = Batcher(self.curve, max_rows=max_rows if self.batchable else 1)
        self.condition = threading.Condition()
        self.references = References()  # the worker's alone
        self.running_until = 0.0  # when the batch that now runs should be done
        self.stopping = False
        self.tried_at = -math.inf  # when a request was last let in only to measure again

    def warm_up(self) -> None:
        """Run every batch size a few times: the first run of a shape is slow, and L(b) is wanted before traffic comes.

        Raises EngineError if the tail does not run.
        """
        began = time.monotonic()
        size = 1
        while size <= self.batcher.max_rows and time.monotonic() - began < WARM_UP_BUDGET_S:
            if size > self.curve.knee(size) << PAST_THE_KNEE:
                break
            tensors = self._zeros(size)
            self.engine.infer(tensors)
            for _ in range(WARM_UP_RUNS):
                start = time.perf_counter()
                self.engine.infer(tensors)
                self.curve.observe(size, time.perf_counter() - start)
            size *= 2
        self.batcher.max_rows = self.curve.knee(self.batcher.max_rows)

    def _zeros(self, rows: int) -> dict[str, Array]:
        tensors = {}
        for spec in self.engine.inputs:
            axis = self.batch_axes.get(spec.name)
            # A free dimension other than the batch is unknown before traffic; 1 is always a legal guess to try.
            shape = [rows if i == axis else d if isinstance(d, int) else 1 for i, d in enumerate(spec.shape)]
            tensors[spec.name] = np.zeros(shape, spec.numpy_dtype)
        return tensors


@dataclass(slots=True, eq=False)
class Segment:
    """What a digest in a request stands for."""

    lane: Lane
    boundary: tuple[BoundaryTensor, ...]
    bundle: str
    precision: str
    placement: str

    def has_drifted(self, infer: Infer) -> bool:
        """Whether far more of this request's codes lie at the ends of their range than calibration showed."""
        expected = drift.expected_ppm(self.boundary)
        return infer.outer_ppm is not None and expected is not None and drift.has_drifted(infer.outer_ppm, expected)

    def fit(self, headers: tuple[TensorHeader, ...]) -> tuple[int, tuple[tuple[int, ...], ...]]:
        """Rows and layout of a request with these tensors. Raises ValueError in words if they do not fit."""
        if [h.name for h in headers] != [b.spec.name for b in self.boundary]:
            wanted = ", ".join(b.spec.name for b in self.boundary)
            raise ValueError(f"tensors are {', '.join(h.name for h in headers) or 'missing'}; wanted {wanted}")
        rows: set[int] = set()
        layout = []
        for header, tensor in zip(headers, self.boundary, strict=True):
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
        return (rows.pop() if rows else 1), tuple(layout)


class LaneTable:
    """All segments and models that this gateway holds."""

    def __init__(self, *, threads: int, max_rows: int = MAX_ROWS) -> None:
        self.segments: dict[bytes, Segment] = {}
        self.models: set[bytes] = set()
        self.lanes: dict[str, Lane] = {}
        self._threads = threads
        self._max_rows = max_rows

    def load(self, bundle: Bundle) -> None:
        """Load and warm up every tail of `bundle`. Raises BundleError or EngineError; what was loaded before stays."""
        found = False
        for entry in bundle.remote_segments():
            if entry.tail is None or entry.segment is None:
                raise BundleError(
                    f"{bundle.root}: placement {entry.id} has a segment but no tail", "rebuild the bundle"
                )
            lane = self._lane(bundle, entry, entry.tail)
            segment = Segment(lane, entry.boundary, bundle.digest, entry.precision, entry.id)
            # Full-cloud under several codecs is one segment: the codec stands in every request.
            self.segments.setdefault(bytes.fromhex(entry.segment), segment)
            if entry.kind is PlacementKind.FULL_CLOUD:
                self.models.add(bytes.fromhex(bundle.manifest.model.digest))
            found = True
        if not found:
            raise BundleError(
                f"{bundle.root} has no work for a gateway", "build one with a cut or full-cloud placement"
            )

    def deactivate(self) -> None:
        for lane in self.lanes.values():
            lane.engine.deactivate()

    def queue_wait_s(self, lane: Lane, *, now: float) -> float:
        """What a request offered to `lane` now would wait before its batch starts."""
        return lane.batcher.wait_s() + max(lane.running_until - now, 0.0)

    def _lane(self, bundle: Bundle, entry: PlacementEntry, tail: str) -> Lane:
        key = bundle.manifest.files[tail].sha256
        if key in self.lanes:
            return self.lanes[key]
        engine = OrtEngine(bundle.graph(tail), label=f"{entry.id}/tail", threads=self._threads)
        engine.activate()
        lane = Lane(key, engine, entry, max_rows=self._max_rows)
        try:
            lane.warm_up()
        except EngineError:
            if all(isinstance(d, int) for spec in engine.inputs for d in spec.shape[1:]):
                raise
            # Free dimensions that cannot all be 1: the lane starts cold, runs at batch 1 and learns what that costs.
            lane.curve = CostCurve()
            lane.batcher = Batcher(lane.curve, max_rows=1)
        self.lanes[key] = lane
        return lane


def stack(tensors: Iterable[Array], axis: int) -> Array:
    """Join along `axis`; a single tensor is passed on without a copy."""
    arrays = list(tensors)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)


def nbytes_of(headers: tuple[TensorHeader, ...]) -> int:
    """Bytes that a request will hold while it waits: as sent, or decoded if that is more."""
    return sum(max(h.nbytes, h.decoded_nbytes()) for h in headers)
