"""The transform at a boundary: what it takes apart it puts together again, and bits go where the tail listens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from partitioner.crossing import boundary, decorrelate, rungs
from partitioner.graph.model import serialise
from protocol import codecs
from protocol.engines.ort import OrtEngine
from protocol.errors import ModelError
from protocol.tensors import Array

CHANNELS, SIDE = 6, 8


def smooth(count: int = 24, *, rank: int = 2, seed: int = 0) -> Array:
    """[count, 6, 8, 8] of `rank` smooth maps, mixed into six channels, and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, rank, 2, 2))
    maps = np.repeat(np.repeat(coarse, SIDE // 2, axis=2), SIDE // 2, axis=3)
    mixed = np.einsum("cr,nrhw->nchw", np.random.default_rng(99).standard_normal((CHANNELS, rank)), maps)
    noisy: Array = (mixed + 0.02 * rng.standard_normal(mixed.shape) + 3.0).astype(np.float32)
    return noisy


def hears_all(values: Array) -> Array:
    return values.reshape(len(values), -1).astype(np.float64)


def identity_graph(inputs: str, outputs: str) -> ir.Model:
    x = ir.val(inputs, ir.DataType.FLOAT, ["N", CHANNELS, SIDE, SIDE])
    y = ir.val(outputs, ir.DataType.FLOAT, ["N", CHANNELS, SIDE, SIDE])
    graph = ir.Graph([x], [y], nodes=[ir.node("Identity", [x], outputs=[y])], opset_imports={"": 17}, name="g")
    return ir.Model(graph, ir_version=8)


def halves(transform: decorrelate.Transform) -> tuple[ir.Model, ir.Model]:
    head = decorrelate.end_head(identity_graph("x", "t"), {"t": transform})
    return head, decorrelate.begin_tail(identity_graph("t", "y"), {"t": transform})


def run(model: ir.Model, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    with OrtEngine(serialise(model), label="test") as engine:
        return engine.infer(inputs)


@pytest.mark.parametrize("block", [1, 2, 4, 8])
def test_head_and_tail_together_change_nothing(block: int) -> None:
    values = smooth()
    head, tail = halves(decorrelate.design(values, hears_all, block=block))
    planes = run(head, {"x": values[:3]})["t"]
    assert planes.shape == (3, CHANNELS * block**2, SIDE // block, SIDE // block)
    np.testing.assert_allclose(run(tail, {"t": planes})["y"], values[:3], atol=2e-4)


@pytest.mark.parametrize("block", [1, 4])
def test_the_head_computes_what_the_transform_says(block: int) -> None:
    values = smooth()
    transform = decorrelate.design(values, hears_all, block=block)
    head, _ = halves(transform)
    np.testing.assert_allclose(run(head, {"x": values[:2]})["t"], transform.forward(values[:2]), atol=2e-4)


def test_the_planes_descend_and_those_beyond_the_rank_are_almost_empty() -> None:
    values = smooth()
    planes = decorrelate.design(values, hears_all).forward(values)
    power = planes.var(axis=(0, 2, 3))
    assert power[:2].min() > 20 * power[2:].max()
    assert abs(float(planes.mean())) < 0.1 * float(planes[:, 0].std())


def test_what_the_tail_does_not_hear_gets_no_bits() -> None:
    values = np.random.default_rng(1).standard_normal((24, CHANNELS, SIDE, SIDE)).astype(np.float32)

    def hears_first(given: Array) -> Array:
        return hears_all(given[:, :1])

    mix = decorrelate.design(values, hears_first, block=1).mix
    heard, unheard = np.linalg.norm(mix[:, 0]), np.linalg.norm(mix[:, 1:], axis=0)
    assert heard > 4 * unheard.max()


def test_a_tail_that_answers_nothing_leaves_plain_distance() -> None:
    values = smooth()
    transform = decorrelate.design(values, lambda given: np.zeros((len(given), 3)), block=2)
    gram = transform.mix @ transform.mix.T
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(CHANNELS), atol=1e-5)


def test_correlated_tensors_cross_in_less_than_half_the_bytes_for_the_same_noise() -> None:
    values, fresh = smooth(48), smooth(8, seed=5)

    def curve(transform: decorrelate.Transform | None) -> list[tuple[float, float]]:
        """(noise, bytes) of each rung."""
        low, high = (float(values.min()), float(values.max())) if transform is None else (transform.low, transform.high)
        head, tail = (identity_graph("x", "t"), identity_graph("t", "y")) if transform is None else halves(transform)
        head, codes = boundary.emit_codes(head, ["t"], {"t": (low, high)})
        tail = boundary.take_codes(tail, codes)
        sent = run(head, {"x": fresh})["t"]
        points: list[tuple[float, float]] = []
        for rung in rungs.design(list(run(head, {"x": values})["t"][:, None]))[1:]:
            header, data = codecs.encode("t", sent, rung.codec, rung.levels)
            got = run(tail, {"t": codecs.decode(header, data)})["y"]
            points.append((float(np.mean((got - fresh) ** 2)), memoryview(data).nbytes))
        return points

    plain, better = curve(None), curve(decorrelate.design(values, hears_all))
    noise, nbytes = plain[2]
    assert min(n for e, n in better if e <= noise) < nbytes / 2


def test_sparse_small_and_foreign_tensors_stay_as_they_are() -> None:
    assert decorrelate.suits(smooth())
    assert not decorrelate.suits(np.maximum(smooth() - 3.0, 0.0))
    assert not decorrelate.suits(smooth()[:, :1])
    assert not decorrelate.suits(smooth()[0])
    assert not decorrelate.suits(np.ones((4, 3, 2, 2), np.float32))
    assert not decorrelate.suits(smooth().astype(np.float64))


@pytest.mark.parametrize(("shape", "block"), [((28, 28), 4), ((14, 14), 2), ((7, 7), 1), ((9, 12), 3), ((1, 1), 1)])
def test_a_block_tiles_the_map(shape: tuple[int, int], block: int) -> None:
    assert decorrelate.block_for((1, 3, *shape)) == block


def test_listening_takes_logarithms_of_probabilities_alone_and_batches_only_what_may_be() -> None:
    class Tail:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def infer(self, inputs: Mapping[str, Array], /) -> Mapping[str, Array]:
            count = len(inputs["t"])
            self.sizes.append(count)
            return {"p": np.full((count, 2), 0.5, np.float32), "z": np.full((count, 1), 3.0, np.float32)}

    tail = Tail()
    rows = decorrelate.listen(tail, "t", batched=False)(smooth(3))
    np.testing.assert_allclose(rows, [[0.0, 0.0, 3.0]] * 3, atol=1e-6)
    decorrelate.listen(tail, "t", batched=True)(smooth(3))
    assert tail.sizes == [1, 1, 1, 3]


def test_a_tensor_that_does_not_leave_the_head_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'nowhere'"):
        decorrelate.end_head(identity_graph("x", "t"), {"nowhere": decorrelate.design(smooth(), hears_all)})
