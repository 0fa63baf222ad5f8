"""One cut becomes head, tail and the proof that belongs to them. Eight bits come first and ship only if they hold.

    INT8 head, 8-bit boundary  ->  fp32 head, 8-bit boundary  ->  fp32 head, fp32 boundary

Each step down is recorded with its reason. Under `--precision int8` there is no step down but a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import onnx_ir as ir

from partitioner import batch, cuts, verify
from partitioner.boundary import Codes, emit_codes, take_codes
from partitioner.data import Samples
from partitioner.measure import CODEC_SAMPLES, Coding, choose_coding, interleaved_medians
from partitioner.model import LoadedModel, serialise
from partitioner.observe import Ranges
from partitioner.quantise import quantise
from partitioner.split import Halves, free_axes, split
from partitioner.verify import Outputs, SplitPair, Yardstick
from protocol.bundle import BatchProof, BoundaryTensor, ParityCertificate
from protocol.engines.ort import OrtEngine
from protocol.errors import AccuracyRefusedError, EngineError, ModelError
from protocol.tensors import Array, TensorSpec

# An INT8 head may take up to this much longer than the fp32 one on the machine that builds. It needs a quarter of the
# memory, and short heads (one float convolution and little else) differ by microseconds here that say little about the
# device's processor. Beyond that, INT8 has missed its purpose.
SLOWER = 1.25


class Rung(NamedTuple):
    """One step of the ladder: precision of the head, and whether float32 tensors cross as 8-bit codes."""

    precision: str
    codes: bool

    def __str__(self) -> str:
        head = "INT8" if self.precision == "int8" else "fp32"
        return f"{head} head, {'8-bit' if self.codes else 'fp32'} boundary"


LADDERS = {
    "auto": (Rung("int8", True), Rung("fp32", True), Rung("fp32", False)),
    "int8": (Rung("int8", True),),
    "fp32": (Rung("fp32", True), Rung("fp32", False)),
}


@dataclass(frozen=True)
class Workshop:
    """The model, the data and the yardstick that all cuts of one build share."""

    model: LoadedModel
    samples: Samples
    ranges: Ranges
    yardstick: Yardstick
    exact: tuple[Outputs, ...]  # the model's unoptimised outputs on the first held-out samples
    precision: str  # "auto", "int8" or "fp32", as asked
    threads: int  # of heads, as on the device
    tail_threads: int  # of tails, as at the gateway

    @property
    def free_batch(self) -> bool:
        """Whether every model input leaves its first dimension free."""
        return all(
            s.name not in self.samples.whole and s.shape and not isinstance(s.shape[0], int) for s in self.model.inputs
        )


@dataclass(frozen=True)
class Segment:
    """A finished cut. `head` and `tail` are serialised graphs, `down_nbytes` what one answer of the tail holds."""

    cut: tuple[str, ...]
    precision: str
    head: bytes
    tail: bytes
    boundary: tuple[BoundaryTensor, ...]
    head_outputs: tuple[str, ...]
    batch: BatchProof
    certificate: ParityCertificate
    coding: Coding
    down_nbytes: int
    notes: tuple[str, ...]


class _Attempt(NamedTuple):
    rung: Rung
    head: bytes
    codes: dict[str, Codes]


def assemble(shop: Workshop, cut: tuple[str, ...]) -> Segment:
    """Split at `cut`, prove it, and climb down the ladder until the bound is met.

    Raises ModelError for a cut that does not separate and AccuracyRefusedError when the ladder ends above the ground.
    """
    sides = cuts.separate(shop.model.topology, cut)
    halves = split(shop.model, sides)
    exact = verify.prove_equal(
        serialise(halves.head), serialise(halves.tail), sides.cut, sides.head_outputs, shop.samples, shop.exact
    )
    notes: list[str] = []
    for rung in _ladder(shop, sides):
        segment, reason = _try(shop, sides, halves, rung, exact)
        if segment is not None:
            return replace(segment, notes=tuple(notes))
        notes.append(f"{rung} not shipped: {reason}")
    raise AccuracyRefusedError(f"cut {', '.join(cut)}: {notes[-1]}", "use --precision auto or a larger --bound")


def _try(
    shop: Workshop, sides: cuts.Sides, halves: Halves, rung: Rung, exact: verify.Difference
) -> tuple[Segment | None, str]:
    """One rung: the segment, or why it does not ship. What INT8 cannot do is a reason, what fp32 cannot an error."""
    try:
        attempt = _attempt(shop, sides, halves, rung)
        if shop.precision == "auto" and rung.precision == "int8":
            # Speed first: it takes a tenth of the time that judging takes.
            reason = slower_than_fp32(shop, attempt.head, _attempt(shop, sides, halves, Rung("fp32", True)).head)
            if reason:
                return None, reason
        segment, holds = _judge(shop, sides, halves.tail, attempt, exact)
    except (ModelError, EngineError) as error:
        if rung.precision != "int8":
            raise
        return None, error.fact
    return (segment, "") if holds else (None, _too_low(shop.yardstick, segment.certificate.achieved))


def assemble_edge(shop: Workshop) -> tuple[bytes, str, ParityCertificate, tuple[str, ...]]:
    """The whole model as the device runs it: graph, precision, certificate, notes. Same ladder, same refusals."""
    notes: list[str] = []
    zero = verify.Difference(0.0, verify.PARITY_BOUND)
    if shop.precision != "fp32":
        try:
            data = serialise(quantise(shop.model.graph, shop.ranges))
            got = verify.run_all(data, shop.samples, shop.samples.held_out)
            certificate = _certificate(shop, got, zero)
            reason = "" if shop.yardstick.judge(got)[1] else _too_low(shop.yardstick, certificate.achieved)
            if not reason and shop.precision == "auto":
                reason = slower_than_fp32(shop, data, shop.model.data)
        except (ModelError, EngineError) as error:
            reason = error.fact
        if not reason:
            return data, "int8", certificate, ()
        notes.append(f"INT8 model not shipped: {reason}")
        if shop.precision == "int8":
            raise AccuracyRefusedError(f"edge-only: {notes[0]}", "use --precision auto or a larger --bound")
    return shop.model.data, "fp32", _certificate(shop, list(shop.yardstick.expected), zero), tuple(notes)


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


def proven_batch(graph: ir.Model, feeds: list[dict[str, Array]], axes: batch.Axes) -> tuple[bytes, BatchProof]:
    """The graph with its batch axes free if that was proven right, else as it is; and the proof."""
    plain = serialise(graph)
    refusal = batch.unproven(axes)
    if refusal is not None:
        return plain, refusal
    known = {name: axis for name, axis in axes.items() if axis is not None}
    freed = free_axes(graph, known)
    proof = batch.prove(freed, feeds, known)
    return (freed if proof.batchable else plain), proof


def boundary_of(
    specs: tuple[TensorSpec, ...], coding: Coding, axes: batch.Axes, proof: BatchProof, codes: dict[str, Codes]
) -> tuple[BoundaryTensor, ...]:
    """What crosses, in the tail's words."""

    def one(spec: TensorSpec) -> BoundaryTensor:
        code = codes.get(spec.name)
        axis = axes.get(spec.name) if proof.batchable else None
        scale, zero_point = (code.scale, code.zero_point) if code else (None, None)
        return BoundaryTensor(spec, coding.codecs[spec.name], axis, scale, zero_point)

    return tuple(one(spec) for spec in specs)


