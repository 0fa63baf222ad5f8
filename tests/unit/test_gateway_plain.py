"""Graphs without a manifest: what they take is read from the engine, and that requests may share a batch is proven."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest

from cloud_gateway.models.plain import Described, describe
from protocol.engines.fake import FakeEngine
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array, Tensors, TensorSpec
from tests import models

FREE = TensorSpec("x", "float32", ("N", 4))
OUT = TensorSpec("y", "float32", ("N", 4))
Function = Callable[[Array], Array]


def of(
    function: Function, *, x: TensorSpec = FREE, y: TensorSpec = OUT, max_batch_size: int | None = None
) -> Described:
    engine = FakeEngine(lambda tensors: {"y": function(tensors["x"])}, inputs=(x,), outputs=(y,))
    with engine:
        return describe(engine, max_batch_size=max_batch_size)


def of_model(model: onnx.ModelProto) -> Described:
    with OrtEngine(model.SerializeToString(), label="m") as engine:
        return describe(engine, max_batch_size=None)


# ---- real graphs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [models.residual, models.two_heads, models.tokens, models.with_function])
def test_ordinary_exports_with_a_free_batch_are_batched(make: Callable[[], onnx.ModelProto]) -> None:
    described = of_model(make())
    assert described.batchable, described.reason
    assert {b.batch_axis for b in described.boundary} == {0}
    assert set(described.output_axes.values()) == {0}


def test_an_export_with_a_fixed_batch_is_served_one_by_one_and_says_which_tensor_is_fixed() -> None:
    described = of_model(models.fixed_batch())
    assert not described.batchable
    assert described.reason == "the first dimension of 'x' is fixed"
    assert [b.batch_axis for b in described.boundary] == [None]


def test_a_baked_reshape_behind_a_free_batch_is_served_one_by_one() -> None:
    net = models.Net()
    net.add("Reshape", ["x", net.constant("shape", np.array([1, 4], np.int64))], "y")
    model = net.model({"x": (onnx.TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 4]})
    assert of_model(model).reason == "the first dimension of 'y' is fixed", "as the runtime infers"
    hidden = of(lambda x: x.reshape(1, 4))
    assert not hidden.batchable
    assert "does not run with random inputs of two rows" in hidden.reason


def test_a_graph_that_looks_at_its_neighbours_is_found() -> None:
    net = models.Net()
    net.add("ReduceMean", ["x"], "mean", axes=[0], keepdims=1)
    net.add("Sub", ["x", "mean"], "y")
    described = of_model(net.model({"x": (onnx.TensorProto.FLOAT, ["N", 4])}, {"y": ["N", 4]}))
    assert not described.batchable
    assert "differs from that of each alone" in described.reason


# ---- functions that mix rows in every way ---------------------------------------------------------------------------


def test_what_treats_each_row_alone_is_batched() -> None:
    assert of(lambda x: x * 2 + 1).batchable
    assert of(lambda x: np.repeat(x, 3, axis=0)).batchable, "several rows out for each row in"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x[::-1], "differs"),
        (lambda x: np.cumsum(x, axis=0), "differs"),
        (lambda x: x / np.abs(x).max(), "differs"),
        (lambda x: x.mean(0, keepdims=True), "does not grow"),
        (lambda x: x.sum(), "does not grow"),
        (lambda x: x[:0], "does not grow"),
        (lambda x: x[x[:, 0] > 0.05], "grow|depend"),
        (lambda x: np.where(len(x) > 1, np.nan, x), "differs"),
    ],
    ids=["order", "running sum", "norm of all", "mean", "scalar", "nothing", "some rows", "not a number"],
)
def test_what_mixes_rows_or_loses_them_is_not(function: Function, words: str) -> None:
    described = of(lambda x: np.asarray(function(x), np.float32))
    assert not described.batchable
    assert re.search(words, described.reason), described.reason


def test_integers_are_compared_exactly_and_drawn_so_that_they_may_be_indices() -> None:
    x = TensorSpec("x", "int64", ("N", 3))
    y = TensorSpec("y", "int64", ("N", 3))
    table = np.array([5, 9])
    assert of(lambda ids: table[ids], x=x, y=y).batchable
    assert not of(lambda ids: ids + (len(ids) > 1), x=x, y=y).batchable


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "float64"])
def test_every_type_of_input_can_be_tried(dtype: str) -> None:
    x, y = TensorSpec("x", dtype, ("N", 4)), TensorSpec("y", dtype, ("N", 4))
    assert of(lambda array: array.copy(), x=x, y=y).batchable


def test_the_last_digits_of_other_kernels_do_not_count_but_a_thousandth_does() -> None:
    assert of(lambda x: x * np.float32(1 + 1e-5 * (len(x) > 1))).batchable
    assert not of(lambda x: x * np.float32(1 + 1e-2 * (len(x) > 1))).batchable


def test_infinities_at_the_same_places_are_the_same() -> None:
    assert of(lambda x: np.where(x > 0, np.float32(np.inf), x)).batchable


# ---- what is declared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0, 1])
def test_a_declared_bound_of_one_needs_no_proof(bound: int) -> None:
    runs = 0

    def count(x: Array) -> Array:
        nonlocal runs
        runs += 1
        return x

    described = of(count, max_batch_size=bound)
    assert (described.batchable, described.reason, runs) == (False, f"max_batch_size is {bound}", 0)


def test_a_graph_whose_free_dimensions_cannot_be_guessed_is_served_one_by_one() -> None:
    def picky(tensors: Tensors) -> dict[str, Array]:
        if tensors["x"].shape[1] < 7:
            raise ValueError("too narrow")
        return {"y": tensors["x"]}

    engine = FakeEngine(picky, inputs=(TensorSpec("x", "float32", ("N", "W")),), outputs=(OUT,))
    with engine:
        described = describe(engine, max_batch_size=None)
    assert not described.batchable
    assert "too narrow" in described.reason


def test_a_scalar_input_or_output_forbids_batches() -> None:
    described = of(lambda x: x, x=TensorSpec("x", "float32", ()))
    assert (described.batchable, described.boundary[0].batch_axis) == (False, None)
