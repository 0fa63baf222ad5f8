"""How a boundary is coded: which rungs are judged, what arrives, what a coding is said to cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.crossing.codings import Way, descend, lossless, measure_coding, received
from protocol.bundle import Levels

RNG = np.random.default_rng(5)
SPARSE = [{"t": (RNG.random((1, 8, 16, 16)) > 0.8).astype(np.uint8) * 200} for _ in range(4)]
NOISE = [{"t": RNG.integers(0, 256, (1, 8, 16, 16)).astype(np.uint8)} for _ in range(4)]
TWO = Way("levels", Levels((100,), (0, 200)))


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_ladder_is_descended_to_the_last_rung_that_holds_with_few_trials(count: int, good: int) -> None:
    asked: list[int] = []

    def attempt(rung: int) -> int | None:
        asked.append(rung)
        return rung if rung < good else None

    held = descend(list(range(count)), attempt)
    assert held == sorted(held)
    assert (held[-1] if held else -1) == min(good, count) - 1
    assert len(asked) <= max(count, 1).bit_length()


def test_zstd_is_chosen_only_where_it_saves() -> None:
    assert lossless(SPARSE) == {"t": Way("zstd")}
    assert lossless(NOISE) == {"t": Way("raw")}


def test_what_is_received_went_through_the_codec() -> None:
    crossing = {"t": np.array([[0, 60, 140, 255]], np.uint8)}
    assert received(crossing, {"t": TWO})["t"].tolist() == [[0, 0, 200, 200]]
    assert received(crossing, {"t": Way("zstd")})["t"].tolist() == crossing["t"].tolist()


def test_a_coding_of_fewer_levels_sends_less() -> None:
    exact, coarse = measure_coding(NOISE, {"t": Way("raw")}), measure_coding(NOISE, {"t": TWO})
    assert exact.nbytes == pytest.approx(8 * 16 * 16)
    assert coarse.nbytes < exact.nbytes / 6
    assert coarse.encode_s > 0
    assert coarse.decode_s > 0
