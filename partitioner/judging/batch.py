"""May requests share a batch? Only where f([a, b, c]) = [f(a), f(b), f(c)] was shown on three different real samples.

Exports with a fixed batch, baked Reshapes or a state whose batch is another axis fail this proof; their tails run at
batch 1, and the certificate says why in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from partitioner.graph.model import serialise
from partitioner.graph.split import free_axes
from partitioner.judging.data import Samples
from partitioner.judging.verify import PARITY_BOUND, difference
from protocol.bundle import BatchProof
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors

PROOF_BATCH = 3
LOOKED_AT = 64

Axes = dict[str, int | None]


def alike(samples: Samples) -> list[dict[str, Array]]:
    """Up to `PROOF_BATCH` held-out samples of one size, which could share a batch: pictures may come in any."""
    groups: dict[tuple[tuple[int, ...], ...], list[dict[str, Array]]] = {}
    for feed in samples.feeds(samples.held_out[:LOOKED_AT]):
        group = groups.setdefault(tuple(array.shape for array in feed.values()), [])
        group.append(feed)
        if len(group) == PROOF_BATCH:
            return group
    return max(groups.values(), key=len)


def growing_axis(one: Sequence[int], many: Sequence[int], factor: int) -> int | None:
    """The single axis along which `many` is `factor` times `one`, all others being equal; else None."""
    if len(one) != len(many):
        return None
    grown = [i for i, (a, b) in enumerate(zip(one, many, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 and many[grown[0]] == factor * one[grown[0]] else None


def crossing_axes(head: OrtEngine, cut: Sequence[str], feeds: Sequence[Tensors], free: bool) -> Axes:
    """The batch axis of each crossing tensor: seen when the head takes a batch of two, else axis 0 if that is 1 long.

    `feeds` are samples of one size at batch 1, `free` whether every model input leaves its batch free.
    """
    one = head.infer(feeds[0])
    assumed: Axes = {name: 0 if one[name].shape[:1] == (1,) else None for name in cut}
    if not free or len(feeds) < 2:
        return assumed
    try:
        two = head.infer(_joined(feeds[:2], dict.fromkeys(feeds[0], 0)))
    except EngineError:
        return assumed
    return {name: growing_axis(one[name].shape, two[name].shape, 2) for name in cut}


def unproven(axes: Axes) -> BatchProof | None:
    """A refusal when some crossing tensor has no batch axis at all."""
    missing = [name for name, axis in axes.items() if axis is None]
    if not missing:
        return None
    return BatchProof(False, f"no axis of {', '.join(map(repr, missing))} grows with the batch")


def prove(tail: bytes, feeds: Sequence[Tensors], axes: Mapping[str, int], *, bound: float = PARITY_BOUND) -> BatchProof:
    """Try the tail on its `PROOF_BATCH` different inputs alone and together. Never raises for what the tail does."""
    feeds = feeds[:PROOF_BATCH]
    if len(feeds) < PROOF_BATCH:
        return BatchProof(False, f"no {PROOF_BATCH} of the samples are of one size")
    if not _all_differ(feeds):
        return BatchProof(False, "the samples give the same activations, so nothing would be shown")
    try:
        with OrtEngine(tail, label="tail") as engine:
            alone = [engine.infer(feed) for feed in feeds]
            together = engine.infer(_joined(feeds, axes))
    except EngineError as error:
        return BatchProof(False, f"it does not run at batch {len(feeds)}: {_short(error)}")
    found = {name: growing_axis(alone[0][name].shape, array.shape, len(feeds)) for name, array in together.items()}
    output_axes = {name: axis for name, axis in found.items() if axis is not None}
    if len(output_axes) < len(found):
        missing = ", ".join(repr(n) for n in found if n not in output_axes)
        return BatchProof(False, f"no axis of output {missing} grows with the batch")
    parts = {n: np.split(array, len(feeds), axis=output_axes[n]) for n, array in together.items()}
    result = difference(alone, [{n: parts[n][i] for n in parts} for i in range(len(feeds))], bound)
    if not result.within:
        reason = f"answers change with their batch-mates: by {result.seen:.3g}, allowed {result.allowed:.3g}"
        return BatchProof(False, reason, result.seen)
    return BatchProof(True, f"{len(feeds)} samples answered alone and together alike", result.seen, output_axes)


def _short(error: EngineError) -> str:
    return error.fact.split(" Status Message")[0][:200]


def _joined(feeds: Sequence[Tensors], axes: Mapping[str, int]) -> Tensors:
    return {name: np.concatenate([feed[name] for feed in feeds], axis=axes[name]) for name in feeds[0]}


def _all_differ(feeds: Sequence[Tensors]) -> bool:
    pairs = [(i, j) for j in range(len(feeds)) for i in range(j)]
    return all(any(not np.array_equal(feeds[i][n], feeds[j][n]) for n in feeds[i]) for i, j in pairs)


def proven_batch(graph: ir.Model, feeds: Sequence[Tensors], axes: Axes) -> tuple[bytes, BatchProof]:
    """The graph with its batch axes free if that was proven right, else as it is; and the proof."""
    plain = serialise(graph)
    refusal = unproven(axes)
    if refusal is not None:
        return plain, refusal
    known = {name: axis for name, axis in axes.items() if axis is not None}
    freed = free_axes(graph, known)
    proof = prove(freed, feeds, known)
    return (freed if proof.batchable else plain), proof
