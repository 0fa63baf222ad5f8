"""The codec "levels": every code becomes the code its level stands for, and hostile payloads cost nothing."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import codecs
from protocol.bundle import Levels
from protocol.errors import WireError
from protocol.levels import MOST_LEVELS
from protocol.tensors import Array, TensorHeader


def evenly(count: int) -> Levels:
    """`count` levels of equal width over the 256 codes, each decoded to its middle."""
    edges = [256 * i // count for i in range(count + 1)]
    return Levels(tuple(edges[1:-1]), tuple((a + b) // 2 for a, b in pairwise(edges)))


def mapped(array: Array, levels: Levels) -> Array:
    """What decoding must give, one code at a time."""
    flat = [levels.values[sum(t <= code for t in levels.thresholds)] for code in array.ravel().tolist()]
    return np.array(flat, np.uint8).reshape(array.shape)


def random_codes(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@st.composite
def any_levels(draw: st.DrawFn) -> Levels:
    thresholds = sorted(draw(st.sets(st.integers(1, 255), max_size=70)))
    values = draw(st.lists(st.integers(0, 255), min_size=len(thresholds) + 1, max_size=len(thresholds) + 1))
    return Levels(tuple(thresholds), tuple(values))


@given(any_levels(), st.lists(st.integers(0, 6), max_size=4), st.integers(0, 99))
def test_every_code_comes_back_as_what_its_level_stands_for(levels: Levels, shape: list[int], seed: int) -> None:
    array = random_codes(tuple(shape), seed)
    header, data = codecs.encode("t", array, "levels", levels)
    assert header == TensorHeader("t", "uint8", array.shape, "levels", memoryview(data).nbytes)
    np.testing.assert_array_equal(codecs.decode(header, data), mapped(array, levels), strict=True)


@pytest.mark.parametrize("count", [*range(1, 66), 127, 128, 255, 256])
def test_every_number_of_levels_survives_a_tensor_larger_than_a_chunk(count: int) -> None:
    array = random_codes((1, 3, 401, 223), count)
    header, data = codecs.encode("t", array, "levels", evenly(count))
    np.testing.assert_array_equal(codecs.decode(header, data), mapped(np.arange(256), evenly(count))[array])


def test_a_strided_array_crosses_in_logical_order() -> None:
    array = random_codes((4, 6, 5)).transpose(2, 0, 1)[::-1]
    header, data = codecs.encode("t", array, "levels", evenly(7))
    np.testing.assert_array_equal(codecs.decode(header, data), mapped(array, evenly(7)))


def test_equal_arrays_encode_to_equal_bytes_which_hold_all_a_decoder_needs() -> None:
    array = random_codes((3, 5))
    _, one = codecs.encode("t", array, "levels", evenly(4))
    _, two = codecs.encode("u", array.copy(), "levels", evenly(4))
    assert bytes(one) == bytes(two)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.6])
@pytest.mark.parametrize("count", [3, 4, 5, 17, 18, MOST_LEVELS])
def test_sparse_tensors_come_back_whatever_their_commonest_level(count: int, share: float) -> None:
    for zero in (0, 130, 255):
        codes = random_codes((1, 7, 101, 103), count)
        codes[np.random.default_rng(count).random(codes.shape) >= share] = zero
        header, data = codecs.encode("t", codes, "levels", evenly(count))
        np.testing.assert_array_equal(codecs.decode(header, data), mapped(np.arange(256), evenly(count))[codes])
        assert bytes(data)[0] == 2


def test_sparse_codes_cost_less_than_a_bit_each() -> None:
    array = np.where(np.random.default_rng(1).random((64, 28, 28)) < 0.03, 255, 0).astype(np.uint8)
    _, data = codecs.encode("t", array, "levels", evenly(4))
    assert 8 * memoryview(data).nbytes / array.size < 0.35


def test_what_does_not_compress_crosses_packed_and_no_larger() -> None:
    array = random_codes((1, 8, 32, 32))
    _, data = codecs.encode("t", array, "levels", evenly(16))
    assert memoryview(data).nbytes == 2 + 16 + array.size // 2


@pytest.mark.parametrize("dtype", ["int8", "float32", "bool", "uint16"])
def test_only_codes_take_levels(dtype: str) -> None:
    with pytest.raises(WireError, match="uint8"):
        codecs.encode("t", np.zeros(4, dtype), "levels", evenly(4))
    with pytest.raises(WireError, match="uint8"):
        codecs.decode(TensorHeader("t", dtype, (4,), "levels", 4), b"\0\0\0\0")


@pytest.mark.parametrize(
    "levels",
    [
        None,
        Levels((), ()),
        Levels((10,), (1,)),
        Levels((10, 10), (1, 2, 3)),
        Levels((0,), (1, 2)),
        Levels((256,), (1, 2)),
        Levels((10,), (1, 256)),
        Levels((10,), (-1, 2)),
        Levels(tuple(range(1, 257)), tuple(range(257))),
    ],
)
def test_levels_that_cannot_be_are_refused_by_the_encoder(levels: Levels | None) -> None:
    with pytest.raises(WireError, match="levels"):
        codecs.encode("t", random_codes((4,)), "levels", levels)


# ---- hostile bytes --------------------------------------------------------------------------------------------------


def refused_peak(header: TensorHeader, data: bytes) -> int:
    """Bytes of memory that refusing `data` cost at most."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            codecs.decode(header, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\0\0",
        b"\0\x01",
        b"\0\x01\0",
        b"\0\xff" + bytes(255),
        b"\0\xff" + bytes(300),
        b"\x03\x01\0\xff\0\0",
        b"\0\x01\0\xff\0",
        b"\0\x01\0\xff\0\0\0",
        b"\x01\x01\0\xff",
        b"\x01\x01\0\xff" + zstd.compress(bytes(3)),
        b"\x01\x01\0\xff" + zstd.compress(bytes(2)) + b"\0",
        b"\x02\0\0" + b"\0\0\0\0\0" + zstd.compress(bytes(2)),
        b"\x02\x02\0\1\2" + b"\0\0\0",
        b"\x02\x02\0\1\2" + b"\3\0\0\0\0" + zstd.compress(bytes(2)),
        b"\x02\x02\0\1\2" + b"\0\x11\0\0\0" + zstd.compress(b"\xff\xff\0\0\0"),
        b"\x02\x02\0\1\2" + b"\0\1\0\0\0" + zstd.compress(bytes(3)),
        b"\x02\x02\0\1\2" + b"\0\0\0\0\0" + zstd.compress(b"\x80\0"),
        b"\x02\x02\0\1\2" + b"\0\xff\xff\xff\xff" + zstd.compress(bytes(2)),
    ],
)
def test_a_payload_that_is_not_sixteen_elements_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        codecs.decode(TensorHeader("t", "uint8", (4, 4), "levels", len(data)), data)


