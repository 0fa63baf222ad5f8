"""What is prepared goes out: most urgent first, within each gateway's credit and window, while it is in time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from protocol.control import chunking
from protocol.control.availability import Remote
from protocol.control.demand import DemandMeter
from protocol.control.fleet import Fleet, Load
from protocol.control.flights import Flight, Instruction, Phase, RefusalCode, Send
from protocol.control.margins import Margins
from protocol.control.ways_out import WaysOut

SHORTEST_PAUSE_S = 0.01  # between two attempts of one request at one gateway, whatever that says


class Passed(NamedTuple):
    """What has still to cross of requests that another one passes, and how much of that is out of our hands."""

    nbytes: int
    handed_nbytes: int


class Outbox:
    """Times are monotonic seconds, `now` always given."""

    def __init__(
        self,
        flights: dict[int, Flight],
        fleet: Fleet,
        ways: WaysOut,
        margins: Margins,
        demand: DemandMeter,
        *,
        hedge: bool,
    ) -> None:
        self._flights = flights
        self._fleet = fleet
        self._ways = ways
        self._margins = margins
        self._demand = demand
        self._hedge = hedge

    def send_ready(self, *, now: float) -> list[Instruction]:
        """Send what is prepared, most urgent and then oldest first, while links, credit and windows allow."""
        ready = [f for f in self._flights.values() if f.phase is Phase.READY and f.not_before <= now]
        if not ready:
            return []
        out: list[Instruction] = []
        loads = self._fleet.loads(self._flights.values())
        full: set[str] = set()  # nobody may overtake who waits for credit there
        queued: set[str] = set()  # nor who waits for the bytes ahead
        for flight in sorted(ready, key=lambda f: f.priority):
            remote = self._taker(flight, loads, full, now=now)
            if remote is None or remote.name in queued or now >= self._margins.remote_too_late_at(flight, remote.link):
                continue
            load = loads.get(remote.name, Load())
            passed = self._passed(flight, remote)
            if load.requests and load.way_nbytes - passed.nbytes > remote.window_nbytes:
                queued.add(remote.name)
                continue
            ahead_nbytes = load.way_nbytes - passed.nbytes + passed.handed_nbytes
            left_s = flight.deadline - now
            travel_s = self._margins.ahead_s(ahead_nbytes, remote.link) + self._margins.travel_s(flight, remote.link)
            if left_s <= travel_s and not self._margins.local_can_follow(flight):
                why = f"{flight.nbytes} bytes need {travel_s:.3f} s to travel and {left_s:.3f} s are left"
                del self._flights[flight.seq]
                out.append(flight.refusal(RefusalCode.DEADLINE, why))
                continue
            out.append(self._send(flight, remote, ahead_nbytes, now=now))
            loads[remote.name] = load.plus(flight.nbytes, flight.left_nbytes)
        return out

    def _passed(self, flight: Flight, remote: Remote) -> Passed:
        """What is less urgent and goes in chunks: this request passes it."""
        slower = [
            other
            for other in self._flights.values()
            if other.phase is Phase.SENT
            and other.gateway == remote.name
            and other.chunk_nbytes
            and other.priority > flight.priority
        ]
        nbytes = sum(other.left_nbytes for other in slower)
        window = max((chunking.window_nbytes(other.chunk_nbytes, remote.link) for other in slower), default=0.0)
        return Passed(nbytes, min(nbytes, int(window)))

    def _taker(self, flight: Flight, loads: Mapping[str, Load], full: set[str], *, now: float) -> Remote | None:
        """The gateway that takes this request now: its own, else another. Notes in `full` who has no credit left."""
        row, own = self._fleet.rows[flight.placement], self._ways.of(flight)
        opens = own.link_reason is None and not own.breaker.refuses(now=now)
        remote: Remote | None = own
        if not opens or (len(self._fleet.remotes) > 1 and own.reason(row, now=now) is not None):
            remote = self._ways.another(flight, now=now) or (own if opens else None)
        while remote is not None:
            load = loads.get(remote.name, Load())
            # A request larger than the whole credit may go alone; the gateway refuses it in its own words if it must.
            too_large = load.requests > 0 and load.nbytes + flight.nbytes > remote.credit_nbytes
            if remote.name not in full and load.requests < remote.most_requests(now=now) and not too_large:
                return remote
            full.add(remote.name)
            remote = self._fleet.for_row(row, self._flights.values(), without={*full, *flight.left}, now=now)
        return None

    def _send(self, flight: Flight, remote: Remote, ahead_nbytes: int, *, now: float) -> Send:
        ahead_s = self._margins.ahead_s(ahead_nbytes, remote.link)
        flight.phase, flight.gateway, flight.sent_at, flight.unheard = Phase.SENT, remote.name, now, False
        flight.left_nbytes = flight.nbytes
        flight.chunk_nbytes = chunking.chunk_nbytes(flight.nbytes, remote.link, most_nbytes=remote.chunk_nbytes)
        flight.attempt += 1
        flight.sent_as.append(flight.placement)
        flight.sent_to.append(remote.name)
        flight.attempt_until = self._margins.attempt_until(flight, ahead_s, remote.link, now=now)
        flight.hedge_at = float("inf")
        if self._hedge and not flight.hedged:
            hedge_at = self._margins.hedge_at(flight, ahead_s, remote.link, now=now)
            flight.hedge_at = min(hedge_at, flight.attempt_until)
        self._demand.sent(self._margins.ahead_s(flight.nbytes, remote.link), now=now)
        remote.breaker.passing(now=now)
        remote.tails[flight.placement].passing(now=now)
        # The timer tells a lost message. Where nothing but a repetition under the same id follows it, or edge-only runs
        # beside it, the gateway may work for as long as the caller waits: it would only be asked for the same again.
        alone = self._hedge or not self._margins.local_can_follow(flight)
        flight.until = flight.deadline if alone else flight.attempt_until
        budget_s = max(flight.until - now - ahead_s - self._margins.travel_s(flight, remote.link), 0.0)
        return Send(flight.seq, flight.placement, flight.attempt, budget_s, remote.name, flight.chunk_nbytes)

    def there(self, seq: int, attempt: int, left_nbytes: int, *, now: float) -> list[Instruction]:
        """The gateway has all of this attempt's payload but `left_nbytes`: nothing was lost so far, so it may go on."""
        flight = self._flights.get(seq)
        if flight is None or flight.phase is not Phase.SENT or attempt != flight.attempt:
            return []
        flight.left_nbytes = left_nbytes
        until = self._margins.attempt_until(flight, 0.0, self._ways.of(flight).link, now=now)
        if until > flight.attempt_until and not flight.hedge:
            if flight.until == flight.attempt_until:
                flight.until = until
            flight.attempt_until = until
        return self.send_ready(now=now)

    def budget_s(self, seq: int, rest_nbytes: int, *, now: float) -> float:
        """What is left for the gateway if `rest_nbytes` still have to cross before its work begins."""
        flight = self._flights.get(seq)
        if flight is None:
            return 0.0
        link = self._ways.of(flight).link
        return max(flight.until - now - self._margins.crossing_s(rest_nbytes, link), 0.0)

    def unsent(self, seq: int, *, now: float) -> None:
        """A Send could not be carried out: the request is ready again, and the attempt was none."""
        flight = self._flights.get(seq)
        if flight is None or flight.phase is not Phase.SENT:
            return
        flight.phase, flight.not_before = Phase.READY, now + SHORTEST_PAUSE_S
        flight.attempt -= 1
        flight.sent_as.pop()
        flight.sent_to.pop()
        remote = self._ways.of(flight)
        remote.breaker.released()
        remote.tails[flight.placement].released()
