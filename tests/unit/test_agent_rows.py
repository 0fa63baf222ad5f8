"""Rows are counted where the bundle has shown that there are any."""

from __future__ import annotations

import msgspec
import numpy as np

from edge_agent.rows import Rows
from protocol.bundle import BatchProof, Manifest
from protocol.tensors import TensorSpec
from tests import manifests

EIGHT = {"image": np.zeros((8, 3, 32, 32), np.uint8)}


def manifest(*, batchable: bool = True, spec: TensorSpec = manifests.IMAGE) -> Manifest:
    made = manifests.manifest()
    proof = BatchProof(batchable=batchable, reason="")
    entries = tuple(msgspec.structs.replace(e, batch=e.batch and proof) for e in made.placements)
    model = msgspec.structs.replace(made.model, inputs=(spec,))
    return msgspec.structs.replace(made, placements=entries, model=model)


def test_rows_lie_along_the_axis_that_was_proven() -> None:
    assert Rows(manifest()).of(EIGHT) == 8


def test_a_model_that_was_not_shown_to_do_rows_apart_has_one() -> None:
    assert Rows(manifest(batchable=False)).of(EIGHT) == 1


def test_a_model_whose_batch_is_fixed_has_one() -> None:
    assert Rows(manifest(spec=TensorSpec("image", "uint8", (8, 3, 32, 32)))).of(EIGHT) == 1
