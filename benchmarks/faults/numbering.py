"""The numbers of requests, written into their tensors: whoever sees any tensor of a request knows whose it is.

In the first columns a number stands in binary, a digit a column, beside a mark that no warm-up bears. Digits are so far
apart that eight bits at the cut leave them what they were. `model` lets these columns pass; this room imports nothing
heavy, since every daemon that is started again reads it again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from protocol.tensors import Array

WIDTHS = (1024, 256, 1024, 32)
DIGITS = 24
MARK = (1, 0, 1, 1)
HIGH = 8.0  # a digit is this or its negative; everything else is noise around 1
KEPT = DIGITS + len(MARK)
_PLACES = 1 << np.arange(DIGITS)
_NOISE = np.random.default_rng(3).standard_normal(WIDTHS[0]).astype(np.float32)


def question(number: int) -> dict[str, npt.NDArray[np.float32]]:
    """The inputs of request `number`. Raises ValueError for one that has too many digits."""
    if not 0 < number < 1 << DIGITS:
        raise ValueError(f"number {number} does not have {DIGITS} binary digits: at most {(1 << DIGITS) - 1}")
    x = _NOISE.copy()
    x[:KEPT] = np.where([*(number & _PLACES), *MARK], HIGH, -HIGH)
    return {"x": x[None]}


def numbers_in(tensors: Mapping[str, Array]) -> list[int]:
    """The numbers of the requests in a batch, of inputs, of what crosses or of answers; warm-up has none."""
    rows = [row[:KEPT] for values in tensors.values() for row in _plain(values)]
    return [int((row[:DIGITS] > 0) @ _PLACES) for row in rows if _is_marked(row)]


def _plain(values: Array) -> npt.NDArray[np.float32]:
    """Codes of eight bits as numbers around zero; the range that calibration saw is symmetric."""
    flat = values.reshape(len(values), -1).astype(np.float32)
    return (flat - 127.5) * (HIGH / 127.5) if values.dtype == np.uint8 else flat


def _is_marked(row: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(row) > HIGH / 2).all() and ((row[DIGITS:] > 0) == np.array(MARK, bool)).all())
