"""Proof that tail(head(x)) answers like the whole model: to the last bits in fp32, by a named metric in eight bits.

Equality is shown with ONNX Runtime's optimisation off, since fusions across the cut change the last bits; the metric
is taken with it on, as the devices run it, and only on samples that calibrated nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from partitioner.judging.data import Samples
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError, ModelError
from protocol.tensors import Array, Tensors

PARITY_BOUND = 1e-5  # times max(1, max|y|); what was seen is 0 with optimisation off (1,378 cuts of 20 models)
# Where float16 crosses: ONNX Runtime computes it in float32 on processors, so the cut rounds what the whole model
# does not. Eight times float16's unit roundoff (2^-11).
HALF_BOUND = 2.0**-8
PARITY_SAMPLES = 4
SHIFTED = 0.25  # of accuracy gained by counting labels from the next class: no accident from 10 samples on
JUDGING_THREADS = min(4, os.cpu_count() or 1)

Outputs = dict[str, Array]


class SplitPair:
    """Head and tail run one after the other, as agent and gateway will, but in one process."""

    def __init__(
        self,
        head: bytes,
        tail: bytes,
        cut: Sequence[str],
        head_outputs: Sequence[str],
        *,
        optimise: bool = True,
        threads: int = JUDGING_THREADS,
    ) -> None:
        self.head = OrtEngine(head, label="head", optimise=optimise, threads=threads)
        self.tail = OrtEngine(tail, label="tail", optimise=optimise, threads=threads)
        self._cut = tuple(cut)
        self._head_outputs = tuple(head_outputs)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.head)
            stack.enter_context(self.tail)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, feed: Tensors) -> tuple[Outputs, Outputs]:
        """What crosses for one sample, and the answer."""
        made = self.head.infer(feed)
        crossing = {name: made[name] for name in self._cut}
        return crossing, self.tail.infer(crossing) | {name: made[name] for name in self._head_outputs}

    def infer(self, feed: Tensors) -> Outputs:
        return self.run(feed)[1]


@dataclass(frozen=True)
class Difference:
    """Greatest absolute difference seen, and how much was allowed."""

    seen: float
    allowed: float

    @property
    def within(self) -> bool:
        return self.seen <= self.allowed


EXACT = Difference(0.0, PARITY_BOUND)  # of a graph that was not cut


def difference(expected: Iterable[Outputs], got: Iterable[Outputs], bound: float = PARITY_BOUND) -> Difference:
    """Compare outputs sample by sample; equal non-finite values count as equal, different shapes as infinitely far."""
    seen, largest = 0.0, 1.0
    for want, have in zip(expected, got, strict=True):
        for name, reference in want.items():
            seen = max(seen, _distance(reference, have[name]))
            finite = np.abs(reference.astype(np.float64))
            largest = max(largest, float(np.max(finite, initial=0.0, where=np.isfinite(finite))))
    return Difference(seen, bound * largest)


def _distance(a: Array, b: Array) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.size == 0:
        return 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(x - y))
    return float(np.nan_to_num(gap, nan=np.inf).max())


def run_all(model: bytes, samples: Samples, indices: Sequence[int], *, optimise: bool = True) -> list[Outputs]:
    """The outputs of a whole model for each of the samples."""
    with OrtEngine(model, label="model", optimise=optimise, threads=JUDGING_THREADS) as engine:
        return [engine.infer(feed) for feed in samples.feeds(indices)]


def prove_equal(
    head: bytes,
    tail: bytes,
    cut: Sequence[str],
    head_outputs: Sequence[str],
    samples: Samples,
    expected: Sequence[Outputs],
) -> Difference:
    """Compare the fp32 halves with the whole model's unoptimised outputs on the first held-out samples.

    Raises ModelError when they differ: a cut that separates changes nothing, unless the model itself draws numbers.
    """
    indices = samples.held_out[: len(expected)]
    with SplitPair(head, tail, cut, head_outputs, optimise=False) as pair:
        halves = any(spec.dtype == "float16" for spec in pair.head.outputs if spec.name in cut)
        bound = HALF_BOUND if halves else PARITY_BOUND
        result = difference(expected, [pair.infer(feed) for feed in samples.feeds(indices)], bound)
    if not result.within:
        raise ModelError(
            f"cut {', '.join(cut)} changes the model's answers by {result.seen:.3g} (allowed {result.allowed:.3g})",
            "cut elsewhere",
        )
    return result


@dataclass(frozen=True)
class Yardstick:
    """How an answer is judged: "accuracy" against labels, "agreement" of the top-1, or "cosine"."""

    metric: str
    reference: float  # the whole fp32 model's own value
    bound: float  # the least acceptable value
    expected: tuple[Outputs, ...]
    labels: Array | None
    first: str  # name of the model's first output

    def score(self, got: Sequence[Outputs]) -> float:
        """The metric's value, 0..1 (cosine: -1..1), over the held-out samples."""
        if self.metric == "cosine":
            return float(np.mean([_cosine(e, g) for e, g in zip(self.expected, got, strict=True)]))
        answers = np.array([_top1(g[self.first]) for g in got])
        wanted = self.labels if self.labels is not None else np.array([_top1(e[self.first]) for e in self.expected])
        return float(np.mean(answers == wanted))

    def like(self, expected: Sequence[Outputs], labels: Array | None) -> Yardstick:
        """The same metric and the same loss allowed, on other samples."""
        draft = replace(self, reference=0.0, bound=0.0, expected=tuple(expected), labels=labels)
        reference = draft.score(expected)
        return replace(draft, reference=reference, bound=reference - (self.reference - self.bound))

    def judge(self, got: Sequence[Outputs]) -> tuple[float, bool]:
        value = self.score(got)
        return value, value >= self.bound - 1e-9


