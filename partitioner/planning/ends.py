"""The placements at the model's two ends, which every cut has to beat: full-cloud in every useful coding, edge-only.

Full-cloud sends what the application hands in. Where that is an image it may travel as PNG or JPEG, as it would without
us: a comparison with cloud-only is honest only against that. A lossy coding is judged like any other placement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from partitioner.crossing.codings import CODEC_SAMPLES, Way, descend, differing, lossless, measure_coding, received
from partitioner.judging import batch, verify
from partitioner.planning.assemble import assemble_edge
from partitioner.planning.workshop import Variant, Workshop, boundary_of, certificate_of, saving
from protocol import images
from protocol.bundle import BatchProof, ParityCertificate
from protocol.engines.ort import OrtEngine
from protocol.tensors import Tensors, TensorSpec

# Qualities worth offering, best first: 90 is what people send, 75 what the encoder's authors recommend, 50 where little
# fits; a bound of 1 % on real photographs may leave 98 alone (MobileNetV2: 0.868 of 0.876, at quality 90 0.848).
PNG = "png"
DELTA = "delta"  # of a stream, to the frame before
LOSSY = ("jpeg98", "jpeg95", "jpeg90", "jpeg75", "jpeg50")


@dataclass(frozen=True)
class Ends:
    """Full-cloud as graph and variants (the lossless one first), edge-only as graph; what was proven about both."""

    full: bytes
    full_variants: tuple[Variant, ...]
    full_batch: BatchProof
    edge: bytes
    edge_precision: str
    edge_certificate: ParityCertificate
    edge_notes: tuple[str, ...]
    down_nbytes: int


def make_ends(shop: Workshop) -> Ends:
    """Judge both ends. Raises AccuracyRefusedError like `assemble_edge`."""
    edge, precision, certificate, notes = assemble_edge(shop)
    axes: batch.Axes = {s.name: None if s.name in shop.samples.whole else 0 for s in shop.model.inputs}
    full, proof = batch.proven_batch(shop.model.graph, batch.alike(shop.samples), axes)
    if not proof.batchable or shop.free_batch:
        full = shop.model.data
    down = sum(array.nbytes for array in shop.yardstick.expected[0].values())
    return Ends(full, tuple(_variants(shop, full, axes, proof)), proof, edge, precision, certificate, notes, down)


def _variants(shop: Workshop, full: bytes, axes: batch.Axes, proof: BatchProof) -> list[Variant]:
    feeds = list(shop.samples.feeds(shop.samples.held_out))
    before: list[Tensors] | None = None
    if shop.samples.consecutive:
        before = list(shop.samples.feeds(shop.samples.neighbours(shop.samples.held_out[:CODEC_SAMPLES])))
    with OrtEngine(full, label="full.onnx", threads=verify.JUDGING_THREADS) as engine:

        def variant(rung: str, ways: Mapping[str, Way], got: list[verify.Outputs]) -> Variant:
            boundary = boundary_of(engine.inputs, ways, axes, proof, {}, {})
            coding = measure_coding(feeds, ways, before)
            return Variant(rung, boundary, coding, certificate_of(shop, got, verify.EXACT))

        def lossy(codec: str) -> Variant | None:
            coded = ways | dict.fromkeys(pictures, Way(codec))
            got = [engine.infer(received(feed, coded)) for feed in feeds]
            return variant(codec, coded, got) if shop.yardstick.judge(got)[1] else None

        ways, answers = lossless(feeds), list(shop.yardstick.expected)
        exact = [variant("", ways, answers)]
        if before is not None and (differences := differing(feeds, before, ways)) != ways:
            exact.append(variant(DELTA, differences, answers))
        pictures = [spec.name for spec in engine.inputs if _is_picture(spec)]
        if not pictures:
            return exact
        exact.append(variant(PNG, ways | dict.fromkeys(pictures, Way(PNG)), answers))
        return saving(exact + descend(() if shop.lossless_input else LOSSY, lossy))


def _is_picture(spec: TensorSpec) -> bool:
    return images.image_form(spec) is not None
