"""How a boundary is coded: which rungs are judged, what arrives, what a coding is said to cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitioner.crossing.codings import Way, descend, differing, lossless, measure_coding, received
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


# ---- streams --------------------------------------------------------------------------------------------------------

STILL = [{"t": np.where(RNG.random((1, 8, 16, 16)) < 0.02, 9, NOISE[0]["t"]).astype(np.uint8)} for _ in range(4)]


def test_codes_of_a_stream_cross_as_differences_where_that_saves_enough() -> None:
    exact, coarse = {"t": Way("raw")}, {"t": TWO}
    assert differing(STILL, STILL[::-1], exact) == {"t": Way("delta")}
    assert differing(STILL, STILL[::-1], coarse) == {"t": Way("delta", TWO.levels)}
    assert differing(NOISE, NOISE[::-1], exact) == exact
    floats = [{"t": c["t"].astype(np.float32)} for c in STILL]
    assert differing(floats, floats, exact) == exact


def test_a_coding_of_differences_is_measured_on_frames_with_the_one_before() -> None:
    delta = {"t": Way("delta")}
    alone, after = measure_coding(STILL, delta), measure_coding(STILL, delta, STILL[::-1])
    assert after.nbytes < 0.5 * alone.nbytes
    assert after.encode_s > 0 < after.decode_s
    assert received(STILL[0], delta)["t"].tolist() == STILL[0]["t"].tolist()
