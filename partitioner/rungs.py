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
from protocol.tensors import Array

# Bits an element, a factor of 1.35 apart. Where they stop being acceptable is a matter of the tensor (0.5 to 3 bits on
# the networks measured), so every ladder reaches further down than most tensors bear.
LADDER_BITS = (3.0, 2.2, 1.6, 1.2, 0.9, 0.7, 0.5)
_SLOPES = np.geomspace(1e-5, 3.0, 60)  # of distortion over bits, as shares of the codes' variance
_LEVEL_BITS = 12.0  # what a level costs a message: its value, and its place in the Huffman code


class Rung(NamedTuple):
    """One way over the wire: `codec` and `levels` go into `BoundaryTensor`.

    `bits` (entropy an element) and `snr_db` are what the calibration codes promise; what ships is measured. On
    the wire neighbours are coded jointly, and planes of unequal density unequally: mostly less than `bits`.
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


def design(codes: Sequence[Array], *, ladder_bits: Sequence[float] = LADDER_BITS) -> list[Rung]:
    """A ladder for one tensor from its calibration codes (uint8, one array a message): exact first, then fewer bits.

    Each rung is the quantiser with the least noise among those whose entropy and levels cost at most so many bits an
    element. Names ("q1.2") and order are the same for every tensor, so that ladders of several tensors descend
    together. Raises InputError without codes.
    """
    counts = histogram(codes)
    share = counts / counts.sum()
    variance = _variance(share)
    level_bits = _LEVEL_BITS * len(codes) / counts.sum()
    drawn = _quantisers(_Cells(share, level_bits), _SLOPES * max(variance, 1e-9))
    drawn.append(_single(share))
    return [EXACT, *(_rung(drawn, variance, bits, level_bits) for bits in sorted(ladder_bits, reverse=True))]


def _rung(drawn: Sequence[_Quantiser], variance: float, bits: float, level_bits: float) -> Rung:
    fitting = [q for q in drawn if q.bits + level_bits * len(q.levels.values) <= bits] or drawn[-1:]
    best = min(fitting, key=lambda q: (q.noise, q.bits))
    snr_db = float(10 * np.log10(variance / best.noise)) if best.noise > 0.0 < variance else float("inf")
    return Rung(f"q{bits:g}", "levels", best.levels, best.bits, snr_db)


class _Quantiser(NamedTuple):
    levels: Levels
    bits: float  # entropy an element
    noise: float  # mean squared error, in squared codes


class _Cells:
    """For every interval of codes [i, j): its share of squared error and of entropy, what it costs to send,
    and its centroid."""

    def __init__(self, share: Array, level_bits: float) -> None:
        code = np.arange(256.0)
        mass, first, second = (_interval_sums(share * code**power) for power in (0, 1, 2))
        middle = (np.arange(257)[:, None] + np.arange(257)[None, :] - 1) / 2
        some = np.maximum(mass, 1e-300)
        self.centroid = np.where(mass > 0, first / some, middle)
        self.noise = np.maximum(second - first**2 / some, 0.0)
        self.bits = np.where(mass > 0, -mass * np.log2(some), 0.0)
        self.cost = self.bits + level_bits


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
        ways = best[:, :border] + cells.noise[:border, border] + slopes[:, None] * cells.cost[:border, border]
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


def _single(share: Array) -> _Quantiser:
    """One level for all codes: what fits any budget."""
    mean = int(np.rint(share @ np.arange(256.0)))
    return _Quantiser(Levels((), (mean,)), 0.0, float(share @ (np.arange(256.0) - mean) ** 2))


def _variance(share: Array) -> float:
    code = np.arange(256.0)
    mean = float(share @ code)
    return max(float(share @ code**2) - mean**2, 0.0)
