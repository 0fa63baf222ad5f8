"""The cheapest placement at one bandwidth, exactly: closure min-cuts in integers, over scipy's Dinic. Pure.

The network (Picard's closure with one extra node for each tensor that several units read, so that it is paid once):

    device ---- cloud_s + result bytes ----> unit ---- edge_s ----> gateway        cut = what the placement costs
    source ---- bytes / uplink + codec ----> (tensor) ---- infinite ----> readers
    reader ---- infinite ----> source        a unit on the device has its predecessors there

The last row is what the published DADS cut lacks; without it the answer is wrong as soon as some unit is slower at the
gateway. Three more things stand between the textbook and an answer that can be trusted:

    blocks     A unit through which everything passes (a *waist*: all other units are its ancestors or descendants)
               splits the problem: if waist i is on the device and waist i + 1 is not, only the units between them are
               open. Cuts between adjacent waists are mere lines, and all other blocks are solved side by side in one
               flow, without those that cannot win. Hence chains of any length are cheap.
    integers   Times are whole nanoseconds, sizes whole bytes, and 1/bandwidth is a fraction p/q of nanoseconds per
               byte, so a placement with a ns and b bytes costs the integer a * q + b * p, and no float is compared.
    levels     scipy casts capacities to 32 bits without a word (2**40 becomes 0). So each flow is found in steps of at
               most 29 bits: solve with the high bits, subtract, go on with what is left. What is left is bounded by the
               residual of the cut just found, and an arc above that bound cannot bind (capacity scaling, Gabow 1985).
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from partitioner.solver.network import Arcs, Bools, Network, Tally
from protocol.errors import InvariantViolation

_LEVEL_BITS = 29  # an antiparallel pair of arcs then stays below 2**31 together
_INT64_BITS = 62


class Severed(NamedTuple):
    """The cheapest placement in each of some blocks: which arcs it severs, and who is on the device."""

    blocks: npt.NDArray[np.intp]  # those that were looked at
    arcs: Arcs  # of all these blocks, severed ones only
    on_device: Bools  # for every unit inside these blocks

    def totals(self, fixed: Tally, tally: Tally) -> Tally:
        """What the placements pay of `tally`, one for each block looked at; `fixed` are the blocks' own totals."""
        sums = fixed.copy()
        np.add.at(sums, self.arcs.block, tally[self.arcs.item])
        return sums[self.blocks]

    def inside(self, network: Network) -> list[tuple[int, tuple[int, ...]]]:
        """For each block looked at: the first unit that is not on the device, and the later ones that are."""
        found = []
        for b in self.blocks.tolist():
            low, high = int(network.blocks.low[b]) + 1, int(network.blocks.high[b])
            here = self.on_device[low:high]
            first = low + int(np.argmin(here)) if not here.all() else high
            found.append((first, tuple((np.flatnonzero(here[first - low :]) + first).tolist())))
        return found


def sever(network: Network, tally: Tally, active: Bools) -> Severed:
    """The cheapest placement in each `active` block under `tally`, all in one maximum flow."""
    arcs = network.arcs.only(active[network.arcs.block])
    capacities = np.where(arcs.infinite, 0, tally[arcs.item])
    source_side = min_cut(arcs, capacities, network.nodes)
    cut = source_side[arcs.tail] & ~source_side[arcs.head]
    return Severed(np.flatnonzero(active), arcs.only(cut), source_side[: network.count])


def combine(ns: Tally, nbytes: Tally, x: Fraction) -> Tally:
    """ns * q + nbytes * p for x = p/q ns per byte, in Python integers where 64 bits could overflow."""
    p, q = x.numerator, x.denominator
    most = (int(ns.max(initial=0)) + 1) * q + (int(nbytes.max(initial=0)) + 1) * p
    # The sum over all of them must fit as well.
    if most.bit_length() + len(ns).bit_length() > _INT64_BITS:
        return np.asarray(ns.astype(object) * q + nbytes.astype(object) * p)
    return np.asarray(ns * q + nbytes * p)


