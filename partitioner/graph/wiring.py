"""Are the tensors of a graph wired as ONNX demands? What is not is refused with the names of nodes and tensors.

    every tensor is written once       every tensor that is read is written       no node waits for itself

`onnx`'s checker finds the same faults but calls a cycle an order that is wrong, and names neither nodes nor remedy. A
graph whose nodes are merely out of order is put in order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

import onnx

from protocol.errors import ModelError

_MOST_NAMED = 8


def check_wiring(proto: onnx.ModelProto) -> bool:
    """Check the main graph, and put its nodes in order where they are not. Returns whether they had to be.

    Raises ModelError naming the tensor written twice, the tensor that nobody writes, or the nodes on a cycle.
    """
    graph = proto.graph
    nodes = list(graph.node)
    writer = _writers(graph, nodes)
    written = writer.keys() | _given(graph)
    reads = [sorted(set(_reads(node))) for node in nodes]
    for node, names in zip(nodes, reads, strict=True):
        _check_written(f"node {_called(node)}", names, written)
    _check_written("the graph's outputs", [o.name for o in graph.output], written)
    waits = [{writer[n] for n in names if n in writer} for names in reads]
    order = _order(waits)
    if len(order) < len(nodes):
        _refuse_cycle(nodes, waits, set(range(len(nodes))) - set(order))
    if order == list(range(len(nodes))):
        return False
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)
    return True


def _given(graph: onnx.GraphProto) -> set[str]:
    sparse = (s.values.name for s in graph.sparse_initializer)
    return {v.name for v in graph.input} | {t.name for t in graph.initializer} | set(sparse)


def _writers(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    named = {"input": graph.input, "output": graph.output, "initializer": graph.initializer}
    for kind, listed in named.items():
        twice = _first_twice(value.name for value in listed)
        if twice is not None:
            raise ModelError(f"the graph has two {kind}s {twice!r}", "export it again")
    writer: dict[str, int] = {}
    given = _given(graph)
    for i, node in enumerate(nodes):
        for name in filter(None, node.output):
            if name in writer or name in given:
                other = f"node {_called(nodes[writer[name]])}" if name in writer else "an input or initializer"
                fact = f"tensor {name!r} is written twice: by {other} and node {_called(node)}"
                raise ModelError(fact, "export it again")
            writer[name] = i
    return writer


def _first_twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_written(reader: str, names: Iterable[str], written: set[str]) -> None:
    missing = [n for n in names if n not in written]
    if missing:
        raise ModelError(f"{reader} reads {missing[0]!r}, which nothing in the graph writes", "export it again")


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, and those that its bodies capture."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _captures(body)


def _captures(body: onnx.GraphProto) -> Iterator[str]:
    own = _given(body) | {name for node in body.node for name in node.output}
    for node in body.node:
        yield from (name for name in _reads(node) if name not in own)
    yield from (o.name for o in body.output if o.name not in own)


def _order(waits: Sequence[set[int]]) -> list[int]:
    """Kahn's order, of several ready nodes the one that stood first; shorter than `waits` where there are cycles."""
    readers: list[list[int]] = [[] for _ in waits]
    missing = [len(w) for w in waits]
    for i, others in enumerate(waits):
        for other in others:
            readers[other].append(i)
    ready = [i for i, count in enumerate(missing) if count == 0]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    return order


def _refuse_cycle(nodes: Sequence[onnx.NodeProto], waits: Sequence[set[int]], stuck: set[int]) -> None:
    """Walk back from any stuck node: each waits for another stuck one, so that some node comes again."""
    at, way = min(stuck), dict[int, int]()
    while at not in way:
        way[at] = len(way)
        at = min(waits[at] & stuck)
    cycle = [i for i, place in way.items() if place >= way[at]][::-1]
    named = [_called(nodes[i]) for i in cycle[:_MOST_NAMED]]
    more = f" and {len(cycle) - _MOST_NAMED} more" if len(cycle) > _MOST_NAMED else ""
    raise ModelError(f"the graph is cyclic: {' -> '.join(named)}{more} wait for each other", "export it again")


def _called(node: onnx.NodeProto) -> str:
    if node.name:
        return f"{node.name!r} ({node.op_type})"
    return f"{node.op_type} -> {next(iter(node.output), '')!r}"
