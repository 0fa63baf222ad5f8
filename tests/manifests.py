"""Manifests without files, for what only reads them: costs chosen so that every placement kind wins somewhere.

edge-only   up to 1.5 Mbit/s        cut-1.q4   up to 22        full-cloud.jpeg90   above that
                                    (cut-1, cut-2 and full-cloud never win)
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from protocol.bundle import (
    BatchProof,
    BoundaryTensor,
    Conditions,
    LayerLoss,
    Manifest,
    ModelInfo,
    ParityCertificate,
    PlacementEntry,
    TriedRecipe,
)
from protocol.latency import PlacementCost
from protocol.messages import PlacementKind
from protocol.tensors import TensorSpec

DIGEST = "0" * 64
IMAGE = TensorSpec("image", "uint8", (None, 3, 32, 32))
LOGITS = TensorSpec("logits", "float32", (None, 10))
PROOF = ParityCertificate(1e-7, 1e-5, "accuracy", 0.98, 0.975, 0.97, 200)


RECIPES = (
    TriedRecipe("minmax", 0.96875, True, 0.37503, None, False),
    TriedRecipe("mse", 0.96875, True, 0.36994, 0.98958333333, True),
    TriedRecipe("entropy", None, False, None, None, False, "no histogram"),
)
LAYERS = (
    LayerLoss("conv1", "Conv", 36.552, 49.654, 0.0048, False),
    LayerLoss("conv2", "Conv", 30.487, 28.1, 0.0378, True),
    LayerLoss("fc", "Gemm", None, None, 0.0, False),
)


def entry(
    id_: str,
    cost: PlacementCost,
    *,
    cut: tuple[str, ...] = ("relu_3",),
    codec: str = "zstd",
    precision: str = "int8",
    certificate: ParityCertificate | None = PROOF,
    notes: tuple[str, ...] = (),
) -> PlacementEntry:
    """A row of the kind that its id says."""
    family = id_.partition(".")[0]
    kind = PlacementKind(family) if family in ("full-cloud", "edge-only") else PlacementKind.CUT
    crossing = {PlacementKind.FULL_CLOUD: ("image",), PlacementKind.EDGE_ONLY: ()}.get(kind, cut)
    boundary = tuple(
        BoundaryTensor(TensorSpec(name, "uint8", (None, 16, 8, 8)), codec, 0, scale=0.1, zero_point=0)
        for name in crossing
    )
    return PlacementEntry(
        id=id_,
        kind=kind,
        cut=crossing,
        head=None if kind is PlacementKind.FULL_CLOUD else f"{family}/head.onnx",
        tail=None if kind is PlacementKind.EDGE_ONLY else f"{family}/tail.onnx",
        segment=DIGEST if crossing else None,
        precision="none" if kind is PlacementKind.FULL_CLOUD else precision,
        boundary=boundary,
        head_outputs=(),
        batch=BatchProof(batchable=True, reason="shown") if crossing else None,
        cost=cost,
        certificate=certificate,
        notes=notes,
    )


def full_cloud(id_: str = "full-cloud", up_nbytes: float = 150_000, codec: str = "zstd") -> PlacementEntry:
    cost = PlacementCost(encode_s=0.001, up_nbytes=up_nbytes, decode_s=0.0005, tail_s=0.012, down_nbytes=100)
    return entry(id_, cost, codec=codec)


def cut(id_: str, edge_s: float, up_nbytes: float, tail_s: float, **more: object) -> PlacementEntry:
    cost = PlacementCost(
        edge_s=edge_s, encode_s=0.001, up_nbytes=up_nbytes, decode_s=0.0005, tail_s=tail_s, down_nbytes=100
    )
    return entry(id_, cost, **more)  # type: ignore[arg-type]


def edge_only(edge_s: float = 0.060) -> PlacementEntry:
    return entry("edge-only", PlacementCost(edge_s=edge_s))


PLACEMENTS = (
    full_cloud(),
    full_cloud("full-cloud.jpeg90", 30_000, "jpeg90"),
    cut("cut-1", 0.012, 12_000, 0.009),
    cut("cut-1.q4", 0.012, 5_000, 0.009, codec="quant4"),
    cut("cut-2", 0.040, 9_000, 0.004, cut=("add_7", "mask")),
    edge_only(),
)


def manifest(
    placements: Iterable[PlacementEntry] = PLACEMENTS,
    *,
    name: str = "toy",
    notes: tuple[str, ...] = (),
    edge_slowdown: float = 8.0,
    rtt_s: float = 0.010,
) -> Manifest:
    return Manifest(
        schema_version=1,
        model=ModelInfo(name, DIGEST, DIGEST, 17, (IMAGE,), (LOGITS,)),
        files={},
        placements=tuple(placements),
        conditions=Conditions(
            machine="Test Processor, 2 cores, Linux x86_64",
            edge_slowdown=edge_slowdown,
            threads=1,
            tail_threads=1,
            rtt_s=rtt_s,
            precision_asked="auto",
            versions={"python": "3.11", "onnxruntime": "1.31"},
            calibration_digest=DIGEST,
            calibration_samples=64,
            created_utc="2026-11-21T12:00:00+00:00",
        ),
        notes=notes,
    )


def without(manifest_: Manifest, *ids: str) -> Manifest:
    return msgspec.structs.replace(manifest_, placements=tuple(p for p in manifest_.placements if p.id not in ids))
