"""The cheapest placement within additive budgets (memory, energy, seconds), which is NP-hard: branch and bound. Pure.

    bound     Every budget may be broken at a price: the least of cost + sum of price_j * (spent_j - limit_j) is a
              min-cut and never more than the cheapest placement within all budgets (Lagrangian relaxation). The best
              prices are found by cutting planes (Kelley 1960): each placement met is one plane. They come from a linear
              program in floats, but they are rounded to fractions and the bound is then computed in integers, so it
              holds exactly whatever the prices are.
    branch    on the unit that the mixture of placements behind the best prices is least sure about: once on the device
              with all its predecessors, once at the gateway with all its successors.
    budget    of min-cuts, not of time. When it is spent, the best placement found and a bound from below remain, and
              with them the gap between the two.

Every placement met on the way that keeps the budgets counts, and so does every placement of the first k units.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from partitioner.solver.mincut import sever
from partitioner.solver.network import Bools, Network, Tally

MOST_MIN_CUTS = 3000
_PRICE_UNIT = 1 << 30
_ROUNDS_AT_ROOT, _ROUNDS = 40, 10
# Of a budget's largest excess, in costs of everything. High enough to prove at once that budgets contradict each other
# by a hundred-thousandth: at 1,000 two memory limits that little short of the model took more min-cuts than there are.
_MOST_PRICE = 1e9


class Budget(NamedTuple):
    """What is spent on a placement, item by item in whole numbers, may not exceed `limit`."""

    name: str
    tally: Tally
    limit: int


class Bounded(NamedTuple):
    """The best placement found, or None; no placement within the budgets costs less than `bound`.

    `bound` is None when it is proven that there is no such placement at all.
    """

    on_edge: frozenset[int] | None
    cost: int | None
    bound: int | None
    min_cuts: int

    @property
    def is_infeasible(self) -> bool:
        return self.bound is None

    @property
    def gap(self) -> float:
        """By which share of the cost a better placement may exist: 0 is proven optimal, infinite is none found yet."""
        if self.bound is None:
            return 0.0
        if self.cost is None:
            return float("inf")
        return (self.cost - self.bound) / self.cost if self.cost > self.bound else 0.0


class _Plane(NamedTuple):
    """A placement seen from the prices: its cost, and by how much it exceeds each limit."""

    cost: int
    excess: tuple[int, ...]
    on_edge: Bools


@dataclass(order=True)
class _Node:
    """A part of the search space: some units fixed on either side."""

    bound: int
    number: int
    edge: Bools = field(compare=False)
    cloud: Bools = field(compare=False)
    planes: list[_Plane] = field(compare=False)


def minimise(
    network: Network,
    cost: Tally,
    budgets: Sequence[Budget],
    *,
    below: int | None = None,
    max_min_cuts: int = MOST_MIN_CUTS,
) -> Bounded:
    """The placement with the least `cost` (a tally of whole numbers) that keeps all budgets.

    With `below` only placements cheaper than that are looked for, and `is_infeasible` then means that there is none.
    """
    return _Search(network, cost, budgets, below, max_min_cuts).run()


class _Search:
    def __init__(
        self, network: Network, cost: Tally, budgets: Sequence[Budget], below: int | None, max_min_cuts: int
    ) -> None:
        self._network = network
        self._cost = cost.astype(object)
        self._budgets = budgets
        self._limits = tuple(b.limit for b in budgets)
        self._tallies = [b.tally.astype(object) for b in budgets]
        # More than any placement costs, also where prices are added: what is worth this much is forbidden.
        self._all = int(self._cost.sum()) + 1
        self._best_cost = self._all if below is None else below
        self._best: Bools | None = None
        self._left = max_min_cuts
        self._spent = 0
        self._numbers = itertools.count()

    def run(self) -> Bounded:
        self._try_prefixes()
        nothing = np.zeros(self._network.count, dtype=bool)
        queue: list[_Node] = []
        self._push(queue, _Node(0, 0, nothing, nothing, []))
        while queue and self._spent < self._left:
            node = heapq.heappop(queue)
            if node.bound >= self._best_cost:
                break  # all others are bounded by more
            for child in self._branch(node):
                self._push(queue, child)
        bound = min([self._best_cost, *(node.bound for node in queue[:1])])
        if self._best is None:
            return Bounded(None, None, bound if queue and bound < self._best_cost else None, self._spent)
        return Bounded(frozenset(np.flatnonzero(self._best).tolist()), self._best_cost, bound, self._spent)

    def _push(self, queue: list[_Node], node: _Node) -> None:
        bounded = self._bounded(node)
        if bounded is not None:
            heapq.heappush(queue, bounded)

    # ---- bounds

    def _bounded(self, node: _Node) -> _Node | None:
        """The node with the best bound that a few rounds of prices give; None if nothing in it can be the best."""
        planes = list(node.planes)
        bound, known = node.bound, {p.on_edge.tobytes() for p in planes}
        prices = tuple(0 for _ in self._budgets)
        rounds = _ROUNDS if node.number else _ROUNDS_AT_ROOT
        for turn in range(rounds):
            if turn or planes:
                prices = self._best_prices(planes)
            plane = self._cheapest(node, prices)
            if plane is None:
                return None
            bound = max(bound, self._bound_of(plane, prices))
            if bound >= self._best_cost:
                return None
            if plane.on_edge.tobytes() in known:
                break
            known.add(plane.on_edge.tobytes())
            planes.append(plane)
        return _Node(bound, next(self._numbers) + 1, node.edge, node.cloud, planes)

    def _bound_of(self, plane: _Plane, prices: Sequence[int]) -> int:
        fined = sum(price * excess for price, excess in zip(prices, plane.excess, strict=True))
        return plane.cost + -(-fined // _PRICE_UNIT)

    def _best_prices(self, planes: Sequence[_Plane]) -> tuple[int, ...]:
        """Prices that maximise the least over the planes: in floats, for they only have to be good."""
        if not self._budgets:
            return ()
        from scipy.optimize import linprog  # in here: half a second, and most plans have no budget

        scale = [max(1, *(abs(p.excess[j]) for p in planes)) for j in range(len(self._budgets))]
        rows = [
            [1.0, *(-e / s for e, s in zip(p.excess, scale, strict=True))] for p in planes
        ]  # bound - sum of price * excess <= cost
        unit = float(self._all)
        limits = [p.cost / unit for p in planes]
        result = linprog(
            [-1.0, *(0.0 for _ in scale)],
            A_ub=rows,
            b_ub=limits,
            bounds=[(None, None), *((0, _MOST_PRICE) for _ in scale)],
        )
        if result.x is None:
            return tuple(0 for _ in scale)
        return tuple(
            max(0, round(float(x) * _PRICE_UNIT) * self._all // s) for x, s in zip(result.x[1:], scale, strict=True)
        )

    def _cheapest(self, node: _Node, prices: Sequence[int]) -> _Plane | None:
        """The placement in this node that is cheapest at these prices; None if pins leave none."""
        tally = self._cost * _PRICE_UNIT
        for price, spent in zip(prices, self._tallies, strict=True):
            if price:
                tally = tally + spent * price
        forbidden = int(tally.sum()) + 1
        n = self._network.count
        tally[n : 2 * n][node.edge] += forbidden
        tally[:n][node.cloud] += forbidden
        self._spent += 1
        found = least(self._network, tally)
        if found is None or found[0] >= forbidden:
            return None
        return self._met(found[1])

    def _met(self, on_edge: Bools) -> _Plane:
        """A placement was found: is it the best so far?"""
        paid = items(self._network, on_edge)
        cost = int(self._cost[paid].sum())
        excess = tuple(int(tally[paid].sum()) - limit for tally, limit in zip(self._tallies, self._limits, strict=True))
        if cost < self._best_cost and max(excess, default=0) <= 0:
            self._best_cost, self._best = cost, on_edge
        return _Plane(cost, excess, on_edge)

    def _try_prefixes(self) -> None:
        network = self._network
        allowed = network.feasible_prefixes.copy()
        for tally, limit in zip(self._tallies, self._limits, strict=True):
            allowed &= np.asarray(network.totals(tally).prefix <= limit, dtype=bool)
        where = np.flatnonzero(allowed)
        if len(where):
            costs = network.totals(self._cost).prefix[where]
            k = int(where[int(np.argmin(costs))])
            self._met(np.arange(network.count) < k)

    # ---- branching

    def _branch(self, node: _Node) -> list[_Node]:
        unit = self._least_sure(node)
        if unit is None:
            return []
        edge, cloud = node.edge.copy(), node.cloud.copy()
        edge[[unit, *self._network.ancestors(unit)]] = True
        cloud[[unit, *self._network.descendants(unit)]] = True
        return [self._child(node, edge, node.cloud), self._child(node, node.edge, cloud)]

    def _child(self, node: _Node, edge: Bools, cloud: Bools) -> _Node:
        fitting = [p for p in node.planes if p.on_edge[edge].all() and not p.on_edge[cloud].any()]
        return _Node(node.bound, 1, edge, cloud, fitting)

    def _least_sure(self, node: _Node) -> int | None:
        """The free unit that about half of the last placements put on the device; among equals the weightiest."""
        free = ~(node.edge | node.cloud)
        if not free.any():
            return None
        recent = node.planes[-4:]
        share = np.mean([p.on_edge for p in recent], axis=0) if recent else np.full(self._network.count, 0.5)
        doubt = np.where(free, -np.abs(share - 0.5), -1.0)
        candidates = np.flatnonzero(doubt == doubt.max())
        return int(candidates[int(np.argmax(self._weights[candidates]))])

    @property
    def _weights(self) -> Tally:
        n = self._network.count
        total = sum((t[:n] + t[n : 2 * n] for t in self._tallies), self._cost[:n] * 0)
        return np.asarray(total.astype(np.float64))


def least(network: Network, tally: Tally) -> tuple[int, Bools] | None:
    """The placement that pays least of `tally`, without budgets; None if pins leave none."""
    totals = network.totals(tally)
    best: tuple[int, Bools] | None = None
    where = np.flatnonzero(network.feasible_prefixes)
    at = np.arange(network.count)
    if len(where):
        k = int(where[int(np.argmin(totals.prefix[where]))])
        best = int(totals.prefix[k]), at < k
    active = network.blocks.feasible
    if best is not None:
        active = active & np.asarray(totals.least < best[0], dtype=bool)
    if active.any():
        severed = sever(network, tally, active)
        values = severed.totals(totals.fixed, tally)
        i = int(np.argmin(values))
        if best is None or values[i] < best[0]:
            first, inside = severed.inside(network)[i]
            on_edge = at < first
            on_edge[list(inside)] = True
            best = int(values[i]), on_edge
    return best


def items(network: Network, on_edge: Bools) -> Bools:
    """What a placement pays for, as a mask over the items."""
    made_here = np.where(network.source >= 0, on_edge[np.maximum(network.source, 0)], True)
    read_there = np.zeros(len(network.source), dtype=bool)
    read_there[network.entry_flow[~on_edge[network.entry_reader]]] = True
    return np.concatenate([on_edge, ~on_edge, made_here & read_there])
