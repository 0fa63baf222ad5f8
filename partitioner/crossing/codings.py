"""How what crosses is coded: one *way* per tensor, and what a coding costs on real activations.

A coding changes nothing in the graphs: the same head and tail serve every coding of a cut. Lossless codings are chosen
by size, lossy ones (few levels, JPEG) are offered to the planner as lines of their own and judged like everything else,
by the tail's answers to what it would really be given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from partitioner.measuring.measure import interleaved_medians
from protocol import codecs
from protocol.bundle import Levels
from protocol.delta import Reference
from protocol.tensors import Array, TensorHeader, Tensors
from protocol.wire import Buffer

CODEC_SAMPLES = 16
# zstd is chosen where it saves this much: below that its time costs more than its bytes at 100 Mbit/s and above.
MIN_SAVING = 0.10

Rung = TypeVar("Rung")
Made = TypeVar("Made")


class Way(NamedTuple):
    """How one tensor is coded; `levels` belongs to the codecs "levels" and "delta"."""

    codec: str
    levels: Levels | None = None


class Coding(NamedTuple):
    """The way of each crossing tensor, mean coded bytes of a request, and the times of both directions in seconds."""

    ways: dict[str, Way]
    nbytes: float
    encode_s: float
    decode_s: float


def lossless(crossings: Sequence[Tensors]) -> dict[str, Way]:
    """Raw or zstd for each tensor, by its mean size on real samples."""
    some = crossings[:CODEC_SAMPLES]

    def choose(name: str) -> Way:
        sizes = {codec: statistics.fmean(_nbytes(name, c[name], Way(codec)) for c in some) for codec in ("raw", "zstd")}
        return Way("zstd" if sizes["zstd"] <= (1.0 - MIN_SAVING) * sizes["raw"] else "raw")

    return {name: choose(name) for name in crossings[0]}


def differing(crossings: Sequence[Tensors], before: Sequence[Tensors], ways: Mapping[str, Way]) -> dict[str, Way]:
    """The same ways for a stream: codes cross as differences to the frame `before` where that saves enough."""

    def choose(name: str, way: Way) -> Way:
        delta = Way("delta", way.levels)
        if way.codec not in ("raw", "zstd", "levels") or any(c[name].dtype != np.uint8 for c in crossings):
            return way
        pairs = list(zip(crossings[:CODEC_SAMPLES], before, strict=False))
        after = statistics.fmean(_encode(name, now[name], delta, then[name])[0].nbytes for now, then in pairs)
        alone = statistics.fmean(_nbytes(name, now[name], way) for now, _ in pairs)
        return delta if after <= (1.0 - MIN_SAVING) * alone else way

    return {name: choose(name, way) for name, way in ways.items()}


def measure_coding(
    crossings: Sequence[Tensors], ways: Mapping[str, Way], before: Sequence[Tensors] | None = None
) -> Coding:
    """Mean size over `crossings` (at most CODEC_SAMPLES of them), and median seconds to encode and decode one.

    `before` holds, for each of those, what crossed for the frame before it: differences refer to that.
    """
    some = crossings[:CODEC_SAMPLES]
    pairs = list(zip(some, before or [{}] * len(some), strict=False))

    def coded(now: Tensors, then: Tensors) -> list[tuple[TensorHeader, Buffer]]:
        return [_encode(n, now[n], way, then.get(n)) for n, way in ways.items()]

    encoded = [coded(now, then) for now, then in pairs]
    held = [_received_alone(then, ways) for _, then in pairs]

    def encode_all() -> None:
        for now, then in pairs:
            coded(now, then)

    def decode_all() -> None:
        for tensors, then in zip(encoded, held, strict=True):
            for header, data in tensors:
                codecs.decode(header, data, {0: then.get(header.name)}.get)

    times = interleaved_medians({"encode": encode_all, "decode": decode_all})
    nbytes = statistics.fmean(sum(header.nbytes for header, _ in tensors) for tensors in encoded)
    return Coding(dict(ways), nbytes, times["encode"] / len(some), times["decode"] / len(some))


def received(crossing: Tensors, ways: Mapping[str, Way]) -> dict[str, Array]:
    """What the other side gets when `crossing` is sent: the same arrays, less what the codecs lose."""
    return {name: codecs.decode(*_encode(name, crossing[name], way)) for name, way in ways.items()}


def _received_alone(crossing: Tensors, ways: Mapping[str, Way]) -> dict[str, Array]:
    """What differences refer to, as the other side has it."""
    return received(crossing, {n: way for n, way in ways.items() if n in crossing and way.codec == "delta"})


def descend(rungs: Sequence[Rung], attempt: Callable[[Rung], Made | None]) -> list[Made]:
    """What held of a ladder whose rungs lose more and more: bisected, since judging a rung takes seconds."""
    low, high = 0, len(rungs)
    held: dict[int, Made] = {}
    while low < high:
        middle = (low + high) // 2
        made = attempt(rungs[middle])
        if made is None:
            high = middle
        else:
            held[middle], low = made, middle + 1
    return [held[i] for i in sorted(held)]


def _encode(name: str, array: Array, way: Way, before: Array | None = None) -> tuple[TensorHeader, Buffer]:
    return codecs.encode(name, array, way.codec, way.levels, None if before is None else Reference(0, before))


def _nbytes(name: str, array: Array, way: Way) -> int:
    return _encode(name, array, way)[0].nbytes
