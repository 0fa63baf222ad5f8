"""What each placement costs by now: the bundle's costs as a prior, and what requests really took. Pure.

One factor for the device (a hot or throttled device moves every head alike) and one per head where it was itself
measured, likewise for each gateway's compute by tail (where it was not measured yet, as at the last that was), and
one for the bytes of each placement (a stream that moves more than the calibration samples compresses less). How a
factor follows what is seen: `speeds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from protocol.control.speeds import STEP_SAMPLES, Speed
from protocol.latency import DEVIATIONS_OF_SPREAD, PlacementCost

MOST_GATEWAYS = 16  # names come and go: what was learned of those that were not heard for longest is forgotten
TELLING_ENCODE_S = 200e-6  # planned encodings shorter than this consist of overhead
TRUSTED = 4  # measurements that the plan's sizes are worth: they hold on any machine
TELLING_STEP_S = 1e-3  # work shorter than this may step for reasons of its own


class Candidate(NamedTuple):
    """A placement. Candidates that name the same `head` or `tail` share what is learned about its speed; "" is with
    nobody: they do the same work, whatever codec lies between.
    """

    id: str
    cost: PlacementCost
    head: str = ""
    tail: str = ""


class Reckoning(NamedTuple):
    """A placement's cost with what was learned: seconds, bytes, and relative standard deviations of the seconds."""

    cost: PlacementCost
    local_s: float
    remote_s: float
    up_nbytes: float
    down_nbytes: float
    crosses: bool
    local_noise: float
    remote_noise: float

    def times(self, rows: int) -> Reckoning:
        """That of a request of so many rows."""
        cost, energy_j = self.cost, self.cost.energy_j
        cost = msgspec.structs.replace(cost, energy_j=None if energy_j is None else energy_j * rows)
        return self._replace(
            cost=cost,
            local_s=self.local_s * rows,
            remote_s=self.remote_s * rows,
            up_nbytes=self.up_nbytes * rows,
            down_nbytes=self.down_nbytes * rows,
        )


