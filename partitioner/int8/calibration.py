"""Ranges by calibration method, from one histogram of each tensor: MinMax, percentile, least squares, entropy.

    noise of n values in [low, high] with 256 codes = n * step^2 / 12 + what clipping takes off, squared
                                                                       (Widrow and Kollar, Quantization Noise, 2008)

Zero is exactly representable, so a ReLU's zeros add no noise. "entropy" compares the clipped distribution with its
256-level form by relative entropy (Kullback and Leibler 1951; Migacz 2017 for this use).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from partitioner.graph.model import LoadedModel, serialise
from partitioner.graph.split import with_outputs
from partitioner.int8.recipes import Recipe
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges
from protocol.engines.ort import OrtEngine
from protocol.errors import InputError
from protocol.tensors import Array

BINS = 2048
LEVELS = 256
ELEMENTS = 4096  # of one tensor and sample, spread over it; 64 samples fill a histogram with a quarter of a million
MAX_SAMPLES = 64
_SHRINKS = np.linspace(0.2, 1.0, 33)  # how much of the range the clipping methods try to keep


class Histogram(NamedTuple):
    """How often a tensor's values fall in each of BINS equal bins between its least and its greatest value."""

    low: float
    high: float
    counts: Array  # int64 [BINS]

    @property
    def centres(self) -> Array:
        width = (self.high - self.low) / len(self.counts)
        centres: Array = self.low + width * (np.arange(len(self.counts)) + 0.5)
        return centres

    @property
    def noisy(self) -> Array:
        """The counts without the bin that holds zero: its values are nearly all exact."""
        counts = self.counts.astype(np.float64)
        if self.low <= 0.0 <= self.high and self.high > self.low:
            counts[min(int((0.0 - self.low) / (self.high - self.low) * len(counts)), len(counts) - 1)] = 0.0
        return counts


def collect(model: LoadedModel, samples: Samples, extremes: Ranges, *, threads: int = 1) -> dict[str, Histogram]:
    """Histograms of every tensor in `extremes` over the first MAX_SAMPLES calibration samples.

    Raises InputError that names the tensor and the sample where a value is NaN, and when nothing calibrates.
    """
    if not len(samples.calibration):
        raise InputError("there are no calibration samples", "give at least 8 with --calibration DATA.npz")
    made = [n for n in extremes if n in model.topology.producer]
    counts = {n: np.zeros(BINS, np.int64) for n in extremes}
    with OrtEngine(serialise(with_outputs(model.graph, made)), label="calibration", threads=threads) as engine:
        for index in samples.calibration[:MAX_SAMPLES]:
            feed = samples.feed(index)
            seen = {**engine.infer(feed), **{n: a for n, a in feed.items() if n in extremes}}
            for name, array in seen.items():
                if array.size and np.isnan(array.min()):
                    raise InputError(
                        f"tensor {name!r} is NaN on sample {index} of the calibration data",
                        "leave that sample out, or mend the model",
                    )
                counts[name] += _count(_spread(array, index), *extremes[name])
    return {n: Histogram(*extremes[n], c) for n, c in counts.items() if c.any()}


def ranges_for(recipe: Recipe, extremes: Ranges, histograms: dict[str, Histogram]) -> Ranges:
    """The range of every tensor by the recipe's method; MinMax where there is no histogram."""
    if recipe.calibration == "minmax":
        return extremes
    return {n: clip(histograms[n], recipe) if n in histograms else r for n, r in extremes.items()}


def clip(histogram: Histogram, recipe: Recipe) -> tuple[float, float]:
    """What [low, high] becomes under the recipe's method; never wider than it was."""
    if recipe.calibration == "minmax" or histogram.high <= histogram.low:
        return histogram.low, histogram.high
    if recipe.calibration == "percentile":
        return _percentile(histogram, recipe.parameter)
    if recipe.calibration == "mse":
        return _least_squares(histogram) if recipe.activation_type == "uint8" else _least_squares_around_zero(histogram)
    return _least_entropy(histogram)


