"""Which placement now: a lookup over a handful of lines, with the link and the speeds as they were last seen. Pure.

The offline costs are a prior. What requests really cost is learned online: one factor for the device (a hot or
throttled device moves every head alike) and one per head where it was itself measured, and likewise for the
gateway's compute by tail, and one for the bytes of each placement (a stream that moves more than the calibration
samples compresses less). A switch needs a clear gain (HYSTERESIS), so that noise around a breakpoint does not flap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from protocol.latency import LinkState, PlacementCost, latency_s

HYSTERESIS = 0.08  # a new placement must promise at least this share less latency than the current one
LEARNING_RATE = 0.2
# What was measured long ago, on a busy or throttled device perhaps, may be wrong by now: so many decisions after its
# last measurement a placement gets one request, if it is not predicted to be much slower than the best.
STALE_AFTER = 200
WORTH_A_TRY = 1.5
TELLING_ENCODE_S = 200e-6  # planned encodings shorter than this consist of overhead

# What is assumed before anything was measured: a decent mobile link. The first requests replace it.
ASSUMED_LINK = LinkState(uplink_bytes_per_s=10e6 / 8, rtt_s=0.03, downlink_bytes_per_s=10e6 / 8)


class Candidate(NamedTuple):
    """A placement. Candidates that name the same `head` or `tail` share what is learned about its speed; "" is with
    nobody: they do the same work, whatever codec lies between.
    """

    id: str
    cost: PlacementCost
    head: str = ""
    tail: str = ""


class Decision(NamedTuple):
    """The chosen placement. `because_of` holds, when a better one could not be used, that one's id and why."""

    id: str
    predicted_s: float
    because_of: tuple[str, str] | None = None


