"""What a segment accepts, in rows and layout, and what it says to the rest; how a lane measures itself."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.work import nbytes_of
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.errors import EngineError
from protocol.tensors import Array, TensorHeader, Tensors, TensorSpec

MAP = BoundaryTensor(TensorSpec("map", "uint8", ("N", 2, "W")), "raw", 0)
STATE = BoundaryTensor(TensorSpec("state", "float32", (3, "N")), "raw", 1)
SCALE = BoundaryTensor(TensorSpec("scale", "float32", (1,)), "raw", None)


def lane(
    *boundary: BoundaryTensor, batchable: bool = True, max_rows: int = 8, engine: FakeEngine | None = None
) -> Lane:
    if engine is None:
        engine = FakeEngine(lambda tensors: dict(tensors), inputs=tuple(b.spec for b in boundary))
    rules = LaneRules(max_rows=max_rows)
    return Lane("f" * 64, engine, boundary=boundary, output_axes={"y": 0}, batchable=batchable, rules=rules)


def segment(*boundary: BoundaryTensor) -> Segment:
    return Segment(lane(*boundary), boundary, "bundle", "int8", "cut-1", Scope("toy", "1", "cut-1"))


def header(name: str, dtype: str, *shape: int) -> TensorHeader:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return TensorHeader(name, dtype, shape, "raw", nbytes)


# ---- Segment.fit ----------------------------------------------------------------------------------------------------


def test_rows_are_the_batch_axis_and_layout_is_the_rest() -> None:
    assert segment(MAP).fit((header("map", "uint8", 5, 2, 7),)) == (5, ((2, 7),))


def test_the_batch_axis_may_lie_anywhere() -> None:
    headers = (header("map", "uint8", 4, 2, 7), header("state", "float32", 3, 4))
    assert segment(MAP, STATE).fit(headers) == (4, ((2, 7), (3,)))


def test_a_tensor_without_a_batch_axis_is_all_layout() -> None:
    headers = (header("map", "uint8", 4, 2, 7), header("scale", "float32", 1))
    assert segment(MAP, SCALE).fit(headers) == (4, ((2, 7), (1,)))


def test_without_any_batch_axis_a_request_is_one_row() -> None:
    assert segment(SCALE).fit((header("scale", "float32", 1),)) == (1, ((1,),))


def test_requests_that_differ_in_a_free_dimension_differ_in_layout() -> None:
    here = segment(MAP)
    narrow, wide = (here.fit((header("map", "uint8", 1, 2, w),)) for w in (7, 8))
    assert narrow[0] == wide[0]
    assert narrow[1] != wide[1]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ((), "tensors are missing; wanted map, state"),
        ((header("map", "uint8", 1, 2, 7),), "tensors are map; wanted map, state"),
        (
            (header("state", "float32", 3, 1), header("map", "uint8", 1, 2, 7)),
            "tensors are state, map; wanted map, state",
        ),
        (
            (header("map", "uint8", 1, 2, 7), header("other", "float32", 3, 1)),
            "tensors are map, other; wanted map, state",
        ),
    ],
)
def test_other_tensors_than_wanted_are_named(headers: tuple[TensorHeader, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segment(MAP, STATE).fit(headers)


@pytest.mark.parametrize(
    "wrong",
    [header("map", "int8", 1, 2, 7), header("map", "uint8", 1, 3, 7), header("map", "uint8", 2, 7)],
    ids=["element type", "dimension", "rank"],
)
def test_a_tensor_that_does_not_fit_is_named_with_what_was_wanted(wrong: TensorHeader) -> None:
    with pytest.raises(ValueError, match=r"tensor 'map' is .*; wanted uint8 \['N', 2, 'W'\]"):
        segment(MAP).fit((wrong,))


def test_tensors_that_disagree_about_the_batch_are_refused_with_the_numbers() -> None:
    headers = (header("map", "uint8", 4, 2, 7), header("state", "float32", 3, 5))
    with pytest.raises(ValueError, match=r"disagree about the batch: \[4, 5\] rows"):
        segment(MAP, STATE).fit(headers)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="0"):
        segment(MAP).fit((header("map", "uint8", 0, 2, 7),))


# ---- nbytes_of ------------------------------------------------------------------------------------------------------


def test_a_request_is_counted_as_sent_or_decoded_whichever_is_more() -> None:
    packed = TensorHeader("map", "uint8", (1, 2, 50), "zstd", 30)
    grown = TensorHeader("map", "uint8", (1, 2, 5), "zstd", 25)
    assert nbytes_of((packed,)) == 100
    assert nbytes_of((packed, grown)) == 125


def test_decoded_bytes_are_counted_in_bytes_and_not_in_elements() -> None:
    assert nbytes_of((TensorHeader("state", "float32", (3, 10), "zstd", 40),)) == 120


# ---- Lane -----------------------------------------------------------------------------------------------------------


def test_a_tail_without_proof_runs_one_row_at_a_time() -> None:
    assert lane(MAP, batchable=False).max_rows == 1


def test_warming_up_measures_every_batch_size_and_takes_the_knee_as_the_bound() -> None:
    seen: list[tuple[int, ...]] = []

    def watch(tensors: Tensors) -> dict[str, Array]:
        seen.append(tensors["map"].shape)
        return {"y": tensors["map"]}

    engine = FakeEngine(watch, inputs=(MAP.spec,))
    warmed = lane(MAP, max_rows=8, engine=engine)
    with engine:
        warmed.warm_up()
    assert dict.fromkeys(seen) == dict.fromkeys([(1, 2, 1), (2, 2, 1), (4, 2, 1), (8, 2, 1)])
    assert warmed.curve.predict(1) > 0.0
    assert warmed.max_rows in (1, 2, 4, 8)


def test_an_engine_with_profiles_is_measured_at_their_sizes_alone() -> None:
    seen: list[int] = []

    def picky(tensors: Tensors) -> dict[str, Array]:
        seen.append(len(tensors["map"]))
        return {"y": tensors["map"]}

    engine = FakeEngine(picky, inputs=(MAP.spec,))
    rules = LaneRules(max_rows=8, find_knee=False, sizes=(2, 6, 16))
    profiled = Lane("f" * 64, engine, boundary=(MAP,), output_axes={"y": 0}, batchable=True, rules=rules)
    with engine:
        profiled.warm_up()
    assert set(seen) == {2, 6}
    assert [profiled.padded(rows) for rows in (1, 2, 3, 7)] == [2, 2, 6, 16]


def test_warming_up_a_tail_that_does_not_run_says_so() -> None:
    engine = FakeEngine(lambda tensors: {"y": tensors["gone"]}, label="cut-1/tail", inputs=(STATE.spec,))
    broken = lane(STATE, engine=engine)
    with engine, pytest.raises(EngineError, match="cut-1/tail failed"):
        broken.warm_up()


def test_a_tail_whose_free_dimensions_cannot_be_guessed_starts_cold_at_batch_one() -> None:
    def picky(tensors: Tensors) -> dict[str, Array]:
        if tensors["map"].shape[2] < 5:
            raise ValueError("too narrow")
        return {"y": tensors["map"]}

    engine = FakeEngine(picky, inputs=(MAP.spec,))
    cold = lane(MAP, engine=engine)
    with engine:
        cold.warm_up()
    assert (cold.max_rows, cold.curve.predict(1)) == (1, 0.0)
