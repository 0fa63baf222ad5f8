"""Splitting real graphs with ONNX Runtime behind them: every cut of every toy gives the same bits as the whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from partitioner.graph.cuts import prefix_candidates, separate
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import free_axes, split
from partitioner.judging import batch, data, verify
from partitioner.judging.observe import observed_topology, ranges
from protocol.engines.ort import OrtEngine
from tests import models

SHARED = Path(os.environ.get("ISTHMUS_SHARED", Path(__file__).parents[2].parent / "shared")) / "models"


def loaded(path: Path) -> tuple[LoadedModel, data.Samples]:
    model = load(path)
    samples = data.random(model.inputs, count=8)
    return replace(model, topology=observed_topology(model, samples)), samples


def worst_difference(model: LoadedModel, samples: data.Samples, *, every: int = 1) -> tuple[int, float]:
    """Number of cuts tried and the greatest difference from the whole model, optimisation off."""
    expected = verify.run_all(model.data, samples, range(2), optimise=False)
    worst, candidates = 0.0, prefix_candidates(model.topology)[::every]
    for candidate in candidates:
        sides = separate(model.topology, candidate.cut)
        halves = split(model, sides)
        head, tail = serialise(halves.head), serialise(halves.tail)
        with verify.SplitPair(head, tail, sides.cut, sides.head_outputs, optimise=False) as pair:
            assert {s.name for s in pair.tail.inputs} == set(sides.cut)
            got = [pair.infer(feed) for feed in samples.feeds(range(2))]
        assert set(got[0]) == set(model.topology.outputs)
        worst = max(worst, verify.difference(expected, got).seen)
    return len(candidates), worst


@pytest.mark.parametrize("name", models.ALL)
def test_head_and_tail_equal_the_model_bit_for_bit_at_every_cut(name: str, tmp_path: Path) -> None:
    model, samples = loaded(models.write(models.ALL[name](), tmp_path))
    count, worst = worst_difference(model, samples)
    assert count >= 4
    assert worst == 0.0


@pytest.mark.shared
@pytest.mark.parametrize("name", ["resnet8l_cifar10", "yunet_face_640", "mobilenet_v2_224"])
def test_real_models_are_split_bit_for_bit_too(name: str) -> None:
    path = SHARED / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not here; set ISTHMUS_SHARED to the folder with models/")
    model, samples = loaded(path)
    count, worst = worst_difference(model, samples, every=7)
    assert count >= 3
    assert worst == 0.0


def test_the_toys_answers_depend_on_their_inputs(tmp_path: Path) -> None:
    for name, maker in models.ALL.items():
        model, samples = loaded(models.write(maker(), tmp_path))
        one, two = verify.run_all(model.data, samples, range(2))
        assert not np.array_equal(one["logits"], two["logits"]), name


def test_normalising_inlines_functions_and_moves_initializers_out_of_the_inputs(tmp_path: Path) -> None:
    model, _ = loaded(models.write(models.with_function(), tmp_path))
    assert {"Sigmoid", "Mul"} <= {s.op for s in model.topology.steps}
    old, _ = loaded(models.write(models.old_export(), tmp_path))
    assert old.topology.inputs == ("x",)
    assert old.opset == 17
    assert old.notes == ("converted from opset 11 to 17",)


def test_ranges_are_those_of_the_calibration_half(tmp_path: Path) -> None:
    model, samples = loaded(models.write(models.residual(), tmp_path))
    seen = ranges(model, samples)
    half = np.concatenate([samples.feed(i)["x"] for i in samples.calibration])
    assert seen["x"] == (pytest.approx(half.min()), pytest.approx(half.max()))
    assert seen["r1"][0] == 0.0


def test_a_fixed_batch_of_one_is_freed_where_the_graph_allows_it(tmp_path: Path) -> None:
    model, _ = loaded(models.write(models.fixed_batch(), tmp_path))
    early, late = (split(model, separate(model.topology, cut)).tail for cut in (["r3"], ["flat"]))
    crossing = [{"r3": np.random.default_rng(i).standard_normal((1, 8, 16, 16)).astype(np.float32)} for i in range(3)]
    refused = batch.prove(free_axes(early, {"r3": 0}), crossing, {"r3": 0})
    assert not refused.batchable
    assert "does not run at batch 3" in refused.reason
    flat = [{"flat": np.random.default_rng(i).standard_normal((1, 64)).astype(np.float32)} for i in range(3)]
    proven = batch.prove(free_axes(late, {"flat": 0}), flat, {"flat": 0})
    assert proven.batchable
    assert proven.output_axes == {"logits": 0}


def mixing_rows() -> bytes:
    """y = x - mean over the batch: runs at any batch, but every answer depends on its batch-mates."""
    net = models.Net()
    net.add("ReduceMean", ["x"], "mean", axes=[0], keepdims=1)
    net.add("Sub", ["x", "mean"], "y")
    return bytes(net.model({"x": (TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 4]}).SerializeToString())


def test_answers_that_depend_on_their_batch_mates_are_no_batch() -> None:
    feeds = [{"x": np.full((1, 4), i, np.float32)} for i in range(3)]
    proof = batch.prove(mixing_rows(), feeds, {"x": 0})
    assert not proof.batchable
    assert "batch-mates" in proof.reason
    assert proof.max_abs_difference == pytest.approx(1.0)


def test_equal_samples_prove_nothing() -> None:
    feeds = [{"x": np.ones((1, 4), np.float32)}] * 3
    assert "the same activations" in batch.prove(mixing_rows(), feeds, {"x": 0}).reason


def test_a_batch_axis_other_than_the_first_is_found() -> None:
    net = models.Net()
    net.add("Transpose", ["x"], "t", perm=[1, 0, 2])
    net.add("Relu", ["t"], "y")
    data_ = net.model({"x": (TensorProto.FLOAT, ["N", 5, 6])}, {"y": [5, "N", 6]}).SerializeToString()
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 5, 6)).astype(np.float32)} for i in range(3)]
    with OrtEngine(data_, label="head") as head:
        assert batch.crossing_axes(head, ["y"], feeds, free=True) == {"y": 1}
