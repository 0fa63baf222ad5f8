"""Which of several gateways a request goes to: the better of two by predicted wait. Pure.

    wait = round trip + the queue that it reports + what we have on the way to it and in it

One of the two is the gateway in use, the other is drawn: with that memory fewer choices balance better than two fresh
draws do (Mitzenmacher, Prabhakar, Shah: Load balancing with memory, 2002), a device stays where frames of its stream
are known, and a fleet of devices does not run to whichever gateway was idle a moment ago.

Who is drawn is a matter of the weights that DNS gave (RFC 2782): of two with 3 and 1 the first is drawn three times out
of four, and where all are 0 everybody has the same share. One with 0 beside others is drawn as if it had a hundredth of
the least.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from protocol.control.availability import Device, Remote
from protocol.control.flights import Flight, Phase, Row

WORTH_LEAVING = 0.2  # a gateway is left for one that promises at least this share less wait ...
WORTH_LEAVING_S = 0.001  # ... and this much: below it, the difference is jitter
NEXT_TO_NEVER = 100  # who has no weight beside others that have some is drawn this many times less than the least


class Chance(Protocol):
    """What is needed of a seeded `random.Random`."""

    def randrange(self, stop: int, /) -> int: ...


class AlwaysFirst:
    """For one gateway, where there is nothing to draw."""

    def randrange(self, _stop: int, /) -> int:
        return 0


class Load(NamedTuple):
    """What is unanswered at one gateway."""

    requests: int = 0
    nbytes: int = 0
    there_nbytes: int = 0  # of these, what is known to have arrived, in chunks

    @property
    def way_nbytes(self) -> int:
        """What still has to cross, or may have to."""
        return self.nbytes - self.there_nbytes

    def plus(self, nbytes: int, left_nbytes: int) -> Load:
        """With one more request."""
        return Load(self.requests + 1, self.nbytes + nbytes, self.there_nbytes + nbytes - left_nbytes)


class Fleet:
    """All gateways that are known, by name. Times are monotonic seconds, `now` always given."""

    def __init__(self, device: Device, names: Iterable[str], chance: Chance | None = None) -> None:
        self.remotes: dict[str, Remote] = {}
        self.in_use = ""  # the gateway that was chosen last
        self._chance = chance or AlwaysFirst()
        self.device = device
        self.rows = device.rows
        self.nobody = Remote("", self.rows.values())  # stands where no gateway is known
        for name in names:
            self.add(name)

    def add(self, name: str, *, rank: int = 0) -> Remote:
        """A gateway that may be there; it is used once it has welcomed us."""
        return self.remotes.setdefault(name, Remote(name, self.rows.values(), rank=rank))

    def remove(self, name: str) -> None:
        self.remotes.pop(name, None)

    def of(self, name: str) -> Remote:
        """The gateway of that name; one that is never there if it is not known (any more)."""
        return self.remotes.get(name, self.nobody)

    @property
    def current(self) -> Remote:
        """The gateway in use, or any while there is none."""
        return self.remotes.get(self.in_use) or next(iter(self.remotes.values()), self.nobody)

    @staticmethod
    def loads(flights: Iterable[Flight]) -> dict[str, Load]:
        """What is unanswered, by gateway."""
        found: dict[str, Load] = {}
        for flight in flights:
            if flight.phase is Phase.SENT:
                found[flight.gateway] = found.get(flight.gateway, Load()).plus(flight.nbytes, flight.left_nbytes)
        return found

    def for_any_work(self, flight: Flight, flights: Iterable[Flight], *, now: float) -> Remote:
        """The gateway to plan with: of the lowest rank that can do any placement, those that can do most; of these the
        better of two."""
        if len(self.remotes) <= 1:
            return self.current
        barred = self._barred(now=now)
        able = {n: self.able(remote, flight, barred=barred, now=now) for n, remote in self.remotes.items()}
        lowest = min((self.remotes[n].rank for n, count in able.items() if count), default=None)
        if lowest is None:
            return self.current
        able = {n: count for n, count in able.items() if self.remotes[n].rank == lowest}
        most = max(able.values())
        return self.choose([self.remotes[n] for n, count in able.items() if count == most], self.loads(flights))

    def for_row(
        self, row: Row, flights: Iterable[Flight], *, without: Collection[str] = (), now: float
    ) -> Remote | None:
        """A gateway that can do its share of this placement now, if there is one."""
        able = [r for r in self.remotes.values() if r.name not in without and r.reason(row, now=now) is None]
        return self.choose(able, self.loads(flights)) if able else None

    def choose(self, among: Sequence[Remote], loads: Mapping[str, Load]) -> Remote:
        """The gateway in use against another one; without one in use, two that are drawn. The choice is remembered."""
        lowest = min(r.rank for r in among)
        left = [r for r in among if r.rank == lowest]
        first = next((r for r in left if r.name == self.in_use), None)
        if first is None:
            first = self._drawn(left)
        others = [r for r in left if r is not first]
        if others:
            other = self._drawn(others)
            at = [loads.get(r.name, Load()) for r in (first, other)]
            here, there = first.wait_s(at[0].requests, at[0].way_nbytes), other.wait_s(at[1].requests, at[1].way_nbytes)
            if there < (1 - WORTH_LEAVING) * here and there < here - WORTH_LEAVING_S:
                first = other
        self.in_use = first.name
        return first

    def _drawn(self, among: Sequence[Remote]) -> Remote:
        """One of them by chance, each with the share that is its weight."""
        if len(among) == 1:
            return among[0]
        least = min((r.weight for r in among if r.weight), default=0)
        if not least:
            return among[self._chance.randrange(len(among))]
        ends = list(accumulate(r.weight * NEXT_TO_NEVER or least for r in among))
        return among[bisect_right(ends, self._chance.randrange(ends[-1]))]

    def able(self, remote: Remote, flight: Flight, *, barred: Collection[str] | None = None, now: float) -> int:
        """How many placements this gateway could do its share of for this request; none once it was not in time.

        `barred` are those that the device cannot do now, if somebody has asked already.
        """
        if remote.name in flight.left:
            return 0
        here = self._barred(now=now) if barred is None else barred
        there = flight.avoided_at.get(remote.name, ())
        return sum(
            r.id not in here and r.id not in flight.avoided and r.id not in there and remote.reason(r, now=now) is None
            for r in remote.rows.values()
        )

    def _barred(self, *, now: float) -> set[str]:
        return {r.id for r in self.rows.values() if self.device.reason(r, now=now) is not None}
