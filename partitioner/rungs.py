"""The ladder at a boundary: what may happen to 8-bit codes on the wire, from exact to less than a bit an element.

Every rung is a lossy map of the 256 codes onto N levels that only the wire sees; head and tail are the same for all of
them. A map is the entropy-constrained scalar quantiser of the calibration codes: among all partitions of 0..255 into
intervals, the one that minimises distortion + slope * entropy, found exactly by dynamic programming (Chou, Lookabaugh
and Gray 1989 give the criterion; with 256 bins no iteration is needed). Dead zone, clipping and unequal steps come out
of it by themselves. Pure: codes in, rungs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from protocol.bundle import Levels
from protocol.errors import InputError
from protocol.levels import MOST_LEVELS
from protocol.tensors import Array

# Signal over quantisation noise of the rungs, in decibels: 22 loses nothing on the networks measured, 12 about 1 %.
LADDER_DB = (22.0, 17.0, 14.0, 12.0, 10.0)
_SLOPES = np.geomspace(1e-5, 3.0, 80)  # of distortion over bits, as shares of the codes' variance


class Rung(NamedTuple):
    """One way over the wire: `codec` and `levels` go into `BoundaryTensor`.

    `bits` (entropy an element) and `snr_db` are what the calibration codes promise; what ships is measured.
    """

    name: str
    codec: str
    levels: Levels | None
    bits: float = 8.0
    snr_db: float = float("inf")


EXACT = Rung("q8", "zstd", None)


def histogram(codes: Sequence[Array]) -> Array:
    """How often each of the 256 codes occurs. float64 [256]. Raises InputError for other than uint8 codes."""
    if not codes or any(c.dtype != np.uint8 for c in codes) or not any(c.size for c in codes):
        raise InputError("no 8-bit codes to design levels for", "give uint8 tensors from calibration data")
    counts = sum(np.bincount(c.reshape(-1), minlength=256) for c in codes)
    return np.asarray(counts, np.float64)


def outer_share(codes: Sequence[Array]) -> float:
    """Share of the codes at either end of the range, 0 and 255: the rate that drift would raise."""
    counts = histogram(codes)
    return float((counts[0] + counts[255]) / counts.sum())


def design(codes: Sequence[Array], *, ladder_db: Sequence[float] = LADDER_DB) -> list[Rung]:
    """A ladder for one tensor from its calibration codes (uint8, any shapes): the exact rung, then one for each ratio.

    A rung is the quantiser on the convex hull that reaches its signal-to-noise ratio with the least entropy. The names
    ("snr14") and their order are the same for every tensor, so that ladders of several tensors descend together; where
    no 64 levels reach a ratio, the rung bears its name but is exact. Raises InputError without codes.
    """
    counts = histogram(codes)
    share = counts / counts.sum()
    variance = _variance(share)
    drawn = _quantisers(_Cells(share), _SLOPES * max(variance, 1e-9))
    return [EXACT, *(_rung(drawn, variance, wanted_db) for wanted_db in sorted(ladder_db, reverse=True))]


def _rung(drawn: Sequence[_Quantiser], variance: float, wanted_db: float) -> Rung:
    name = f"snr{wanted_db:g}"
    noise = variance / 10 ** (wanted_db / 10)
    fitting = [q for q in drawn if q.noise <= noise and len(q.levels.values) <= MOST_LEVELS]
    if not fitting:
        return EXACT._replace(name=name)
    best = min(fitting, key=lambda q: (q.bits, q.noise))
    snr_db = float(10 * np.log10(variance / best.noise)) if best.noise > 0.0 else float("inf")
    return Rung(name, "levels", best.levels, best.bits, snr_db)


class _Quantiser(NamedTuple):
    levels: Levels
    bits: float  # entropy an element
    noise: float  # mean squared error, in squared codes


class _Cells:
    """For every interval of codes [i, j): its share of squared error and of entropy, and its centroid."""

    def __init__(self, share: Array) -> None:
        code = np.arange(256.0)
        mass, first, second = (_interval_sums(share * code**power) for power in (0, 1, 2))
        middle = (np.arange(257)[:, None] + np.arange(257)[None, :] - 1) / 2
        some = np.maximum(mass, 1e-300)
        self.centroid = np.where(mass > 0, first / some, middle)
        self.noise = np.maximum(second - first**2 / some, 0.0)
        self.bits = np.where(mass > 0, -mass * np.log2(some), 0.0)


def _interval_sums(values: Array) -> Array:
    """[257, 257]: the sum of values[i:j]."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    sums: Array = np.maximum(running[None, :] - running[:, None], 0.0)
    return sums


def _quantisers(cells: _Cells, slopes: Array) -> list[_Quantiser]:
    """For each slope the partition of 0..255 with the least noise + slope * bits: a shortest path over 257 borders."""
    best = np.zeros((len(slopes), 257))
    came_from = np.zeros((len(slopes), 257), np.intp)
    for border in range(1, 257):
        ways = best[:, :border] + cells.noise[:border, border] + slopes[:, None] * cells.bits[:border, border]
        came_from[:, border] = np.argmin(ways, axis=1)
        best[:, border] = np.min(ways, axis=1)
    return [_read_off(cells, back) for back in came_from]


def _read_off(cells: _Cells, came_from: Array) -> _Quantiser:
    borders = [256]
    while borders[-1] > 0:
        borders.append(int(came_from[borders[-1]]))
    borders.reverse()
    starts, ends = np.array(borders[:-1]), np.array(borders[1:])
    values = np.clip(np.rint(cells.centroid[starts, ends]), 0, 255).astype(int).tolist()
    levels = Levels(tuple(borders[1:-1]), tuple(values))
    return _Quantiser(levels, float(cells.bits[starts, ends].sum()), float(cells.noise[starts, ends].sum()))


def _variance(share: Array) -> float:
    code = np.arange(256.0)
    mean = float(share @ code)
    return max(float(share @ code**2) - mean**2, 0.0)
