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
from partitioner.crossing.half_rounding import rounded
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


# ---- judged as where float16 is computed ----------------------------------------------------------------------------


def net(*nodes: onnx.NodeProto, dtype: int = onnx.TensorProto.FLOAT, **weights: Any) -> bytes:
    """x [1, 4] -> y [1, 4] by these nodes."""
    ends = [onnx.helper.make_tensor_value_info(name, kind, [1, 4]) for name, kind in (("x", dtype), ("y", 1))]
    constants = [onnx.numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    graph = onnx.helper.make_graph(list(nodes), "net", ends[:1], ends[1:], constants)
    opset = onnx.helper.make_opsetid("", 17)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()  # type: ignore[no-any-return]


def node(op: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(op, names[:-1], names[-1:], **attributes)


LOUD = net(
    node("Mul", "x", "much", "a"), node("MatMul", "a", "one", "b"), node("Mul", "b", "little", "y"),
    much=np.float32(60_000), one=np.eye(4, dtype=np.float32) + np.float32(1e-3), little=np.float32(1 / 60_000),
)  # fmt: skip


def ask(graph: bytes, x: Any) -> Any:
    with OrtEngine(graph, label="graph") as engine:
        return engine.infer({"x": x})["y"]


def test_what_overflows_in_float16_does_so_when_it_is_judged_though_a_processor_hides_it() -> None:
    x, half = np.full((1, 4), 2.0, np.float32), in_half(LOUD)
    assert np.isfinite(ask(half, x)).all(), "ONNX Runtime computes in float32: if it no longer does, `rounded` may go"
    assert not np.isfinite(ask(rounded(half), x)).any()


def test_every_operators_values_are_rounded_when_it_is_judged() -> None:
    graph = in_half(net(node("Add", "x", "one", "a"), node("Sub", "a", "one", "y"), one=np.float32(1024)))
    x = np.array([[0.25, 0.5, 0.75, 1.0]], np.float32)
    np.testing.assert_array_equal(ask(rounded(graph), x), [[0.0, 0.0, 1.0, 1.0]])


def test_the_judged_graph_takes_and_gives_what_the_graph_does() -> None:
    exact = onnx.load_model_from_string(in_half(GRAPH))
    judged = onnx.load_model_from_string(rounded(in_half(GRAPH)))
    assert [v.type for v in (*judged.graph.input, *judged.graph.output)] == [
        v.type for v in (*exact.graph.input, *exact.graph.output)
    ]
    onnx.checker.check_model(judged, full_check=True)
    assert not any(w.data_type == onnx.TensorProto.FLOAT16 for w in judged.graph.initializer)


def test_a_graph_that_is_float16_at_its_ends_is_judged_with_those_ends() -> None:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [1, 4]) for name in ("x", "y")]
    much = onnx.numpy_helper.from_array(np.array(60_000, np.float16), "much")
    made = onnx.helper.make_graph([node("Mul", "x", "much", "y")], "net", ends[:1], ends[1:], [much])
    graph = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    y = ask(rounded(graph.SerializeToString()), np.array([[1, 2, 0, -2]], np.float16))
    assert y.dtype == np.float16
    assert y.tolist() == [[60_000.0, np.inf, 0.0, -np.inf]]


def test_bodies_are_judged_like_the_rest() -> None:
    half = in_half(models.branching().SerializeToString())
    onnx.checker.check_model(onnx.load_model_from_string(rounded(half)), full_check=True)


def test_a_model_that_overflows_is_refused() -> None:
    with pytest.raises(AccuracyRefusedError, match="in float16 the model has"):
        judged_half(LOUD, Samples({"x": np.eye(4, dtype=np.float32)[:, None].repeat(3, 0)[:, 0] + 2}, frozenset(), None,
                                  is_random=False, digest=""), bound=0.01)  # fmt: skip


# ---- what decodes integers ------------------------------------------------------------------------------------------

FLOAT = onnx.TensorProto.FLOAT


def coded(scale: float, zero: float) -> bytes:
    """A tail that begins with the decoding of eight bits."""
    return net(
        node("Cast", "x", "c", to=FLOAT), node("Sub", "c", "zero", "s"), node("Mul", "s", "scale", "m"),
        node("Relu", "m", "r"), node("Mul", "r", "two", "y"), dtype=onnx.TensorProto.UINT8,
        zero=np.float32(zero), scale=np.float32(scale), two=np.float32(2),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.1, 3.3e-8, 1.7e-4])
def test_codes_are_decoded_in_float32_and_rounded_once(scale: float) -> None:
    x = np.array([[0, 17, 18, 255]], np.uint8)
    half = in_half(coded(scale, 17))
    floats = np.maximum((x.astype(np.float32) - np.float32(17)) * np.float32(scale), 0)
    np.testing.assert_array_equal(ask(rounded(half), x), (floats.astype(np.float16) * np.float16(2)).astype(np.float32))
    weights = {w.name: w.data_type for w in onnx.load_model_from_string(half).graph.initializer}
    assert weights == {"zero": FLOAT, "scale": FLOAT, "two": onnx.TensorProto.FLOAT16}


def test_a_constant_that_others_read_as_well_is_exact_where_it_decodes() -> None:
    graph = net(
        node("Cast", "x", "c", to=FLOAT), node("Mul", "c", "scale", "m"), node("Add", "m", "scale", "y"),
        dtype=onnx.TensorProto.UINT8, scale=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    )  # fmt: skip
    beyond = net(
        node("Cast", "x", "c", to=FLOAT), node("Mul", "c", "scale", "m"), node("Relu", "m", "r"),
        node("Add", "r", "scale", "y"), dtype=onnx.TensorProto.UINT8, scale=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    )  # fmt: skip
    x = np.array([[1, 10, 100, 255]], np.uint8)
    for given in (graph, beyond):
        half = in_half(given)
        onnx.checker.check_model(onnx.load_model_from_string(half), full_check=True)
        np.testing.assert_allclose(ask(rounded(half), x), ask(given, x), rtol=2**-10)
    weights = {w.name: w.data_type for w in onnx.load_model_from_string(in_half(beyond)).graph.initializer}
    assert weights == {"scale": onnx.TensorProto.FLOAT16, "scale/exact": FLOAT}


def test_a_tail_that_only_decodes_stays_as_it_is() -> None:
    graph = net(
        node("Cast", "x", "c", to=FLOAT), node("Mul", "c", "scale", "y"), dtype=onnx.TensorProto.UINT8,
        scale=np.float32(0.1),
    )  # fmt: skip
    x = np.array([[1, 10, 100, 255]], np.uint8)
    np.testing.assert_allclose(ask(rounded(in_half(graph)), x), ask(graph, x), rtol=2**-10)


def test_an_operator_that_stays_float32_may_be_read_by_several_of_its_kind() -> None:
    graph = net(
        node("Relu", "x", "r"), node("Max", "r", "one", "a"), node("Min", "r", "a", "b"), node("Max", "b", "r", "y"),
        one=np.float32(1),
    )  # fmt: skip
    x = np.array([[0.5, 1.0, 2.0, -3.0]], np.float32)
    np.testing.assert_array_equal(ask(in_half(graph), x), ask(graph, x))
    np.testing.assert_array_equal(ask(rounded(in_half(graph)), x), ask(graph, x))


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


def test_the_command_does_not_write_over_the_model(tmp_path: Path) -> None:
    path = models.write(models.residual(), tmp_path)
    before = path.read_bytes()
    (tmp_path / "half.onnx").symlink_to(path)
    done = run(tmp_path)
    assert done.exit_code == 3
    assert "is the model itself" in done.stderr
    assert path.read_bytes() == before


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
