"""The ladder at a boundary: what may happen to 8-bit codes on the wire, from exact to less than a bit an element.

Every rung is a lossy map of the 256 codes onto N levels that only the wire sees; head and tail are the same for all of
them. Two kinds of tensors need two kinds of maps (both measured against the other):

one-sided   (ReLU outputs) The entropy-constrained scalar quantiser of the calibration codes: of all partitions of
            0..255 into intervals the one that minimises noise + slope * bits, found exactly by dynamic programming
            (criterion: Chou, Lookabaugh, Gray 1989). Dead zone, clipping and unequal steps come out of it by
            themselves. Levels are then spread about the mean until they have the variance of what they stand for.
two-sided   (projections, sums, decorrelated planes) Equal steps about the commonest code, no dead zone, every level in
            the middle of its interval. The least noise would pull levels towards zero, all alike; the tail minds such a
            loss of contrast more than noise of its size: equal steps need 30 % fewer bits for equal outputs.

Pure: codes in, rungs out.
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
_SLOPES = np.geomspace(1e-4, 3.0, 120)  # of distortion over bits, as shares of the codes' variance
_LEVEL_BITS = 12.0  # what a level costs a message: its value, and its place in the Huffman code
_TWO_SIDED = 0.1  # share of the codes that must lie on either side of the commonest


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

    Each rung is the best quantiser whose entropy and levels cost at most so many bits an element. Names ("q1.2") and
    order are the same for every tensor, so that ladders of several tensors descend together. Raises InputError without
    codes.
    """
    counts = histogram(codes)
    share = counts / counts.sum()
    level_bits = _LEVEL_BITS * len(codes) / counts.sum()
    drawn = (
        [*_equal_steps(share), _single(share)] if two_sided(share) else [*_unequal(share, level_bits), _single(share)]
    )
    return [EXACT, *(_rung(drawn, _variance(share), bits, level_bits) for bits in sorted(ladder_bits, reverse=True))]


def two_sided(share: Array) -> bool:
    """Whether the codes spread to both sides of the commonest one. `share` [256] sums to 1."""
    zero = int(np.argmax(share))
    return bool(min(share[:zero].sum(), share[zero + 1 :].sum()) >= _TWO_SIDED)


def _rung(drawn: Sequence[_Quantiser], variance: float, bits: float, level_bits: float) -> Rung:
    fitting = [q for q in drawn if q.bits + level_bits * len(q.levels.values) <= bits] or drawn[-1:]
    best = min(fitting, key=lambda q: (q.noise, q.bits))
    snr_db = float(10 * np.log10(variance / best.noise)) if best.noise > 0.0 < variance else float("inf")
    return Rung(f"q{bits:g}", "levels", best.levels, best.bits, snr_db)


class _Quantiser(NamedTuple):
    levels: Levels
    bits: float  # entropy an element
    noise: float  # mean squared error, in squared codes


def _made(share: Array, thresholds: Array, values: Array) -> _Quantiser:
    """A quantiser with its figures; `values` are rounded to codes."""
    whole = np.clip(np.rint(values), 0, 255)
    level = np.searchsorted(thresholds, np.arange(256), side="right")
    mass = np.bincount(level, weights=share, minlength=len(whole))
    some = mass[mass > 0]
    noise = float(share @ (np.arange(256.0) - whole[level]) ** 2)
    levels = Levels(tuple(thresholds.tolist()), tuple(whole.astype(int).tolist()))
    return _Quantiser(levels, float(-some @ np.log2(some)), noise)


def _single(share: Array) -> _Quantiser:
    """One level for all codes: what fits any budget."""
    return _made(share, np.zeros(0, np.intp), np.array([share @ np.arange(256.0)]))


# ---- two-sided ------------------------------------------------------------------------------------------------------


def _equal_steps(share: Array) -> list[_Quantiser]:
    """Steps of 1, 3, 5, ... codes about the commonest. Levels are whole codes, so an even step would put all of
    them off the middle of their intervals, and steps of 2 and 4 did more harm than one of 5 (measured).
    """
    zero = int(np.argmax(share))
    used = np.flatnonzero(share)
    from_zero = np.clip(np.arange(256), used[0], used[-1]) - zero  # codes that never occurred share the outer levels
    made = []
    for step in range(1, 2 * int(np.abs(from_zero).max()) + 2, 2):
        level = np.sign(from_zero) * ((2 * np.abs(from_zero) + step) // (2 * step))
        thresholds = np.flatnonzero(np.diff(level)) + 1
        made.append(_made(share, thresholds, zero + step * level[np.r_[0, thresholds]]))
    return made


# ---- one-sided ------------------------------------------------------------------------------------------------------


class _Cells:
    """For every interval of codes [i, j): its share of squared error, what it costs to send, its centroid."""

    def __init__(self, share: Array, level_bits: float) -> None:
        code = np.arange(256.0)
        mass, first, second = (_interval_sums(share * code**power) for power in (0, 1, 2))
        middle = (np.arange(257)[:, None] + np.arange(257)[None, :] - 1) / 2
        some = np.maximum(mass, 1e-300)
        self.centroid = np.where(mass > 0, first / some, middle)
        self.noise = np.maximum(second - first**2 / some, 0.0)
        self.cost = np.where(mass > 0, -mass * np.log2(some), 0.0) + level_bits


def _interval_sums(values: Array) -> Array:
    """[257, 257]: the sum of values[i:j]."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    sums: Array = np.maximum(running[None, :] - running[:, None], 0.0)
    return sums


def _unequal(share: Array, level_bits: float) -> list[_Quantiser]:
    """The entropy-constrained quantisers of many slopes, each spread to the variance of the codes."""
    cells = _Cells(share, level_bits)
    variance = _variance(share)
    found = {}
    for borders in _partitions(cells, _SLOPES * max(variance, 1e-9)):
        found[borders] = _spread(share, cells, np.array(borders), variance)
    return list(found.values())


def _partitions(cells: _Cells, slopes: Array) -> list[tuple[int, ...]]:
    """For each slope the borders 0..256 with the least noise + slope * cost: a shortest path over 257 borders."""
    best = np.zeros((len(slopes), 257))
    came_from = np.zeros((len(slopes), 257), np.intp)
    for border in range(1, 257):
        ways = best[:, :border] + cells.noise[:border, border] + slopes[:, None] * cells.cost[:border, border]
        came_from[:, border] = np.argmin(ways, axis=1)
        best[:, border] = np.min(ways, axis=1)
    return [_read_off(back) for back in came_from]


def _read_off(came_from: Array) -> tuple[int, ...]:
    borders = [256]
    while borders[-1] > 0:
        borders.append(int(came_from[borders[-1]]))
    return tuple(reversed(borders))


def _spread(share: Array, cells: _Cells, borders: Array, variance: float) -> _Quantiser:
    """Levels at mean + a * (centroid - mean), a such that they have the codes' variance. Costs no bit."""
    centroids = cells.centroid[borders[:-1], borders[1:]]
    mass = np.add.reduceat(share, borders[:-1])
    mean = float(mass @ centroids)
    spread = float(mass @ (centroids - mean) ** 2)
    gain = np.sqrt(variance / spread) if spread > 0.0 else 1.0
    return _made(share, borders[1:-1], mean + gain * (centroids - mean))


def _variance(share: Array) -> float:
    code = np.arange(256.0)
    mean = float(share @ code)
    return max(float(share @ code**2) - mean**2, 0.0)