def min_cut(arcs: Arcs, capacities: Tally, nodes: int) -> Bools:
    """The smallest source side of a minimum cut, as a mask over the nodes; the last two are source and sink.

    `capacities` are any non-negative integers, arcs marked infinite never cut. The caller must have excluded networks
    in which infinite arcs join source and sink.
    """
    used = np.zeros(nodes, dtype=bool)
    used[arcs.tail] = used[arcs.head] = True
    used[-2:] = True
    number = np.cumsum(used) - 1
    graph = _Residual(number[arcs.tail], number[arcs.head], capacities, arcs.infinite, int(number[-1]) + 1)
    graph.saturate()
    side = np.zeros(nodes, dtype=bool)
    side[used] = graph.reached()
    return side


class _Residual:
    """A symmetric CSR structure whose capacities shrink level by level until the flow is maximal."""

    def __init__(
        self,
        tail: npt.NDArray[np.intp],
        head: npt.NDArray[np.intp],
        capacities: Tally,
        infinite: Bools,
        nodes: int,
    ) -> None:
        self._nodes = nodes
        forward, backward = tail * nodes + head, head * nodes + tail
        keys, where = np.unique(np.concatenate([forward, backward]), return_inverse=True)
        where = where[: len(tail)]
        self._tail, self._head = keys // nodes, (keys % nodes).astype(np.int32)
        self._starts = np.searchsorted(self._tail, np.arange(nodes + 1)).astype(np.int32)
        finite = ~infinite
        self._left: Tally = np.zeros(len(keys), dtype=capacities.dtype)
        np.add.at(self._left, where[finite], capacities[finite])
        endless = np.zeros(len(keys), dtype=bool)
        endless[where[infinite]] = True
        self._bound = self._value_bound(endless)
        self._left[endless] = self._bound + 1

    def _value_bound(self, endless: Bools) -> int:
        """More than this cannot flow: the least of what leaves the source, what enters the sink, and all there is."""
        source, sink = self._nodes - 2, self._nodes - 1
        bounds = [int(self._left.sum())]
        ends = (self._tail == source, self._head == sink)
        return min([*bounds, *(int(self._left[arcs].sum()) for arcs in ends if not endless[arcs].any())])

    def saturate(self) -> None:
        while self._bound > 0:
            shift = max(0, self._bound.bit_length() - _LEVEL_BITS)
            # An arc wider than all that can still flow is as good as infinite; one more than the bound never saturates.
            coarse = np.where(self._left > self._bound, (self._bound >> shift) + 1, self._left >> shift)
            graph = self._csr(coarse.astype(np.int32))
            flow = maximum_flow(graph, self._nodes - 2, self._nodes - 1, method="dinic").flow
            if len(flow.data) != len(coarse):
                raise InvariantViolation("scipy changed the arcs of a graph in which every arc has its reverse")
            self._left = self._left - (flow.data.astype(self._left.dtype) << shift)
            if shift == 0:
                return
            side = self._reached(coarse.astype(np.int64) > flow.data)
            severed = side[self._tail] & ~side[self._head]
            self._bound = int(self._left[severed].sum())

    def reached(self) -> Bools:
        return self._reached(np.asarray(self._left > 0, dtype=bool))

    def _reached(self, open_arcs: Bools) -> Bools:
        """Nodes that the source still reaches."""
        starts = np.concatenate([[0], np.cumsum(open_arcs)])[self._starts].astype(np.int32)
        heads = self._head[open_arcs]
        graph = csr_array((np.ones(len(heads), np.int32), heads, starts), shape=(self._nodes, self._nodes))
        order = breadth_first_order(graph, self._nodes - 2, directed=True, return_predecessors=False)
        side = np.zeros(self._nodes, dtype=bool)
        side[order] = True
        return side

    def _csr(self, data: npt.NDArray[np.int32]) -> csr_array:
        return csr_array((data, self._head, self._starts), shape=(self._nodes, self._nodes))