class Learned:
    """Feed it what was measured; ask `all()`. `version` changes whenever an answer does."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.heads = {c.id: _device_work(c) for c in candidates}
        self.tails = {c.id: f"tail {c.tail or c.id}" for c in candidates}
        self.version = 0
        self._costs = {c.id: c.cost for c in candidates}
        self._device = Speed()
        self._edge_speeds: dict[str, Speed] = {}  # by work on the device
        self._tail_speeds: dict[str, dict[str, Speed]] = {}  # by gateway, the one heard last at the end, and tail
        self._any_tail: dict[str, Speed] = {}  # by tail, of the gateway that was last measured
        self._sizes: dict[str, Speed] = {}  # by placement
        self._count = 0  # of measurements on the device
        self._device_seen_at = 0
        self._seen_at: dict[str, int] = {}  # the number of the last one, by work
        self._off_since: dict[str, int] = {}  # that of the first in a row that were off
        self._known: dict[str, dict[str, Reckoning]] = {}  # by gateway, until something is learned that changes them
        self.recovering: set[str] = set()  # works whose last measurements say that they are fast again

    @property
    def device_factor(self) -> float:
        """How many times slower than planned the device is; 1 before anything was measured."""
        return _value(self._device, 1.0)

    @property
    def cloud_factors(self) -> dict[str, float]:
        """How many times slower than planned the gateway computes each placement; only those that were measured."""
        speeds = ((id_, self._any_tail.get(tail)) for id_, tail in self.tails.items())
        return {id_: speed.value for id_, speed in speeds if speed is not None and speed.value is not None}

    def all(self, gateway: str = "") -> dict[str, Reckoning]:
        """Every placement's with this gateway, in the candidates' order. Not to be changed."""
        known = self._known.get(gateway)
        if known is None or len(known) < len(self._costs):
            before = known or {}
            known = {id_: before.get(id_) or self._reckon(id_, gateway) for id_ in self._costs}
            self._known[gateway] = known
        return known

    def edge(self, id_: str, edge_s: float) -> None:
        """What head and encoding of one row really took on the device."""
        cost, head = self._costs[id_], self.heads[id_]
        planned = cost.edge_s + cost.encode_s
        if planned <= 0:
            return
        self._count += 1
        ratio = edge_s / planned
        speed = self._edge_speeds.get(head)
        if speed is None:  # the device's arithmetic is known: a first measurement may be the outlier
            speed = self._edge_speeds[head] = _like(self._device) if cost.edge_s > 0 else Speed()
        step = speed.learn(ratio)
        self._note_recovery(head, speed)
        if speed.run == 1:
            self._off_since[head] = self._count
        self._seen_at[head] = self._count
        self._forget(other for other, key in self.heads.items() if key == head)
        if step != 1.0 and planned >= TELLING_STEP_S:
            self._stepped(step, since=self._off_since[head])
        if cost.edge_s > 0:  # encoding alone says little about the device's arithmetic
            self._device_seen_at = self._count
            if step == 1.0:
                self._device.learn(ratio)
            else:
                self._device = Speed(speed.value, usual=speed.usual, worth=STEP_SAMPLES)
            self._forget(other for other, key in self.heads.items() if key not in self._edge_speeds)

    def _stepped(self, step: float, *, since: int) -> None:
        """The device's clock was changed: what other work took before that says as little as what this one took."""
        for work, speed in self._edge_speeds.items():
            if self._seen_at[work] < since:
                speed.scale(step)
        if self._device_seen_at < since:
            self._device.scale(step)
        self._forget(self._costs)

    def nbytes(self, id_: str, nbytes: float) -> None:
        """How much one row's encoding really was."""
        planned = self._costs[id_].up_nbytes
        if planned > 0:
            self._sizes.setdefault(id_, Speed(1.0, worth=TRUSTED)).learn(nbytes / planned)
            self._forget((id_,))

    def forget_sizes(self, ids: Iterable[str]) -> None:
        """These were sent so long ago that the plan's sizes are the better guess."""
        for id_ in ids:
            self._sizes.pop(id_, None)
            self._forget((id_,))

    def tail(self, id_: str, compute_s: float, gateway: str = "") -> None:
        """What the batch that this request was in took at this gateway: so the cost curve L(b) enters, with the batches
        that really happen."""
        planned, tail = self._costs[id_].tail_s, self.tails[id_]
        if planned > 0:
            here = self._tail_speeds.pop(gateway, {})
            self._tail_speeds[gateway] = here
            if len(self._tail_speeds) > MOST_GATEWAYS:
                oldest = next(iter(self._tail_speeds))
                del self._tail_speeds[oldest]
                self._known.pop(oldest, None)
            speed = self._any_tail[tail] = here.setdefault(tail, Speed())
            speed.learn(compute_s / planned)
            self._note_recovery(tail, speed)
            self._forget(other for other, key in self.tails.items() if key == tail)

    def doubt(self, work: str) -> None:
        """This is measured again after a while."""
        for speed in (self._edge_speeds.get(work), *(here.get(work) for here in self._tail_speeds.values())):
            if speed is not None:
                speed.doubt()

    def hopes(self, gateway: str = "") -> dict[str, Reckoning]:
        """What those placements would cost that are believed to be slower than they usually were, were they not."""
        found = {}
        for id_, line in self.all(gateway).items():
            edge, tail = self._edge_of(id_), self._tail_of(id_, gateway)
            local_s, remote_s = line.local_s * _hope(edge), line.cost.decode_s + line.cost.tail_s * _hope(tail)
            if local_s < line.local_s or remote_s < line.remote_s:
                found[id_] = line._replace(local_s=local_s, remote_s=remote_s)
        return found

    def _edge_of(self, id_: str) -> Speed:
        return self._edge_speeds.get(self.heads[id_], self._device)

    def _tail_of(self, id_: str, gateway: str) -> Speed | None:
        tail = self.tails[id_]
        return self._tail_speeds.get(gateway, {}).get(tail) or self._any_tail.get(tail)

    def _note_recovery(self, work: str, speed: Speed) -> None:
        (self.recovering.add if speed.recovers else self.recovering.discard)(work)

    def _forget(self, ids: Iterable[str]) -> None:
        self.version += 1
        for id_ in ids:
            for known in self._known.values():
                known.pop(id_, None)

    def _reckon(self, id_: str, gateway: str) -> Reckoning:
        plan = self._costs[id_]
        edge = _value(self._edge_of(id_), 1.0)
        cost = msgspec.structs.replace(
            plan,
            edge_s=plan.edge_s * edge,
            encode_s=plan.encode_s * edge,
            up_nbytes=plan.up_nbytes * _value(self._sizes.get(id_), 1.0),
            tail_s=plan.tail_s * _value(self._tail_of(id_, gateway), 1.0),
        )
        return Reckoning(
            cost,
            cost.edge_s + cost.encode_s,
            cost.decode_s + cost.tail_s,
            cost.up_nbytes,
            cost.down_nbytes,
            cost.crosses,
            max(cost.edge_spread, 0.0) / DEVIATIONS_OF_SPREAD,
            max(cost.tail_spread, 0.0) / DEVIATIONS_OF_SPREAD,
        )


def works(candidate: Candidate) -> tuple[str, ...]:
    """What must be tried now and then for this placement: its tail, and what takes time on the device."""
    tail = f"tail {candidate.tail or candidate.id}"
    takes_time = candidate.head or not candidate.tail or _encodes(candidate.cost)
    return (_device_work(candidate), tail) if takes_time else (tail,)


def _device_work(candidate: Candidate) -> str:
    """What a placement's time on the device is a matter of: its head, or without one (full-cloud) its codec alone.

    Codecs of the input share a speed as heads do, but for those that take next to no time: overhead would be learned
    from them.
    """
    if candidate.head:
        return f"head {candidate.head}"
    return "encoding" if candidate.tail and _encodes(candidate.cost) else f"alone {candidate.id}"


def _encodes(cost: PlacementCost) -> bool:
    return cost.edge_s == 0 and cost.encode_s >= TELLING_ENCODE_S


def _like(speed: Speed) -> Speed:
    """A prior: what is known of this one, as far as it goes."""
    return Speed(speed.value, usual=speed.usual)


def _hope(speed: Speed | None) -> float:
    """The share of the time now believed that it would take at its usual speed."""
    return speed.hoped / speed.value if speed is not None and speed.value and speed.hoped is not None else 1.0


def _value(speed: Speed | None, otherwise: float) -> float:
    return otherwise if speed is None or speed.value is None else speed.value