def test_a_small_payload_that_claims_a_large_tensor_is_refused_before_it_is_allocated() -> None:
    header = TensorHeader("t", "uint8", (1 << 27,), "levels", 6)
    assert refused_peak(header, b"\0\x01\0\xff\0\0") < 100_000


def test_a_bomb_is_refused_before_it_is_opened() -> None:
    bomb = b"\x01\x01\0\xff" + zstd.compress(bytes(64 * 1024 * 1024))
    assert refused_peak(TensorHeader("t", "uint8", (800,), "levels", len(bomb)), bomb) < 100_000


@pytest.mark.parametrize("count", [2, 3, 16, 17])
def test_decoding_needs_no_more_memory_than_a_few_times_the_tensor(count: int) -> None:
    header, data = codecs.encode("t", random_codes((1 << 21,)), "levels", evenly(count))
    tracemalloc.start()
    codecs.decode(header, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * (1 << 21)


ENCODED = [codecs.encode("t", random_codes((3, 41), n), "levels", evenly(n)) for n in (1, 2, 3, 5, 16, 40)] + [
    codecs.encode("t", np.where(random_codes((3, 997)) < 8, 255, 0).astype(np.uint8), "levels", evenly(n))
    for n in (2, 4, 9, 30)
]
assert {bytes(data)[0] for _, data in ENCODED} == {0, 1, 2}


@given(
    st.sampled_from(ENCODED),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(-3, 3),
)
@example(ENCODED[0], [], 0)
def test_a_damaged_payload_decodes_to_the_right_shape_or_raises_wire_error(
    whole: tuple[TensorHeader, bytes], changes: list[tuple[int, int]], longer: int
) -> None:
    header, data = whole
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    cut = bytes(damaged[: len(damaged) + longer]) + bytes(max(longer, 0))
    try:
        array = codecs.decode(header, cut)
    except WireError:
        return
    assert array.shape == header.shape
    assert array.dtype == np.dtype(np.uint8)
