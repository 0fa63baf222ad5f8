"""One cut becomes head, tail and the proof that belongs to them. Eight bits come first and ship only if they hold.

    INT8 head, 8-bit boundary -> fp32 head, 8-bit boundary -> INT8 head, fp16 boundary -> fp32 head, fp16 -> fp32, fp32

An INT8 head is tried in the recipe that the search found for the whole model, then in that recipe's safer forms. Each
step down is recorded with its reason. Under `--precision int8` there is no step down to fp32 but a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from partitioner.crossing import decorrelate, rungs
from partitioner.crossing.boundary import Codes, emit_codes, take_codes
from partitioner.crossing.codings import (
    CODEC_SAMPLES,
    Way,
    descend,
    differing,
    lossless,
    measure_coding,
    received,
)
from partitioner.crossing.decorrelate import Transform, begin_tail, end_head
from partitioner.crossing.halves import emit_halves, take_halves
from partitioner.graph import cuts
from partitioner.graph.model import serialise
from partitioner.graph.split import Halves, split
from partitioner.int8.recipes import Recipe, Refusal
from partitioner.judging import batch, verify
from partitioner.judging.verify import Outputs, SplitPair
from partitioner.planning.workshop import (
    Segment,
    Variant,
    Workshop,
    boundary_of,
    certificate_of,
    saving,
    slower_than_fp32,
    too_low,
)
from protocol import drift
from protocol.bundle import BatchProof, ParityCertificate
from protocol.engines.ort import OrtEngine
from protocol.errors import AccuracyRefusedError, EngineError, ModelError
from protocol.tensors import Array

# The rungs of few levels are designed on this many calibration samples: their histograms hardly change with more.
DESIGN_SAMPLES = 32


Transforms = Mapping[str, Transform]


class Rung(NamedTuple):
    """One step of the ladder: precision of the head, and how float32 tensors cross."""

    precision: str
    boundary: str  # "8-bit" codes, "fp16", "fp32"

    def __str__(self) -> str:
        return f"{'INT8' if self.precision == 'int8' else 'fp32'} head, {self.boundary} boundary"


CODES = "8-bit"
_INT8, _FP32 = Rung("int8", CODES), Rung("fp32", CODES)
_INT8_HALVES, _FP32_HALVES, _EXACT = Rung("int8", "fp16"), Rung("fp32", "fp16"), Rung("fp32", "fp32")
LADDERS = {
    "auto": (_INT8, _FP32, _INT8_HALVES, _FP32_HALVES, _EXACT),
    "int8": (_INT8, _INT8_HALVES),
    "fp32": (_FP32, _FP32_HALVES, _EXACT),
}


class _Attempt(NamedTuple):
    rung: Rung
    recipe: str  # of an INT8 head
    head: bytes
    codes: dict[str, Codes]
    halves: tuple[str, ...]  # what crosses as float16
    transforms: Transforms


_REMEDY = (
    "use a larger --bound, or --precision auto, which keeps in fp32 what does not hold and sends its boundary as 8-bit "
    "codes, float16 or float32, the first that holds"
)


def assemble(shop: Workshop, cut: tuple[str, ...], *, decorrelated: bool = False) -> Segment:
    """Split at `cut`, prove it, and climb down the ladder until the bound is met.

    With `decorrelated` head and tail get the two convolutions of `decorrelate` between them.
    Raises ModelError for a cut that does not separate, or that does not suit them, and AccuracyRefusedError when the
    ladder ends above the ground.
    """
    sides = cuts.separate(shop.model.topology, cut, on_device=shop.on_device)
    halves = split(shop.model, sides)
    exact = verify.prove_equal(
        serialise(halves.head), serialise(halves.tail), sides.cut, sides.head_outputs, shop.samples, shop.exact
    )
    transforms = _transforms(shop, sides, halves) if decorrelated else {}
    notes = ["what crosses is decorrelated by two small convolutions"] if transforms else []
    for rung in _ladder(shop, sides):
        if transforms and rung.boundary != CODES:
            break  # without codes there is nothing to gain
        segment, reason = _try(shop, sides, halves, rung, exact, transforms)
        if segment is not None:
            if rung.precision != "int8" and (reason := shop.refusal(segment.head)):
                notes.append(f"the head will run on something else: {reason}")
            return replace(segment, notes=tuple(notes))
        notes.append(f"{rung} not shipped: {reason}")
    raise AccuracyRefusedError(f"cut {', '.join(cut)}: {notes[-1]}", _REMEDY)


def _try(
    shop: Workshop,
    sides: cuts.Sides,
    halves: Halves,
    rung: Rung,
    exact: verify.Difference,
    transforms: Transforms,
) -> tuple[Segment | None, str]:
    """One rung: the segment, or why it does not ship. Only the last rung's own trouble is an error."""
    reason = ""
    try:
        for attempt in _attempts(shop, sides, halves, rung, transforms):
            if rung.precision == "int8" and (reason := shop.refusal(attempt.head)):
                continue
            if shop.precision == "auto" and rung.precision == "int8" and shop.times_heads:
                # Speed first: it takes a tenth of the time that judging takes.
                plain = serialise(_coding_head(shop, halves.head, list(attempt.codes), transforms)[0])
                reason = slower_than_fp32(shop, attempt.head, plain)
                if reason:
                    return None, reason
            segment, holds = _judge(shop, sides, halves.tail, attempt, exact)
            if holds:
                return replace(segment, timed=_timed(shop, halves.head, attempt)), ""
            reason = too_low(shop.yardstick, segment.certificate.achieved)
    except (ModelError, EngineError) as error:
        if rung == _EXACT:
            raise
        return None, error.fact
    return None, reason


