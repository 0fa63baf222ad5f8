"""Parts of health: loops that come round, and answers that are known beforehand."""

from __future__ import annotations

import numpy as np

from protocol.seeing.health import SILENT_S, Beats, differs, known_input
from protocol.tensors import TensorSpec

SPECS = (TensorSpec("x", "float32", ("N", 3)), TensorSpec("mask", "int64", (2, None)), TensorSpec("q", "uint8", (4,)))


def test_a_loop_that_stops_coming_round_is_named() -> None:
    beats = Beats()
    beats.beat("frontend", now=0.0)
    beats.beat("keeper", now=SILENT_S)
    assert beats.live(now=SILENT_S).ok
    verdict = beats.live(now=SILENT_S + 1)
    assert (verdict.ok, verdict.reason) == (False, "silent: frontend for 6 s")
    beats.end("frontend")
    assert beats.live(now=SILENT_S + 1).ok


def test_a_known_input_is_the_same_every_time_and_legal_as_an_index() -> None:
    first, second = known_input(SPECS), known_input(SPECS)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert {name: (a.dtype.name, a.shape) for name, a in first.items()} == {
        "x": ("float32", (1, 3)), "mask": ("int64", (2, 1)), "q": ("uint8", (4,)),
    }  # fmt: skip
    assert first["mask"].max() <= 1


def test_what_differs_is_said_in_words() -> None:
    y = np.zeros((1, 2), np.float32)
    assert differs({"y": y}, {"y": y}) == ""
    assert differs({"y": y * np.nan}, {"y": y * np.nan}) == "", "an answer that was never a number still is the same"
    assert differs({}, {"y": y}) == "it answered nothing instead of y"
    assert differs({"y": y.astype(np.float64)}, {"y": y}) == "y is float64 [1, 2] instead of float32 [1, 2]"
    assert "differs" in differs({"y": y + np.nan}, {"y": y})
