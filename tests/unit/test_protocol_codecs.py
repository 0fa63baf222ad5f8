"""Codecs: lossless on everything that may cross, and unimpressed by hostile bytes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol import codecs
from protocol.errors import WireError
from protocol.tensors import DTYPES, Array, TensorHeader
from protocol.wire import MAX_PAYLOAD_NBYTES

shapes = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
LOSSLESS = ("raw", "zstd")  # and of any element type; "levels" has a file of its own
codec_names = st.sampled_from(LOSSLESS)


def arrays() -> st.SearchStrategy[Array]:
    return st.sampled_from(sorted(DTYPES)).flatmap(lambda name: hnp.arrays(DTYPES[name], shapes))


def assert_identical(got: Array, wanted: Array) -> None:
    """Bit for bit: NaN payloads and the sign of zero count."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert got.tobytes() == wanted.tobytes()


@given(arrays(), codec_names)
def test_every_element_type_and_shape_comes_back_bit_for_bit(array: Array, codec: str) -> None:
    header, data = codecs.encode("t", array, codec)
    assert header == TensorHeader("t", array.dtype.name, array.shape, codec, memoryview(data).nbytes)
    assert_identical(codecs.decode(header, data), array)


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2), (1,), (2, 3)])
def test_scalars_and_empty_tensors_cross_like_any_other(codec: str, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, DTYPES[dtype])
    header, data = codecs.encode("t", array, codec)
    assert_identical(codecs.decode(header, data), array)


@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_strided_array_crosses_in_logical_order(codec: str) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    header, data = codecs.encode("t", array, codec)
    assert_identical(codecs.decode(header, data), np.ascontiguousarray(array))


def test_raw_encoding_and_decoding_share_memory_with_the_array() -> None:
    array = np.arange(1000, dtype=np.float32)
    header, data = codecs.encode("t", array, "raw")
    assert np.shares_memory(np.frombuffer(data, np.uint8), array)
    assert np.shares_memory(codecs.decode(header, data), array)


def test_an_unaligned_raw_buffer_is_copied_to_an_aligned_array() -> None:
    backing = bytearray(8 * 10 + 1)
    data = memoryview(backing)[1:]
    header = TensorHeader("t", "float64", (10,), "raw", 80)
    array = codecs.decode(header, data)
    assert array.flags.aligned


@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_decoded_array_is_read_only(codec: str) -> None:
    header, data = codecs.encode("t", np.zeros(4, np.uint8), codec)
    with pytest.raises(ValueError, match="read-only"):
        codecs.decode(header, data)[0] = 1


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([None]), np.zeros(2, np.complex64)])
def test_an_element_type_that_may_not_cross_is_refused(array: Array) -> None:
    with pytest.raises(WireError, match="element type"):
        codecs.encode("t", array, "raw")


@pytest.mark.parametrize("codec", LOSSLESS)
@pytest.mark.parametrize("dtype", [">f4", ">u2", ">i8"])
def test_a_big_endian_array_is_refused_or_keeps_its_values_but_never_changes_silently(dtype: str, codec: str) -> None:
    array = np.array([1, 2, 300], dtype)
    try:
        header, data = codecs.encode("t", array, codec)
    except WireError:
        return
    assert codecs.decode(header, data).tolist() == array.tolist()


def test_an_unknown_codec_is_refused_on_both_sides_with_the_known_ones() -> None:
    with pytest.raises(WireError, match="raw, zstd, levels"):
        codecs.encode("t", np.zeros(1, np.uint8), "lz77")
    with pytest.raises(WireError, match="raw, zstd"):
        codecs.decode(TensorHeader("t", "uint8", (1,), "lz77", 1), b"\0")


@pytest.mark.parametrize("dtype", ["object", "str", "float128", "<f4", "datetime64", ""])
def test_an_unknown_element_type_in_a_header_is_refused(dtype: str) -> None:
    with pytest.raises(WireError, match="element type"):
        codecs.decode(TensorHeader("t", dtype, (1,), "raw", 1), b"\0")


# ---- hostile bytes --------------------------------------------------------------------------------------------------


