"""A graph that came without a manifest: its boundary is read from the loaded engine, its batching is proven here.

Requests share a batch only where f([a, b]) = [f(a), f(b)] was shown: an export with a fixed batch or a baked Reshape
would mix them or fail. The proof runs seeded random inputs, which find what constant ones hide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloud_gateway.models.asking import answered
from protocol.bundle import BoundaryTensor
from protocol.engines.base import Engine
from protocol.errors import EngineError
from protocol.tensors import Array, TensorSpec

RELATIVE = 1e-3  # difference that optimised kernels of another batch size may make
SEED = 11


@dataclass(frozen=True, slots=True)
class Described:
    boundary: tuple[BoundaryTensor, ...]
    batchable: bool
    output_axes: Mapping[str, int]
    reason: str


def describe(engine: Engine, *, max_batch_size: int | None) -> Described:
    """What an active engine takes, and whether requests may share a batch. `max_batch_size` 0 forbids it.

    Raises EngineError only if the graph does not run at all; a graph whose free dimensions cannot be guessed is served
    at batch 1.
    """
    reason = _obstacle(engine, max_batch_size)
    axis = None if reason else 0
    if not reason:
        reason = _difference(engine)
    boundary = tuple(BoundaryTensor(spec, "raw", axis) for spec in engine.inputs)
    return Described(
        boundary, not reason, {spec.name: 0 for spec in engine.outputs}, reason or "shown on random inputs"
    )


def _obstacle(engine: Engine, max_batch_size: int | None) -> str:
    if max_batch_size in (0, 1):
        return f"max_batch_size is {max_batch_size}"
    for spec in (*engine.inputs, *engine.outputs):
        if not spec.shape or isinstance(spec.shape[0], int):
            return f"the first dimension of {spec.name!r} is fixed"
    return ""


def _difference(engine: Engine) -> str:
    """Why two rows together are not what they are apart; "" if they are."""
    rng = np.random.default_rng(SEED)
    pair = {spec.name: _random(spec, 2, rng) for spec in engine.inputs}
    try:
        both = answered(engine, pair)
        apart = [answered(engine, {name: array[i : i + 1] for name, array in pair.items()}) for i in (0, 1)]
    except EngineError as error:
        return f"it does not run with random inputs of two rows: {error}"
    for name, together in both.items():
        single = [outputs[name] for outputs in apart]
        if any(s.ndim == 0 or s.shape[0] == 0 for s in single) or together.shape[0] != sum(s.shape[0] for s in single):
            return f"output {name!r} does not grow with the batch"
        if single[0].shape[0] != single[1].shape[0]:
            return f"output {name!r} has rows that depend on the values"
        if not _close(together, np.concatenate(single)):
            return f"output {name!r} of two rows together differs from that of each alone"
    return ""


def _random(spec: TensorSpec, rows: int, rng: np.random.Generator) -> Array:
    shape = (rows, *(d if isinstance(d, int) else 1 for d in spec.shape[1:]))
    dtype = spec.numpy_dtype
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)  # 0 and 1 are valid indices, masks and pixels alike


def _close(left: Array, right: Array) -> bool:
    if left.shape != right.shape:
        return False
    if left.dtype.kind != "f":
        return bool(np.array_equal(left, right))
    scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
    return bool(np.all(np.isfinite(left) == np.isfinite(right))) and bool(
        np.max(np.abs(np.nan_to_num(left) - np.nan_to_num(right)), initial=0.0) <= RELATIVE * scale
    )
