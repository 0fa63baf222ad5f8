"""What each placement costs on this machine, all of them timed in turn in one session of interleaved rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from partitioner.assemble import Segment, Workshop
from partitioner.measure import Coding, interleaved_medians
from protocol.engines.ort import OrtEngine
from protocol.latency import PlacementCost

FULL_CLOUD = "full-cloud"
EDGE_ONLY = "edge-only"


def time_placements(
    shop: Workshop, full: bytes, full_coding: Coding, edge: bytes, segments: Mapping[str, Segment], *, slowdown: float
) -> dict[str, PlacementCost]:
    """Measured cost of full-cloud, edge-only and every segment, by placement id.

    Edge compute and encoding are multiplied by `slowdown`, the declared factor by which the device is slower than this
    machine.
    """
    works: dict[str, Callable[[], object]] = {}
    feed = shop.samples.feed(shop.samples.held_out[0])
    with ExitStack() as stack:

        def engine(data: bytes, label: str, threads: int) -> OrtEngine:
            return stack.enter_context(OrtEngine(data, label=label, threads=threads))

        works[FULL_CLOUD] = partial(engine(full, "full", shop.tail_threads).infer, feed)
        works[EDGE_ONLY] = partial(engine(edge, "edge", shop.threads).infer, feed)
        for name, segment in segments.items():
            head = engine(segment.head, f"{name}/head", shop.threads)
            tail = engine(segment.tail, f"{name}/tail", shop.tail_threads)
            made = head.infer(feed)
            works[f"{name}/head"] = partial(head.infer, feed)
            works[f"{name}/tail"] = partial(tail.infer, {n: made[n] for n in segment.cut})
        times = interleaved_medians(works)
    costs = {
        FULL_CLOUD: _remote(0.0, full_coding, times[FULL_CLOUD], _answer_nbytes(shop), slowdown),
        EDGE_ONLY: PlacementCost(edge_s=times[EDGE_ONLY] * slowdown),
    }
    for name, segment in segments.items():
        edge_s, tail_s = times[f"{name}/head"] * slowdown, times[f"{name}/tail"]
        costs[name] = _remote(edge_s, segment.coding, tail_s, segment.down_nbytes, slowdown)
    return costs


def _remote(edge_s: float, coding: Coding, tail_s: float, down_nbytes: int, slowdown: float) -> PlacementCost:
    return PlacementCost(
        edge_s=edge_s,
        encode_s=coding.encode_s * slowdown,  # encoding is the device's work too
        up_nbytes=coding.nbytes,
        decode_s=coding.decode_s,
        tail_s=tail_s,
        down_nbytes=down_nbytes,
    )


def _answer_nbytes(shop: Workshop) -> int:
    return sum(array.nbytes for array in shop.yardstick.expected[0].values())