def peak_of_refusal(header: TensorHeader, data: bytes) -> int:
    """Bytes of memory that refusing `data` cost at most."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            codecs.decode(header, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def lying(frame: bytes, claimed: int) -> bytes:
    """`frame` (written with a four-byte content size) with another size in its header."""
    descriptor = frame[4]
    assert descriptor >> 6 == 2, "the frame does not hold its size in four bytes"
    at = 5 if descriptor & 0x20 else 6
    return frame[:at] + claimed.to_bytes(4, "little") + frame[at + 4 :]


BOMB = zstd.compress(bytes(64 * 1024 * 1024))


def test_a_bomb_that_states_its_size_is_refused_before_it_is_opened() -> None:
    assert peak_of_refusal(TensorHeader("t", "uint8", (100,), "zstd", len(BOMB)), BOMB) < 100_000


def test_a_bomb_that_lies_about_its_size_is_refused_in_the_memory_of_the_claim() -> None:
    frame = lying(BOMB, 100_000)
    assert peak_of_refusal(TensorHeader("t", "uint8", (100_000,), "zstd", len(frame)), frame) < 1_000_000


def test_a_frame_that_claims_more_than_it_holds_is_refused() -> None:
    frame = lying(zstd.compress(bytes(100_000)), 200_000)
    with pytest.raises(WireError):
        codecs.decode(TensorHeader("t", "uint8", (200_000,), "zstd", len(frame)), frame)


def test_a_frame_without_a_stated_size_is_refused() -> None:
    compressor = zstd.ZstdCompressor()
    frame = compressor.compress(bytes(1000), mode=compressor.CONTINUE) + compressor.flush()
    assert zstd.get_frame_info(frame).decompressed_size is None
    with pytest.raises(WireError):
        codecs.decode(TensorHeader("t", "uint8", (1000,), "zstd", len(frame)), frame)


@pytest.mark.parametrize("codec", LOSSLESS)
def test_a_shape_too_large_to_cross_is_refused_before_anything_is_allocated(codec: str) -> None:
    header = TensorHeader("t", "float64", (MAX_PAYLOAD_NBYTES,), codec, 10)
    assert peak_of_refusal(header, b"0123456789") < 100_000


@pytest.mark.parametrize("shape", [(2**31, 2**31, 0), (0, 2**31, 2**31, 2**31), (2**31,) * 7 + (0,)])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_an_empty_shape_with_huge_dimensions_decodes_or_is_refused_as_the_peers_fault(
    codec: str, shape: tuple[int, ...]
) -> None:
    _, data = codecs.encode("t", np.zeros(0, np.uint8), codec)
    header = TensorHeader("t", "uint8", shape, codec, memoryview(data).nbytes)
    try:
        array = codecs.decode(header, data)
    except WireError:
        return
    assert array.shape == shape


@given(st.binary(max_size=200), st.integers(0, 300))
def test_random_bytes_decode_to_the_right_size_or_raise_wire_error(data: bytes, size: int) -> None:
    for codec in codecs.CODECS:
        try:
            array = codecs.decode(TensorHeader("t", "uint8", (size,), codec, len(data)), data)
        except WireError:
            continue
        assert array.shape == (size,)


FRAME = zstd.compress(bytes(range(256)) * 4)


@given(st.integers(0, len(FRAME) - 1))
def test_a_truncated_frame_is_refused(cut: int) -> None:
    with pytest.raises(WireError):
        codecs.decode(TensorHeader("t", "uint8", (1024,), "zstd", cut), FRAME[:cut])


@pytest.mark.parametrize("tail", [b"\0", FRAME, zstd.compress(b""), b"\x50\x2a\x4d\x18\x00\x00\x00\x00"])
def test_anything_after_the_frame_is_refused(tail: bytes) -> None:
    data = FRAME + tail
    with pytest.raises(WireError):
        codecs.decode(TensorHeader("t", "uint8", (1024,), "zstd", len(data)), data)


@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255))
def test_a_changed_byte_in_a_frame_gives_the_right_size_or_wire_error(at: int, change: int) -> None:
    damaged = bytearray(FRAME)
    damaged[at] ^= change
    try:
        array = codecs.decode(TensorHeader("t", "uint8", (1024,), "zstd", len(damaged)), bytes(damaged))
    except WireError:
        return
    assert array.shape == (1024,)


@pytest.mark.parametrize("size", [0, 1, 9, 11])
def test_raw_bytes_of_another_size_than_the_shape_are_refused(size: int) -> None:
    with pytest.raises(WireError, match="10"):
        codecs.decode(TensorHeader("t", "uint8", (10,), "raw", size), bytes(size))


@pytest.mark.parametrize("nbytes", [0, 1, 131_071, 131_072, 131_073, 1_000_000])
def test_zstd_frames_of_every_block_boundary_come_back(nbytes: int) -> None:
    array: np.ndarray[Any, Any] = np.random.default_rng(nbytes).integers(0, 4, nbytes).astype(np.uint8)
    header, data = codecs.encode("t", array, "zstd")
    assert_identical(codecs.decode(header, data), array)
