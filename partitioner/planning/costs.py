"""What each placement costs on this machine, all of them timed in turn in one session of interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import msgspec

from partitioner.crossing.codings import Coding
from partitioner.measuring.measure import interleaved_medians
from partitioner.planning.ends import Ends
from partitioner.planning.workshop import Segment, Workshop
from protocol import sensors
from protocol.engines.ort import OrtEngine
from protocol.latency import PlacementCost

FULL_CLOUD = "full-cloud"
EDGE_ONLY = "edge-only"


class Seconds(NamedTuple):
    """Median seconds of one placement's two graphs; 0 where there is none."""

    head_s: float
    tail_s: float


def id_of(family: str, rung: str) -> str:
    """Placement id of one coding of a cut (or of full-cloud): `cut-1`, `cut-1.q4`, `full-cloud.jpeg90`."""
    return f"{family}.{rung}" if rung else family


def time_graphs(shop: Workshop, ends: Ends, segments: Mapping[str, Segment]) -> dict[str, Seconds]:
    """Time every graph once a round: full-cloud, edge-only and each segment's head and tail, by family."""
    works: dict[str, Callable[[], object]] = {}
    feed = shop.samples.feed(shop.samples.held_out[0])
    with ExitStack() as stack:

        def engine(data: bytes, label: str, threads: int) -> OrtEngine:
            return stack.enter_context(OrtEngine(data, label=label, threads=threads))

        works[FULL_CLOUD] = partial(engine(ends.full, "full", shop.tail_threads).infer, feed)
        edge = ends.edge if shop.times_heads else shop.model.data
        works[EDGE_ONLY] = partial(engine(edge, "edge", shop.threads).infer, feed)
        for name, segment in segments.items():
            head = engine(segment.timed or segment.head, f"{name}/head", shop.threads)
            tail = engine(segment.tail, f"{name}/tail", shop.tail_threads)
            made = head.infer(feed)
            works[f"{name}/head"] = partial(head.infer, feed)
            works[f"{name}/tail"] = partial(tail.infer, {n: made[n] for n in segment.cut})
        times = interleaved_medians(works)
    seconds = {FULL_CLOUD: Seconds(0.0, times[FULL_CLOUD]), EDGE_ONLY: Seconds(times[EDGE_ONLY], 0.0)}
    return seconds | {n: Seconds(times[f"{n}/head"], times[f"{n}/tail"]) for n in segments}


Families = dict[str, dict[str, PlacementCost]]  # family -> placement id -> cost


def costs_of(
    ends: Ends, segments: Mapping[str, Segment], seconds: Mapping[str, Seconds], *, slowdown: float
) -> Families:
    """The cost of every line of the plan: full-cloud, the segments, edge-only.

    `seconds` are those of the machines that are planned for; encoding was measured here and is the device's work too,
    so it is multiplied by `slowdown`, the factor by which the device is slower than this machine.
    """
    costs: Families = {FULL_CLOUD: {}}
    for variant in ends.full_variants:
        id_ = id_of(FULL_CLOUD, variant.rung)
        costs[FULL_CLOUD][id_] = _remote(seconds[FULL_CLOUD], variant.coding, ends.down_nbytes, slowdown)
    for name, segment in segments.items():
        costs[name] = {
            id_of(name, v.rung): _remote(seconds[name], v.coding, segment.down_nbytes, slowdown)
            for v in segment.variants
        }
    return costs | {EDGE_ONLY: {EDGE_ONLY: PlacementCost(edge_s=seconds[EDGE_ONLY].head_s)}}


def with_memory(shop: Workshop, ends: Ends, segments: Mapping[str, Segment], costs: Families) -> Families:
    """The same costs with the peak memory of either side, each graph measured in a process of its own."""
    feed = shop.samples.feed(shop.samples.held_out[0])
    peaks = {
        FULL_CLOUD: (0, sensors.peak_memory_nbytes(ends.full, feed, threads=shop.tail_threads)),
        EDGE_ONLY: (sensors.peak_memory_nbytes(ends.edge, feed, threads=shop.threads), 0),
    }
    for name, segment in segments.items():
        with OrtEngine(segment.head, label=f"{name}/head", threads=shop.threads) as head:
            made = head.infer(feed)
        peaks[name] = (
            sensors.peak_memory_nbytes(segment.head, feed, threads=shop.threads),
            sensors.peak_memory_nbytes(segment.tail, {n: made[n] for n in segment.cut}, threads=shop.tail_threads),
        )
    return {n: {id_: _occupying(c, *peaks[n]) for id_, c in family.items()} for n, family in costs.items()}


def _occupying(cost: PlacementCost, edge_nbytes: int | None, cloud_nbytes: int | None) -> PlacementCost:
    return msgspec.structs.replace(cost, edge_memory_nbytes=edge_nbytes, cloud_memory_nbytes=cloud_nbytes)


def _remote(seconds: Seconds, coding: Coding, down_nbytes: int, slowdown: float) -> PlacementCost:
    return PlacementCost(
        edge_s=seconds.head_s,
        encode_s=coding.encode_s * slowdown,
        up_nbytes=coding.nbytes,
        decode_s=coding.decode_s,
        tail_s=seconds.tail_s,
        down_nbytes=down_nbytes,
    )
