"""A placement problem as integer arrays: waists, the blocks between them, and the arcs of their min-cuts. Pure.

Times are whole nanoseconds, sizes whole bytes (up_over_down times the size for results on their way down): the problem
that is solved exactly differs from the one that was handed in by at most half a nanosecond for each unit and codec and
half a byte for each tensor.

Positions are unit indices; -1 stands for the device before any unit, n for the gateway after all of them. A block is
the open range between two adjacent waists `low` and `high`: `low` and all before it are on the device, `high` and all
after it at the gateway.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from partitioner.problem import Problem

NS_PER_S = 1_000_000_000
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Arcs:
    """Arcs of the flow network, one entry each; `block` says to which block an arc belongs."""

    tail: Int64s
    head: Int64s
    ns: Int64s
    nbytes: Int64s
    infinite: Bools
    block: Int64s

    def of_blocks(self, chosen: Bools) -> Arcs:
        keep = chosen[self.block]
        return self._pick(keep)

    def _pick(self, keep: Bools) -> Arcs:
        return Arcs(
            self.tail[keep], self.head[keep], self.ns[keep], self.nbytes[keep], self.infinite[keep], self.block[keep]
        )


@dataclass(frozen=True)
class Blocks:
    """The ranges between waists that hold units. `fixed` is what every placement with its boundary there costs besides
    severed arcs, `least` a bound from below on all of it, `feasible` whether pins and unsendable tensors allow it."""

    low: Int64s
    high: Int64s
    fixed_ns: Int64s
    fixed_nbytes: Int64s
    least_ns: Int64s
    least_nbytes: Int64s
    feasible: Bools


@dataclass(frozen=True)
class PrefixCuts:
    """The placements that hold the first k units, for k = 0..n: their lines, and which of them are allowed."""

    ns: Int64s
    nbytes: Int64s
    feasible: Bools


class Network:
    """Everything about a problem that does not depend on the bandwidth, made once."""

    def __init__(self, problem: Problem, *, up_over_down: float = 1.0) -> None:
        units, flows = problem.units, [f for f in problem.flows if f.readers]
        self.count = n = len(units)
        self.edge_ns = _whole([u.edge_s * NS_PER_S for u in units])
        self.cloud_ns = _whole([u.cloud_s * NS_PER_S for u in units])
        self.pinned_edge = np.array([u.pinned == "edge" for u in units], dtype=bool)
        self.pinned_cloud = np.array([u.pinned == "cloud" for u in units], dtype=bool)
        self.down_nbytes = np.zeros(n, dtype=np.int64)
        for flow in problem.flows:
            if flow.source is not None and flow.down_nbytes:
                self.down_nbytes[flow.source] += round(flow.down_nbytes * up_over_down)
        self.source = np.array([-1 if f.source is None else f.source for f in flows], dtype=np.int64)
        self.flow_ns = _whole([(f.encode_s + f.decode_s) * NS_PER_S for f in flows])
        self.unsendable = np.array([f.up_nbytes == math.inf for f in flows], dtype=bool)
        self.flow_nbytes = _whole([0.0 if f.up_nbytes == math.inf else f.up_nbytes for f in flows])
        readers = [sorted(set(f.readers)) for f in flows]
        self.first = np.array([r[0] for r in readers], dtype=np.int64)
        self.last = np.array([r[-1] for r in readers], dtype=np.int64)
        lengths = np.array([len(r) for r in readers], dtype=np.int64)
        # One entry for each (flow, reader).
        self.entry_flow = np.repeat(np.arange(len(flows)), lengths)
        self.entry_reader = np.fromiter(itertools.chain.from_iterable(readers), np.int64, int(lengths.sum()))

    @property
    def nodes(self) -> int:
        """Units, one more for each flow (used where several units read it), source and sink."""
        return self.count + len(self.source) + 2

    @cached_property
    def prefixes(self) -> PrefixCuts:
        n = self.count
        edge, cloud, down = (_prefix_sums(a) for a in (self.edge_ns, self.cloud_ns, self.down_nbytes))
        ns, nbytes, blocked = (np.zeros(n + 2, dtype=np.int64) for _ in range(3))
        # A flow crosses when its source is among the first k units and its last reader is not: source + 1 <= k <= last.
        for sums, values in ((ns, self.flow_ns), (nbytes, self.flow_nbytes), (blocked, self.unsendable)):
            np.add.at(sums, self.source + 1, values)
            np.subtract.at(sums, self.last + 1, values.astype(np.int64))
        ns, nbytes, blocked = (np.cumsum(a)[: n + 1] for a in (ns, nbytes, blocked))
        k = np.arange(n + 1)
        least = int(np.flatnonzero(self.pinned_edge)[-1]) + 1 if self.pinned_edge.any() else 0
        most = int(np.flatnonzero(self.pinned_cloud)[0]) if self.pinned_cloud.any() else n
        feasible = (blocked == 0) & (k >= least) & (k <= most)
        return PrefixCuts(ns + edge + cloud[-1] - cloud, nbytes + down[-1] - down, feasible)

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
        entry_source = self.source[self.entry_flow]
        last_source = np.full(n, -1, dtype=np.int64)
        np.maximum.at(last_source, self.entry_reader, entry_source)
        sinks, sources = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
        at = np.arange(n)
        np.add.at(sinks, at, 1)
        np.subtract.at(sinks, next_reader, 1)
        np.add.at(sources, last_source + 1, 1)
        np.subtract.at(sources, at + 1, 1)
        return np.flatnonzero((np.cumsum(sinks)[:n] == 1) & (np.cumsum(sources)[:n] == 1))

    @cached_property
    def _ends(self) -> tuple[Int64s, Int64s, Int64s]:
        """Low and high end of every block, and the block of every position (-1 for waists), n included."""
        bounds = np.concatenate([[-1], self.waists, [self.count]])
        held = np.diff(bounds) > 1
        low, high = bounds[:-1][held], bounds[1:][held]
        block_of = np.full(self.count + 1, -1, dtype=np.int64)
        for b, (start, stop) in enumerate(zip((low + 1).tolist(), high.tolist(), strict=True)):
            block_of[start:stop] = b
        return low, high, block_of

    @cached_property
    def arcs(self) -> Arcs:
        return _ArcList(self, *self._ends).arcs()

    @cached_property
    def blocks(self) -> Blocks:
        low, high, block_of = self._ends
        edge, cloud, down = (_prefix_sums(a) for a in (self.edge_ns, self.cloud_ns, self.down_nbytes))
        fixed_ns = edge[low + 1] + cloud[-1] - cloud[high]
        fixed_nbytes = down[-1] - down[high]
        blocked = np.zeros(len(low), dtype=np.int64)
        for sums, values in (
            (fixed_ns, self.flow_ns), (fixed_nbytes, self.flow_nbytes), (blocked, self.unsendable)
        ):  # fmt: skip
            sums += self._always_crossing(values.astype(np.int64), low, block_of)
        pins_edge, pins_cloud = _prefix_sums(self.pinned_edge), _prefix_sums(self.pinned_cloud)
        allowed = (blocked == 0) & (pins_cloud[low + 1] == 0) & (pins_edge[-1] == pins_edge[high])
        open_ns = np.zeros(len(low), dtype=np.int64)
        inside = np.flatnonzero(block_of[:-1] >= 0)
        np.add.at(open_ns, block_of[inside], np.minimum(self.edge_ns, self.cloud_ns)[inside])
        feasible = allowed & ~self._contradicting(len(low))
        return Blocks(low, high, fixed_ns, fixed_nbytes, fixed_ns + open_ns, fixed_nbytes, feasible)

    def _always_crossing(self, values: Int64s, low: Int64s, block_of: Int64s) -> Int64s:
        """For each block, the sum over flows made up to its low end and read at or beyond its high end."""
        sums = np.zeros(self.count + 2, dtype=np.int64)
        np.add.at(sums, self.source + 1, values)
        np.subtract.at(sums, self.last + 1, values)
        total = np.cumsum(sums)[low + 1]  # read anywhere beyond the low end ...
        ends_in = block_of[self.last]
        inside = (ends_in >= 0) & (self.source <= low[ends_in] if len(low) else False)
        np.subtract.at(total, ends_in[inside], values[inside])  # ... less what is read for the last time inside
        return total

    def _contradicting(self, count: int) -> Bools:
        """Blocks in which pins and unsendable tensors leave no placement: infinite arcs join source and sink."""
        bad = np.zeros(count, dtype=bool)
        endless = self.arcs._pick(self.arcs.infinite)
        source, sink = self.nodes - 2, self.nodes - 1
        if not (len(endless.tail) and (endless.tail == source).any() and (endless.head == sink).any()):
            return bad
        graph = csr_array(
            (np.ones(len(endless.tail), np.int32), (endless.tail, endless.head)), shape=(self.nodes, self.nodes)
        )
        reached = np.zeros(self.nodes, dtype=bool)
        reached[breadth_first_order(graph, source, directed=True, return_predecessors=False)] = True
        bad[endless.block[reached[endless.tail] & (endless.head == sink)]] = True
        return bad


class _ArcList:
    """Collects the arcs of all blocks."""

    def __init__(self, network: Network, low: Int64s, high: Int64s, block_of: Int64s) -> None:
        self._network = network
        self._low, self._high, self._block_of = low, high, block_of
        self._source, self._sink = network.nodes - 2, network.nodes - 1
        self._parts: list[tuple[Int64s, Int64s, Int64s, Int64s, Bools, Int64s]] = []

    def arcs(self) -> Arcs:
        self._units()
        self._flows()
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        return Arcs(*columns)

    def _add(
        self,
        tail: npt.ArrayLike,
        head: npt.ArrayLike,
        block: Int64s,
        line: tuple[Int64s, Int64s] | None,
        endless: Bools,
    ) -> None:
        """Arcs with the lines given, infinite where `endless`."""
        shape = block.shape
        zeros = np.zeros(shape, dtype=np.int64)
        ns, nbytes = line or (zeros, zeros)
        ends = [np.broadcast_to(np.asarray(e, dtype=np.int64), shape) for e in (tail, head)]
        self._parts.append((ends[0], ends[1], ns, nbytes, endless, block))

    def _endless(self, tail: npt.ArrayLike, head: npt.ArrayLike, block: Int64s) -> None:
        self._add(tail, head, block, None, np.ones(block.shape, dtype=bool))

    def _units(self) -> None:
        net = self._network
        inside = np.flatnonzero(self._block_of[:-1] >= 0)
        block = self._block_of[inside]
        at_gateway = (net.cloud_ns[inside], net.down_nbytes[inside])
        self._add(self._source, inside, block, at_gateway, net.pinned_edge[inside])
        on_device = (net.edge_ns[inside], np.zeros(len(inside), dtype=np.int64))
        self._add(inside, self._sink, block, on_device, net.pinned_cloud[inside])

    def _flows(self) -> None:
        net, block_of = self._network, self._block_of
        made_in = np.where(net.source >= 0, block_of[np.maximum(net.source, 0)], -1)
        read_in = block_of[net.entry_reader]
        own = (made_in[net.entry_flow] >= 0) & (made_in[net.entry_flow] == read_in)
        # A reader on the device has the maker there.
        self._endless(net.entry_reader[own], net.source[net.entry_flow[own]], read_in[own])
        # Made inside, read inside only, or also beyond: then it crosses as soon as its maker is on the device.
        inner = made_in >= 0
        beyond = inner & (net.last >= self._high[made_in] if len(self._high) else False)
        self._add(net.source[beyond], self._sink, made_in[beyond], *self._line(beyond))
        self._spread(net.source, made_in, inner & ~beyond, own)
        # Made before the block and read for the last time inside it.
        ends_in = block_of[net.last]
        from_before = (ends_in >= 0) & (made_in != ends_in)
        into = from_before[net.entry_flow] & (read_in == ends_in[net.entry_flow])
        self._spread(np.full(len(net.source), self._source), ends_in, from_before, into)

    def _line(self, flows: Bools) -> tuple[tuple[Int64s, Int64s], Bools]:
        net = self._network
        return (net.flow_ns[flows], net.flow_nbytes[flows]), net.unsendable[flows]

    def _spread(self, tails: Int64s, block: Int64s, flows: Bools, entries: Bools) -> None:
        """Arcs from makers to readers: straight to a single one, through the flow's own node to several."""
        net = self._network
        of, reader = net.entry_flow[entries], net.entry_reader[entries]
        counts = np.bincount(of, minlength=len(net.source))
        single, several = flows & (counts == 1), flows & (counts > 1)
        only_reader = np.zeros(len(net.source), dtype=np.int64)
        only_reader[of] = reader
        self._add(tails[single], only_reader[single], block[single], *self._line(single))
        nodes = net.count + np.flatnonzero(several)
        self._add(tails[several], nodes, block[several], *self._line(several))
        fan = several[of]
        self._endless(net.count + of[fan], reader[fan], block[of[fan]])


def _whole(values: list[float]) -> Int64s:
    return np.rint(np.array(values, dtype=np.float64)).astype(np.int64)


def _prefix_sums(values: npt.NDArray[np.generic]) -> Int64s:
    return np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
