"""A link's bandwidth over time, as steps: generated from chance that is handed in, or read from text. Pure.

    Mbit/s  20 ------.        .------        transfers are integrated exactly: n bytes that start at t arrive when the
            10       |        |              area under the steps since t reaches n. After its last step a trace starts
             0       `--------'              over, as mahimahi does, so that every transfer ends.

Text is either a table `t_s,mbit` (a header may stand first; `#` begins a comment) or a mahimahi file: one integer per
line, the millisecond at which a packet of 1,500 bytes may pass. No trace is shipped: the LTE-like one is an AR(1)
process in the logarithm of the rate with fades, because mobile links are nearly log-normal and correlated over seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from protocol.errors import InputError

BYTES_PER_MBIT = 1e6 / 8
MOST_LINES = 1_000_000
LARGEST = 1e10  # seconds, or Mbit/s: seconds since 1970 fit, and beyond it sums lose what the trace says
SINGLE_ROW_S = 60.0  # how long a table of one row lasts
PACKET_NBYTES = 1500  # what one line of a mahimahi file lets pass
PACKET_BIN_S = 0.1  # mahimahi packets are counted in bins of this length

LTE_LENGTH_S = 120.0
LTE_STEP_S = 0.1
LTE_MEDIAN_MBIT = 12.0
LTE_LOG_SPREAD = 0.6  # standard deviation of ln(rate): 16 % of the time below 6.6 Mbit/s, 16 % above 22
LTE_CORRELATION_S = 4.0
FADE_EVERY_S = 20.0
FADE_LENGTH_S = (0.5, 3.0)
FADE_FACTOR = 0.08
LEAST_MBIT = 0.05


@dataclass(frozen=True)
class Trace:
    """`bytes_per_s[i]` holds from `starts_s[i]` (the first is 0) to the next start, the last until `length_s`.

    Raises InputError when no byte would ever pass.
    """

    name: str
    starts_s: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    length_s: float

    def __post_init__(self) -> None:
        if not self.period_nbytes > 0:
            raise InputError(f"the trace {self.name} never lets a byte pass", "give at least one rate above 0")

    @cached_property
    def passed_nbytes(self) -> tuple[float, ...]:
        """Bytes that could pass before each start, and before the end."""
        edges = (*self.starts_s, self.length_s)
        passed = [0.0]
        for (start, end), rate in zip(pairwise(edges), self.bytes_per_s, strict=True):
            passed.append(passed[-1] + (end - start) * rate)
        return tuple(passed)

    @property
    def period_nbytes(self) -> float:
        return self.passed_nbytes[-1]

    @property
    def mean_mbit(self) -> float:
        return self.period_nbytes / self.length_s / BYTES_PER_MBIT

    def rate_at(self, at_s: float) -> float:
        """Bytes per second at this moment."""
        return self.bytes_per_s[bisect_right(self.starts_s, at_s % self.length_s) - 1]

    def changes_s(self) -> tuple[float, ...]:
        """When the rate changes to another one, without the beginning."""
        steps = zip(self.starts_s[1:], pairwise(self.bytes_per_s), strict=True)
        return tuple(start for start, (before, after) in steps if before != after)

    def passed_at(self, at_s: float) -> float:
        """Bytes that could pass from the beginning until `at_s`."""
        periods, within = divmod(at_s, self.length_s)
        i = bisect_right(self.starts_s, within) - 1
        return periods * self.period_nbytes + self.passed_nbytes[i] + (within - self.starts_s[i]) * self.bytes_per_s[i]

    def arrival_s(self, start_s: float, nbytes: float) -> float:
        """When the last of `nbytes` has passed that begin to pass at `start_s` and have the link for themselves."""
        if nbytes <= 0:
            return start_s
        periods, wanted = divmod(self.passed_at(start_s) + nbytes, self.period_nbytes)
        if wanted == 0:  # exactly at the end of a period: the last byte passed when its last open step ended
            periods, wanted = periods - 1, self.period_nbytes
        # The last step before which less than `wanted` had passed; its rate is above 0, since it passes the rest.
        i = bisect_left(self.passed_nbytes, wanted) - 1
        within = self.starts_s[i] + (wanted - self.passed_nbytes[i]) / self.bytes_per_s[i]
        return max(start_s, periods * self.length_s + within)


# ---- built in -------------------------------------------------------------------------------------------------------


def steps(name: str, pieces: Iterable[tuple[float, float]]) -> Trace:
    """A trace from (seconds, Mbit/s) pieces in a row."""
    starts, rates, at = [], [], 0.0
    for seconds, mbit in pieces:
        starts.append(at)
        rates.append(mbit * BYTES_PER_MBIT)
        at += seconds
    return Trace(name, tuple(starts), tuple(rates), at)


def step(_: np.random.Generator) -> Trace:
    """A link that gets worse and recovers, 12 s each: 100, 10, 2, 10, 100 Mbit/s."""
    return steps("step", ((12.0, mbit) for mbit in (100, 10, 2, 10, 100)))


def outage(_: np.random.Generator) -> Trace:
    """20 Mbit/s that is gone for 2 s, and later for 10 s."""
    return steps("outage", ((12, 20), (2, 0), (14, 20), (10, 0), (22, 20)))


def lte(chance: np.random.Generator) -> Trace:
    """Two minutes of something like LTE, a step every 0.1 s: log-AR(1) around 12 Mbit/s, a fade about every 20 s."""
    count = round(LTE_LENGTH_S / LTE_STEP_S)
    memory = math.exp(-LTE_STEP_S / LTE_CORRELATION_S)
    fresh = LTE_LOG_SPREAD * math.sqrt(1 - memory**2)
    level = LTE_LOG_SPREAD * float(chance.standard_normal())
    faded_until = 0.0
    rates = []
    for i in range(count):
        now = i * LTE_STEP_S
        if now >= faded_until and chance.random() < LTE_STEP_S / FADE_EVERY_S:
            faded_until = now + float(chance.uniform(*FADE_LENGTH_S))
        mbit = LTE_MEDIAN_MBIT * math.exp(level) * (FADE_FACTOR if now < faded_until else 1.0)
        rates.append(max(mbit, LEAST_MBIT) * BYTES_PER_MBIT)
        level = memory * level + fresh * float(chance.standard_normal())
    return Trace("lte", tuple(i * LTE_STEP_S for i in range(count)), tuple(rates), LTE_LENGTH_S)


BUILT_IN: dict[str, Callable[[np.random.Generator], Trace]] = {"step": step, "lte": lte, "outage": outage}


# ---- from text ------------------------------------------------------------------------------------------------------


def parse(name: str, text: str) -> Trace:
    """A trace from the text of a table or of a mahimahi file, told apart by their content.

    Raises InputError naming the line, what is wrong with it, and what should stand there.
    """
    lines = list(_content(text))
    if not lines:
        raise InputError(f"{name} holds no line", "write one `t_s,mbit` pair per line")
    if len(lines) > MOST_LINES:
        raise InputError(f"{name} holds more than {MOST_LINES:,} lines", "cut it or thin it out")
    if all(line.isascii() and line.isdigit() for _, line in lines):
        return _packets(name, lines)
    return _table(name, lines)


def _content(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, without comments and empty lines."""
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if line:
            yield number, line


