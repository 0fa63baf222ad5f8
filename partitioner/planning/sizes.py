"""What every tensor of the network would cost to send, under every rung: coded for real, on calibration samples.

Bytes of activations cannot be guessed from shapes (0.05 to 0.8 byte an element, measured), so each tensor is computed
once, quantised as the boundary would and encoded by the codecs that will ship. Times are single runs: good enough to
choose which cuts to measure, which is all they are for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np

from partitioner.crossing import decorrelate, rungs
from partitioner.crossing.boundary import Codes, codes_for
from partitioner.crossing.codings import Way, received
from partitioner.graph.model import serialise
from partitioner.graph.split import with_outputs
from partitioner.judging.verify import JUDGING_THREADS
from partitioner.planning.workshop import Workshop
from partitioner.solver.problem import Size
from protocol import codecs
from protocol.delta import Reference
from protocol.engines.ort import OrtEngine
from protocol.tensors import Array

SAMPLES = 4
GROUP_NBYTES = 256 * 2**20  # of tensors that are computed in one run
# Sending so many times the input's bytes never won: such tensors are sized by the lossless codec alone.
MAX_INPUT_MULTIPLE = 4.0
LOSSLESS = ""
# A guess that lets the solver put decorrelated cuts forward: at the middle of the ladder, where plain codes usually
# still hold, a transform left this share of the bytes at equal agreement (measured: 0.33-0.4). What ships is measured.
DECORRELATED = "decorrelated"
SAVED_BY_TRANSFORM = 0.4

Sizes = dict[str, dict[str, Size]]  # rung -> tensor -> size


def measure_sizes(shop: Workshop, progress: Callable[[int, int], None]) -> Sizes:
    """The size of every tensor that may cross, under the lossless codec ("") and every rung of few levels.

    A tensor that a rung cannot code (it is not float32, or no rung was worth designing) has its lossless size there.
    """
    names = _names(shop)
    table: dict[str, dict[str, Size]] = {}
    done = 0
    some = shop.samples.calibration[:SAMPLES] or shop.samples.held_out[:SAMPLES]
    neighbours = shop.samples.neighbours(some) if shop.samples.consecutive else []
    indices = [*some, *neighbours]
    for group in _groups(shop, names, GROUP_NBYTES // len(indices)):
        values = _compute(shop, group, indices)
        for name in group:
            seen = [v[name] for v in values]
            table[name] = _sizes_of(shop, name, seen[: len(some)], seen[len(some) :])
            done += 1
            progress(done, len(names))
    found = dict.fromkeys([LOSSLESS, *(rung for sizes in table.values() for rung in sizes)])
    order = [rung for rung in found if rung != DECORRELATED] + [DECORRELATED] * (DECORRELATED in found)
    return {rung: {n: sizes.get(rung, sizes[LOSSLESS]) for n, sizes in table.items()} for rung in order}


def milder(sizes: Sizes, rung: str) -> str:
    """The next rung up from `rung`: what is left when it loses too much."""
    order = [name for name in sizes if name != DECORRELATED]
    return order[max(order.index(rung) - 1, 0)]


def _names(shop: Workshop) -> list[str]:
    topology = shop.model.topology
    flowing = (*topology.inputs, *topology.producer)
    infos = topology.tensors
    return [n for n in flowing if n in topology.live and n in infos and infos[n].elements and not infos[n].barred]


def _groups(shop: Workshop, names: Sequence[str], most_nbytes: int) -> Iterator[list[str]]:
    """The names in groups whose tensors hold at most so many bytes on one sample; one tensor is always a group."""
    group: list[str] = []
    nbytes = 0
    for name in names:
        own = 8 * (shop.model.topology.tensors[name].elements or 0)
        if group and nbytes + own > most_nbytes:
            yield group
            group, nbytes = [], 0
        group.append(name)
        nbytes += own
    if group:
        yield group


def _compute(shop: Workshop, names: Sequence[str], indices: Sequence[int]) -> list[Mapping[str, Array]]:
    """The named tensors on each of the samples."""
    inputs = set(shop.model.topology.inputs)
    made = [n for n in names if n not in inputs]
    feeds = list(shop.samples.feeds(indices))
    if not made:
        return list(feeds)
    data = serialise(with_outputs(shop.model.graph, made))
    with OrtEngine(data, label=shop.model.name, threads=JUDGING_THREADS) as engine:
        return [feed | engine.infer(feed) for feed in feeds]


def _sizes_of(shop: Workshop, name: str, arrays: Sequence[Array], before: Sequence[Array]) -> dict[str, Size]:
    """By rung. `before` are the same tensor's values one frame earlier; empty where there are no frames."""
    topology = shop.model.topology
    if not topology.crosses_as_codes(name) or name not in shop.ranges:
        return {LOSSLESS: _least(name, arrays, before)}
    code = codes_for(*shop.ranges[name])
    codes, codes_before = ([to_codes(array, code) for array in those] for those in (arrays, before))
    found = {LOSSLESS: _least(name, codes, codes_before)}
    input_nbytes = sum(a.nbytes for a in shop.samples.feed(0).values())
    if found[LOSSLESS].nbytes <= MAX_INPUT_MULTIPLE * input_nbytes:
        codec = "delta" if before else "levels"
        found |= {
            r.name: _size(name, codes, Way(codec, r.levels), codes_before) for r in rungs.design(codes) if r.levels
        }
        if len(found) > 1 and _suits_transform(arrays):
            typical = found[list(found)[len(found) // 2]]
            found[DECORRELATED] = typical._replace(nbytes=SAVED_BY_TRANSFORM * typical.nbytes)
    return found


def _suits_transform(arrays: Sequence[Array]) -> bool:
    """Whether the values of one size are worth one; pictures may come in any, and a scalar has no rows to join."""
    alike = [a for a in arrays if a.shape == arrays[0].shape]
    return arrays[0].ndim == 4 and decorrelate.suits(np.concatenate(alike))


def to_codes(array: Array, code: Codes) -> Array:
    """What QuantizeLinear makes of float32 values: uint8, rounded half to even, saturated."""
    scaled = np.rint(array / np.float32(code.scale)) + code.zero_point
    codes: Array = np.clip(scaled, 0, 255).astype(np.uint8)
    return codes


def _least(name: str, arrays: Sequence[Array], before: Sequence[Array]) -> Size:
    known = ("raw", "zstd", "delta") if before and arrays[0].dtype == np.uint8 else ("raw", "zstd")
    return min((_size(name, arrays, Way(codec), before) for codec in known), key=lambda s: s.nbytes)


def _size(name: str, arrays: Sequence[Array], way: Way, before: Sequence[Array]) -> Size:
    seen = [_coded(name, array, way, then) for array, then in zip_longest(arrays, before)]
    return Size(statistics.fmean(s.nbytes for s in seen), min(s.encode_s for s in seen), min(s.decode_s for s in seen))


def _coded(name: str, array: Array, way: Way, before: Array | None) -> Size:
    reference = None if before is None else Reference(0, before)
    held = None if before is None or way.codec != "delta" else received({name: before}, {name: way})[name]
    start = time.perf_counter()
    header, data = codecs.encode(name, array, way.codec, way.levels, reference)
    encoded = time.perf_counter()
    codecs.decode(header, data, lambda _: held)
    return Size(header.nbytes, encoded - start, time.perf_counter() - encoded)
