"""Judging and comparing outputs, and finding batch axes: arrays in, numbers out."""

from __future__ import annotations

import numpy as np
import pytest

from partitioner.crossing.boundary import codes_for
from partitioner.judging.batch import growing_axis, unproven
from partitioner.judging.data import Samples
from partitioner.judging.verify import difference, yardstick
from protocol.errors import InputError, ModelError


def scores(*winners: int) -> list[dict[str, np.ndarray]]:
    return [{"s": np.eye(4, dtype=np.float32)[[w]]} for w in winners]


def samples(count: int, labels: list[int] | None = None) -> Samples:
    known = None if labels is None else np.array(labels, np.int64)
    return Samples({"x": np.zeros((count, 1), np.float32)}, frozenset(), known, False, "", calibrates=False)


def test_accuracy_is_judged_against_labels_and_relative_to_the_model() -> None:
    stick = yardstick(scores(0, 1, 2, 3), samples(4, [0, 1, 2, 0]), "s", 0.25)
    assert (stick.metric, stick.reference, stick.bound) == ("accuracy", 0.75, 0.5)
    assert stick.judge(scores(0, 1, 0, 0)) == (0.75, True)
    assert stick.judge(scores(0, 0, 0, 1)) == (0.25, False)


def test_labels_that_count_from_another_class_are_refused_with_the_shift() -> None:
    with pytest.raises(
        InputError, match=r"right on 25% of .* labels \+1 on 75%; shift the labels with --label-offset 1"
    ):
        yardstick(scores(1, 2, 3, 0), samples(4, [0, 1, 2, 0]), "s", 0.01)
    with pytest.raises(InputError, match="--label-offset -1"):
        yardstick(scores(0, 1, 2, 3), samples(4, [1, 2, 3, 4]), "s", 0.01)
    yardstick(scores(0, 1, 0, 1), samples(4, [0, 0, 1, 1]), "s", 0.01)  # no better when shifted: simply a poor model


def test_without_labels_the_top_one_must_agree() -> None:
    stick = yardstick(scores(0, 1, 2, 3), samples(4), "s", 0.01)
    assert stick.metric == "agreement"
    assert stick.judge(scores(0, 1, 2, 3)) == (1.0, True)
    assert stick.judge(scores(0, 1, 2, 2)) == (0.75, False)


def test_nan_never_agrees() -> None:
    stick = yardstick(scores(0), samples(1), "s", 0.0)
    assert stick.score([{"s": np.full((1, 4), np.nan, np.float32)}]) == 0.0


def test_what_is_no_classification_is_judged_by_cosine() -> None:
    boxes = [{"s": np.ones((1, 5, 4), np.float32)}]
    stick = yardstick(boxes, samples(1), "s", 0.01)
    assert stick.metric == "cosine"
    assert stick.judge([{"s": 2 * boxes[0]["s"]}]) == (pytest.approx(1.0), True)
    assert not stick.judge([{"s": -boxes[0]["s"]}])[1]


def test_of_several_outputs_the_worst_one_is_judged_and_not_the_first_alone() -> None:
    expected = [{"s": np.eye(4, dtype=np.float32)[[1]], "boxes": np.ones((1, 5, 4), np.float32)}]
    stick = yardstick(expected, samples(1), "s", 0.01)
    assert stick.metric == "cosine"
    assert stick.judge(expected) == (pytest.approx(1.0), True)
    assert not stick.judge([{**expected[0], "boxes": -expected[0]["boxes"]}])[1]


def test_a_model_that_answers_nan_cannot_be_judged() -> None:
    with pytest.raises(ModelError, match="NaN"):
        yardstick([{"s": np.full((1, 4), np.nan, np.float32)}], samples(1), "s", 0.01)


def test_differences_count_equal_nan_as_equal_and_other_shapes_as_infinite() -> None:
    nan = {"y": np.array([np.nan, 1.0])}
    assert difference([nan], [nan]).seen == 0.0
    assert difference([nan], [{"y": np.array([0.0, 1.0])}]).seen == np.inf
    assert difference([nan], [{"y": np.zeros(3)}]).seen == np.inf
    big = difference([{"y": np.array([1e6])}], [{"y": np.array([1e6 + 5])}])
    assert big.within
    assert big.allowed == pytest.approx(10.0)


def test_the_batch_axis_is_the_only_one_that_grows() -> None:
    assert growing_axis((1, 7, 5), (2, 7, 5), 2) == 0
    assert growing_axis((7, 1, 5), (7, 2, 5), 2) == 1
    assert growing_axis((7, 5), (7, 5), 2) is None
    assert growing_axis((1, 5), (2, 10), 2) is None
    assert growing_axis((1, 5), (2, 5, 1), 2) is None
    refusal = unproven({"a": 0, "b": None})
    assert refusal is not None
    assert "'b'" in refusal.reason


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-3.0, 1.0), (2.0, 5.0), (-5.0, -2.0), (0.0, 0.0), (0.0, 1e-30)])
def test_codes_cover_the_range_and_hold_zero_exactly(low: float, high: float) -> None:
    codes = codes_for(low, high)
    assert 0 <= codes.zero_point <= 255
    assert codes.scale > 0
    step = codes.scale
    assert (0 - codes.zero_point) * step <= min(low, 0.0) + step / 2 + 1e-9
    assert (255 - codes.zero_point) * step >= max(high, 0.0) - step / 2 - 1e-9