def _packets(name: str, lines: Sequence[tuple[int, str]]) -> Trace:
    last_ms = 0
    bins: list[int] = []
    for number, line in lines:
        at_ms = int(line) if len(line) < 12 else -1
        if at_ms < last_ms:
            why = "comes before the line above it" if at_ms >= 0 else "is no millisecond of this century"
            raise _wrong(name, number, line, why, "a mahimahi file counts milliseconds upwards, one packet per line")
        last_ms = at_ms
        index = int(at_ms / 1000 / PACKET_BIN_S)
        if index >= MOST_LINES:
            raise _wrong(name, number, line, "is more than a day after the beginning", "cut the trace")
        bins.extend([0] * (index + 1 - len(bins)))
        bins[index] += 1
    rates = tuple(count * PACKET_NBYTES / PACKET_BIN_S for count in bins)
    return Trace(name, tuple(i * PACKET_BIN_S for i in range(len(bins))), rates, len(bins) * PACKET_BIN_S)


def _table(name: str, lines: Sequence[tuple[int, str]]) -> Trace:
    rows = [_row(name, number, line) for number, line in lines[_is_header(lines[0][1]) :]]
    if not rows:
        raise InputError(f"{name} holds a header and nothing below it", "write one `t_s,mbit` pair per line")
    for (_, before, _), (number, after, _) in pairwise(rows):
        if after <= before:
            fact = f"{name}, line {number}: the time {after:g} s does not come after {before:g} s"
            raise InputError(fact, "sort the lines by time and keep one line per moment")
    starts = [at - rows[0][1] for _, at, _ in rows]
    # The last rate holds as long as the one before it did: a table says when a rate begins, not when it ends.
    last_s = starts[-1] - starts[-2] if len(starts) > 1 else SINGLE_ROW_S
    return Trace(name, tuple(starts), tuple(mbit * BYTES_PER_MBIT for *_, mbit in rows), starts[-1] + last_s)


def _is_header(line: str) -> bool:
    cells = [cell.strip().lower() for cell in line.split(",")]
    return len(cells) == 2 and cells[0].startswith("t") and all(_number(cell) is None for cell in cells)


def _row(name: str, number: int, line: str) -> tuple[int, float, float]:
    cells = line.split(",")
    if len(cells) != 2:
        raise _wrong(name, number, line, f"has {len(cells)} columns", "write two: seconds and Mbit/s, as in 12.5,8")
    at_s, mbit = (_number(cell.strip()) for cell in cells)
    if at_s is None or mbit is None:
        raise _wrong(name, number, line, "holds no two numbers", "write seconds and Mbit/s, as in 12.5,8")
    if mbit < 0:
        raise _wrong(name, number, line, "has a negative rate", "an outage is written as 0")
    return number, at_s, mbit


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None  # neither NaN nor infinity passes


def _wrong(name: str, number: int, line: str, why: str, remedy: str) -> InputError:
    shown = line if len(line) <= 40 else line[:37] + "..."
    return InputError(f"{name}, line {number}: {shown!r} {why}", remedy)
