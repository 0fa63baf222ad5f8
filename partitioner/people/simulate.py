"""A trace replayed through the decision code that the agent runs: its planner and its link estimator. Pure.

    submit --> Planner.decide(LinkEstimator.estimate(now)) --> device --> uplink --> gateway --> answer
                   ^                     ^                                                         |
                   `--- observe_edge, observe_tail                             observe ------------'

Nothing here chooses a placement: this room only lets time pass, feeds back what an agent would see of it (round trips,
residence, queues, pings, probes), and keeps the agent's rules about deadlines: an attempt may take four times what was
predicted for it and must leave time for edge-only; three attempts in a row without an answer close the gateway for a
while; a silent link is made anew. Those rules are the ladder's in the agent; what they mean is the same here.
Events at one moment are handled in the order in which they were planned, so that a seed replays exactly.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from partitioner.people.world import HEADER_NBYTES, Outcome, Request, Scene, busy_s, served_s
from protocol.control.link import LinkEstimator
from protocol.control.planner import Planner
from protocol.latency import LinkState, PlacementCost

# The agent's own figures (edge_agent: ladder, uplink, connection, breaker).
ATTEMPT_FACTOR, SHORTEST_ATTEMPT_S = 4.0, 0.25
LOCAL_RESERVE_FACTOR, LOCAL_RESERVE_MIN_S = 1.5, 0.005
TRAVEL_MARGIN = 1.25
FAILURES, PAUSE_S, LONGEST_PAUSE_S = 3, 1.0, 10.0
PING_IVL_S, LOCAL_PING_IVL_S, WAKE_IVL_S, ACTIVE_S, SILENCE_S = 1.0, 0.5, 0.05, 3.0, 4.0

START_S = -1.0  # the link is measured before the first request, as `Client.wait_ready` does
PING_NBYTES, HELLO_NBYTES = 60, 2_000


@dataclass
class Flight:
    """A request on its way. `number` is that of the message that carries it, while an attempt is under way."""

    request: Request
    until: float
    decided: str
    placement: str
    number: int | None = None
    waits: bool = False  # prepared, and there is no link to send it on


@dataclass
class Trip:
    """One message: when and behind how many bytes it left, and what its answer said."""

    sent_at: float
    nbytes: float
    ahead_nbytes: float
    residence_s: float = 0.0
    queue_s: float = 0.0
    down_nbytes: float = 0.0

    def answered(self, *, residence_s: float, queue_s: float, down_nbytes: float) -> None:
        self.residence_s, self.queue_s, self.down_nbytes = residence_s, queue_s, down_nbytes


@dataclass
class Gate:
    """Closes after failures in a row, then lets one trial through at a time; each failed trial doubles the pause."""

    failures: int = 0
    pause_s: float = PAUSE_S
    opens_at: float = 0.0
    trial_since: float = -math.inf

    def refuses(self, now: float) -> bool:
        if self.failures < FAILURES:
            return False
        return now < self.opens_at or now < self.trial_since + LONGEST_PAUSE_S

    def passing(self, now: float) -> None:
        if self.failures >= FAILURES:
            self.trial_since = now

    def failed(self, now: float) -> None:
        self.failures += 1
        if self.failures > FAILURES:
            self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)
        if self.failures >= FAILURES:
            self.opens_at, self.trial_since = now + self.pause_s, -math.inf

    def answered(self) -> None:
        self.failures, self.pause_s, self.trial_since = 0, PAUSE_S, -math.inf


@dataclass
class Replay:
    """One run. `run()` once; `outcomes` then holds one entry per request, by number."""

    scene: Scene
    asked: Sequence[Request]
    estimator: LinkEstimator = field(default_factory=LinkEstimator)
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planner = Planner(self.scene.candidates)
        self._costs: dict[str, PlacementCost] = {c.id: c.cost for c in self.scene.candidates}
        self._local = next((c.id for c in self.scene.candidates if not c.cost.crosses), None)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._now = self._device_s = self._up_s = self._gateway_s = self._down_s = START_S
        self._flying: dict[int, Flight] = {}
        self._gate = Gate()
        self._out: dict[int, float] = {}  # bytes of each message that was sent and not answered
        self._numbers = 0
        self._connection = 0  # what was sent on an earlier one never arrives
        self._up = True
        self._heard_at = self._next_ping = START_S
        self._active_until = ACTIVE_S

    def run(self) -> list[Outcome]:
        """Let all requests end and return what became of them, in their order."""
        for request in self.asked:
            self._at(request.at_s, partial(self._submitted, request))
        self._at(START_S, self._wake)
        while len(self.outcomes) < len(self.asked):
            self._now, _, event = heapq.heappop(self._events)
            event()
        return [self.outcomes[request.seq] for request in self.asked]

    def _at(self, when_s: float, event: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._events, (max(when_s, self._now), self._planned, event))

    # ---- one request ------------------------------------------------------------------------------------------------

    def _submitted(self, request: Request) -> None:
        self._active_until = self._now + ACTIVE_S
        closed = not self._up or self._gate.refuses(self._now)
        unavailable = {id_: "no answer" for id_, cost in self._costs.items() if closed and cost.crosses}
        decision = self.planner.decide(self._link(), unavailable)
        # Without edge-only nothing may be left: the request then waits for the link with what is predicted best.
        predicted = self.planner.predict(self._link())
        chosen = decision.id if decision else min(predicted, key=predicted.__getitem__)
        flight = self._flying[request.seq] = Flight(request, request.at_s + self.scene.deadline_s, chosen, chosen)
        self._at(flight.until, partial(self._expired, flight))
        self._prepare(flight, chosen)

    def _prepare(self, flight: Flight, placement: str) -> None:
        flight.placement, flight.number = placement, None
        start_s = max(self._now, self._device_s)
        if start_s < flight.until:  # otherwise nobody wants it any more when its turn comes
            self._device_s = start_s + busy_s(self._costs[placement], flight.request)
            self._at(self._device_s, partial(self._prepared, flight))

    def _prepared(self, flight: Flight) -> None:
        if not self._flies(flight):
            return
        cost = self._costs[flight.placement]
        self.planner.observe_edge(flight.placement, busy_s(cost, flight.request))
        if not cost.crosses:
            self._end(flight)
        elif self._local is not None and (not self._up or self._now >= self._last_start(flight) - self._travel_s(cost)):
            self._prepare(flight, self._local)
        elif self._up:
            self._send(flight)
        else:
            flight.waits = True

    def _send(self, flight: Flight) -> None:
        cost, flight.waits = self._costs[flight.placement], False
        link, ahead_nbytes = self._link(), self._ahead_nbytes()
        ahead_s = ahead_nbytes / link.uplink_bytes_per_s if link else 0.0
        allowed_s = max(ATTEMPT_FACTOR * self.planner.predict(link)[flight.placement], SHORTEST_ATTEMPT_S)
        until = min(self._now + ahead_s + allowed_s, self._last_start(flight))
        self._gate.passing(self._now)
        trip = Trip(self._now, cost.up_nbytes + HEADER_NBYTES, ahead_nbytes)
        flight.number = self._transmit(trip, partial(self._at_gateway, flight, trip))
        self._at(until, partial(self._timed_out, flight, flight.number))

    def _at_gateway(self, flight: Flight, trip: Trip, number: int) -> None:
        if not self._flies(flight) or flight.number != number:
            self._out.pop(number, None)
            return  # cancelled meanwhile
        cost, arrived = self._costs[flight.placement], self._now
        started = max(arrived, self._gateway_s)
        self._gateway_s = done = started + served_s(cost, flight.request)

        def answer() -> None:
            trip.answered(residence_s=done - arrived, queue_s=started - arrived, down_nbytes=cost.down_nbytes)
            self._landed(number, trip)
            self._gate.answered()
            self.planner.observe_tail(flight.decided, done - started)
            if self._flies(flight):
                flight.placement = flight.decided
                self._end(flight)

        self._at(done, partial(self._return, cost.down_nbytes + HEADER_NBYTES, answer))

    def _timed_out(self, flight: Flight, number: int) -> None:
        if not self._flies(flight) or flight.number != number:
            return
        self._gate.failed(self._now)
        if self._local is not None:  # otherwise the gateway may still answer before the deadline
            self._prepare(flight, self._local)

    def _expired(self, flight: Flight) -> None:
        if self._flies(flight):
            if flight.number is not None:
                self._gate.failed(self._now)
            self._end(flight, late=True)

    def _end(self, flight: Flight, *, late: bool = False) -> None:
        request = flight.request
        del self._flying[request.seq]
        if flight.number is not None:
            self._out.pop(flight.number, None)
        latency_s = self._now - request.at_s
        self.outcomes[request.seq] = Outcome(request.at_s, flight.decided, flight.placement, latency_s, late)

    def _flies(self, flight: Flight) -> bool:
        return flight.request.seq in self._flying

    def _last_start(self, flight: Flight) -> float:
        """When edge-only has to start at the latest, or the deadline where there is none."""
        if self._local is None:
            return flight.until
        predicted = self.planner.predict(self._link())[self._local]
        return flight.until - max(LOCAL_RESERVE_FACTOR * predicted, LOCAL_RESERVE_MIN_S)

    def _travel_s(self, cost: PlacementCost) -> float:
        link = self._link()
        return (cost.up_nbytes / link.uplink_bytes_per_s + link.rtt_s) * TRAVEL_MARGIN if link else 0.0

    # ---- the link ---------------------------------------------------------------------------------------------------

    def _link(self) -> LinkState | None:
        return self.estimator.estimate(self._now)

    def _ahead_nbytes(self) -> float:
        return sum(self._out.values())

    def _transmit(self, trip: Trip, arrived: Callable[[int], None]) -> int:
        """Queue a message on the uplink; `arrived` is called with its number when the gateway has all of it."""
        self._numbers += 1
        self._out[self._numbers] = trip.nbytes
        self._up_s = self.scene.trace.arrival_s(max(self._now, self._up_s), trip.nbytes)
        self._after_half_a_round_trip(self._up_s, partial(arrived, self._numbers))
        return self._numbers

    def _return(self, nbytes: float, landed: Callable[[], None]) -> None:
        self._down_s = self.scene.trace.arrival_s(max(self._now, self._down_s), nbytes)
        self._after_half_a_round_trip(self._down_s, landed)

    def _after_half_a_round_trip(self, from_s: float, event: Callable[[], None]) -> None:
        connection = self._connection
        self._at(from_s + self.scene.rtt_s / 2, lambda: event() if connection == self._connection else None)

    def _landed(self, number: int, trip: Trip) -> None:
        self._heard_at = self._now
        if self._out.pop(number, None) is not None:
            self.estimator.observe(
                nbytes=int(trip.nbytes + trip.down_nbytes),
                round_trip_s=self._now - trip.sent_at,
                residence_s=trip.residence_s,
                queue_s=trip.queue_s,
                ahead_nbytes=int(trip.ahead_nbytes),
                now=self._now,
            )

    # ---- pings and silence ------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """What the agent's loop does between events."""
        link = self._link()
        travel_s = self._ahead_nbytes() / link.uplink_bytes_per_s if link else 0.0
        if self._up and self._now - self._heard_at > SILENCE_S + 2 * travel_s:
            self._lose_link()
        elif self._up and self._now >= self._next_ping:
            self._ping()
        self._at(self._now + WAKE_IVL_S, self._wake)

    def _ping(self) -> None:
        """A plain one keeps the round trip fresh, a padded one after it measures where ordinary traffic does not."""
        active = self._now < self._active_until
        padding = self.estimator.probe_nbytes(self._now) if active and not self._out else 0
        self._next_ping = self._now + (LOCAL_PING_IVL_S if padding else PING_IVL_S)
        ahead_nbytes = self._ahead_nbytes()
        for size in (0, padding) if padding else (0,):
            trip = Trip(self._now, PING_NBYTES + size, ahead_nbytes)
            self._transmit(trip, partial(self._ping_at_gateway, trip))

    def _ping_at_gateway(self, trip: Trip, number: int) -> None:
        trip.answered(residence_s=0.0, queue_s=max(0.0, self._gateway_s - self._now), down_nbytes=0.0)

        def pong() -> None:
            self._landed(number, trip)
            if self.estimator.wants_confirmation and self._now < self._active_until:
                self._next_ping = min(self._next_ping, self._now + WAKE_IVL_S)

        self._return(PING_NBYTES, pong)

    def _lose_link(self) -> None:
        """Nothing was heard for too long: the socket is made anew, and what it still held is gone."""
        self._up = False
        self._connection += 1
        self._out.clear()
        self.estimator.lost()
        self._up_s = self._down_s = self._now
        for flight in [f for f in self._flying.values() if f.number is not None]:
            flight.number, flight.waits = None, self._local is None
            if self._local is not None:
                self._prepare(flight, self._local)
        self._at(self.scene.trace.arrival_s(self._now, HELLO_NBYTES) + 2 * self.scene.rtt_s, self._welcomed)

    def _welcomed(self) -> None:
        self._up, self._heard_at, self._next_ping = True, self._now, self._now
        self._gate = Gate()
        for flight in [f for f in self._flying.values() if f.waits]:
            self._send(flight)
