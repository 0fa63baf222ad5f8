"""Payloads into batches: along which axis, of which types, from which buffers; memory is kept but never leaks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.models.rows import BatchRows, Source
from protocol.tensors import DTYPES, Array, TensorHeader, dtype_name


def header_of(array: Array) -> TensorHeader:
    return TensorHeader("x", dtype_name("x", array), array.shape, "raw", array.nbytes)


def raw(array: Array, parts: int = 1) -> list[bytes]:
    """An array as it is received, in so many parts."""
    data = array.tobytes()
    if not data:
        return []
    step = -(-len(data) // parts)
    return [data[at : at + step] for at in range(0, len(data), step)]


def join(rows: BatchRows, arrays: Sequence[Array], axis: int | None, sources: Sequence[Source] | None = None) -> Array:
    return rows.join("lane", header_of(arrays[0]), sources or [raw(a) for a in arrays], axis)


# ---- join -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_requests_of_any_type_are_joined_along_any_axis(dtype: str, axis: int) -> None:
    rng = np.random.default_rng(3)
    arrays = []
    for count in (1, 3, 2):
        shape = [2, 3, 4]
        shape[axis] = count
        arrays.append(rng.integers(0, 2, shape).astype(DTYPES[dtype]))
    joined = join(BatchRows(), arrays, axis)
    assert joined.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(joined, np.concatenate(arrays, axis))


def test_parts_decoded_arrays_and_views_are_joined_alike() -> None:
    arrays = [np.arange(12, dtype=np.float32).reshape(2, 6) + i for i in range(3)]
    turned = np.ascontiguousarray(arrays[2].T).T  # the same values, laid out otherwise
    joined = join(BatchRows(), arrays, 0, [raw(arrays[0], 5), arrays[1], turned])
    np.testing.assert_array_equal(joined, np.concatenate(arrays))


def test_memory_of_a_message_is_taken_as_it_is() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(3, 2)
    shifted = memoryview(b"?" + array.tobytes())[1:]  # not aligned, as in libzmq's small frames
    np.testing.assert_array_equal(join(BatchRows(), [array], 0, [[shifted]]), array)


def test_a_request_alone_that_was_decoded_is_not_copied() -> None:
    array = np.ones((2, 3), np.float32)
    assert join(BatchRows(), [array], 0, [array]) is array


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_a_tensor_without_a_batch_axis_keeps_its_shape(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 7, np.int64)
    joined = join(BatchRows(), [array], None)
    assert joined.shape == shape
    np.testing.assert_array_equal(joined, array)


@pytest.mark.parametrize("axis", [0, 1])
def test_tensors_that_hold_nothing_still_have_their_rows(axis: int) -> None:
    shapes = [(1, 0, 2), (3, 0, 2)] if axis == 0 else [(0, 1, 2), (0, 3, 2)]
    empty = [np.zeros(shape, np.float32) for shape in shapes]
    arrays = BatchRows().join("lane", header_of(empty[0]), empty, axis)
    assert arrays.shape == ((4, 0, 2) if axis == 0 else (0, 4, 2))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3), st.booleans())
def test_a_join_is_the_concatenation_whatever_was_joined_before(counts: list[int], width: int, decoded: bool) -> None:
    rows = BatchRows(64)  # so small that arrays are thrown away and made anew
    for turn in range(3):
        arrays = [np.full((n, width), 10 * turn + i, np.int32) for i, n in enumerate(counts)]
        sources: list[Source] = [a if decoded and i % 2 else raw(a, 2) for i, a in enumerate(arrays)]
        np.testing.assert_array_equal(join(rows, arrays, 0, sources), np.concatenate(arrays))
        assert 0 <= rows.nbytes <= 64


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_the_next_batch_lies_in_the_same_memory_also_if_it_is_smaller() -> None:
    rows = BatchRows()
    first = join(rows, [np.ones((4, 8), np.float32)], 0)
    second = join(rows, [np.zeros((2, 8), np.float32)], 0)
    assert np.shares_memory(first, second)
    assert rows.nbytes == 128


def test_other_tensors_types_and_lanes_lie_elsewhere() -> None:
    rows, ones = BatchRows(), np.ones((1, 4), np.float32)
    header = header_of(ones)
    joined = [
        rows.join("lane", header, [raw(ones)], 0),
        rows.join("other lane", header, [raw(ones)], 0),
        rows.join("lane", msgspec.structs.replace(header, name="y"), [raw(ones)], 0),
        rows.join("lane", header_of(ones.view(np.int32)), [raw(ones)], 0),
    ]
    for i, one in enumerate(joined):
        assert not any(np.shares_memory(one, other) for other in joined[:i])


def test_what_was_used_longest_ago_makes_room() -> None:
    rows, old = BatchRows(100), np.ones((1, 15), np.float32)
    first = rows.join("a", header_of(old), [raw(old)], 0)
    rows.join("b", header_of(old), [raw(old)], 0)
    assert rows.nbytes == 60
    assert not np.shares_memory(first, rows.join("a", header_of(old), [raw(old)], 0))


def test_a_batch_beyond_the_limit_is_not_kept_and_the_account_stays_true() -> None:
    rows = BatchRows(100)
    join(rows, [np.ones((1, 10), np.float32)], 0)
    for _ in range(3):
        join(rows, [np.ones((9, 10), np.float32)], 0)
        assert rows.nbytes <= 40
    again = join(rows, [np.ones((2, 10), np.float32)], 0)
    assert rows.nbytes == 80
    assert np.shares_memory(again, join(rows, [np.ones((2, 10), np.float32)], 0))


# ---- detached -------------------------------------------------------------------------------------------------------


def test_outputs_that_lie_in_the_batch_are_copied_and_others_are_not() -> None:
    rows = BatchRows()
    batch = join(rows, [np.ones((2, 4), np.float32)], 0)
    own = np.zeros(3)
    outputs = rows.detached({"same": batch, "part": batch[1:, ::2], "own": own})
    assert outputs["own"] is own
    join(rows, [np.full((2, 4), 5, np.float32)], 0)
    assert outputs["same"].tolist() == [[1] * 4] * 2
    assert outputs["part"].tolist() == [[1, 1]]


def test_a_batch_that_failed_leaves_nothing_to_hold_on_to() -> None:
    rows = BatchRows(10)
    large = weakref.ref(rows.join("lane", header_of(np.ones((2, 4))), [raw(np.ones((2, 4)))], 0).base)
    assert large() is not None
    rows.forget()
    assert large() is None
