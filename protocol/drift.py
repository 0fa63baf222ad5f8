"""How far what crosses lies outside of what calibration saw: codes in, one number out.

Eight-bit codes saturate at the ends of their range. Calibration records the share of codes that lie there
(`BoundaryTensor.outer_share`); every request carries its own. Much more of it than calibration showed means that the
data has drifted away from what the head was quantised for, long before anybody sees wrong answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from protocol.bundle import BoundaryTensor
from protocol.tensors import Array

# A request counts as outside when its share is this many times the calibrated one, and more than this at all.
FACTOR = 4.0
FLOOR_PPM = 2_000


def outer_count(codes: Array, zero_point: int) -> int:
    """How many codes lie at an end of the range. The lower end of a range that begins at zero is no end: it is zero."""
    top = int(np.count_nonzero(codes == 255))
    return top + (int(np.count_nonzero(codes == 0)) if zero_point > 0 else 0)


def outer_ppm(boundary: Iterable[BoundaryTensor], values: Mapping[str, Array]) -> int | None:
    """Outer codes of one request in parts per million of its codes; None where nothing crosses as codes."""
    outer = total = 0
    for tensor in boundary:
        array = values[tensor.spec.name]
        if tensor.scale is None or tensor.zero_point is None or array.dtype != np.uint8:
            continue
        outer += outer_count(array, tensor.zero_point)
        total += array.size
    return round(1e6 * outer / total) if total else None


def expected_ppm(boundary: Iterable[BoundaryTensor]) -> float | None:
    """The greatest share that calibration showed for a tensor of this boundary; None where it was not recorded."""
    shares = [tensor.outer_share for tensor in boundary if tensor.outer_share is not None]
    return 1e6 * max(shares) if shares else None


def has_drifted(ppm: float, expected: float) -> bool:
    return ppm > max(FACTOR * expected, FLOOR_PPM)
