"""What each placement costs on this machine, all of them timed in turn in one session of interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from partitioner.assemble import Segment, Workshop
from partitioner.codings import Coding
from partitioner.ends import Ends
from partitioner.measure import interleaved_medians
from protocol.engines.ort import OrtEngine
from protocol.latency import PlacementCost

FULL_CLOUD = "full-cloud"
EDGE_ONLY = "edge-only"


class Seconds(NamedTuple):
    """Median seconds of one placement's two graphs on this machine; 0 where there is none."""

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
        works[EDGE_ONLY] = partial(engine(ends.edge, "edge", shop.threads).infer, feed)
        for name, segment in segments.items():
            head = engine(segment.head, f"{name}/head", shop.threads)
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

    Edge compute and encoding are multiplied by `slowdown`, the declared factor by which the device is slower than this
    machine.
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
    return costs | {EDGE_ONLY: {EDGE_ONLY: PlacementCost(edge_s=seconds[EDGE_ONLY].head_s * slowdown)}}


def _remote(seconds: Seconds, coding: Coding, down_nbytes: int, slowdown: float) -> PlacementCost:
    return PlacementCost(
        edge_s=seconds.head_s * slowdown,
        encode_s=coding.encode_s * slowdown,  # encoding is the device's work too
        up_nbytes=coding.nbytes,
        decode_s=coding.decode_s,
        tail_s=seconds.tail_s,
        down_nbytes=down_nbytes,
    )