def _timed(shop: Workshop, head: ir.Model, attempt: _Attempt) -> bytes | None:
    """The float head of an INT8 one whose times here say nothing: what the declared slow-down is of."""
    if shop.times_heads or attempt.rung.precision != "int8":
        return None
    if attempt.halves:
        return serialise(emit_halves(head, attempt.halves, shop.ranges))
    return serialise(_coding_head(shop, head, list(attempt.codes), attempt.transforms)[0])


def assemble_edge(shop: Workshop) -> tuple[bytes, str, ParityCertificate, tuple[str, ...]]:
    """The whole model as the device runs it: graph, precision, certificate, notes. Same ladder, same refusals."""
    notes: list[str] = []
    if shop.book is not None:
        try:
            if isinstance(shop.book.whole, Refusal):
                raise ModelError(str(shop.book.whole))
            data = serialise(shop.book.whole.graph)
            got = verify.run_all(data, shop.samples, shop.samples.held_out)
            certificate = certificate_of(shop, got, verify.EXACT)
            reason = "" if shop.yardstick.judge(got)[1] else too_low(shop.yardstick, certificate.achieved)
            if not reason and shop.precision == "auto" and shop.times_heads:
                reason = slower_than_fp32(shop, data, shop.model.data)
        except (ModelError, EngineError) as error:
            reason = error.fact
        if not reason:
            return data, "int8", certificate, ()
        notes.append(f"INT8 model not shipped: {reason}")
        if shop.precision == "int8":
            raise AccuracyRefusedError(f"edge-only: {notes[0]}", _REMEDY)
    if reason := shop.refusal(shop.model.data):
        notes.append(f"the model will run on something else: {reason}")
    return shop.model.data, "fp32", certificate_of(shop, list(shop.yardstick.expected), verify.EXACT), tuple(notes)


def _ladder(shop: Workshop, sides: cuts.Sides) -> Iterator[Rung]:
    any_floats = any(shop.model.topology.crosses_as_codes(n) for n in sides.cut)
    for rung in LADDERS[shop.precision]:
        # Where nothing can become codes or halves, the rungs of each precision are one.
        if any_floats or rung in (_INT8, _EXACT):
            yield rung