def yardstick(expected: Sequence[Outputs], samples: Samples, first: str, bound: float) -> Yardstick:
    """Choose the metric for a model from its outputs on the held-out samples, and the least value to accept.

    Raises ModelError when the model answers NaN or infinity on most samples: nothing could be judged.
    """
    finite = [all(np.isfinite(v).all() for v in e.values() if v.dtype.kind == "f") for e in expected]
    if np.mean(finite) < 0.5:
        raise ModelError("the model's outputs are NaN or infinite on most samples", "give real ones with --calibration")
    # One output of many says nothing about the others: only labels can make it the one that counts.
    if not _are_scores(expected[0][first]) or (len(expected[0]) > 1 and samples.labels is None):
        return Yardstick("cosine", 1.0, 1.0 - bound, tuple(expected), None, first)
    if samples.labels is None:
        return Yardstick("agreement", 1.0, 1.0 - bound, tuple(expected), None, first)
    labels = samples.labels[list(samples.held_out)]
    draft = Yardstick("accuracy", 0.0, 0.0, tuple(expected), labels, first)
    reference = draft.score(expected)
    _refuse_shifted(draft, reference)
    return Yardstick("accuracy", reference, reference - bound, tuple(expected), labels, first)


def _refuse_shifted(stick: Yardstick, reference: float) -> None:
    """Labels that count from another class make every answer wrong, and a loss of accuracy can then not be seen."""
    assert stick.labels is not None
    for shift in (1, -1):
        share = replace(stick, labels=stick.labels + shift).score(stick.expected)
        if share >= max(0.5, reference + SHIFTED):
            fact = (
                f"the model is right on {reference:.0%} of the labelled samples, with labels {shift:+d} on {share:.0%}"
            )
            raise InputError(fact, f"shift the labels with --label-offset {shift}")


def _are_scores(output: Array) -> bool:
    """[1, C], or what some exporters leave of it, [1, C, 1, 1]."""
    sizes = output.shape
    return output.dtype.kind == "f" and len(sizes) >= 2 and sizes[0] == 1 and sizes[1] >= 2 and set(sizes[2:]) <= {1}


def _top1(scores: Array) -> int:
    return int(np.argmax(scores)) if np.isfinite(scores).all() else -1


def _cosine(expected: Outputs, got: Outputs) -> float:
    """Cosine of the worst output, so that none hides behind others; integers count their share of equal elements."""
    values = [_closeness(array, got[name]) for name, array in expected.items() if array.size]
    return float(min(values)) if values else 1.0


def _closeness(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return 0.0
    if a.dtype.kind != "f":
        return float(np.mean(a == b))
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norms == 0.0:
        return float(np.array_equal(x, y))
    value = float(x @ y) / norms
    return value if np.isfinite(value) else 0.0
