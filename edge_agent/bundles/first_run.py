"""Whether a bundle computes on this device what it was built to compute: every head is asked a known question.

    every head loads -> answers twice alike, with finite numbers, all that was promised -> and rightly

What is right says the bundle itself, where its build has put a question with its answers into it (`protocol.known`):
every head, of a cut too, must give what it gave there, as closely as the build measured. A bundle without one is asked
noise from a fixed seed, and what answers alone is compared with the whole model: that shows whether it computes that
function at all. How accurate it is on data says the build's certificate.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from edge_agent.device import providers
from edge_agent.heads import Heads
from protocol import known
from protocol.bundle import Bundle, PlacementEntry
from protocol.engines.ort import OrtEngine
from protocol.errors import IsthmusError
from protocol.messages import PlacementKind
from protocol.tensors import Array, Tensors, TensorSpec

WHOLE = "full.onnx"
# Of an answer and the whole model's. Heads of eight bits differ more on a question that is noise to them.
LEAST_COSINE = {"fp32": 0.99}
LEAST_COSINE_OTHERWISE = 0.5


def judge(
    folder: Path,
    order: Sequence[str] = (),
    *,
    plans: Path | None = None,
    building: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> str:
    """Why the bundle in `folder` must not serve here, or "". The rest is as `Heads` has it; no order is the default."""
    try:
        bundle = Bundle.open(folder)
        heads = Heads(bundle, order=order or providers.DEFAULT, plans=plans, building=building)
        heads.activate()
    except IsthmusError as error:
        return error.fact
    try:
        if heads.failed:
            placement, reason = next(iter(heads.failed.items()))
            return f"{placement} does not load here: {reason}"
        return ask_what_is_known(bundle, heads) or _ask_all(bundle, heads)
    except IsthmusError as error:
        return f"a known question has no answer: {error.fact}"
    finally:
        heads.deactivate()


def question(spec: TensorSpec) -> Array:
    """Values that any model takes, the same ones everywhere: drawn by the name, zeros where they may be indices."""
    sizes = [d if isinstance(d, int) else 1 for d in spec.shape]
    dtype, draw = spec.numpy_dtype, np.random.default_rng(zlib.crc32(spec.name.encode()))
    if dtype.kind == "f":
        return draw.standard_normal(sizes).astype(dtype)
    return draw.integers(0, 256, sizes, np.uint8) if dtype == np.uint8 else np.zeros(sizes, dtype)


def cosine(a: Array, b: Array) -> float:
    """Of two tensors as vectors; 1 for two that are zero, -1 for two of different sizes."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if x.shape != y.shape:
        return -1.0
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale else float(np.array_equal(x, y))


def ask_what_is_known(bundle: Bundle, heads: Heads) -> str:
    """The build's own question; "" where it put none there."""
    found = known.of(bundle)
    if found is None or bundle.manifest.known is None:
        return ""
    question_, answers = found
    asked: set[str | None] = set()
    for entry in bundle.manifest.placements:
        if entry.head in asked or entry.head not in answers or entry.id in heads.failed:
            continue
        asked.add(entry.head)
        off, name = known.worst(heads.raw(entry.id, question_), answers[entry.head])
        most = bundle.manifest.known.most_deviation[entry.head]
        if not off <= most:
            return f"{entry.id} does not give the known {name!r}: it is off by {off:.3g}, and {most:.3g} is allowed"
    return ""


def _ask_all(bundle: Bundle, heads: Heads) -> str:
    inputs = {spec.name: question(spec) for spec in bundle.manifest.model.inputs}
    truth = _whole_answer(bundle, inputs)
    promised = [spec.name for spec in bundle.manifest.model.outputs]
    for entry in bundle.manifest.placements:
        first, again = (heads.prepare(entry.id, inputs).outputs for _ in range(2))
        lacking = [name for name in promised if name not in first and entry.kind is PlacementKind.EDGE_ONLY]
        if lacking:
            return f"{entry.id} does not answer {lacking[0]!r}"
        for name, values in first.items():
            if reason := _wrong(entry, name, values, again[name], truth.get(name)):
                return reason
    return ""


def _wrong(entry: PlacementEntry, name: str, values: Array, again: Array, truth: Array | None) -> str:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return f"{entry.id} answers {name!r} with numbers that are none"
    if not np.allclose(values, again, rtol=1e-2, atol=1e-3):
        return f"{entry.id} answers {name!r} differently when it is asked again"
    least = LEAST_COSINE.get(entry.precision, LEAST_COSINE_OTHERWISE)
    if truth is not None and (found := cosine(values, truth)) < least:
        return f"{entry.id} answers {name!r} otherwise than the whole model does: cosine {found:.3f}, not {least:g}"
    return ""


def _whole_answer(bundle: Bundle, inputs: Tensors) -> dict[str, Array]:
    """Empty where the whole model is not on the shelf."""
    if WHOLE not in bundle.manifest.files or not (bundle.root / WHOLE).exists():
        return {}
    with OrtEngine(bundle.graph(WHOLE), label=WHOLE) as engine:
        return engine.infer(inputs)