def _attempts(
    shop: Workshop, sides: cuts.Sides, halves: Halves, rung: Rung, transforms: Transforms
) -> Iterator[_Attempt]:
    """The head under this rung: once in fp32, in INT8 once for every recipe that is worth trying."""
    floats = [n for n in sides.cut if shop.model.topology.crosses_as_codes(n)]
    for recipe, head in _heads(shop, halves.head, rung):
        codes: dict[str, Codes] = {}
        if rung.boundary == CODES:
            head, codes = _coding_head(shop, head, floats, transforms)
        elif rung.boundary == "fp16":
            head = emit_halves(head, floats, shop.ranges)
        named = recipe.title if recipe else ""
        half = tuple(floats) if rung.boundary == "fp16" else ()
        yield _Attempt(rung, named, serialise(head), codes, half, transforms)


def _coding_head(
    shop: Workshop, head: ir.Model, names: Sequence[str], transforms: Transforms
) -> tuple[ir.Model, dict[str, Codes]]:
    """The head as it emits codes: of the tensors themselves, or of their decorrelated planes."""
    by_arithmetic = not shop.times_heads
    if not transforms:
        return emit_codes(head, names, shop.ranges, by_arithmetic=by_arithmetic)
    ranges = dict(shop.ranges) | {name: (t.low, t.high) for name, t in transforms.items()}
    return emit_codes(end_head(head, transforms), names, ranges, by_arithmetic=by_arithmetic)


def _transforms(shop: Workshop, sides: cuts.Sides, halves: Halves) -> Transforms:
    """What decorrelates the one tensor that crosses, as the tail hears it. Raises ModelError where it does not suit."""
    (name, *others) = sides.cut
    indices = shop.samples.calibration[:DESIGN_SAMPLES]
    if not others and shop.model.topology.crosses_as_codes(name) and len(indices):
        with SplitPair(serialise(halves.head), serialise(halves.tail), sides.cut, sides.head_outputs) as pair:
            seen = [pair.head.infer(feed)[name] for feed in shop.samples.feeds(indices)]
            alike = [array for array in seen if array.shape == seen[0].shape]
            values = np.concatenate(alike)
            if decorrelate.suits(values):
                respond = decorrelate.listen(pair.tail, name, batched=shop.free_batch)
                return {name: decorrelate.design(values, respond)}
    raise ModelError(f"{', '.join(sides.cut)} does not suit a transform", "send it as it is")


def _judge(
    shop: Workshop, sides: cuts.Sides, fp32_tail: ir.Model, attempt: _Attempt, exact: verify.Difference
) -> tuple[Segment, bool]:
    """Run what would ship over the held-out samples. Returns it and whether it meets the bound."""
    tail, proof, axes = _batchable_tail(shop, sides, attempt.head, _taking(fp32_tail, attempt))
    with SplitPair(attempt.head, tail, sides.cut, sides.head_outputs) as pair:
        runs = [pair.run(feed) for feed in shop.samples.feeds(shop.samples.held_out)]
        before = _frames_before(shop, pair)
        fitted = [pair.run(feed) for feed in shop.samples.feeds(shop.samples.calibration)]
        some = [crossing for crossing, _ in fitted[:DESIGN_SAMPLES]]
        shares = {n: _outer_share([made[n] for made in some], c) for n, c in attempt.codes.items()}

        def variant(rung: str, ways: Mapping[str, Way], got: list[Outputs]) -> Variant:
            crossings = [crossing for crossing, _ in runs]
            if before is not None:
                ways = differing(crossings, before, ways)
            boundary = boundary_of(pair.tail.inputs, ways, axes, proof, attempt.codes, shares)
            coding = measure_coding(crossings, ways, before)
            return Variant(rung, boundary, coding, certificate_of(shop, got, exact))

        answers = [answer for _, answer in runs]
        ways = lossless([crossing for crossing, _ in runs])
        variants = [variant("", ways, answers)]
        holds = shop.yardstick.judge(answers)[1]

        def lossy(step: tuple[str, dict[str, Way]]) -> Variant | None:
            rung, coded = step
            got = _through(pair, runs, ways | coded)
            if not shop.yardstick.judge(got)[1]:
                return None
            there = _through(pair, fitted, ways | coded)
            if not _costs_little(shop, answers, got, [answer for _, answer in fitted], there):
                return None
            return variant(rung, ways | coded, got)

        if holds:
            variants = saving(variants + descend(list(_ladders(attempt.codes, some)), lossy))
    segment = Segment(
        cut=sides.cut,
        precision=attempt.rung.precision,
        head=attempt.head,
        tail=tail,
        variants=tuple(variants),
        head_outputs=sides.head_outputs,
        batch=proof,
        recipe=attempt.recipe,
        decorrelated=bool(attempt.transforms),
        down_nbytes=sum(answers[0][n].nbytes for n in sides.tail_outputs),
        notes=(),
        taking=partial(_taking, attempt=attempt),
    )
    return segment, holds


