"""Ranges, rounded weights, mended biases, and graphs that keep float what a recipe leaves float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from partitioner.crossing.halves import emit_halves, take_halves
from partitioner.graph.model import LoadedModel, load, serialise
from partitioner.graph.split import with_outputs
from partitioner.int8.bias import corrected, dequantised_weights, mean_shifts
from partitioner.int8.calibration import BINS, Histogram, clip, collect, noise_of, ranges_for
from partitioner.int8.quantise import quantise
from partitioner.int8.recipes import DEFAULT, Recipe
from partitioner.int8.rounding import rounded
from partitioner.int8.sensitivity import layers_of, own_noise
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges, ranges
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError, ModelError
from protocol.tensors import Array
from tests import models

ALL_FLOAT_NOW = Recipe(name="all", float_first=False)


def prepared(proto: onnx.ModelProto, folder: Path, array: Array | None = None) -> tuple[LoadedModel, Samples, Ranges]:
    model = load(models.write(proto, folder))
    given = models.image_samples() if array is None else array
    samples = Samples({model.inputs[0].name: given}, frozenset(), None, False, "")
    return model, samples, ranges(model, samples)


def answers(graph: ir.Model, samples: Samples, *, optimise: bool = True) -> Array:
    with OrtEngine(serialise(graph), label="test", optimise=optimise) as engine:
        return np.concatenate([next(iter(engine.infer(feed).values())) for feed in samples.feeds(range(8))])


def nodes(graph: ir.Model, op: str) -> list[ir.Node]:
    return [n for n in graph.graph if n.op_type == op]


def quantised_weights(graph: ir.Model) -> set[str]:
    return set(dequantised_weights(graph))


def histogram(values: Array) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low, high, np.histogram(values, BINS, (low, high))[0])


# ---- recipes become graphs ------------------------------------------------------------------------------------------


def test_by_default_the_first_convolution_stays_float(tmp_path: Path) -> None:
    model, _, seen = prepared(models.residual(), tmp_path)
    assert quantised_weights(quantise(model.graph, seen)) == {"node_c2", "node_c3", "node_c4", "node_logits"}
    assert "node_c1" in quantised_weights(quantise(model.graph, seen, ALL_FLOAT_NOW))


def test_what_a_recipe_excludes_stays_float(tmp_path: Path) -> None:
    model, _, seen = prepared(models.residual(), tmp_path)
    graph = quantise(model.graph, seen, Recipe(name="r", excluded=("node_c3",)))
    assert quantised_weights(graph) == {"node_c2", "node_c4", "node_logits"}


def test_symmetric_activations_have_a_zero_point_of_zero(tmp_path: Path) -> None:
    model, _, seen = prepared(models.residual(), tmp_path)
    graph = quantise(model.graph, seen, Recipe(name="s8", activation_type="int8"))
    for node in nodes(graph, "QuantizeLinear"):
        zero_point = node.inputs[2]
        assert zero_point is not None
        assert zero_point.const_value is not None
        assert zero_point.const_value.numpy() == np.int8(0)


def test_a_node_whose_range_is_unknown_stays_float_and_the_rest_does_not(tmp_path: Path) -> None:
    model, _, seen = prepared(models.residual(), tmp_path)
    known = {n: r for n, r in seen.items() if n != "c2"}
    assert quantised_weights(quantise(model.graph, known)) == {"node_c3", "node_c4", "node_logits"}


def test_a_recipe_that_leaves_nothing_to_quantise_is_refused(tmp_path: Path) -> None:
    model, _, seen = prepared(models.residual(), tmp_path)
    everything = tuple(s.name for s in model.topology.steps)
    with pytest.raises(ModelError, match="may become eight bits"):
        quantise(model.graph, seen, Recipe(name="none", excluded=everything))


def _with_a_large_idle_weight() -> onnx.ModelProto:
    """One weight of c2 is a hundred times larger than the others but meets only zeros: one scale for all is ruin."""

    def changed(name: str, array: Array) -> Array:
        if name in ("c1.w", "c1.b"):
            array[0] = 0.0 if name == "c1.w" else -1.0
        if name == "c2.w":
            array[0, 0] = 100.0
        return array

    proto = models.residual()
    for i, old in enumerate(proto.graph.initializer):
        array = changed(old.name, onnx.numpy_helper.to_array(old).copy())
        proto.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(array, old.name))
    return proto


def test_a_convolution_left_float_is_not_rounded_by_the_engine_either(tmp_path: Path) -> None:
    model, samples, seen = prepared(_with_a_large_idle_weight(), tmp_path)
    graph = quantise(model.graph, seen, Recipe(name="r", float_first=False, excluded=("node_c2", "node_r2")))
    exact = answers(model.graph, samples)
    for optimise in (False, True):
        error = np.abs(answers(graph, samples, optimise=optimise) - exact).max()
        assert error < 0.05 * np.abs(exact).max()


# ---- weights and biases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [ALL_FLOAT_NOW, Recipe(name="t", per_channel=False)])
def test_rounded_weights_are_within_half_a_step_of_the_exact_ones(recipe: Recipe, tmp_path: Path) -> None:
    model, _, seen = prepared(models.residual(), tmp_path)
    found = dequantised_weights(rounded(model.graph, recipe, seen))
    assert set(found) == {"node_c1", "node_c2", "node_c3", "node_c4", "node_logits"}
    exact = {n.name: n.inputs[1].const_value.numpy() for n in model.graph.graph if n.name in found}  # type: ignore[union-attr]
    for name, weights in found.items():
        step = np.abs(exact[name]).max() / 127
        assert np.abs(weights - exact[name]).max() <= step / 2 * 1.001


def test_a_channel_without_weights_keeps_its_bias(tmp_path: Path) -> None:
    proto = models.residual()
    for i, initializer in enumerate(proto.graph.initializer):
        array = onnx.numpy_helper.to_array(initializer).copy()
        if initializer.name == "c2.w":
            array[0] = 1e-12
        if initializer.name == "c2.b":
            array[0] = 3.0
        proto.graph.initializer[i].CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    model, samples, seen = prepared(proto, tmp_path)
    exact, eight = answers(model.graph, samples), answers(quantise(model.graph, seen), samples)
    assert np.abs(exact - eight).max() < 0.1 * np.abs(exact).max()


def test_mended_biases_take_the_mean_error_of_rounded_weights_away(tmp_path: Path) -> None:
    model, samples, seen = prepared(models.residual(), tmp_path)
    coarse = rounded(model.graph, Recipe(name="coarse", per_channel=False, reduce_range=True), seen)
    weights = {n: w for n, w in dequantised_weights(coarse).items() if n == "node_c2"}
    shifts = mean_shifts(model.graph, weights, samples.feeds(range(8)))
    assert set(shifts) == {"node_c2"}
    exact = _mean_of(model.graph, "c2", samples)
    others = {"node_c1", "node_c3", "node_c4", "node_logits"}
    recipe = Recipe(name="coarse", per_channel=False, reduce_range=True)
    plain = _mean_of(rounded(model.graph, recipe, seen, others), "c2", samples)
    mended = _mean_of(rounded(corrected(model.graph, shifts), recipe, seen, others), "c2", samples)
    assert np.abs(mended - exact).max() < 0.01 * np.abs(plain - exact).max()


def _mean_of(graph: ir.Model, name: str, samples: Samples) -> Array:
    mean: Array = answers(with_outputs(graph, [name]), samples, optimise=False).mean(axis=(0, 2, 3))
    return mean


def test_the_bias_of_a_node_left_float_is_not_touched(tmp_path: Path) -> None:
    model, samples, _ = prepared(models.residual(), tmp_path)
    shifts = {"node_c2": np.ones(8, np.float32)}
    same = corrected(model.graph, shifts, left={"node_c2"})
    np.testing.assert_array_equal(answers(same, samples), answers(model.graph, samples))


# ---- calibration ----------------------------------------------------------------------------------------------------


def outlying() -> Array:
    values: Array = np.random.default_rng(5).standard_normal(200_000)
    values[:3] = (60.0, -50.0, 80.0)
    return values


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(name="mse", calibration="mse"),
        Recipe(name="p", calibration="percentile", parameter=99.99),
        Recipe(name="e", calibration="entropy"),
    ],
)
def test_clipping_methods_give_up_outliers_for_finer_steps(recipe: Recipe) -> None:
    seen = histogram(outlying())
    low, high = clip(seen, recipe)
    assert seen.low <= low < 0.0 < high <= seen.high
    assert high - low < 0.7 * (seen.high - seen.low)


def test_least_squares_is_never_noisier_than_minmax() -> None:
    for values in (outlying(), np.abs(outlying()), np.random.default_rng(1).uniform(-1, 3, 10_000)):
        seen = histogram(values)
        chosen = clip(seen, Recipe(name="mse", calibration="mse"))
        assert noise_of(seen, *chosen) <= noise_of(seen, seen.low, seen.high)


@pytest.mark.parametrize(("low", "high"), [(-4.0, 5.0), (-1.5, 1.0)])
def test_the_noise_formula_agrees_with_rounding_the_values(low: float, high: float) -> None:
    values = np.random.default_rng(2).standard_normal(400_000)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    back = (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step
    assert noise_of(histogram(values), low, high) == pytest.approx(float(np.square(values - back).sum()), rel=0.03)


def test_a_tensor_that_never_varies_keeps_its_range() -> None:
    constant = Histogram(2.0, 2.0, np.eye(1, BINS, dtype=np.int64)[0])
    for method in ("minmax", "percentile", "mse", "entropy"):
        assert clip(constant, Recipe(name="c", calibration=method, parameter=99.9)) == (2.0, 2.0)


def test_nan_in_calibration_is_an_error_that_names_the_tensor_and_the_sample(tmp_path: Path) -> None:
    net = models.Net()
    net.add("Sqrt", [net.conv("x", "c1", 3, 8)], "root")
    net.classify("root", 8)
    model, samples, _ = prepared(net.model(models.IMAGE, models.LOGITS), tmp_path)
    with pytest.raises(InputError, match=r"tensor 'root' is NaN on sample \d+"):
        collect(model, samples, {"root": (0.0, 1.0)})


def test_nothing_to_calibrate_on_is_an_error(tmp_path: Path) -> None:
    model, samples, seen = prepared(models.residual(), tmp_path)
    with pytest.raises(InputError, match="no calibration samples"):
        collect(model, Samples(samples.arrays, frozenset(), None, False, "", calibrates=False), seen)


def test_histograms_count_values_of_every_tensor(tmp_path: Path) -> None:
    model, samples, seen = prepared(models.residual(), tmp_path)
    histograms = collect(model, samples, seen)
    assert set(histograms) == set(seen)
    assert ranges_for(DEFAULT, seen, histograms) == seen
    tighter = ranges_for(Recipe(name="p", calibration="percentile", parameter=90.0), seen, histograms)
    assert tighter["c1"][1] < seen["c1"][1]


# ---- layers ---------------------------------------------------------------------------------------------------------


def test_a_layer_is_a_product_and_the_lighter_nodes_that_follow_it(tmp_path: Path) -> None:
    model, samples, seen = prepared(models.residual(), tmp_path)
    layers = layers_of(model.topology)
    assert [c.name for c in layers] == ["node_c1", "node_c2", "node_c3", "node_c4", "node_logits"]
    assert layers[2].nodes == ("node_c3", "node_sum", "node_r3")
    assert all(c.work > 0 for c in layers)
    own = own_noise(model.graph, collect(model, samples, seen))
    assert set(own) == {c.name for c in layers}
    assert all(20.0 < db < 60.0 for db in own.values())


# ---- half precision at the boundary ---------------------------------------------------------------------------------


def _head_and_tail(tmp_path: Path) -> tuple[ir.Model, ir.Model, Samples]:
    from partitioner.graph.cuts import separate
    from partitioner.graph.split import split

    model, samples, _ = prepared(models.residual(), tmp_path)
    halves = split(model, separate(model.topology, ("r1",)))
    return halves.head, halves.tail, samples


def test_an_input_that_is_an_output_too_keeps_the_model_float_instead_of_breaking_it(tmp_path: Path) -> None:
    proto = models.residual()
    proto.graph.output.append(proto.graph.input[0])  # ONNX Runtime's quantiser then writes a graph that is none
    model, samples, seen = prepared(proto, tmp_path)
    with pytest.raises(ModelError, match="the quantiser failed"):
        quantise(model.graph, seen, ALL_FLOAT_NOW)
    assert set(_run(model.graph, samples.feed(0))) == {"logits", "x"}


def _run(graph: ir.Model, feed: dict[str, Array]) -> dict[str, Any]:
    with OrtEngine(serialise(graph), label="test", optimise=False) as engine:
        return engine.infer(feed)


def test_halves_cross_under_the_tensors_own_name_and_answer_alike(tmp_path: Path) -> None:
    head, tail, samples = _head_and_tail(tmp_path)
    feed = samples.feed(0)
    exact = _run(head, feed)
    crossing = _run(emit_halves(head, ["r1"]), feed)
    assert {n: a.dtype for n, a in crossing.items()} == {"r1": np.float16}
    np.testing.assert_array_equal(crossing["r1"], exact["r1"].astype(np.float16))
    got, expected = _run(take_halves(tail, ["r1"]), crossing), _run(tail, exact)
    np.testing.assert_allclose(got["logits"], expected["logits"], rtol=1e-2, atol=1e-2)
    rounded_by_hand = _run(tail, {"r1": exact["r1"].astype(np.float16).astype(np.float32)})
    np.testing.assert_array_equal(got["logits"], rounded_by_hand["logits"])


def test_a_tensor_too_large_for_half_precision_is_refused(tmp_path: Path) -> None:
    head, _, _ = _head_and_tail(tmp_path)
    with pytest.raises(ModelError, match="float16 ends at 65504"):
        emit_halves(head, ["r1"], {"r1": (-1e5, 3.0)})
