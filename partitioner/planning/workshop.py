"""What all cuts of one build share, what a finished cut is, and the words in which both are certified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from partitioner.crossing.boundary import Codes
from partitioner.crossing.codings import MIN_SAVING, Coding, Way
from partitioner.graph.model import LoadedModel
from partitioner.int8.eight_bits import RecipeBook
from partitioner.int8.head_engine import refusal
from partitioner.int8.recipes import HeadEngine
from partitioner.judging import batch, verify
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges
from partitioner.judging.verify import Outputs, Yardstick
from partitioner.measuring.measure import interleaved_medians
from protocol.bundle import BatchProof, BoundaryTensor, ParityCertificate
from protocol.engines.ort import OrtEngine
from protocol.tensors import TensorSpec

# An INT8 head may take up to this much longer than the fp32 one on the machine that builds. It needs a quarter of the
# memory, and short heads (one float convolution and little else) differ by microseconds here that say little about the
# device's processor. Beyond that, INT8 has missed its purpose.
SLOWER = 1.25


@dataclass(frozen=True)
class Workshop:
    """The model, the data and the yardstick that all cuts of one build share."""

    model: LoadedModel
    samples: Samples
    ranges: Ranges
    yardstick: Yardstick  # on the held-out samples
    calibrated: Yardstick | None  # its like on the calibration samples, where there are any
    exact: tuple[Outputs, ...]  # the model's unoptimised outputs on the first held-out samples
    book: RecipeBook | None  # how INT8 is made; None where it was not asked for
    precision: str  # "auto", "int8" or "fp32", as asked
    threads: int  # of heads, as on the device
    tail_threads: int  # of tails, as at the gateway
    notes: tuple[str, ...] = ()
    on_device: frozenset[int] = frozenset()  # steps that may not leave the device
    lossless_input: bool = False  # what the application hands in may not be sent with loss
    head_engine: HeadEngine = "onnxruntime"  # what heads are made for

    @property
    def free_batch(self) -> bool:
        """Whether every model input leaves its first dimension free."""
        return all(
            s.name not in self.samples.whole and s.shape and not isinstance(s.shape[0], int) for s in self.model.inputs
        )

    @property
    def times_heads(self) -> bool:
        """Whether what this machine takes for a head says anything about the device."""
        return self.head_engine == "onnxruntime"

    def refusal(self, head: ir.Model | bytes) -> str:
        """Why what runs the heads does not take this one, or ""."""
        return refusal(self.head_engine, head, self.samples.whole)


class Variant(NamedTuple):
    """One coding of a cut's boundary, measured and judged: a line of the plan. `rung` is "" for the lossless one."""

    rung: str
    boundary: tuple[BoundaryTensor, ...]
    coding: Coding
    certificate: ParityCertificate


def saving(variants: Sequence[Variant]) -> list[Variant]:
    """Those that send clearly less than the one before."""
    kept = list(variants[:1])
    for variant in variants[1:]:
        if variant.coding.nbytes <= (1.0 - MIN_SAVING) * kept[-1].coding.nbytes:
            kept.append(variant)
    return kept


@dataclass(frozen=True)
class Segment:
    """A finished cut: head and tail as serialised graphs; every variant that keeps the bound, the lossless one first.

    `down_nbytes` is what one answer of the tail holds.
    """

    cut: tuple[str, ...]
    precision: str
    head: bytes
    tail: bytes
    variants: tuple[Variant, ...]
    head_outputs: tuple[str, ...]
    batch: BatchProof
    recipe: str  # of an INT8 head
    decorrelated: bool
    down_nbytes: int
    notes: tuple[str, ...]
    taking: Callable[[ir.Model], ir.Model]  # of a graph with the cut's own tensors, one that takes what crosses
    timed: bytes | None = None  # what is timed here for the head: its float form, where that is made for another engine

    @property
    def certificate(self) -> ParityCertificate:
        return self.variants[0].certificate


def slower_than_fp32(shop: Workshop, int8: bytes, fp32: bytes) -> str:
    """Why INT8 is not worth shipping here, or "" if it is."""
    feed = shop.samples.feed(shop.samples.held_out[0])
    with (
        OrtEngine(int8, label="int8", threads=shop.threads) as eight,
        OrtEngine(fp32, label="fp32", threads=shop.threads) as full,
    ):
        times = interleaved_medians({"int8": lambda: eight.infer(feed), "fp32": lambda: full.infer(feed)})
    if times["int8"] <= SLOWER * times["fp32"]:
        return ""
    return f"slower on this machine ({times['int8'] * 1e3:.2f} ms, fp32 {times['fp32'] * 1e3:.2f} ms)"


def boundary_of(
    specs: tuple[TensorSpec, ...],
    ways: Mapping[str, Way],
    axes: batch.Axes,
    proof: BatchProof,
    codes: Mapping[str, Codes],
    outer_shares: Mapping[str, float],
) -> tuple[BoundaryTensor, ...]:
    """What crosses, in the tail's words."""

    def one(spec: TensorSpec) -> BoundaryTensor:
        code, way = codes.get(spec.name), ways[spec.name]
        axis = axes.get(spec.name) if proof.batchable else None
        scale, zero_point = (code.scale, code.zero_point) if code else (None, None)
        return BoundaryTensor(
            spec, way.codec, axis, scale, zero_point, levels=way.levels, outer_share=outer_shares.get(spec.name)
        )

    return tuple(one(spec) for spec in specs)


def certificate_of(shop: Workshop, got: list[Outputs], exact: verify.Difference) -> ParityCertificate:
    stick = shop.yardstick
    return ParityCertificate(
        fp32_max_abs_difference=exact.seen,
        fp32_bound=exact.allowed,
        metric=stick.metric,
        reference=stick.reference,
        achieved=stick.score(got),
        bound=stick.bound,
        samples=len(got),
        random_inputs=shop.samples.is_random,
    )


def too_low(stick: Yardstick, achieved: float) -> str:
    count = len(stick.expected)
    return f"{stick.metric} {achieved:.4f} on {count} held-out samples is below the bound {stick.bound:.4f}"
