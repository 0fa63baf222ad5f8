"""The drift signal: which codes count as outside, and when a request counts as drifted."""

from __future__ import annotations

import numpy as np

from protocol import drift
from protocol.bundle import BoundaryTensor
from protocol.tensors import TensorSpec


def tensor(name: str = "t", *, zero_point: int | None = 0, outer_share: float | None = None) -> BoundaryTensor:
    scale = None if zero_point is None else 0.5
    spec = TensorSpec(name, "uint8" if scale else "float32", ("N", 4))
    return BoundaryTensor(spec, "zstd", 0, scale, zero_point, outer_share=outer_share)


def test_zero_is_no_end_of_a_range_that_begins_at_zero() -> None:
    codes = np.array([[0, 0, 7, 255]], np.uint8)
    assert drift.outer_ppm([tensor(zero_point=0)], {"t": codes}) == 250_000
    assert drift.outer_ppm([tensor(zero_point=128)], {"t": codes}) == 750_000


def test_several_tensors_are_counted_together_and_floats_not_at_all() -> None:
    boundary = [tensor("a"), tensor("b"), tensor("f", zero_point=None)]
    values = {
        "a": np.full((1, 4), 255, np.uint8),
        "b": np.zeros((3, 4), np.uint8),
        "f": np.ones((1, 4), np.float32),
    }
    assert drift.outer_ppm(boundary, values) == 250_000


def test_nothing_is_said_where_nothing_crosses_as_codes() -> None:
    assert drift.outer_ppm([tensor("f", zero_point=None)], {"f": np.ones((1, 4), np.float32)}) is None
    assert drift.outer_ppm([], {}) is None


def test_the_expectation_is_that_of_the_worst_tensor() -> None:
    assert drift.expected_ppm([tensor(outer_share=0.001), tensor(outer_share=0.002)]) == 2_000
    assert drift.expected_ppm([tensor()]) is None


def test_a_request_has_drifted_when_it_is_far_above_expectation_and_above_the_floor() -> None:
    assert not drift.has_drifted(1_900, expected=0)  # a handful of codes is no drift
    assert drift.has_drifted(2_100, expected=0)
    assert not drift.has_drifted(39_000, expected=10_000)
    assert drift.has_drifted(41_000, expected=10_000)
