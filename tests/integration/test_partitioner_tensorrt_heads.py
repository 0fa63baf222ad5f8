"""A bundle whose heads were made for TensorRT: what ships is taken by the device's check, or said not to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from partitioner.people.eight_bits import grids
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Search
from partitioner.planning.plans import PlanDocument, followed, table_of
from partitioner.planning.recheck import recheck
from protocol.bundle import Bundle
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_graphs import check_graph
from tests import models

SEARCH = Search(Machines(slowdown=8.0, budget_s=0.5), budget_s=0.5, memory=False)


def order(folder: Path, maker: Any = models.residual, **changes: Any) -> Order:
    np.savez(folder / "data.npz", x=models.image_samples(24))
    base = Order(
        models.write(maker(), folder),
        folder / "bundle",
        cuts=(("r1",), ("r3",)),
        calibration=folder / "data.npz",
        search=SEARCH,
        recipe_budget_s=0.0,
        bound=0.2,
        head_engine="tensorrt",
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build(order(tmp_path_factory.mktemp("tensorrt")), Silent()).target)


def test_the_devices_check_takes_every_head_in_eight_bits_and_in_float(bundle: Bundle) -> None:
    heads = {p.head: p.precision for p in bundle.manifest.placements if p.head}
    assert heads == {"cut-1/head.onnx": "fp32", "cut-2/head.onnx": "int8", "edge.onnx": "int8"}
    for file in heads:
        check_graph(bundle.graph(file))


def test_codes_cross_as_they_do_from_any_other_head(bundle: Bundle) -> None:
    for entry in bundle.remote_segments():
        for tensor in entry.boundary if entry.head else ():
            assert tensor.spec.dtype == "uint8"
            assert tensor.scale is not None
            assert 0 <= (tensor.zero_point or 0) <= 255


def test_the_bundle_says_what_its_heads_are_for_and_that_their_times_are_guesses(bundle: Bundle) -> None:
    assert bundle.manifest.conditions.head_engine == "tensorrt"
    assert any("made for TensorRT" in note for note in bundle.manifest.notes)
    assert "by estimate" in grids(bundle.manifest)[0].about


def test_such_a_bundle_proves_itself_again_on_a_processor(bundle: Bundle) -> None:
    seen = recheck(bundle.root, bundle.root.parent / "data.npz")
    assert all(each.bound is None or each.achieved >= each.bound for each in seen.placements)


def test_the_whole_model_in_eight_bits_answers_like_the_model(bundle: Bundle) -> None:
    x = models.image_samples(16, seed=11)
    found = []
    for file in ("full.onnx", "edge.onnx"):
        with OrtEngine(bundle.graph(file), label=file) as engine:
            found.append(engine.infer({"x": x})["logits"])
    assert np.abs(found[0] - found[1]).max() < 0.1 * np.abs(found[0]).max()


def test_a_plan_that_was_made_for_tensorrt_is_built_for_it(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    document = PlanDocument(
        1, "toy", manifest.model.source_digest, table_of(manifest, order(tmp_path)), (("r3",),),
        manifest.conditions, (), (),
    )  # fmt: skip
    made = followed(order(tmp_path, head_engine="onnxruntime"), document)
    assert (made.head_engine, made.cuts) == ("tensorrt", (("r3",),))
    others = msgspec.structs.replace(
        document, conditions=msgspec.structs.replace(manifest.conditions, head_engine="onnxruntime")
    )
    assert followed(order(tmp_path, head_engine="onnxruntime"), others).head_engine == "onnxruntime"
    assert followed(order(tmp_path), others).head_engine == "tensorrt"


def _with_nonzero() -> onnx.ModelProto:
    """The residual net, whose r1 is taken apart and put together again by indices that values decide."""
    net = models.Net()
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.conv("r1", "c2", 8, 8)
    net.add("Shape", ["c2"], "sizes")
    net.add("NonZero", ["sizes"], "places")  # of four sizes that are not zero: all
    net.add("ReduceMax", ["places"], "last", keepdims=0)
    net.add("Cast", ["last"], "three", to=TensorProto.FLOAT)
    net.add("Mul", ["c2", "three"], "scaled")
    net.add("Relu", [net.conv("scaled", "c3", 8, 8)], "r3")
    net.classify(net.conv("r3", "c4", 8, 16, stride=2), 16)
    return net.model(models.IMAGE, models.LOGITS)


def test_what_tensorrt_does_not_take_stays_float_and_says_why(tmp_path: Path) -> None:
    made = build(order(tmp_path, _with_nonzero, cuts=(("r3",),), known_answer=False), Silent()).manifest
    late, edge = (next(p for p in made.placements if p.id == name) for name in ("cut-1", "edge-only"))
    for entry in (late, edge):
        assert entry.precision == "fp32"
        assert any("something else: TensorRT does not take this graph" in note for note in entry.notes), entry.notes
    assert any("NonZero" in note for note in late.notes)
