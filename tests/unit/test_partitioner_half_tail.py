"""Graphs in half precision: the same answers within the bound, the same inputs and outputs, or no graph at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from partitioner.cli import app
from partitioner.crossing.half_tail import in_half, judged_half
from partitioner.graph.large_weights import serialise
from partitioner.graph.model import load
from partitioner.judging.data import Samples
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_graphs import check_graph
from protocol.errors import AccuracyRefusedError, ModelError
from protocol.graphs import external_of
from tests import models


def infer(graph: bytes, x: Any) -> Any:
    with OrtEngine(graph, label="graph") as engine:
        return engine.infer({"x": x})["logits"]


def samples(arrays: Any) -> Samples:
    return Samples({"x": arrays}, frozenset(), None, is_random=False, digest="")


GRAPH = models.residual().SerializeToString()


def test_the_inside_is_float16_and_inputs_and_outputs_are_as_they_were() -> None:
    half = onnx.load_model_from_string(in_half(GRAPH))
    onnx.checker.check_model(half, full_check=True)
    weights = [w for w in half.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16]
    assert len(weights) >= 8
    for value in (*half.graph.input, *half.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_its_answers_are_close_and_not_the_same() -> None:
    x = models.image_samples()[:4]
    exact, half = infer(GRAPH, x), infer(in_half(GRAPH), x)
    np.testing.assert_allclose(half, exact, rtol=0.02, atol=0.02)
    assert not np.array_equal(half, exact)


def test_the_same_graph_becomes_the_same_bytes_which_tensorrt_takes() -> None:
    assert in_half(GRAPH) == in_half(GRAPH)
    check_graph(in_half(GRAPH))


def test_weights_that_lie_beside_the_graph_come_inside(tmp_path: Path) -> None:
    model = load(models.write(models.residual(), tmp_path), most_inline_nbytes=64)
    graph = serialise(model.graph)
    assert external_of(graph)
    half = in_half(graph)
    x = models.image_samples()[:2]
    np.testing.assert_array_equal(infer(half, x), infer(in_half(GRAPH), x))


def test_a_body_that_reads_what_is_outside_of_it_stays_in_order() -> None:
    onnx.checker.check_model(onnx.load_model_from_string(in_half(models.branching().SerializeToString())))


def test_a_model_that_holds_in_half_precision_comes_with_what_it_achieves() -> None:
    half, achieved, metric = judged_half(GRAPH, samples(models.image_samples()), bound=0.05)
    assert half == in_half(GRAPH)
    assert achieved >= 0.95
    assert metric in ("agreement", "cosine")


def test_one_that_does_not_is_refused_with_both_figures() -> None:
    big = models.residual()
    for weight in big.graph.initializer:
        if weight.name == "fc.w":
            array = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1e6), weight.name))
    with pytest.raises((AccuracyRefusedError, ModelError), match=r"float16|NaN"):
        judged_half(big.SerializeToString(), samples(models.image_samples()), bound=0.0)


# ---- the command ----------------------------------------------------------------------------------------------------


def run(folder: Path, *more: str) -> Any:
    np.savez(folder / "data.npz", x=models.image_samples())
    path = models.write(models.residual(), folder)
    words = ["half", str(path), "--calibration", str(folder / "data.npz"), "-o", str(folder / "half.onnx"), *more]
    return CliRunner().invoke(app, words)


def test_the_command_writes_the_model_and_says_how_it_was_judged(tmp_path: Path) -> None:
    done = run(tmp_path, "--accuracy-bound", "0.05", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["nbytes"] == (tmp_path / "half.onnx").stat().st_size
    assert told["achieved"] >= 0.95
    x = models.image_samples()[:1]
    np.testing.assert_allclose(infer((tmp_path / "half.onnx").read_bytes(), x), infer(GRAPH, x), atol=0.02, rtol=0.02)
    assert "held-out samples" in run(tmp_path, "--accuracy-bound", "0.05").stdout


def test_the_command_writes_nothing_where_it_does_not_hold(tmp_path: Path) -> None:
    big = models.residual()
    for weight in big.graph.initializer:
        if weight.name == "fc.w":
            array = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1e6), weight.name))
    path = models.write(big, tmp_path)
    np.savez(tmp_path / "data.npz", x=models.image_samples())
    words = ["half", str(path), "--calibration", str(tmp_path / "data.npz"), "-o", str(tmp_path / "half.onnx")]
    assert CliRunner().invoke(app, [*words, "--accuracy-bound", "0"]).exit_code == 5
    assert not (tmp_path / "half.onnx").exists()
