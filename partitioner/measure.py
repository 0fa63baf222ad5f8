"""Times and sizes on this machine: interleaved rounds and medians, since anything else measures the machine's mood.

Repeatability of a median is 2-8 % (measured); a segment is measured whole, because the sum of its layers is not its
time (-24 ... +13 %).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol import codecs
from protocol.tensors import Array, Tensors

ROUNDS = 5
MIN_RUNS = 15
MAX_RUNS = 200
BUDGET_S = 0.05  # per thing measured, unless MIN_RUNS take longer
CODEC_SAMPLES = 16
# zstd is chosen where it saves this much: below that its time costs more than its bytes at 100 Mbit/s and above.
MIN_SAVING = 0.10


def interleaved_medians(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each callable, all of them measured in turn over `ROUNDS` rounds after two warm-up runs."""
    per_round = {name: _runs_per_round(work) for name, work in works.items()}
    seen: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            seen[name] += [_timed(work) for _ in range(per_round[name])]
    return {name: statistics.median(times) for name, times in seen.items()}


def _runs_per_round(work: Callable[[], object]) -> int:
    work()
    once = max(_timed(work), 1e-7)
    return math.ceil(min(MAX_RUNS, max(MIN_RUNS, BUDGET_S / once)) / ROUNDS)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Coding(NamedTuple):
    """The codec of each crossing tensor, mean coded bytes of a request, and the times of both directions in seconds."""

    codecs: dict[str, str]
    nbytes: float
    encode_s: float
    decode_s: float


def choose_coding(crossings: Sequence[Tensors]) -> Coding:
    """Choose raw or zstd for each tensor by its mean size on real samples, and time what was chosen."""
    crossings = crossings[:CODEC_SAMPLES]
    chosen: dict[str, str] = {}
    total = 0.0
    for name in crossings[0]:
        sizes = {codec: _mean_nbytes(name, [c[name] for c in crossings], codec) for codec in ("raw", "zstd")}
        chosen[name] = "zstd" if sizes["zstd"] <= (1.0 - MIN_SAVING) * sizes["raw"] else "raw"
        total += sizes[chosen[name]]
    encoded = [{n: codecs.encode(n, a, chosen[n]) for n, a in c.items()} for c in crossings]

    def encode_all() -> None:
        for crossing in crossings:
            for name, array in crossing.items():
                codecs.encode(name, array, chosen[name])

    def decode_all() -> None:
        for crossing in encoded:
            for header, data in crossing.values():
                codecs.decode(header, data)

    times = interleaved_medians({"encode": encode_all, "decode": decode_all})
    count = len(crossings)
    return Coding(chosen, total, times["encode"] / count, times["decode"] / count)


def _mean_nbytes(name: str, arrays: Sequence[Array], codec: str) -> float:
    return statistics.fmean(codecs.encode(name, array, codec)[0].nbytes for array in arrays)