class Planner:
    """Chooses among `candidates`; `unavailable` says for each id that cannot be used now, why."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._costs = {c.id: c.cost for c in candidates}
        self._heads = {c.id: _device_work(c) for c in candidates}
        self._tails = {c.id: f"tail {c.tail or c.id}" for c in candidates}
        self._works = {c.id: _works(c) for c in candidates}
        self._edge_factor: float | None = None
        self._edge_factors: dict[str, float] = {}  # by work on the device
        self._tail_factors: dict[str, float] = {}  # by tail
        self._size_factors: dict[str, float] = {}  # by placement
        self._sized_at: dict[str, int] = {}  # number of the decision after which each was last measured
        self._used: dict[str, None] = {}  # placements that were ever chosen
        self._tried_at: dict[str, int] = {}  # number of the decision that last chose this work
        self._decisions = 0
        self._adjusted_costs: dict[str, PlacementCost] = {}  # until something is learned that changes them
        self._predicted: tuple[LinkState, dict[str, float]] | None = None
        self.current: str | None = None

    def predict(self, link: LinkState | None) -> dict[str, float]:
        """Predicted latency in seconds of every placement, as if each could be used. Not to be changed."""
        state = link or ASSUMED_LINK
        if self._predicted is None or self._predicted[0] != state:
            self._predicted = state, {id_: latency_s(self._adjusted(id_), state) for id_ in self._costs}
        return self._predicted[1]

    def decide(self, link: LinkState | None, unavailable: Mapping[str, str]) -> Decision | None:
        """The best placement that can be used, or None. Does not change the current placement for a detour:
        what is unavailable for a moment stays current, so that its return is not held back by hysteresis."""
        self._decisions += 1
        if self._decisions % STALE_AFTER == 0:
            self._forget_old_sizes()
        predicted = self.predict(link)
        stale = self._stale(predicted, unavailable)
        if stale is not None:
            return self._choose(stale, predicted)
        best = min(predicted, key=predicted.__getitem__)
        wanted = best
        if self.current is not None and predicted[best] > (1 - HYSTERESIS) * predicted[self.current]:
            wanted = self.current
        if wanted not in unavailable:
            self.current = wanted
            return self._choose(wanted, predicted)
        usable = [id_ for id_ in predicted if id_ not in unavailable]
        if not usable:
            return None
        second = min(usable, key=predicted.__getitem__)
        return self._choose(second, predicted, (wanted, unavailable[wanted]))

    def _choose(self, id_: str, predicted: Mapping[str, float], because_of: tuple[str, str] | None = None) -> Decision:
        self._used[id_] = None
        for work in self._works[id_]:
            self._tried_at[work] = self._decisions
        return Decision(id_, predicted[id_], because_of)

    def _stale(self, predicted: Mapping[str, float], unavailable: Mapping[str, str]) -> str | None:
        """A usable placement that was once in use, whose work was not done for long, and that may be better than it is
        thought to be. A sibling that does the same work keeps it fresh, so that many codecs cost no more than one."""
        before = self._decisions - STALE_AFTER
        if all(at >= before for at in self._tried_at.values()):
            return None
        bound = WORTH_A_TRY * min(predicted.values())
        worth = [
            id_
            for id_ in self._used
            if any(self._tried_at[work] < before for work in self._works[id_])
            and id_ not in unavailable
            and predicted[id_] <= bound
        ]
        return min(worth, key=predicted.__getitem__, default=None)

    def observe_edge(self, id_: str, edge_s: float) -> None:
        """What head and encoding of one request really took on the device."""
        cost, head = self._costs[id_], self._heads[id_]
        planned = cost.edge_s + cost.encode_s
        if planned <= 0:
            return
        ratio = edge_s / planned
        self._edge_factors[head] = _learn(self._edge_factors.get(head), ratio)
        self._forget(other for other, key in self._heads.items() if key == head)
        if cost.edge_s > 0:  # encoding alone says little about the device's arithmetic
            self._edge_factor = _learn(self._edge_factor, ratio)
            self._forget(other for other, key in self._heads.items() if key not in self._edge_factors)

    def observe_nbytes(self, id_: str, nbytes: int) -> None:
        """How much one request's encoding really was. Unlike times, planned sizes hold on any machine."""
        planned = self._costs[id_].up_nbytes
        if planned > 0:
            self._size_factors[id_] = _learn(self._size_factors.get(id_, 1.0), nbytes / planned)
            self._sized_at[id_] = self._decisions
            self._forget((id_,))

    def _forget_old_sizes(self) -> None:
        """What a placement sent long ago says nothing about the scene of today: then the plan's size counts again."""
        old = [id_ for id_, at in self._sized_at.items() if at < self._decisions - STALE_AFTER]
        for id_ in old:
            del self._size_factors[id_], self._sized_at[id_]
        self._forget(old)

    def observe_tail(self, id_: str, compute_s: float) -> None:
        planned, tail = self._costs[id_].tail_s, self._tails[id_]
        if planned > 0:
            self._tail_factors[tail] = _learn(self._tail_factors.get(tail), compute_s / planned)
            self._forget(other for other, key in self._tails.items() if key == tail)

    def _forget(self, ids: Iterable[str]) -> None:
        self._predicted = None
        for id_ in ids:
            self._adjusted_costs.pop(id_, None)

    def _adjusted(self, id_: str) -> PlacementCost:
        known = self._adjusted_costs.get(id_)
        if known is None:
            cost = self._costs[id_]
            edge = self._edge_factors.get(self._heads[id_], self._edge_factor or 1.0)
            tail = self._tail_factors.get(self._tails[id_], 1.0)
            known = self._adjusted_costs[id_] = msgspec.structs.replace(
                cost,
                edge_s=cost.edge_s * edge,
                encode_s=cost.encode_s * edge,
                up_nbytes=cost.up_nbytes * self._size_factors.get(id_, 1.0),
                tail_s=cost.tail_s * tail,
            )
        return known


def _device_work(candidate: Candidate) -> str:
    """What a placement's time on the device is a matter of: its head, or without one (full-cloud) its codec alone.

    Codecs of the input share a speed as heads do, but for those that take next to no time: overhead would be learned
    from them.
    """
    if candidate.head:
        return f"head {candidate.head}"
    return "encoding" if candidate.tail and _encodes(candidate.cost) else f"alone {candidate.id}"


def _works(candidate: Candidate) -> tuple[str, ...]:
    """What must be tried now and then for this placement: its tail, and what takes time on the device."""
    tail = f"tail {candidate.tail or candidate.id}"
    takes_time = candidate.head or not candidate.tail or _encodes(candidate.cost)
    return (_device_work(candidate), tail) if takes_time else (tail,)


def _encodes(cost: PlacementCost) -> bool:
    return cost.edge_s == 0 and cost.encode_s >= TELLING_ENCODE_S


def _learn(old: float | None, seen: float) -> float:
    if old is None:
        return seen  # the first measurement of a placement beats any prior from another machine
    # One outlier (a page fault, a scheduler hiccup) may not move the factor by more than a doubling or a halving.
    bounded = min(max(seen, old / 2), old * 2)
    return old + LEARNING_RATE * (bounded - old)