def _ladder(shop: Workshop, sides: cuts.Sides) -> Iterator[Rung]:
    any_codes = any(shop.model.topology.crosses_as_codes(n) for n in sides.cut)
    for rung in LADDERS[shop.precision]:
        # Where nothing can become codes, the two fp32 rungs are one.
        if any_codes or rung != Rung("fp32", True):
            yield rung


def _attempt(shop: Workshop, sides: cuts.Sides, halves: Halves, rung: Rung) -> _Attempt:
    names = [n for n in sides.cut if rung.codes and shop.model.topology.crosses_as_codes(n)]
    head = quantise(halves.head, shop.ranges) if rung.precision == "int8" else halves.head
    head, codes = emit_codes(head, names, shop.ranges)
    return _Attempt(rung, serialise(head), codes)


def _judge(
    shop: Workshop, sides: cuts.Sides, fp32_tail: ir.Model, attempt: _Attempt, exact: verify.Difference
) -> tuple[Segment, bool]:
    """Run what would ship over the held-out samples. Returns it and whether it meets the bound."""
    tail, proof, axes = _batchable_tail(shop, sides, attempt.head, take_codes(fp32_tail, attempt.codes))
    with SplitPair(attempt.head, tail, sides.cut, sides.head_outputs) as pair:
        held_out = shop.samples.held_out
        crossings: list[Outputs] = []
        got: list[Outputs] = []
        for feed in shop.samples.feeds(held_out):
            crossing, answer = pair.run(feed)
            got.append(answer)
            crossings += [crossing] if len(crossings) < CODEC_SAMPLES else []
        specs = pair.tail.inputs
    coding = choose_coding(crossings)
    segment = Segment(
        cut=sides.cut,
        precision=attempt.rung.precision,
        head=attempt.head,
        tail=tail,
        boundary=boundary_of(specs, coding, axes, proof, attempt.codes),
        head_outputs=sides.head_outputs,
        batch=proof,
        certificate=_certificate(shop, got, exact),
        coding=coding,
        down_nbytes=sum(got[0][n].nbytes for n in sides.tail_outputs),
        notes=(),
    )
    return segment, shop.yardstick.judge(got)[1]


def _batchable_tail(
    shop: Workshop, sides: cuts.Sides, head: bytes, tail: ir.Model
) -> tuple[bytes, BatchProof, batch.Axes]:
    feeds = list(shop.samples.feeds(shop.samples.held_out[: batch.PROOF_BATCH]))
    with OrtEngine(head, label="head") as engine:
        axes = batch.crossing_axes(engine, sides.cut, feeds, shop.free_batch)
        made = [engine.infer(feed) for feed in feeds]
    data, proof = proven_batch(tail, [{n: m[n] for n in sides.cut} for m in made], axes)
    return data, proof, axes


def _certificate(shop: Workshop, got: list[Outputs], exact: verify.Difference) -> ParityCertificate:
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


def _too_low(stick: Yardstick, achieved: float) -> str:
    count = len(stick.expected)
    return f"{stick.metric} {achieved:.4f} on {count} held-out samples is below the bound {stick.bound:.4f}"
