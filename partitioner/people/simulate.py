"""A trace replayed through the decision code that the agent runs, all of it from `protocol/control`. Pure.

    submit --> Ladder, Planner, LinkEstimator, Pulse --instructions--> device --> uplink --> gateway --> answer
                   ^                                                                                       |
                   `------------------ events: prepared, answered, rejected, link lost --------------------'

What the agent's threads do around that code is done here by a timeline: instructions take the time that the machines
and the link need (`world.py`), and what the agent would hear of it comes back as the same events. Nothing in this room
decides anything. Events at one moment are handled in the order in which they were planned: a seed replays exactly.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from partitioner.people.world import HEADER_NBYTES, Outcome, Request, Scene, busy_s, expected_s, served_s
from protocol.control.causes import Cause, Why
from protocol.control.flights import CancelRemote, Finish, Instruction, Prepare, Row, Send
from protocol.control.ladder import Ladder
from protocol.control.link import LinkEstimator
from protocol.control.overload import too_late
from protocol.control.planner import Candidate, Planner
from protocol.control.pulse import Pulse, patience_s, wake_at
from protocol.messages import PlacementKind, RejectCode

START_S = -1.0  # the link is measured before the first request, as `Client.wait_ready` does
PING_NBYTES, CANCEL_NBYTES, HELLO_NBYTES = 60, 60, 2_000
CREDIT_REQUESTS, CREDIT_NBYTES = 32, 32 << 20  # what a gateway grants unless it is told otherwise
SHORTEST_WAIT_S = 0.001  # the agent's loop sleeps whole milliseconds


class Timeline:
    """What happens when. `now` is in seconds since the beginning of the trace."""

    def __init__(self) -> None:
        self.now = START_S
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._events, (max(when_s, self.now), self._planned, event))

    def advance(self, wake_s: float) -> None:
        """Let the next event happen, or nothing until `wake_s` if that comes first."""
        if self._events and self._events[0][0] <= wake_s:
            self.now, _, event = heapq.heappop(self._events)
            event()
        else:
            self.now = wake_s


class Machine:
    """Does one thing at a time, first come, first served."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._waiting: deque[tuple[Callable[[], float | None], Callable[[], None]]] = deque()
        self._free_at = START_S
        self._busy = False

    @property
    def queue(self) -> int:
        return len(self._waiting)

    def wait_s(self) -> float:
        """What is left of the current piece of work."""
        return max(0.0, self._free_at - self._timeline.now)

    def offer(self, begin: Callable[[], float | None], done: Callable[[], None]) -> None:
        """`begin` is asked when its turn comes how many seconds it takes; None: nobody wants it any more."""
        self._waiting.append((begin, done))
        self._next()

    def _next(self) -> None:
        while self._waiting and not self._busy:
            begin, done = self._waiting.popleft()
            if (seconds := begin()) is not None:
                self._busy, self._free_at = True, self._timeline.now + seconds
                self._timeline.at(self._free_at, partial(self._done, done))

    def _done(self, done: Callable[[], None]) -> None:
        self._busy = False
        done()
        self._next()


@dataclass
class Work:
    """A request at the gateway. Sent again it is the same work: the answer goes to the last attempt and connection."""

    attempt: int
    connection: int
    arrived_s: float
    budget_s: float
    begun_s: float | None = None
    done_s: float | None = None


@dataclass(frozen=True)
class Trip:
    """One message: when, and behind how many unanswered bytes, it left."""

    sent_s: float
    nbytes: float
    ahead_nbytes: float