def _heads(shop: Workshop, head: ir.Model, rung: Rung) -> Iterator[tuple[Recipe | None, ir.Model]]:
    if rung.precision != "int8":
        yield None, head
    elif shop.book is not None:
        yield from shop.book.for_head(head)


def _costs_little(
    shop: Workshop,
    plain: Sequence[Outputs],
    coded: Sequence[Outputs],
    plain_there: Sequence[Outputs],
    coded_there: Sequence[Outputs],
) -> bool:
    """Whether the coding alone costs no more than the bound on held-out and calibration samples together.

    Of many rungs one may pass a few held-out samples by luck; what the eight bits cost is not the coding's fault.
    """
    stick, there = shop.yardstick, shop.calibrated
    lost = len(coded) * (stick.score(plain) - stick.score(coded))
    if there is not None:
        lost += len(coded_there) * (there.score(plain_there) - there.score(coded_there))
    return lost <= (stick.reference - stick.bound) * (len(coded) + len(coded_there)) + 1e-9


def _frames_before(shop: Workshop, pair: SplitPair) -> list[Outputs] | None:
    """What crossed just before each of the first held-out samples, where those are frames of a stream."""
    if not shop.samples.consecutive:
        return None
    indices = shop.samples.neighbours(shop.samples.held_out[:CODEC_SAMPLES])
    return [pair.run(feed)[0] for feed in shop.samples.feeds(indices)]


def _through(pair: SplitPair, runs: Sequence[tuple[Outputs, Outputs]], ways: Mapping[str, Way]) -> list[Outputs]:
    """The answers when what crosses is coded in these ways."""
    return [answer | pair.tail.infer(received(crossing, ways)) for crossing, answer in runs]


def _taking(tail: ir.Model, attempt: _Attempt) -> ir.Model:
    if attempt.halves:
        return take_halves(tail, attempt.halves)
    return take_codes(begin_tail(tail, attempt.transforms) if attempt.transforms else tail, attempt.codes)


def _ladders(codes: Mapping[str, Codes], some: Sequence[Outputs]) -> Iterator[tuple[str, dict[str, Way]]]:
    """The lossy rungs of a boundary, mildest first: every tensor of codes one rung further down."""
    designed = {name: rungs.design([made[name] for made in some]) for name in codes if some}
    for step in zip(*designed.values(), strict=True):
        if any(rung.levels for rung in step):
            yield step[0].name, {n: Way(r.codec, r.levels) for n, r in zip(designed, step, strict=True) if r.levels}


def _outer_share(codes: Sequence[Array], code: Codes) -> float:
    return sum(drift.outer_count(array, code.zero_point) for array in codes) / max(sum(a.size for a in codes), 1)


def _batchable_tail(
    shop: Workshop, sides: cuts.Sides, head: bytes, tail: ir.Model
) -> tuple[bytes, BatchProof, batch.Axes]:
    feeds = batch.alike(shop.samples)
    with OrtEngine(head, label="head") as engine:
        axes = batch.crossing_axes(engine, sides.cut, feeds, shop.free_batch)
        made = [engine.infer(feed) for feed in feeds]
    data, proof = batch.proven_batch(tail, [{n: m[n] for n in sides.cut} for m in made], axes)
    return data, proof, axes
