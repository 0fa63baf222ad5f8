"""The result cache in a whole gateway: an equal request is answered without an engine, and a reload may shrink it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cloud_gateway.config import load_settings
from cloud_gateway.gateway import Gateway
from protocol import messages as m
from protocol.bundle import Bundle
from tests.wire_client import WireClient


def test_an_equal_request_is_answered_from_the_cache_with_the_same_bytes(toy_bundle: Path) -> None:
    overrides: dict[str, object] = {
        "models.bundles": [str(toy_bundle)], "zmq.bind": "tcp://127.0.0.1:0", "http.enabled": False,
        "cache.enabled": True, "drain.grace_s": 2.0,
    }  # fmt: skip
    entry = next(e for e in Bundle.open(toy_bundle).manifest.placements if e.kind is m.PlacementKind.FULL_CLOUD)
    (boundary,) = entry.boundary
    shape = [1 if d is None or isinstance(d, str) else d for d in boundary.spec.shape]
    frame = np.random.default_rng(1).standard_normal(shape).astype(boundary.spec.numpy_dtype)
    gateway = Gateway(load_settings(env={}, overrides=overrides).settings)
    with gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        seen = []
        for sequence, tensor in enumerate((frame, frame, frame + 1), start=1):
            client.send(*client.infer(entry, {boundary.spec.name: tensor}, sequence))
            seen.append(client.receive_all())
        (first, bytes_first), (again, bytes_again), (other, bytes_other) = seen
        assert isinstance(first, m.Result)
        assert isinstance(again, m.Result)
        assert isinstance(other, m.Result)
        assert again.engine == f"{first.engine} (cached)"
        assert (again.tensors, again.checksum, bytes_again) == (first.tensors, first.checksum, bytes_first)
        assert again.timings.compute_us == 0
        assert other.engine == first.engine
        assert bytes_other != bytes_first
        assert gateway.stats()["cache_hits"] == 1
        assert gateway.stats()["cache_misses"] == 2
