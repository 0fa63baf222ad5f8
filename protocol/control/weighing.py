"""What every placement is worth at one moment: latency with the waits before device and uplink, as a score. Pure.

Most placements are so slow that no queue matters: scores are reckoned when they are asked for, and only where they may
be the best.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from protocol.control.demand import NO_DEMAND, Demand
from protocol.control.learned import Reckoning
from protocol.control.objectives import Objective, probability_late
from protocol.latency import LinkState, leaving_scv, wait_s

# A utilisation is an estimate too: what is not in use must stay below 1, what is in use may be seen above it.
SUSTAINED, ENDURED = 0.97, 1.03
OVERLOADED_S = 1e6  # for each 1 of utilisation: more than any answer takes


class Weighing:
    """Scores of one moment, reckoned when they are asked for: most placements are so slow that no queue matters."""

    def __init__(
        self,
        objective: Objective | None,
        predicted: dict[str, float],
        lines: dict[str, Reckoning],
        state: LinkState,
        demand: Demand,
        budget_s: float | None,
        *,
        current: str | None,
        gateway: str,
        rows: int,
    ) -> None:
        """`objective` is None where only latency counts; `predicted` are seconds alone, in the order of `lines`."""
        self.predicted, self.lines = predicted, lines
        self.state, self.gateway, self.rows = state, gateway, rows
        self._objective, self._current = objective, current
        self._latency = 1.0 if objective is None else objective.latency
        self._demand, self._budget_s = demand, budget_s
        self._plain = objective is None and demand == NO_DEMAND
        self._known: dict[str, tuple[float, float]] = {}

    def best(self, among: Collection[str]) -> str:
        """The one with the least score: no score is less than what its latency contributes to it."""
        if self._plain:
            return min(among, key=self.predicted.__getitem__)
        predicted, latency, wait_s = self.predicted, self._latency, self._demand.device_s
        best = min(among, key=predicted.__getitem__)
        least = self.score(best)
        if latency > 0:  # most cannot be better: they need not even be put into order
            most_s = least / latency - wait_s
            among = [id_ for id_ in among if predicted[id_] < most_s]
        for id_ in sorted(among, key=predicted.__getitem__):
            if (predicted[id_] + wait_s) * latency >= least:
                break
            score = self.score(id_)
            if score < least:
                best, least = id_, score
        return best

    def score(self, id_: str) -> float:
        return self.predicted[id_] if self._plain else self._weighed(id_)[1]

    def expected_s(self, id_: str) -> float:
        """Seconds until the answer, waits included."""
        return self.predicted[id_] if self._plain else self._weighed(id_)[0]

    def _weighed(self, id_: str) -> tuple[float, float]:
        known = self._known.get(id_)
        if known is None:
            known = self._known[id_] = self._weighed_as(id_, self.lines[id_], self.predicted[id_])
        return known

    def score_if(self, id_: str, line: Reckoning) -> float:
        """The score of a placement if this were its cost."""
        return self._weighed_as(id_, line, self._alone_s(id_, line))[1]

    def least_if(self, id_: str, line: Reckoning) -> float:
        """What that is at least, for much less work."""
        return (self._alone_s(id_, line) + self._demand.device_s) * self._latency

    def _alone_s(self, id_: str, line: Reckoning) -> float:
        known = self.lines[id_]
        return self.predicted[id_] - (known.local_s + known.remote_s - line.local_s - line.remote_s)

    def _weighed_as(self, id_: str, line: Reckoning, alone_s: float) -> tuple[float, float]:
        state, demand = self.state, self._demand
        wait = _wait_s(line, state, demand)
        expected_s = alone_s + wait
        busy = utilisation(line, state, demand) if demand.per_s else 0.0
        if busy > (ENDURED if id_ == self._current else SUSTAINED):
            return expected_s, OVERLOADED_S * busy
        if self._objective is None:
            return expected_s, expected_s
        return expected_s, self._weigh(self._objective, line, expected_s, wait)

    def _weigh(self, objective: Objective, line: Reckoning, expected_s: float, wait: float) -> float:
        late, state = 0.0, self.state
        if objective.deadline > 0 and self._budget_s is not None:
            upload_s = line.up_nbytes / state.uplink_bytes_per_s * state.spread
            deviation_s = math.hypot(line.local_s * line.local_noise, line.remote_s * line.remote_noise, upload_s, wait)
            late = probability_late(expected_s, deviation_s, self._budget_s)
        return objective.score(
            expected_s,
            late=late,
            budget_s=self._budget_s or 0.0,
            energy_j=line.cost.energy_j or 0.0,
            nbytes=line.up_nbytes + line.down_nbytes,
            cloud_s=line.remote_s if line.crosses else 0.0,
        )


def _wait_s(line: Reckoning, state: LinkState, demand: Demand) -> float:
    """Seconds in the queues of device and uplink: what is there now, or is to be expected there if that is more."""
    per_s, local_s, device_s = demand.per_s, line.local_s, demand.device_s
    if not per_s:
        return device_s + (max(demand.uplink_s - device_s - local_s, 0.0) if line.crosses else 0.0)
    gaps, noise = demand.gaps_scv, line.local_noise * line.local_noise
    at_device = per_s * local_s if per_s * local_s < SUSTAINED else SUSTAINED
    wait = wait_s(at_device, local_s, gaps, noise)
    if wait < device_s:
        wait = device_s
    if not line.crosses:
        return wait
    upload_s = line.up_nbytes / state.uplink_bytes_per_s
    at_uplink = per_s * upload_s if per_s * upload_s < SUSTAINED else SUSTAINED
    usual_s = wait_s(at_uplink, upload_s, leaving_scv(at_device, gaps, noise), state.spread * state.spread)
    now_s = demand.uplink_s - wait - local_s
    return wait + (now_s if now_s > usual_s else usual_s)


def utilisation(line: Reckoning, state: LinkState, demand: Demand) -> float:
    """The share of its time for which the busiest of device, uplink and downlink works; 0 where no rate is known."""
    busiest_s = line.local_s
    if line.crosses:
        up_s, down_s = line.up_nbytes / state.uplink_bytes_per_s, line.down_nbytes / state.downlink_bytes_per_s
        busiest_s = max(busiest_s, up_s, down_s)
    return demand.per_s * busiest_s
