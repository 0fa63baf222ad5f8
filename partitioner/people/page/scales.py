"""From figures to pixels, and figures as people write them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Linear(NamedTuple):
    """`low`..`high` of the figure become `start`..`end` of the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


class Logarithmic(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = math.log(self.high / self.low) or 1.0
        return self.start + math.log(max(value, 1e-300) / self.low) / span * (self.end - self.start)


def round_ticks(high: float, count: int = 4) -> list[float]:
    """About `count` round figures from 0 to `high` or a little beyond it."""
    if not high > 0 or not math.isfinite(high):
        return [0.0, 1.0]
    raw = high / count
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [i * width for i in range(math.ceil(high / width - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... within [low, high]; only powers of ten over more than three decades."""
    steps: Sequence[int] = (1, 2, 5) if high / low <= 1000 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [m * 10.0**power for power in range(first, last + 1) for m in steps]
    return [t for t in every if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def ms(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    return short(seconds * 1e3)


def short(value: float) -> str:
    """Three significant digits, thousands separated."""
    if not math.isfinite(value):
        return "-"
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def size(nbytes: float) -> str:
    """Bytes as B, KB or MB (powers of 1,000)."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    unit, factor = ("KB", 1e3) if nbytes < 999_500 else ("MB", 1e6)
    return f"{short(nbytes / factor)} {unit}"
