"""A placement problem as integer arrays: waists, the blocks between them, and the arcs of their min-cuts. Pure.

Everything a placement pays is a sum over *items*, and a *tally* is a vector with one number for each item:

    [0, n)          unit i is on the device
    [n, 2n)         unit i is at the gateway (with the results it then sends back)
    [2n, 2n + m)    flow j crosses

`ns` and `nbytes` are the tallies of time and size, in whole nanoseconds and whole bytes (results on their way down
count up_over_down times): the problem that is solved exactly differs from the one that was handed in by at most half a
nanosecond for each unit and codec and half a byte for each tensor.

Positions are unit indices; -1 stands for the device before any unit, n for the gateway after all of them. A block is
the open range between two adjacent waists `low` and `high`: `low` and all before it are on the device, `high` and all
after it at the gateway.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from partitioner.solver.hull import NS_PER_S
from partitioner.solver.problem import Problem
from protocol.errors import InputError

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Tally = npt.NDArray[Any]  # int64 where that is wide enough, Python integers otherwise
_MOST_TOTAL = float(1 << 61)  # of a tally: sums of two are formed in 64 bits


@dataclass(frozen=True)
class Arcs:
    """Arcs of the flow network: between which nodes, what it costs to sever one (an item; -1 for infinite), which block
    it belongs to."""

    tail: Int64s
    head: Int64s
    item: Int64s
    block: Int64s

    @property
    def infinite(self) -> Bools:
        return self.item < 0

    def only(self, keep: Bools) -> Arcs:
        return Arcs(self.tail[keep], self.head[keep], self.item[keep], self.block[keep])


@dataclass(frozen=True)
class Blocks:
    """The ranges between waists that hold units: their ends, the block of every position (-1 for waists and for n), and
    whether pins and unsendable tensors allow a placement with its boundary there."""

    low: Int64s
    high: Int64s
    of: Int64s
    feasible: Bools


@dataclass(frozen=True)
class Totals:
    """A tally summed. `prefix[k]` is what the placement with the first k units pays; `fixed[b]` what every placement
    with its boundary in block b pays besides severed arcs, `least[b]` a bound from below on all of it."""

    prefix: Tally
    fixed: Tally
    least: Tally


class Network:
    """Everything about a problem that does not depend on the bandwidth, made once."""

    def __init__(self, problem: Problem, *, up_over_down: float = 1.0) -> None:
        units, flows = problem.units, [f for f in problem.flows if f.readers]
        self.problem = problem
        self.flows = flows  # those that somebody reads
        self.count = n = len(units)
        self.pinned_edge = np.array([u.pinned == "edge" for u in units], dtype=bool)
        self.pinned_cloud = np.array([u.pinned == "cloud" for u in units], dtype=bool)
        self.source = np.array([-1 if f.source is None else f.source for f in flows], dtype=np.int64)
        self.unsendable = np.array([f.up_nbytes == math.inf for f in flows], dtype=bool)
        readers = [sorted(set(f.readers)) for f in flows]
        self.first = np.array([r[0] for r in readers], dtype=np.int64)
        self.last = np.array([r[-1] for r in readers], dtype=np.int64)
        lengths = np.array([len(r) for r in readers], dtype=np.int64)
        # One entry for each (flow, reader).
        self.entry_flow = np.repeat(np.arange(len(flows)), lengths)
        self.entry_reader = np.fromiter(itertools.chain.from_iterable(readers), np.int64, int(lengths.sum()))
        down = down_nbytes(problem) * up_over_down
        sizes = [0.0 if f.up_nbytes == math.inf else f.up_nbytes for f in flows]
        self.ns = whole(
            [*(u.edge_s for u in units), *(u.cloud_s for u in units), *(f.encode_s + f.decode_s for f in flows)],
            per_unit=NS_PER_S,
        )
        self.nbytes = whole([*np.zeros(n), *down, *sizes])

    @property
    def nodes(self) -> int:
        """Units, one more for each flow (used where several units read it), source and sink."""
        return self.count + len(self.source) + 2

    @cached_property
    def feasible_prefixes(self) -> Bools:
        """Which of the placements with the first k units, k = 0..n, pins and unsendable tensors allow."""
        k = np.arange(self.count + 1)
        least = int(np.flatnonzero(self.pinned_edge)[-1]) + 1 if self.pinned_edge.any() else 0
        most = int(np.flatnonzero(self.pinned_cloud)[0]) if self.pinned_cloud.any() else self.count
        blocked = self._crossing(self.unsendable.astype(np.int64)) > 0
        return np.asarray(~blocked & (k >= least) & (k <= most), dtype=bool)

    @cached_property
    def waists(self) -> Int64s:
        """Units to which all others are ancestors or descendants, in order.

        Position i is one if it is the only sink among the units up to i (all before it then lead to it) and the only
        source among those from i on (all after it then stem from it).
        """
        n = self.count
        made = self.source >= 0
        next_reader = np.full(n, n, dtype=np.int64)
        np.minimum.at(next_reader, self.source[made], self.first[made])
        last_source = np.full(n, -1, dtype=np.int64)
        np.maximum.at(last_source, self.entry_reader, self.source[self.entry_flow])
        sinks, sources = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
        at = np.arange(n)
        np.add.at(sinks, at, 1)
        np.subtract.at(sinks, next_reader, 1)
        np.add.at(sources, last_source + 1, 1)
        np.subtract.at(sources, at + 1, 1)
        return np.flatnonzero((np.cumsum(sinks)[:n] == 1) & (np.cumsum(sources)[:n] == 1))

    @cached_property
    def blocks(self) -> Blocks:
        bounds = np.concatenate([[-1], self.waists, [self.count]])
        held = np.diff(bounds) > 1
        low, high = bounds[:-1][held], bounds[1:][held]
        of = np.full(self.count + 1, -1, dtype=np.int64)
        for b, (start, stop) in enumerate(zip((low + 1).tolist(), high.tolist(), strict=True)):
            of[start:stop] = b
        blocks = Blocks(low, high, of, np.ones(len(low), dtype=bool))
        blocked = self._always_crossing(self.unsendable.astype(np.int64), blocks)
        pins_edge, pins_cloud = _prefix_sums(self.pinned_edge * 1), _prefix_sums(self.pinned_cloud * 1)
        allowed = (blocked == 0) & (pins_cloud[low + 1] == 0) & (pins_edge[-1] == pins_edge[high])
        return Blocks(low, high, of, allowed & ~self._contradicting(_arcs(self, blocks), len(low)))

    @cached_property
    def arcs(self) -> Arcs:
        return _arcs(self, self.blocks)

    def ancestors(self, unit: int) -> list[int]:
        return _reachable(self._neighbours[0], unit)

    def descendants(self, unit: int) -> list[int]:
        return _reachable(self._neighbours[1], unit)

    @cached_property
    def _neighbours(self) -> tuple[list[list[int]], list[list[int]]]:
        """For each unit its predecessors, and its successors."""
        before: list[list[int]] = [[] for _ in range(self.count)]
        after: list[list[int]] = [[] for _ in range(self.count)]
        for source, reader in zip(self.source[self.entry_flow].tolist(), self.entry_reader.tolist(), strict=True):
            if source >= 0:
                before[reader].append(source)
                after[source].append(reader)
        return before, after

    def totals(self, tally: Tally) -> Totals:
        blocks, n = self.blocks, self.count
        on_edge, in_cloud, crossing = np.split(tally, [n, 2 * n])
        edge, cloud = _prefix_sums(on_edge), _prefix_sums(in_cloud)
        prefix = edge + cloud[-1] - cloud + self._crossing(crossing)
        fixed = edge[blocks.low + 1] + cloud[-1] - cloud[blocks.high] + self._always_crossing(crossing, blocks)
        least = fixed.copy()
        inside = np.flatnonzero(blocks.of[:-1] >= 0)
        np.add.at(least, blocks.of[inside], np.minimum(on_edge[inside], in_cloud[inside]))
        return Totals(prefix, fixed, least)

    def _crossing(self, values: Tally) -> Tally:
        """For k = 0..n the sum over the flows that cross when the first k units are on the device.

        That is when the source is among them and the last reader is not: source + 1 <= k <= last.
        """
        steps = np.zeros(self.count + 2, dtype=values.dtype)
        np.add.at(steps, self.source + 1, values)
        np.subtract.at(steps, self.last + 1, values)
        return np.cumsum(steps)[: self.count + 1]

    def _always_crossing(self, values: Tally, blocks: Blocks) -> Tally:
        """For each block, the sum over flows made up to its low end and read at or beyond its high end."""
        total = self._crossing(values)[blocks.low + 1]  # read anywhere beyond the low end ...
        if len(total):
            ends_in = blocks.of[self.last]
            inside = (ends_in >= 0) & (self.source <= blocks.low[ends_in])
            np.subtract.at(total, ends_in[inside], values[inside])  # ... less what is read for the last time inside
        return total

    def _contradicting(self, arcs: Arcs, count: int) -> Bools:
        """Blocks in which pins and unsendable tensors leave no placement: infinite arcs join source and sink."""
        bad = np.zeros(count, dtype=bool)
        endless = arcs.only(arcs.infinite)
        source, sink = self.nodes - 2, self.nodes - 1
        if not ((endless.tail == source).any() and (endless.head == sink).any()):
            return bad
        ones = np.ones(len(endless.tail), np.int32)
        graph = csr_array((ones, (endless.tail, endless.head)), shape=(self.nodes, self.nodes))
        reached = np.zeros(self.nodes, dtype=bool)
        reached[breadth_first_order(graph, source, directed=True, return_predecessors=False)] = True
        bad[endless.block[reached[endless.tail] & (endless.head == sink)]] = True
        return bad


def _arcs(network: Network, blocks: Blocks) -> Arcs:
    """The arcs of all blocks."""
    made = _ArcList(network, blocks)
    made.add_units()
    made.add_flows()
    return Arcs(*(np.concatenate(column) for column in zip(*made.parts, strict=True)))


class _ArcList:
    """Collects arcs as (tail, head, item, block) columns."""

    def __init__(self, network: Network, blocks: Blocks) -> None:
        self.parts: list[tuple[Int64s, Int64s, Int64s, Int64s]] = []
        self._network, self._blocks = network, blocks
        self._source, self._sink = network.nodes - 2, network.nodes - 1

    def _add(self, tail: npt.ArrayLike, head: npt.ArrayLike, item: npt.ArrayLike, block: Int64s) -> None:
        columns = [np.broadcast_to(np.asarray(c, dtype=np.int64), block.shape) for c in (tail, head, item, block)]
        self.parts.append((columns[0], columns[1], columns[2], columns[3]))

    def add_units(self) -> None:
        net, n = self._network, self._network.count
        inside = np.flatnonzero(self._blocks.of[:-1] >= 0)
        block = self._blocks.of[inside]
        self._add(self._source, inside, np.where(net.pinned_edge[inside], -1, n + inside), block)
        self._add(inside, self._sink, np.where(net.pinned_cloud[inside], -1, inside), block)

    def add_flows(self) -> None:
        net, block_of = self._network, self._blocks.of
        made_in = np.where(net.source >= 0, block_of[np.maximum(net.source, 0)], -1)
        read_in = block_of[net.entry_reader]
        own = (made_in[net.entry_flow] >= 0) & (made_in[net.entry_flow] == read_in)
        # A reader on the device has the maker there.
        self._add(net.entry_reader[own], net.source[net.entry_flow[own]], -1, read_in[own])
        # Made inside, read inside only, or also beyond: then it crosses as soon as its maker is on the device.
        inner = made_in >= 0
        beyond = inner & (net.last >= self._blocks.high[made_in] if len(self._blocks.high) else False)
        self._add(net.source[beyond], self._sink, self._items[beyond], made_in[beyond])
        self._spread(net.source, made_in, inner & ~beyond, own)
        # Made before the block and read for the last time inside it.
        ends_in = block_of[net.last]
        from_before = (ends_in >= 0) & (made_in != ends_in)
        into = from_before[net.entry_flow] & (read_in == ends_in[net.entry_flow])
        self._spread(np.full(len(net.source), self._source), ends_in, from_before, into)

    @cached_property
    def _items(self) -> Int64s:
        net = self._network
        return np.where(net.unsendable, -1, 2 * net.count + np.arange(len(net.source)))

    def _spread(self, tails: Int64s, block: Int64s, flows: Bools, entries: Bools) -> None:
        """Arcs from makers to readers: straight to a single one, through the flow's own node to several."""
        net = self._network
        of, reader = net.entry_flow[entries], net.entry_reader[entries]
        counts = np.bincount(of, minlength=len(net.source))
        single, several = flows & (counts == 1), flows & (counts > 1)
        only_reader = np.zeros(len(net.source), dtype=np.int64)
        only_reader[of] = reader
        self._add(tails[single], only_reader[single], self._items[single], block[single])
        self._add(tails[several], net.count + np.flatnonzero(several), self._items[several], block[several])
        fan = several[of]
        self._add(net.count + of[fan], reader[fan], -1, block[of[fan]])


