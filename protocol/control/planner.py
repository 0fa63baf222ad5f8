"""Which placement now: a lookup over a handful of lines, with the link and the speeds as they were last seen. Pure.

The offline costs are a prior; what requests really cost is `learned` online. Where requests follow each other
(`demand`) a placement costs its mean wait on device and uplink as well, and one that asks more of either than it can do
(a utilisation of 1) loses against any that does not, however fast it is alone. What "best" means is the `objective`.

The best is not changed for nothing. Two placements are two lines over x = 1/uplink, which cross at a breakpoint x*. One
estimate of x has a standard error s, so the other side is believed only when |x - x*| > DOUBTS * s; in terms of the
gain, which is what the lines differ by, that is

    gain > DOUBTS * |difference of slopes| * s            and likewise for the learned speeds, added in quadrature

and never less than LEAST_GAIN of what the current one costs. After a switch only a large gain (DWELL_GAIN) makes
another within DWELL_S. Where nobody knows the estimate's error the gain must be HYSTERESIS.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from protocol.control.demand import NO_DEMAND, Demand
from protocol.control.explanation import Circumstances, Explanation, Reckoned, explained
from protocol.control.learned import MOST_GATEWAYS, Candidate, Learned, works
from protocol.control.objectives import LATENCY, Objective
from protocol.control.speeds import LEARNING_RATE
from protocol.control.weighing import OVERLOADED_S, Weighing, utilisation
from protocol.errors import InputError
from protocol.latency import LinkState

__all__ = ["ASSUMED_LINK", "HYSTERESIS", "STALE_AFTER", "Candidate", "Decision", "Planner"]

HYSTERESIS = 0.08  # of the current one's score, where nothing is known about the estimate's error
LEAST_GAIN = 0.02
LEAST_GAIN_S = 0.0005  # a head that did not run for a while has to fetch its weights into the caches again
DOUBTS = 3.0  # standard errors
DWELL_S = 1.0
DWELL_GAIN = 0.25
# What was measured long ago, on a busy or throttled device perhaps, may be wrong by now: so many decisions after its
# last measurement a placement gets one request, if it is not predicted to be much slower than the best.
STALE_AFTER = 200
WORTH_A_TRY = 1.5
# What was left because it had become slower is tried again after so many decisions, then after twice as many.
RETRY_AFTER = 10

# What is assumed before anything was measured: a decent mobile link. The first requests replace it.
ASSUMED_LINK = LinkState(uplink_bytes_per_s=10e6 / 8, rtt_s=0.03, downlink_bytes_per_s=10e6 / 8)
_LEARNED_NOISE = math.sqrt(LEARNING_RATE / (2 - LEARNING_RATE))  # of a factor, over that of one measurement


class Decision(NamedTuple):
    """The chosen placement. `instead_of` is the better one, where that could not be used."""

    id: str
    predicted_s: float
    instead_of: str | None = None


class Planner:
    """Chooses among `candidates`; `unavailable` says for each id that cannot be used now, why."""

    def __init__(self, candidates: Sequence[Candidate], objective: Objective = LATENCY) -> None:
        """Raises InputError for an objective that weighs energy where a placement's is not known."""
        unknown = [c.id for c in candidates if c.cost.energy_j is None]
        if objective.energy > 0 and unknown:
            raise InputError(
                f"the objective weighs energy, but the bundle does not know that of {', '.join(unknown)}",
                "build the bundle with the device's power declared, or choose another objective",
            )
        self.objective = objective
        self._objective = objective if not objective.is_latency else None  # asked for in every decision
        self.current: str | None = None
        self.switches = 0
        self.learned = Learned(candidates)
        self._works = {c.id: works(c) for c in candidates}
        self._sized_at: dict[str, int] = {}  # number of the decision after which each was last measured
        self._used: dict[str, None] = {}  # placements that were ever chosen
        self._tried_at: dict[str, int] = {}  # number of the decision that last chose this work
        self._patience: dict[str, int] = {}  # decisions until what was tried in vain is tried again
        self._decisions = 0
        self._switched_at = -math.inf
        self._budget_s: float | None = None  # of the last request that was decided
        self._predicted: dict[str, tuple[LinkState, int, dict[str, float]]] = {}  # by gateway

    # ---- decisions --------------------------------------------------------------------------------------------------

    def predict(self, link: LinkState | None, gateway: str = "", rows: int = 1) -> dict[str, float]:
        """Predicted latency in seconds of every placement for one request of `rows` alone over this link to this
        gateway, as if each could be used. Not to be changed."""
        state, version = link or ASSUMED_LINK, self.learned.version
        if rows != 1:
            travel_s = state.rtt_s + state.queue_s
            return {
                id_: travel_s + rows * (alone_s - travel_s)
                if self.learned.all(gateway)[id_].crosses
                else rows * alone_s
                for id_, alone_s in self.predict(link, gateway).items()
            }
        known = self._predicted.get(gateway)
        if known is not None and known[1] == version and known[0] == state:
            return known[2]
        x, y = 1 / state.uplink_bytes_per_s, 1 / state.downlink_bytes_per_s
        travel_s = state.rtt_s + state.queue_s
        predicted = {  # unpacked: half the time of looking eight fields up by name
            id_: local_s + remote_s + travel_s + up_nbytes * x + down_nbytes * y if crosses else local_s
            for id_, (_, local_s, remote_s, up_nbytes, down_nbytes, crosses, _, _) in self.learned.all(gateway).items()
        }
        if known is None and len(self._predicted) >= MOST_GATEWAYS:
            self._predicted.clear()
        self._predicted[gateway] = state, version, predicted
        return predicted

    def local_s(self, id_: str, rows: int = 1) -> float:
        """Seconds that head and encoding of a placement are predicted to keep the device busy."""
        return rows * self.learned.all()[id_].local_s

    def decide(
        self,
        link: LinkState | None,
        unavailable: Collection[str],
        *,
        demand: Demand = NO_DEMAND,
        budget_s: float | None = None,
        gateway: str = "",
        rows: int = 1,
        now: float | None = None,
    ) -> Decision | None:
        """The best placement that can be used, or None. Does not change the current placement for a detour:
        what is unavailable for a moment stays current, so that its return is not held back by hysteresis.

        `demand` is what device and uplink have to do, `budget_s` what is left of this request's, `gateway` is who would
        do the rest, over `link`, `rows` how many times the planned work it is; `now` is in monotonic seconds (None: no
        dwell time).
        """
        self._decisions += 1
        self._budget_s = budget_s
        if self._decisions % STALE_AFTER == 0:
            self._forget_old_sizes()
        state = link or ASSUMED_LINK
        seen = self._weighing(state, demand, budget_s, gateway, rows)
        usable = [id_ for id_ in seen.predicted if id_ not in unavailable] if unavailable else list(seen.predicted)
        again = self._stale(seen, usable) or self._hopeful(seen, usable)
        if again is not None:
            return self._choose(again, seen)
        wanted = seen.best(seen.predicted)
        if self.current is not None and wanted != self.current:
            score = seen.score(self.current)
            if score - seen.score(wanted) <= self._gain_needed(wanted, score, seen, now):
                wanted = self.current
        if not usable:
            return None
        if wanted in unavailable:
            return self._choose(seen.best(usable), seen, instead_of=wanted)
        if wanted != self.current:
            self.switches += self.current is not None
            self.current, self._switched_at = wanted, now if now is not None else -math.inf
            self._patience.pop(wanted, None)
        if budget_s is not None and seen.expected_s(wanted) > budget_s:  # for this request alone
            fastest = min(usable, key=seen.expected_s)
            wanted = fastest if seen.expected_s(fastest) <= budget_s else wanted
        return self._choose(wanted, seen)

    def explain(
        self,
        link: LinkState | None,
        unavailable: Mapping[str, str],
        *,
        demand: Demand = NO_DEMAND,
        budget_s: float | None = None,
        gateway: str = "",
    ) -> Explanation:
        """Why the current placement, why none of the others, and what would change that. Changes nothing.

        Without a `budget_s` the next request is taken to have that of the last one.
        """
        state = link or ASSUMED_LINK
        budget_s = self._budget_s if budget_s is None else budget_s
        weighed = self._weighing(state, demand, budget_s, gateway)
        needed = 0.0
        if self.current is not None:
            best = weighed.best(weighed.predicted)
            needed = self._gain_needed(best, weighed.score(self.current), weighed, None)
        reckoned = [
            Reckoned(
                id_,
                line.cost,
                weighed.expected_s(id_),
                weighed.score(id_),
                utilisation(line, state, demand),
                weighed.score(id_) >= OVERLOADED_S / 2,
            )
            for id_, line in weighed.lines.items()
        ]
        seen = Circumstances(
            self.objective, state, link is not None, demand, budget_s, self.learned.device_factor, needed
        )
        return explained(reckoned, self.current, unavailable, seen)

    def _weighing(
        self, state: LinkState, demand: Demand, budget_s: float | None, gateway: str, rows: int = 1
    ) -> Weighing:
        lines = self.learned.all(gateway)
        if rows != 1:
            lines = {id_: line.times(rows) for id_, line in lines.items()}
        predicted = self.predict(state, gateway, rows)
        return Weighing(
            self._objective, predicted, lines, state, demand, budget_s, current=self.current, gateway=gateway, rows=rows
        )

    def _gain_needed(self, best: str, score: float, seen: Weighing, now: float | None) -> float:
        """By how much `best` must beat the current placement, whose score is given, to take over."""
        current, state = self.current or best, seen.state
        needed = LEAST_GAIN_S * self.objective.latency
        if state.doubt is None or self.objective.deadline > 0:
            needed = max(needed, HYSTERESIS * score)
        if state.doubt is not None:
            old, new = seen.lines[current], seen.lines[best]
            slope = old.up_nbytes - new.up_nbytes
            slope += (old.down_nbytes - new.down_nbytes) * state.uplink_bytes_per_s / state.downlink_bytes_per_s
            parts = [slope / state.uplink_bytes_per_s * state.doubt]
            if self.learned.heads[current] != self.learned.heads[best]:
                parts += [_LEARNED_NOISE * line.local_s * line.local_noise for line in (old, new)]
            if self.learned.tails[current] != self.learned.tails[best]:
                parts += [_LEARNED_NOISE * line.remote_s * line.remote_noise for line in (old, new)]
            needed = max(needed, LEAST_GAIN * score, DOUBTS * self.objective.latency * math.hypot(*parts))
        if now is not None and now - self._switched_at < DWELL_S:
            needed = max(needed, DWELL_GAIN * score)
        return needed

    def _choose(self, id_: str, seen: Weighing, *, instead_of: str | None = None) -> Decision:
        self._used[id_] = None
        for work in self._works[id_]:
            if self._decisions - self._tried_at.get(work, 0) >= RETRY_AFTER:
                self.learned.doubt(work)
            self._tried_at[work] = self._decisions
        return Decision(id_, seen.expected_s(id_), instead_of)

    def _stale(self, seen: Weighing, usable: Sequence[str]) -> str | None:
        """A usable placement that was once in use, whose work was not done for long, and that may be better than it is
        thought to be. A sibling that does the same work keeps it fresh, so that many codecs cost no more than one."""
        before = self._decisions - STALE_AFTER
        if min(self._tried_at.values(), default=before) >= before:
            return None
        bound = WORTH_A_TRY * seen.score(seen.best(seen.predicted))
        worth = [
            id_
            for id_ in self._used
            if any(self._tried_at[work] < before for work in self._works[id_])
            and id_ in usable
            and seen.score(id_) <= bound
        ]
        return min(worth, key=seen.score, default=None)

    def _hopeful(self, seen: Weighing, usable: Sequence[str]) -> str | None:
        """A usable placement that was left because it had become slower, and that would be the best at its usual speed.

        What made a device slow for a moment does not say when it ends: only trying shows. Each trial in vain doubles
        the time to the next; one that finds it fast again is repeated at once until that is certain.
        """
        recovering = self.learned.recovering
        if not usable or (self._decisions % RETRY_AFTER and not (recovering and self._patience)):
            return None
        best = seen.best(usable)
        bound = (1 - LEAST_GAIN) * seen.score(best) - LEAST_GAIN_S * self.objective.latency
        found: tuple[float, str] | None = None
        for id_, hoped in self.learned.hopes(seen.gateway).items():
            if id_ == best or id_ not in usable or not self._may_retry(id_, recovering):
                continue
            line = hoped if seen.rows == 1 else hoped.times(seen.rows)
            if seen.least_if(id_, line) >= bound:  # most need not be weighed
                continue
            score = seen.score_if(id_, line)
            if score < (bound if found is None else found[0]):
                found = score, id_
        if found is None:
            return None
        id_ = found[1]
        if not recovering.intersection(self._works[id_]):
            self._patience[id_] = min(2 * self._patience.get(id_, RETRY_AFTER), STALE_AFTER)
        return id_

    def _may_retry(self, id_: str, recovering: Collection[str]) -> bool:
        patience = self._patience.get(id_)
        if patience is not None and any(work in recovering for work in self._works[id_]):
            return True
        last = min(self._tried_at.get(work, 0) for work in self._works[id_])
        return self._decisions - last >= (patience or RETRY_AFTER)

    # ---- what is learned --------------------------------------------------------------------------------------------

    def observe_edge(self, id_: str, edge_s: float, rows: int = 1) -> None:
        """What head and encoding of one request really took on the device."""
        self.learned.edge(id_, edge_s / rows)

    def observe_nbytes(self, id_: str, nbytes: int, rows: int = 1) -> None:
        """How much one request's encoding really was."""
        self.learned.nbytes(id_, nbytes / rows)
        self._sized_at[id_] = self._decisions

    def observe_tail(self, id_: str, compute_s: float, gateway: str = "", rows: int = 1) -> None:
        """What the batch that this request was in took at this gateway."""
        self.learned.tail(id_, compute_s / rows, gateway)

    def _forget_old_sizes(self) -> None:
        """What a placement sent long ago says nothing about the scene of today: then the plan's size counts again."""
        old = [id_ for id_, at in self._sized_at.items() if at < self._decisions - STALE_AFTER]
        for id_ in old:
            del self._sized_at[id_]
        self.learned.forget_sizes(old)
