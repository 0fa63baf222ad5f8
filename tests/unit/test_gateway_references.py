"""What later requests may refer to: the latest frames of each stream, and never more bytes than allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloud_gateway.models.references import OVERHEAD_NBYTES, References
from protocol.tensors import Array


def frame(nbytes: int, fill: int = 0) -> dict[str, Array]:
    return {"t": np.full(nbytes, fill, np.uint8)}


def test_a_frame_is_found_under_its_stream_number_and_tensor_only() -> None:
    held = References()
    held.keep("a", 1, frame(4, 7))
    found = held.find("a", 1, "t")
    assert found is not None
    assert found.tolist() == [7, 7, 7, 7]
    assert held.find("b", 1, "t") is held.find("a", 2, "t") is held.find("a", 1, "u") is None


def test_of_one_stream_the_oldest_frame_goes_first() -> None:
    held = References(frames=3)
    for number in range(5):
        held.keep("a", number, frame(4, number))
    assert [n for n in range(5) if held.find("a", n, "t") is not None] == [2, 3, 4]


def test_of_many_streams_the_quiet_one_goes_first() -> None:
    held = References(nbytes=3 * (100 + OVERHEAD_NBYTES))
    for number, stream in enumerate(("a", "b", "c", "a")):
        held.keep(stream, number, frame(100))
    assert held.find("a", 0, "t") is not None
    assert held.find("b", 1, "t") is None, "b was quiet longest"


def test_a_frame_sent_again_is_the_later_one() -> None:
    held = References()
    held.keep("a", 1, frame(4, 1))
    held.keep("a", 1, frame(8, 2))
    found = held.find("a", 1, "t")
    assert found is not None
    assert found.tolist() == [2] * 8
    assert held.nbytes == 8 + OVERHEAD_NBYTES


def test_a_frame_larger_than_everything_is_not_kept_and_throws_nothing_out() -> None:
    held = References(nbytes=10_000)
    held.keep("a", 1, frame(4))
    held.keep("a", 2, frame(20_000))
    assert held.find("a", 2, "t") is None
    assert held.find("a", 1, "t") is not None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 3000)), max_size=60))
def test_bytes_are_counted_exactly_and_never_above_the_bound(kept: list[tuple[int, int, int]]) -> None:
    held = References(frames=3, nbytes=9000)
    for stream, number, nbytes in kept:
        held.keep(stream, number, frame(nbytes))
        found = [held.find(s, n, "t") for s in range(6) for n in range(10)]
        assert held.nbytes == sum(a.nbytes + OVERHEAD_NBYTES for a in found if a is not None) <= 9000
        assert held.find(stream, number, "t") is not None, "the latest is always held"
