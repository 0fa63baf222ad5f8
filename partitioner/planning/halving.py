"""A second form of each tail, in float16, for gateways with a GPU; kept only where the whole cut holds with it.

    head as it ships -> coded as it ships -> tail in float16 | held-out samples -> the bound, as for every precision

One file serves all codings of a cut, since their requests share a lane at the gateway: it is kept if every one of them
holds. Where one does not, or the graph cannot be converted, the reason is told and the cut keeps its float32 tail
alone; that is never an error. Bridges and the common suffix have no such form: a gateway measures whether cuts in one
lane, in float32, or each in its own, in float16, are served faster.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx

from partitioner.crossing.codings import Way, received
from partitioner.crossing.half_rounding import rounded
from partitioner.crossing.half_tail import in_half
from partitioner.graph.large_weights import set_aside, with_weights
from partitioner.judging import batch, verify
from partitioner.judging.verify import HALF_BOUND, JUDGING_THREADS, Outputs
from partitioner.planning.costs import FULL_CLOUD, id_of
from partitioner.planning.ends import Ends
from partitioner.planning.workshop import Segment, Variant, Workshop, certificate_of, too_low
from protocol.bench import Reporter
from protocol.bundle import BatchProof, ParityCertificate
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, ModelError
from protocol.graphs import external_of
from protocol.tensors import Array

LEAST_WEIGHT_NBYTES = 1 << 16  # of a tail whose weights lie beside it in float32: so do those of this one


@dataclass(frozen=True)
class Half:
    """A tail in float16, and what it achieves under each coding of its cut, by placement id."""

    graph: bytes
    certificates: Mapping[str, ParityCertificate]


def halve(
    shop: Workshop,
    ends: Ends,
    segments: Mapping[str, Segment],
    shipped: Container[str],
    least: float | None,
    reporter: Reporter,
) -> dict[str, Half | str]:
    """For full-cloud and each cut, by name, its tail in float16, or in words why there is none.

    Only codings whose placement is `shipped` are judged. `least` is the metric that the order's constraints demand.
    """
    cuts = [_whole(shop, ends), *(_cut(shop, *named) for named in segments.items())]
    found: dict[str, Half | str] = {}
    for done, cut in enumerate(cuts, 1):
        variants = {id_: v for v in cut.variants if (id_ := id_of(cut.name, v.rung)) in shipped}
        if variants:
            try:
                found[cut.name] = _judged(shop, cut, variants, least)
            except (ModelError, EngineError) as error:
                found[cut.name] = error.fact
        reporter.progress(done, len(cuts))
    return found


class _Cut(NamedTuple):
    """What is judged: a tail with all that goes before it. `head` is None for full-cloud."""

    name: str
    head: bytes | None
    tail: bytes
    crossing: tuple[str, ...]
    head_outputs: tuple[str, ...]
    variants: tuple[Variant, ...]
    batch: BatchProof
    exact: verify.Difference


def _whole(shop: Workshop, ends: Ends) -> _Cut:
    inputs = tuple(spec.name for spec in shop.model.inputs)
    return _Cut(FULL_CLOUD, None, ends.full, inputs, (), ends.full_variants, ends.full_batch, verify.EXACT)


def _cut(shop: Workshop, name: str, segment: Segment) -> _Cut:
    proof = segment.certificate
    exact = verify.Difference(proof.fp32_max_abs_difference, proof.fp32_bound)
    return _Cut(
        name, segment.head, segment.tail, segment.cut, segment.head_outputs, segment.variants, segment.batch, exact
    )


def _judged(shop: Workshop, cut: _Cut, variants: Mapping[str, Variant], least: float | None) -> Half:
    """Raises ModelError or EngineError with the reason."""
    half = in_half(cut.tail)
    witness = rounded(half)
    _check_like(cut.tail, half)
    made = _made(cut, shop.samples.feeds(shop.samples.held_out))
    certificates = {}
    with OrtEngine(witness, label="tail in float16", threads=JUDGING_THREADS) as engine:
        for id_, variant in variants.items():
            ways = {b.spec.name: Way(b.codec, b.levels) for b in variant.boundary}
            got: list[Outputs] = [
                engine.infer(received(each, ways)) | {n: each[n] for n in cut.head_outputs} for each in made
            ]
            achieved, holds = shop.yardstick.judge(got)
            if not holds:
                raise ModelError(f"{id_}: {too_low(shop.yardstick, achieved)}")
            if least is not None and achieved < least:
                raise ModelError(f"{id_}: {shop.yardstick.metric} {achieved:.4f} is below the {least:g} asked for")
            certificates[id_] = certificate_of(shop, got, cut.exact)
    if cut.batch.batchable:
        _check_batch(witness, cut, _made(cut, batch.alike(shop.samples)))
    return Half(_beside(half) if external_of(cut.tail) else half, certificates)


def _made(cut: _Cut, feeds: Iterable[dict[str, Array]]) -> list[dict[str, Array]]:
    """What crosses, and model outputs that the head has made, for each sample."""
    if cut.head is None:
        return list(feeds)
    with OrtEngine(cut.head, label="head", threads=JUDGING_THREADS) as head:
        return [head.infer(feed) for feed in feeds]


def _check_like(tail: bytes, half: bytes) -> None:
    """It must run as it ships, and take and give what the tail does."""
    with OrtEngine(tail, label="tail") as exact, OrtEngine(half, label="tail in float16") as other:
        same = (exact.inputs, exact.outputs) == (other.inputs, other.outputs)
    if not same:
        raise ModelError("converted, it takes or gives other tensors")


def _check_batch(witness: bytes, cut: _Cut, made: Sequence[dict[str, Array]]) -> None:
    """Requests that share a batch of the tail must be able to share one of this; their answers differ by rounding."""
    axes = {b.spec.name: b.batch_axis for b in cut.variants[0].boundary if b.batch_axis is not None}
    seen = batch.prove(witness, [{n: each[n] for n in cut.crossing} for each in made], axes, bound=HALF_BOUND)
    if not seen.batchable:
        raise ModelError(f"it takes no batches: {seen.reason}")
    if seen.output_axes != cut.batch.output_axes:
        raise ModelError("its batch has another axis")


def _beside(half: bytes) -> bytes:
    """The graph with its large weights in files of their own, which cuts share."""
    proto = onnx.load_model_from_string(half)
    return with_weights(proto, set_aside(proto, {}, LEAST_WEIGHT_NBYTES))
