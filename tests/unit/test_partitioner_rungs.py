"""Rungs: the quantisers are the best there are, the ladder descends, and what it promises is what happens."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from partitioner.crossing import rungs
from protocol import codecs
from protocol.errors import InputError
from protocol.tensors import Array


def laplacian(size: int = 20_000, *, spread: float = 12.0, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).laplace(110, spread, size)
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def rectified(size: int = 20_000, *, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).normal(-20, 40, size)
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def through(array: Array, rung: rungs.Rung) -> tuple[Array, float]:
    """The array after the wire, and bits an element on it."""
    header, data = codecs.encode("t", array, rung.codec, rung.levels)
    return codecs.decode(header, data), 8 * memoryview(data).nbytes / array.size


def snr_db(before: Array, after: Array) -> float:
    noise = np.mean((before.astype(float) - after.astype(float)) ** 2)
    return float(10 * np.log10(before.astype(float).var() / noise))


MAKERS = {"laplacian": laplacian, "rectified": rectified}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_ladder_begins_exact_and_descends(kind: str) -> None:
    ladder = rungs.design([MAKERS[kind]()])
    assert ladder[0] == rungs.EXACT
    assert all(a.bits >= b.bits and a.snr_db >= b.snr_db for a, b in pairwise(ladder))
    assert len({rung.bits for rung in ladder}) >= 7


def test_ladders_of_different_tensors_have_the_same_rungs() -> None:
    constant = np.full((2, 3), 9, np.uint8)
    two = np.array([0, 255] * 10, np.uint8)
    spread = np.tile(np.arange(256, dtype=np.uint8), 50)
    names = {tuple(rung.name for rung in rungs.design([codes])) for codes in (constant, two, spread, laplacian())}
    assert names == {("q8", "q3", "q2.2", "q1.6", "q1.2", "q0.9", "q0.7", "q0.5")}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_rung_keeps_the_promise_of_its_noise_and_its_bits_on_fresh_data(kind: str) -> None:
    make = MAKERS[kind]
    fresh = make(seed=7)
    for rung in rungs.design([make(seed=1), make(seed=2)])[2:]:
        after, bits = through(fresh, rung)
        assert snr_db(fresh, after) == pytest.approx(rung.snr_db, abs=0.8)  # drawn anew
        assert rung.bits <= float(rung.name.removeprefix("q"))
        assert bits <= rung.bits * 1.15 + 0.3  # a Huffman code spends whole bits


def test_levels_cost_something_so_short_messages_have_fewer() -> None:
    codes = laplacian(64_000)
    one, many = rungs.design([codes])[2], rungs.design(list(codes.reshape(64, 1000)))[2]
    assert one.levels is not None
    assert many.levels is not None
    assert len(many.levels.values) < len(one.levels.values)


def test_the_one_sided_quantiser_is_the_best_of_all_partitions() -> None:
    counts = np.zeros(256)
    counts[[3, 4, 5, 9, 10, 11, 30, 31, 80]] = (40, 9, 12, 3, 30, 4, 8, 7, 2)
    share = counts / counts.sum()
    cells, used = rungs._Cells(share, 0.01), np.flatnonzero(share)
    slopes = (0.5, 5.0, 50.0)

    def cost(borders: tuple[int, ...], slope: float) -> float:
        return float(sum(cells.noise[a, b] + slope * cells.cost[a, b] for a, b in pairwise(borders)))

    for slope, found in zip(slopes, rungs._partitions(cells, np.array(slopes)), strict=True):
        all_ways = (c for size in range(len(used)) for c in combinations(used[1:].tolist(), size))
        assert cost(found, slope) == pytest.approx(min(cost((0, *way, 256), slope) for way in all_ways))


def test_levels_of_one_sided_codes_keep_their_mean_and_their_variance() -> None:
    codes = rectified(100_000)
    for rung in rungs.design([codes])[2:]:
        after, _ = through(codes, rung)
        assert after.mean() == pytest.approx(codes.mean(), abs=1.0)
        assert after.astype(float).std() == pytest.approx(codes.astype(float).std(), rel=0.03)


def test_levels_of_two_sided_codes_stand_in_equal_steps_about_the_commonest() -> None:
    codes = laplacian(100_000)
    zero = int(np.bincount(codes).argmax())
    for rung in rungs.design([codes])[1:]:
        assert rung.levels is not None
        inner = [v for v in rung.levels.values if 0 < v < 255]
        assert zero in inner
        assert len(set(np.diff(inner))) == 1


def test_one_sided_and_two_sided_codes_are_told_apart() -> None:
    assert rungs.two_sided(rungs.histogram([laplacian()]) / 20_000)
    assert not rungs.two_sided(rungs.histogram([rectified()]) / 20_000)


def test_a_tensor_that_never_changes_costs_next_to_nothing() -> None:
    constant = np.full((64, 64), 9, np.uint8)
    for rung in rungs.design([constant])[1:]:
        after, bits = through(constant, rung)
        np.testing.assert_array_equal(after, constant)
        assert bits < 0.1


@pytest.mark.parametrize("codes", [[], [np.zeros(0, np.uint8)], [np.zeros(3, np.float32)]])
def test_what_are_no_codes_is_refused(codes: list[Array]) -> None:
    with pytest.raises(InputError, match="8-bit codes"):
        rungs.design(codes)


def test_the_outer_share_counts_both_ends_of_the_range() -> None:
    assert rungs.outer_share([np.array([0, 1, 254, 255], np.uint8), np.array([7] * 4, np.uint8)]) == 0.25