def _reachable(neighbours: list[list[int]], start: int) -> list[int]:
    """Every unit that a walk from `start` meets, without `start` itself."""
    met, pending = set[int](), [start]
    while pending:
        for other in neighbours[pending.pop()]:
            if other not in met:
                met.add(other)
                pending.append(other)
    return sorted(met)


def down_nbytes(problem: Problem) -> npt.NDArray[np.float64]:
    """For each unit, the bytes of the results that it sends down when it is at the gateway."""
    down = np.zeros(len(problem.units))
    for flow in problem.flows:
        if flow.source is not None:
            down[flow.source] += flow.down_nbytes
    return down


def whole(values: npt.ArrayLike, *, per_unit: float = 1.0) -> Int64s:
    """Whole numbers of the 1/`per_unit`-th. Raises InputError if 64 bits do not hold their sum."""
    with np.errstate(over="ignore"):  # infinity is refused like everything else that is too much
        scaled = np.rint(np.asarray(values, dtype=np.float64) * per_unit)
    if not scaled.sum() < _MOST_TOTAL:
        raise InputError(
            f"costs that add up to {scaled.sum() / per_unit:.3g} cannot be compared exactly",
            f"give seconds, joules and bytes that stay below {_MOST_TOTAL / per_unit:.3g} together",
        )
    return scaled.astype(np.int64)


def _prefix_sums(values: Tally) -> Tally:
    return np.concatenate([np.zeros(1, dtype=values.dtype), np.cumsum(values)])