@dataclass
class Replay:
    """One run. `run()` once; `outcomes` then holds one entry per request, by number."""

    scene: Scene
    asked: Sequence[Request]
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planner = Planner(self.scene.candidates)
        self._rows = {c.id: row_of(c) for c in self.scene.candidates}
        self.ladder = Ladder(list(self._rows.values()), self.planner)
        self.estimator, self.pulse = LinkEstimator(), Pulse()
        self._costs = {c.id: c.cost for c in self.scene.candidates}
        self._requests = {r.seq: r for r in self.asked}
        self._time = Timeline()
        self._device, self._engine = Machine(self._time), Machine(self._time)
        self._up_s = self._down_s = START_S  # when the link's two directions are free again
        self._decided: dict[int, str] = {}
        self._took: dict[str, float] = {}  # what each placement last took on the device
        self._working: dict[tuple[int, str], Work] = {}  # at the gateway
        self._out: dict[tuple[int, int], Trip] = {}  # sent and not answered: (seq, attempt); pings under (-number, 0)
        self._pings = 0
        self._connection = 0  # what was sent on an earlier one never arrives
        self._up = self._measured = False
        self._heard_s = START_S

    def run(self) -> list[Outcome]:
        """Let all requests end and return what became of them, in their order."""
        for request in self.asked:
            self._time.at(request.at_s, partial(self._submitted, request))
        self._time.at(START_S, self._welcomed)
        while len(self.outcomes) < len(self.asked):
            next_ping = self.pulse.next_at if self._up else None
            busy = bool(self.ladder.flights)
            wake_s = wake_at(self.ladder.next_deadline(), next_ping, busy=busy, now=self._now)
            self._time.advance(max(wake_s, self._now + SHORTEST_WAIT_S))
            self._timers()
        return [self.outcomes[request.seq] for request in self.asked]

    @property
    def _now(self) -> float:
        return self._time.now

    # ---- the agent's loop -------------------------------------------------------------------------------------------

    def _timers(self) -> None:
        self._carry_out(self.ladder.tick(now=self._now))
        if not self._up:
            return
        if self._now - self._heard_s > patience_s(self._ahead_nbytes(), self.estimator.estimate(self._now)):
            self._lose_link()
        elif self._now >= self.pulse.next_at:
            self._ping()

    def _submitted(self, request: Request) -> None:
        self.pulse.requested(now=self._now)
        trips = [trip for trip in self._out.values() if trip.nbytes > PING_NBYTES]
        oldest = min(trips, key=lambda trip: trip.sent_s, default=None)
        sent = None if oldest is None else (oldest.sent_s, int(oldest.nbytes + oldest.ahead_nbytes))
        self.ladder.link_measured(self.estimator.estimate(self._now, sent=sent))
        deadline_s = request.at_s + self.scene.deadline_s
        self._carry_out(self.ladder.submitted(request.seq, deadline_s, now=self._now))

    def _carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Prepare(seq, placement):
                    self._decided.setdefault(seq, placement)
                    self._prepare(seq, self.ladder.flights[seq].generation, placement)
                case Send():
                    self._send(instruction)
                case CancelRemote(seq):
                    self._upload(CANCEL_NBYTES, partial(self._cancelled, seq))
                case Finish():
                    self._finish(instruction)

    def _finish(self, finish: Finish) -> None:
        for attempt in range(1, finish.attempts + 1):
            self._out.pop((finish.seq, attempt), None)
        request, late = self._requests[finish.seq], finish.code is not None
        latency_s = self.scene.deadline_s if late else self._now - request.at_s
        decided = self._decided.get(finish.seq, finish.placement)
        self.outcomes[finish.seq] = Outcome(request.at_s, decided, finish.placement, latency_s, late)

    # ---- the device -------------------------------------------------------------------------------------------------

    def _prepare(self, seq: int, generation: int, placement: str) -> None:
        cost, deadline_s = self._costs[placement], self.ladder.flights[seq].deadline
        seconds = busy_s(cost, self._requests[seq])

        def begin() -> float | None:
            flight, usual_s = self.ladder.flights.get(seq), self._took.get(placement, 0.0)
            if flight is None or flight.generation != generation:
                return None
            return None if too_late(deadline_s, usual_s, others=self._device.queue, now=self._now) else seconds

        def done() -> None:
            self._took[placement] = seconds
            nbytes = int(cost.up_nbytes)
            self._carry_out(self.ladder.prepared(seq, generation, nbytes, seconds, now=self._now))

        self._device.offer(begin, done)

    # ---- the gateway ------------------------------------------------------------------------------------------------

    def _send(self, send: Send) -> None:
        nbytes = self._costs[send.placement].up_nbytes + HEADER_NBYTES
        self._out[send.seq, send.attempt] = Trip(self._now, nbytes, self._ahead_nbytes())
        self._upload(nbytes, partial(self._arrived, send))

    def _arrived(self, send: Send) -> None:
        key = send.seq, send.placement
        fresh = Work(send.attempt, self._connection, self._now, send.budget_s)
        work = self._working.setdefault(key, fresh)
        if work is fresh:
            self._engine.offer(partial(self._begin, key, work), partial(self._end, key, work))
            return
        work.attempt, work.connection = send.attempt, self._connection
        if work.done_s is not None:
            self._answer(key, work)

    def _begin(self, key: tuple[int, str], work: Work) -> float | None:
        if self._working.get(key) is not work:
            return None  # cancelled meanwhile
        cost = self._costs[key[1]]
        if self._now + expected_s(cost) > work.arrived_s + work.budget_s:
            del self._working[key]
            self._reject(key[0], work)
            return None
        work.begun_s = self._now
        return served_s(cost, self._requests[key[0]])

    def _end(self, key: tuple[int, str], work: Work) -> None:
        work.done_s = self._now
        if self._working.get(key) is work and work.connection == self._connection:
            self._answer(key, work)

    def _cancelled(self, seq: int) -> None:
        for key in [k for k, work in self._working.items() if k[0] == seq and work.done_s is None]:
            del self._working[key]

    def _answer(self, key: tuple[int, str], work: Work) -> None:
        seq, down_nbytes = key[0], self._costs[key[1]].down_nbytes
        begun_s, attempt = work.begun_s or 0.0, work.attempt
        compute_s, queue_s = (work.done_s or 0.0) - begun_s, begun_s - work.arrived_s
        residence_s = self._now - work.arrived_s

        def landed() -> None:
            self._land(seq, attempt, residence_s, queue_s, down_nbytes)
            self._carry_out(self.ladder.answered(seq, attempt, compute_s, now=self._now))

        self._download(down_nbytes + HEADER_NBYTES, landed)

    def _reject(self, seq: int, work: Work) -> None:
        attempt, residence_s = work.attempt, self._now - work.arrived_s

        def landed() -> None:
            self._land(seq, attempt, residence_s, 0.0, 0.0)
            why = "the budget does not suffice"
            self._carry_out(self.ladder.rejected(seq, attempt, RejectCode.DEADLINE, why, 0.0, now=self._now))

        self._download(HEADER_NBYTES, landed)

    # ---- the link ---------------------------------------------------------------------------------------------------

    def _ahead_nbytes(self) -> float:
        return sum(trip.nbytes for trip in self._out.values())

    def _upload(self, nbytes: float, event: Callable[[], None]) -> None:
        self._up_s = self.scene.trace.arrival_s(max(self._now, self._up_s), nbytes)
        self._after_half_a_round_trip(self._up_s, event)

    def _download(self, nbytes: float, event: Callable[[], None]) -> None:
        self._down_s = self.scene.trace.arrival_s(max(self._now, self._down_s), nbytes)
        self._after_half_a_round_trip(self._down_s, event)

    def _after_half_a_round_trip(self, from_s: float, event: Callable[[], None]) -> None:
        connection = self._connection
        self._time.at(from_s + self.scene.rtt_s / 2, lambda: event() if connection == self._connection else None)

    def _land(self, seq: int, attempt: int, residence_s: float, queue_s: float, down_nbytes: float) -> None:
        """An answer is there: what it says about the link. Earlier attempts are not answered any more."""
        self._heard_s = self._now
        self.ladder.fleet.current.heard(now=self._now)
        for key in [k for k in self._out if k[0] == seq and k[1] < attempt]:
            del self._out[key]
        trip = self._out.pop((seq, attempt), None)
        if trip is None:
            return
        self.estimator.observe(
            nbytes=int(trip.nbytes + down_nbytes),
            round_trip_s=self._now - trip.sent_s,
            residence_s=residence_s,
            queue_s=queue_s,
            ahead_nbytes=int(trip.ahead_nbytes),
            now=self._now,
        )
        self._measured = self._measured or self.estimator.estimate(self._now) is not None

    def _ping(self) -> None:
        ahead_nbytes, idle = self._ahead_nbytes(), not self._out
        for padding in self.pulse.paddings(self.estimator, idle=idle, measured=self._measured, now=self._now):
            self._pings += 1
            self._out[-self._pings, 0] = Trip(self._now, PING_NBYTES + padding, ahead_nbytes)
            self._upload(PING_NBYTES + padding, partial(self._pinged, -self._pings))

    def _pinged(self, number: int) -> None:
        queue_s = self._engine.wait_s()

        def landed() -> None:
            self._land(number, 0, 0.0, queue_s, 0.0)
            self.pulse.answered(self.estimator, measured=self._measured, now=self._now)

        self._download(PING_NBYTES, landed)

    def _lose_link(self) -> None:
        """Nothing was heard for too long: the socket is made anew, and what it still held is gone."""
        self._up = self._measured = False
        self._connection += 1
        self._out.clear()
        self.estimator.lost()
        self._up_s = self._down_s = self._now
        self._time.at(self.scene.trace.arrival_s(self._now, HELLO_NBYTES) + 2 * self.scene.rtt_s, self._welcomed)
        self._carry_out(self.ladder.link_lost(Why(Cause.SILENCE, "the gateway has fallen silent"), now=self._now))

    def _welcomed(self) -> None:
        self._up, self._heard_s = True, self._now
        self.pulse.welcomed(now=self._now)
        held = frozenset(row.segment for row in self._rows.values() if row.segment is not None)
        self._carry_out(
            self.ladder.link_up(held=held, credit_requests=CREDIT_REQUESTS, credit_nbytes=CREDIT_NBYTES, now=self._now)
        )


def row_of(candidate: Candidate) -> Row:
    """What the ladder knows of a placement. Its kind follows from its cost: who computes at all."""
    id_, cost = candidate.id, candidate.cost
    if not cost.crosses:
        kind, segment = PlacementKind.EDGE_ONLY, None
    else:
        kind, segment = PlacementKind.CUT if cost.edge_s > 0 else PlacementKind.FULL_CLOUD, id_.encode()
    return Row(id_, kind, segment, candidate.head or None, candidate.tail or None)
