"""The few steps on either side of a cut, in layers, for a picture of it. Pure: a topology in, names and places out.

layer 0    Conv            head: aligned to the cut, so that what the cut needs stands right above it
layer 1    Relu
- - - - - - - - - - - -    the cut: `split_after` layers lie above it
layer 2    Conv   Add      tail: as early as its inputs allow
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from partitioner.graph.cuts import Sides
from partitioner.graph.topology import Topology

HOPS = 2
MOST_NODES = 12
_SWEEPS = 4

Side = Literal["head", "tail", "both"]


class Node(NamedTuple):
    """One step. `layer` counts from the top, `place` from the left within it."""

    step: int
    op: str
    name: str
    shape: tuple[int, ...] | None
    side: Side
    layer: int
    place: int


class Edge(NamedTuple):
    """From node to node (indices into `nodes`); `tensor` crosses the cut or not."""

    source: int
    target: int
    tensor: str
    crosses: bool


@dataclass(frozen=True)
class Neighbourhood:
    """`before` and `after` are the numbers of further steps of head and tail that the picture leaves out."""

    cut: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    split_after: int
    before: int
    after: int


def around(topology: Topology, sides: Sides, *, hops: int = HOPS) -> Neighbourhood:
    """The steps within `hops` of the cut, at most MOST_NODES, nearest first."""
    live = set(topology.live_steps)
    head, tail = sides.head_steps & live, sides.tail_steps & live
    reads = {i: [topology.producer[n] for n in topology.steps[i].inputs if n in topology.producer] for i in live}
    makers = [topology.producer[n] for n in sides.cut if n in topology.producer]
    users = [i for i in sorted(tail) if not set(sides.cut).isdisjoint(topology.steps[i].inputs)]
    readers: dict[int, list[int]] = {}
    for i, sources in reads.items():
        for source in sources:
            readers.setdefault(source, []).append(i)
    above = _near(makers, reads, head - tail, hops)
    below = _near(users, readers, tail, hops)
    kept = set(above[: MOST_NODES // 2]) | set(below[: MOST_NODES // 2])
    layers, split_after = _layers(kept, reads, tail)
    places = _places(kept, reads, layers)
    order = sorted(kept, key=lambda i: (layers[i], places[i]))
    index = {step: at for at, step in enumerate(order)}
    nodes = tuple(_node(topology, i, head, tail, layers[i], places[i]) for i in order)
    edges = tuple(_edges(topology, index, sides))
    return Neighbourhood(sides.cut, nodes, edges, split_after, len(head - kept), len(tail - kept))


def _near(
    start: Iterable[int], links: Mapping[int, list[int]], within: set[int] | frozenset[int], hops: int
) -> list[int]:
    """Steps within reach, nearest first."""
    found = [i for i in dict.fromkeys(start) if i in within]
    edge = list(found)
    for _ in range(hops):
        edge = [i for i in dict.fromkeys(n for e in edge for n in links.get(e, ())) if i in within and i not in found]
        found += edge
    return found


def _layers(
    kept: set[int], reads: Mapping[int, list[int]], tail: frozenset[int] | set[int]
) -> tuple[dict[int, int], int]:
    """Longest paths: head steps counted up from the cut, tail steps down from it. Step numbers are in order already."""
    height: dict[int, int] = {}
    heads = sorted(kept - tail)
    for i in reversed(heads):
        height[i] = max((height[j] + 1 for j in heads if j > i and i in reads[j]), default=0)
    split_after = max(height.values(), default=-1) + 1
    layers = {i: split_after - 1 - up for i, up in height.items()}
    for i in sorted(kept & tail):
        layers[i] = max((layers[j] + 1 for j in reads[i] if j in layers and j in tail), default=split_after)
    return layers, split_after


def _places(kept: set[int], reads: Mapping[int, list[int]], layers: Mapping[int, int]) -> dict[int, int]:
    """Places within layers by the barycentre method: each step near the mean place of its neighbours, few crossings."""
    rows: dict[int, list[int]] = {}
    for i in sorted(kept):
        rows.setdefault(layers[i], []).append(i)
    near: dict[int, list[int]] = {i: [j for j in reads[i] if j in kept] for i in kept}
    for i in kept:
        for j in reads[i]:
            if j in kept:
                near[j].append(i)
    places = {i: at for row in rows.values() for at, i in enumerate(row)}
    for sweep in range(_SWEEPS):
        for layer in sorted(rows, reverse=bool(sweep % 2)):
            means = {i: sum(places[j] for j in near[i]) / len(near[i]) if near[i] else places[i] for i in rows[layer]}
            rows[layer].sort(key=lambda i, means=means: means[i])  # type: ignore[misc]
            places |= {i: at for at, i in enumerate(rows[layer])}
    return places


def _node(topology: Topology, i: int, head: frozenset[int], tail: frozenset[int], layer: int, place: int) -> Node:
    step = topology.steps[i]
    shown = next((o for o in step.outputs if o in topology.tensors), None)
    shape = topology.tensors[shown].shape if shown is not None else None
    side: Side = "head" if i not in tail else "both" if i in head else "tail"
    return Node(i, step.op, step.name, shape, side, layer, place)


def _edges(topology: Topology, index: Mapping[int, int], sides: Sides) -> Iterable[Edge]:
    for step, at in index.items():
        for tensor in dict.fromkeys(topology.steps[step].inputs):
            source = topology.producer.get(tensor)
            if source is not None and source in index:
                crosses = tensor in sides.cut and step in sides.tail_steps and source not in sides.tail_steps
                yield Edge(index[source], at, tensor, crosses)
