"""The codec "delta": a stream arrives as it would frame by frame, only smaller, and hostile bytes cost nothing."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import codecs
from protocol.bundle import Levels
from protocol.delta import Reference, UnknownReferenceError
from protocol.errors import WireError
from protocol.levels import LevelCodec
from protocol.tensors import Array, TensorHeader
from tests.unit.test_protocol_levels import any_levels, evenly, mapped, random_codes

SHAPE = (2, 5, 41)


def moved(array: Array, share: float, seed: int = 1) -> Array:
    """Another frame of the same scene: `share` of the codes differ by a little."""
    rng = np.random.default_rng(seed)
    where = rng.random(array.shape) < share
    return np.clip(array + where * rng.integers(-9, 10, array.shape), 0, 255).astype(np.uint8)


@given(st.none() | any_levels(), st.floats(0, 1), st.integers(0, 99))
def test_a_frame_after_another_arrives_as_it_would_alone(levels: Levels | None, share: float, seed: int) -> None:
    first = random_codes(SHAPE, seed)
    second = moved(first, share, seed)
    held = {3: codecs.decode(*codecs.encode("t", first, "delta", levels))}
    header, data = codecs.encode("t", second, "delta", levels, Reference(3, first))
    got = codecs.decode(header, data, held.get)
    np.testing.assert_array_equal(got, second if levels is None else mapped(second, levels), strict=True)


@pytest.mark.parametrize("levels", [None, evenly(3), evenly(16), evenly(200)])
def test_a_stream_may_be_followed_from_either_side_of_the_codec(levels: Levels | None) -> None:
    """The sender refers to what it had, the receiver to what it got: both are the same levels, frame after frame."""
    frame, before, held = random_codes(SHAPE), None, dict[int, Array]()
    for number in range(6):
        header, data = codecs.encode("t", frame, "delta", levels, before)
        held = {number: codecs.decode(header, data, held.get)}
        np.testing.assert_array_equal(held[number], frame if levels is None else mapped(frame, levels))
        before, frame = Reference(number, frame), moved(frame, 0.05, number)


@pytest.mark.parametrize("levels", [None, evenly(3), evenly(16), evenly(200)])
def test_a_still_scene_is_a_fraction_of_a_frame_and_another_scene_no_more_than_a_frame(levels: Levels | None) -> None:
    shape = (1, 32, 28, 28)
    scene = np.clip(np.random.default_rng(0).normal(128, 30, shape), 0, 255).astype(np.uint8)
    alone, _ = codecs.encode("t", scene, "delta", levels)
    still, _ = codecs.encode("t", moved(scene, 0.02), "delta", levels, Reference(1, scene))
    cut, data = codecs.encode("t", scene, "delta", levels, Reference(1, random_codes(shape, 5)))
    assert still.nbytes < 0.5 * alone.nbytes
    assert cut.nbytes == alone.nbytes
    assert bytes(data)[0] in (0, 2), "sent alone"


def test_a_frame_of_another_shape_is_sent_alone() -> None:
    array = random_codes((2, 8))
    header, data = codecs.encode("t", array, "delta", None, Reference(1, random_codes((2, 9))))
    np.testing.assert_array_equal(codecs.decode(header, data), array)


def test_levels_that_share_a_code_are_one_level_on_both_sides() -> None:
    shared = Levels((50, 100, 150), (10, 60, 60, 200))
    first = np.array([0, 60, 120, 255] * 40, np.uint8)
    second = np.where(first == 60, 120, first).astype(np.uint8)
    held = {1: codecs.decode(*codecs.encode("t", first, "delta", shared))}
    header, data = codecs.encode("t", second, "delta", shared, Reference(1, first))
    assert bytes(data)[0] == 1, "sent as a difference"
    np.testing.assert_array_equal(codecs.decode(header, data, held.get), mapped(second, shared))


# ---- what is not known, and hostile bytes ---------------------------------------------------------------------------


def difference(count: int = 16) -> tuple[TensorHeader, bytes, Array]:
    first = random_codes(SHAPE)
    header, data = codecs.encode("t", moved(first, 0.02), "delta", evenly(count), Reference(7, first))
    assert bytes(data)[0] == 1
    return header, bytes(data), codecs.decode(*codecs.encode("t", first, "delta", evenly(count)))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda _: None, "request 7 is not held"),
        (lambda held: held.reshape(5, 2, 41), "had shape"),
        (lambda held: np.where(held == held.max(), held.min(), held), "other levels"),
        (lambda held: held ^ 1, "other levels"),
    ],
)
def test_a_difference_to_what_is_not_held_is_told_from_a_broken_one(spoil: object, sentence: str) -> None:
    header, data, held = difference()
    assert callable(spoil)
    with pytest.raises(UnknownReferenceError, match=sentence):
        codecs.decode(header, data, lambda _: spoil(held))


def test_without_a_memory_a_difference_is_refused() -> None:
    header, data, _ = difference()
    with pytest.raises(UnknownReferenceError):
        codecs.decode(header, data)


@pytest.mark.parametrize(
    "data", [b"", b"\2", b"\4\0", b"\1", b"\1" + bytes(12), b"\0", b"\0\0\0", b"\2\0\0", b"\3" + bytes(13)]
)
def test_what_is_no_delta_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        codecs.decode(TensorHeader("t", "uint8", (4, 4), "delta", len(data)), data, lambda _: random_codes((4, 4)))


def test_only_codes_take_differences() -> None:
    with pytest.raises(WireError, match="8-bit codes"):
        codecs.encode("t", np.zeros(4, np.float32), "delta")


@given(
    st.lists(st.tuples(st.integers(13, 10_000), st.integers(0, 255)), max_size=4),
    st.integers(-3, 3),
    st.sampled_from((2, 3, 16, 17, 200, 256)),
)
def test_a_damaged_difference_decodes_to_the_right_shape_or_raises_wire_error(
    changes: list[tuple[int, int]], longer: int, count: int
) -> None:
    header, data, held = difference(count)
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    cut = bytes(damaged[: len(damaged) + longer]) + bytes(max(longer, 0))
    try:
        array = codecs.decode(header, cut, lambda _: held)
    except WireError:
        return
    assert array.shape == header.shape
    assert array.dtype == np.dtype(np.uint8)


def test_a_difference_says_which_request_it_refers_to_and_is_otherwise_the_codec_levels() -> None:
    first = random_codes(SHAPE)
    second = moved(first, 0.02)
    _, data = codecs.encode("t", second, "delta", evenly(5), Reference(2**40 + 1, first))
    kind, sequence, _ = struct.unpack_from("<BQI", data)
    assert (kind, sequence) == (1, 2**40 + 1)
    digits = LevelCodec().decode(bytes(data)[13:], TensorHeader("t", "uint8", SHAPE, "levels", len(data) - 13))
    assert set(bytes(digits)) <= set(evenly(5).values)
