"""A request of more rows than an engine's plan is laid out for runs in portions, and is joined again.

    20 rows, at most 8 at once      8 -> engine,  8 -> engine,  4 -> engine      outputs joined along their batch axes

A plan takes memory for its largest batch whether or not one ever comes, and most requests on a device hold one row. So
heads on TensorRT are laid out for a few rows. Rows are independent of each other where the bundle has proven it, and
only there is anything split; elsewhere the engine's own bound holds, and is said in the caller's words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edge_agent.rows import Rows
from protocol.bundle import Manifest
from protocol.engines.base import ActivationScope, Engine
from protocol.errors import EngineError
from protocol.messages import PlacementKind
from protocol.tensors import Array, Tensors, TensorSpec

MOST_ROWS = 8
MOST_NBYTES = 8 << 20  # of the inputs of one run: what a head makes of large rows is many times as large


class Portions(ActivationScope):
    """`engine` for requests of any number of rows. `inputs` and `outputs` are batch axes by tensor; an output without
    one cannot be joined, and then `most` rows are the bound.
    """

    def __init__(self, engine: Engine, *, inputs: Mapping[str, int], outputs: Mapping[str, int], most: int) -> None:
        self.label = engine.label
        self._engine = engine
        self._inputs_axes = dict(inputs)
        self._outputs_axes = dict(outputs)
        self._most = most

    @property
    def description(self) -> str:
        return self._engine.description

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    def activate(self) -> None:
        self._engine.activate()

    def deactivate(self) -> None:
        self._engine.deactivate()

    def infer(self, tensors: Tensors) -> dict[str, Array]:
        """Raises EngineError like the engine, and for more than `most` rows where outputs cannot be joined."""
        counts = {tensors[n].shape[axis] for n, axis in self._inputs_axes.items() if self._has(tensors, n, axis)}
        rows = counts.pop() if len(counts) == 1 else 0  # those that disagree are the engine's to refuse
        if rows <= self._most:
            return self._engine.infer(tensors)
        if lacking := [spec.name for spec in self._engine.outputs if spec.name not in self._outputs_axes]:
            fact = f"{self.label} takes {self._most} rows at once, and this request holds {rows}"
            raise EngineError(f"{fact}; its output {lacking[0]!r} has no known batch axis", "send fewer rows at once")
        parts = [self._engine.infer(part) for part in self._parts(tensors, rows)]
        return {n: np.concatenate([p[n] for p in parts], axis=self._outputs_axes[n]) for n in parts[0]}

    def _parts(self, tensors: Tensors, rows: int) -> Iterator[dict[str, Array]]:
        for first in range(0, rows, self._most):
            some = slice(first, first + self._most)
            yield {name: self._part(name, array, some) for name, array in tensors.items()}

    def _part(self, name: str, array: Array, some: slice) -> Array:
        axis = self._inputs_axes.get(name)
        return array if axis is None else array[(*(slice(None),) * axis, some)]

    @staticmethod
    def _has(tensors: Tensors, name: str, axis: int) -> bool:
        return name in tensors and tensors[name].ndim > axis


class Layout:
    """What a bundle says about rows: where the model's inputs have them, where outputs do, how many fit one run."""

    def __init__(self, manifest: Manifest) -> None:
        self._specs = manifest.model.inputs
        self.inputs = dict(Rows(manifest).axes)
        self.outputs: dict[str, int] = {}  # of every head: model outputs, and what crosses
        for entry in manifest.placements:
            if entry.kind is PlacementKind.FULL_CLOUD and entry.batch is not None:
                self.outputs |= entry.batch.output_axes
        for entry in manifest.placements:
            if entry.kind is PlacementKind.CUT:
                self.outputs |= {b.spec.name: b.batch_axis for b in entry.boundary if b.batch_axis is not None}

    @property
    def axes(self) -> dict[str, int | None] | None:
        """By input, for whoever lays a plan out; None where nothing is known about rows."""
        return {spec.name: self.inputs.get(spec.name) for spec in self._specs} if self.inputs else None

    @property
    def most(self) -> int:
        """Rows of one run."""
        return max(1, min(MOST_ROWS, MOST_NBYTES // max(_row_nbytes(self._specs), 1))) if self.inputs else 1

    def portioned(self, engine: Engine) -> Engine:
        """The engine, for requests of any number of rows where these are independent."""
        if not self.inputs:
            return engine
        return Portions(engine, inputs=self.inputs, outputs=self.outputs, most=self.most)


def _row_nbytes(specs: Sequence[TensorSpec]) -> int:
    """A free dimension counts as 1."""
    return sum(
        math.prod(d if isinstance(d, int) else 1 for d in spec.shape) * spec.numpy_dtype.itemsize for spec in specs
    )
