"""Which placement now: a lookup over a handful of lines, with the link and the speeds as they were last seen. Pure.

The offline costs are a prior. What requests really cost is learned online: one factor for the device (a hot or
throttled device moves every head alike) and one per placement where it was itself measured, and likewise for the
gateway's compute. A switch needs a clear gain (HYSTERESIS), so that noise around a breakpoint does not flap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from protocol.latency import LinkState, PlacementCost, latency_s

HYSTERESIS = 0.08  # a new placement must promise at least this share less latency than the current one
LEARNING_RATE = 0.2
# What was measured long ago, on a busy or throttled device perhaps, may be wrong by now: so many decisions after its
# last measurement a placement gets one request, if it is not predicted to be much slower than the best.
STALE_AFTER = 200
WORTH_A_TRY = 1.5

# What is assumed before anything was measured: a decent mobile link. The first requests replace it.
ASSUMED_LINK = LinkState(uplink_bytes_per_s=10e6 / 8, rtt_s=0.03, downlink_bytes_per_s=10e6 / 8)


class Candidate(NamedTuple):
    id: str
    cost: PlacementCost


class Decision(NamedTuple):
    """The chosen placement. `because_of` holds, when a better one could not be used, that one's id and why."""

    id: str
    predicted_s: float
    because_of: tuple[str, str] | None = None


class Planner:
    """Chooses among `candidates`; `unavailable` says for each id that cannot be used now, why."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._costs = {c.id: c.cost for c in candidates}
        self._edge_factor: float | None = None
        self._edge_factors: dict[str, float] = {}
        self._tail_factors: dict[str, float] = {}
        self._tried_at: dict[str, int] = {}  # number of the decision that last chose it
        self._decisions = 0
        self.current: str | None = None

    def predict(self, link: LinkState | None) -> dict[str, float]:
        """Predicted latency in seconds of every placement, as if each could be used."""
        state = link or ASSUMED_LINK
        return {id_: latency_s(self._adjusted(id_), state) for id_ in self._costs}

    def decide(self, link: LinkState | None, unavailable: Mapping[str, str]) -> Decision | None:
        """The best placement that can be used, or None. Does not change the current placement for a detour:
        what is unavailable for a moment stays current, so that its return is not held back by hysteresis."""
        predicted = self.predict(link)
        self._decisions += 1
        stale = self._stale(predicted, unavailable)
        if stale is not None:
            self._tried_at[stale] = self._decisions
            return Decision(stale, predicted[stale])
        best = min(predicted, key=lambda id_: predicted[id_])
        wanted = best
        if self.current is not None and predicted[best] > (1 - HYSTERESIS) * predicted[self.current]:
            wanted = self.current
        if wanted not in unavailable:
            self.current = wanted
            self._tried_at[wanted] = self._decisions
            return Decision(wanted, predicted[wanted])
        usable = [id_ for id_ in predicted if id_ not in unavailable]
        if not usable:
            return None
        second = min(usable, key=lambda id_: predicted[id_])
        self._tried_at[second] = self._decisions
        return Decision(second, predicted[second], (wanted, unavailable[wanted]))

    def _stale(self, predicted: Mapping[str, float], unavailable: Mapping[str, str]) -> str | None:
        """A usable placement that was once in use, was not for long, and may be better than it is thought to be."""
        bound = WORTH_A_TRY * min(predicted.values())
        for id_, at in self._tried_at.items():
            if self._decisions - at > STALE_AFTER and id_ not in unavailable and predicted[id_] <= bound:
                return id_
        return None

    def observe_edge(self, id_: str, edge_s: float) -> None:
        """What head and encoding of one request really took on the device."""
        planned = self._costs[id_].edge_s + self._costs[id_].encode_s
        if planned <= 0:
            return
        ratio = edge_s / planned
        self._edge_factors[id_] = _learn(self._edge_factors.get(id_), ratio)
        if self._costs[id_].edge_s > 0:  # encoding alone says little about the device's arithmetic
            self._edge_factor = _learn(self._edge_factor, ratio)

    def observe_tail(self, id_: str, compute_s: float) -> None:
        planned = self._costs[id_].tail_s
        if planned > 0:
            self._tail_factors[id_] = _learn(self._tail_factors.get(id_), compute_s / planned)

    def _adjusted(self, id_: str) -> PlacementCost:
        cost = self._costs[id_]
        edge = self._edge_factors.get(id_, self._edge_factor or 1.0)
        tail = self._tail_factors.get(id_, 1.0)
        return msgspec.structs.replace(
            cost, edge_s=cost.edge_s * edge, encode_s=cost.encode_s * edge, tail_s=cost.tail_s * tail
        )


def _learn(old: float | None, seen: float) -> float:
    if old is None:
        return seen  # the first measurement of a placement beats any prior from another machine
    # One outlier (a page fault, a scheduler hiccup) may not move the factor by more than a doubling or a halving.
    bounded = min(max(seen, old / 2), old * 2)
    return old + LEARNING_RATE * (bounded - old)