def sqnr_db(histogram: Histogram, low: float, high: float) -> float:
    """Signal over quantisation noise, in dB, of the tensor with 256 codes over [low, high]."""
    signal = float(histogram.counts @ np.square(histogram.centres))
    noise = noise_of(histogram, low, high)
    return float(10.0 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def noise_of(histogram: Histogram, low: float, high: float) -> float:
    """Sum of squared errors with 256 codes over [low, high], which is widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    values, counts = histogram.centres, histogram.noisy
    step = (high - low) / (LEVELS - 1)
    clipped = np.maximum(values - high, 0.0) + np.maximum(low - values, 0.0)
    return float(counts @ np.square(clipped) + counts[clipped == 0.0].sum() * step * step / 12.0)


def _spread(array: Array, index: int) -> Array:
    """About ELEMENTS values spread over the tensor; the offset differs from sample to sample."""
    flat = array.reshape(-1)
    step = max(1, len(flat) // ELEMENTS) | 1  # odd: rows and channels tend to be even
    return flat[index % step :: step] if len(flat) > step else flat


def _count(values: Array, low: float, high: float) -> Array:
    scale = BINS / (high - low) if high > low else 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        places = np.clip((values.astype(np.float64) - low) * scale, 0, BINS - 1).astype(np.int64)
    return np.bincount(places, minlength=BINS)


def _percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    """The range that leaves out (100 - percent) / 2 % of the values at either end."""
    total = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1.0 - percent / 100.0) / 2.0
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    first = int(np.searchsorted(total, tail, side="right"))
    last = int(np.searchsorted(total, 1.0 - tail, side="left"))
    return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])


def _least_squares(histogram: Histogram) -> tuple[float, float]:
    lows = histogram.low * _SHRINKS if histogram.low < 0.0 else np.array([histogram.low])
    highs = histogram.high * _SHRINKS if histogram.high > 0.0 else np.array([histogram.high])
    tried = [(float(low), float(highs[-1])) for low in lows]
    low = min(tried, key=lambda r: noise_of(histogram, *r))[0]
    high = min(((low, float(h)) for h in highs), key=lambda r: noise_of(histogram, *r))[1]
    # Once more for the lower end: a shorter upper one makes finer steps, so that clipping below may now pay as well.
    low = min(((float(v), high) for v in lows), key=lambda r: noise_of(histogram, *r))[0]
    return low, high


def _least_squares_around_zero(histogram: Histogram) -> tuple[float, float]:
    """Where codes are symmetric their step follows from the greater end alone."""
    values, counts = np.abs(histogram.centres), histogram.noisy
    reach = max(-histogram.low, histogram.high)

    def noise(end: float) -> float:
        clipped, step = np.maximum(values - end, 0.0), 2.0 * end / (LEVELS - 1)
        return float(counts @ np.square(clipped) + counts[clipped == 0.0].sum() * step * step / 12.0)

    end = min((reach * float(share) for share in _SHRINKS), key=noise)
    return max(histogram.low, -end), min(histogram.high, end)


def _least_entropy(histogram: Histogram) -> tuple[float, float]:
    share = float(min(_SHRINKS, key=lambda share: _divergence(histogram, float(share))))
    return min(histogram.low * share, 0.0), max(histogram.high * share, 0.0)


def _divergence(histogram: Histogram, share: float) -> float:
    """Relative entropy of the distribution clipped to `share` of the range from its 256-level form."""
    values, counts = histogram.centres, histogram.noisy
    inside = (values >= min(histogram.low * share, 0.0)) & (values <= max(histogram.high * share, 0.0))
    kept = counts[inside]
    if len(kept) < 2 or not kept.any():
        return float("inf")
    clipped = kept.copy()
    clipped[0] += counts[: int(np.argmax(inside))].sum()
    clipped[-1] += counts[len(inside) - int(np.argmax(inside[::-1])) :].sum()
    level = np.minimum(np.arange(len(kept)) * LEVELS // len(kept), LEVELS - 1)
    filled = np.bincount(level, weights=kept > 0, minlength=LEVELS)
    mean = np.bincount(level, weights=kept, minlength=LEVELS) / np.maximum(filled, 1.0)
    coarse = np.where(kept > 0, mean[level], 0.0)
    p, q = clipped / clipped.sum(), coarse / coarse.sum()
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / np.maximum(q[some], 1e-12))))
