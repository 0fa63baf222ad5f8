"""The agent's decisions, pure: events in, instructions out. Every request ends in exactly one `Finish`.

One request's life, whatever its placement (fallback is a placement, not a branch):

    Submitted -> Prepare ........ head and encoding on the device; for full-cloud encoding alone,
                                  for edge-only the whole model
    Prepared  -> Send | Finish .. edge-only is finished here: nothing crosses
    Answered  -> Finish

When a step fails, its *cause* decides the next placement:

    head failed                 -> full-cloud, else edge-only     (its breaker opens)
    gateway busy or draining    -> another gateway, else edge-only, else wait    (full-cloud would add load)
    engine failed there         -> another gateway, else edge-only, else another placement
    segment unknown there       -> another gateway that holds it, else full-cloud if the model is held, else edge-only
    frame before forgotten      -> the same placement at once, encoded anew without it
    attempt timed out           -> another gateway, else edge-only, else again under the same id (the gateway suppresses
                                   duplicates); not again where nothing at all has come since: it stays out
    link lost                   -> another gateway, else edge-only, else keep and send again under the same id
    budget used up              -> refusal
    its caller went away        -> nothing more: what has not begun does not, and gateways are told

A request that goes to another gateway keeps its id and is cancelled at the first; what is prepared is sent as it is.
The caller's deadline bounds everything: an attempt may only take what leaves enough time for edge-only after it. With
`hedge`, edge-only is started beside an attempt when the budget gets tight, and whichever is first answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from protocol.control.availability import SILENT, Device
from protocol.control.causes import Cause, Why
from protocol.control.demand import DemandMeter
from protocol.control.explanation import Explanation
from protocol.control.fleet import Chance, Fleet
from protocol.control.flights import Finish, Flight, Instruction, Phase, RefusalCode, Row
from protocol.control.margins import Margins
from protocol.control.outbox import SHORTEST_PAUSE_S, Outbox
from protocol.control.planner import Planner
from protocol.control.steps import Steps
from protocol.control.ways_out import WaysOut
from protocol.errors import InvariantViolation
from protocol.latency import LinkState
from protocol.messages import PlacementKind, RejectCode

LONGEST_PAUSE_S = 30.0  # whatever a gateway asks for
MOST_PENDING = 256
NO_TIME_LEFT = Why(Cause.NO_TIME, "no time left to wait for the gateway")
NOT_IN_TIME = Why(Cause.SILENCE, "the gateway did not answer in time")
ONLY = ("",)  # the name of the gateway where there is but one


class Ladder:
    """Feed it events; carry out the instructions it returns. Times are monotonic seconds, `now` always given.

    Events that concern a gateway say which: "" is the only one, where there is but one.
    """

    def __init__(
        self,
        rows: list[Row],
        planner: Planner,
        *,
        expects_gateway: bool = True,
        gateways: Iterable[str] = ONLY,
        chance: Chance | None = None,
        hedge: bool = False,
    ) -> None:
        """`chance` draws among several gateways: a seeded `random.Random`."""
        self.flights: dict[int, Flight] = {}
        self.planner = planner
        self.device = Device(rows)
        self.fleet = Fleet(self.device, gateways, chance)
        self._rows = self.device.rows
        self._local = self.device.local
        self.demand = DemandMeter()
        self._margins = Margins(planner, self.device)
        self._ways = WaysOut(self.flights, self.fleet, self.device, self._margins, planner)
        self._steps = Steps(self.flights, self._ways, self.fleet, planner, self.demand, expects_gateway=expects_gateway)
        self._outbox = Outbox(self.flights, self.fleet, self._ways, self._margins, self.demand, hedge=hedge)

    # ---- events of requests -----------------------------------------------------------------------------------------

    def submitted(
        self, seq: int, deadline: float, *, priority: int = 4, rows: int = 1, now: float
    ) -> list[Instruction]:
        """A caller wants an answer by `deadline`; of those that wait for credit the lowest `priority` goes first."""
        if seq in self.flights:
            raise InvariantViolation(f"request {seq} was submitted twice")
        self.demand.arrived(pending=len(self.flights), now=now)
        flight = self.flights[seq] = Flight(seq, deadline, priority, rows)
        if len(self.flights) > MOST_PENDING:
            return [self._refuse(flight, RefusalCode.BUSY, f"{MOST_PENDING} requests are already waiting")]
        return self._steps.place(flight, now=now)

    def prepared(self, seq: int, generation: int, nbytes: int, edge_s: float, *, now: float) -> list[Instruction]:
        """The device's share of the work is done; `nbytes` encoded bytes are ready to cross (0 for edge-only)."""
        flight = self._preparing(seq, generation)
        if flight is None:
            return []
        row = self._rows[self._local if flight.hedge and self._local else flight.placement]
        self.device.breakers[row.id].succeeded()
        self.planner.observe_edge(row.id, edge_s, flight.rows)
        self.planner.observe_nbytes(row.id, nbytes, flight.rows)
        if now >= flight.deadline:
            return self._expire(flight, now=now)
        if row.kind is PlacementKind.EDGE_ONLY:
            cancel = self._steps.leave(flight)
            flight.placement = row.id
            return [*cancel, self._finish(flight), *(self._outbox.send_ready(now=now) if cancel else ())]
        flight.phase, flight.nbytes = Phase.READY, nbytes
        if (lost := self._ways.of(flight).link_reason) is not None:  # while the device was at work
            down = self._steps.step_down(flight, lost, another=self._ways.another(flight, now=now), now=now)
            return down + self._outbox.send_ready(now=now)
        return self._outbox.send_ready(now=now)

    def preparation_failed(
        self, seq: int, generation: int, reason: str, *, sound: bool = False, now: float
    ) -> list[Instruction]:
        """The head (or the whole model on the device) failed; `sound` if only on this request's own values."""
        flight = self._preparing(seq, generation)
        if flight is None:
            return []
        failed = self._local if flight.hedge and self._local else flight.placement
        why, told = Why(Cause.DEVICE, reason), Why(Cause.DEVICE, f"{failed}: {reason}")
        if sound:
            self.device.breakers[failed].released()
        else:
            self.device.breakers[failed].failed(why, now=now)
        flight.avoided |= dict.fromkeys({failed, *self.device.sharing(failed, head=True)}, why)
        if flight.hedge:
            flight.hedge, flight.local_hopeless = 0, True
            flight.note(told)
            return []  # the attempt beside it goes on
        prefer = self._ways.best_full_cloud(flight, now=now) if self._rows[failed].kind is PlacementKind.CUT else None
        return self._steps.step_down(flight, told, prefer=prefer, now=now)

    def _preparing(self, seq: int, generation: int) -> Flight | None:
        """The request, if it still waits for this preparation."""
        flight = self.flights.get(seq)
        if flight is None or flight.generation != generation:
            return None
        return flight if flight.phase is Phase.PREPARING or flight.hedge == generation else None

    def answered(self, seq: int, attempt: int, compute_s: float, *, gateway: str = "", now: float) -> list[Instruction]:
        """A result came. One of an earlier attempt is as good as any, and welcome even after a step down."""
        remote = self.fleet.of(gateway)
        remote.breaker.succeeded()  # late, but it answers
        flight = self.flights.get(seq)
        if flight is None or not flight.was_sent(attempt, gateway):
            return []  # answered late or twice; the request has ended already
        elsewhere = flight.phase is Phase.SENT and flight.gateway != gateway
        cancel = self._steps.leave(flight) if elsewhere else []
        flight.placement, flight.gateway = flight.sent_as[attempt - 1], gateway
        remote.tails[flight.placement].succeeded()
        remote.served(compute_s)
        # What one codec of the same work was refused for and another was not is that gateway's want of the codec.
        same = self.device.sharing(flight.placement)
        refused = ((i, why) for i, why in flight.avoided.items() if why.cause is Cause.GATEWAY_BAD_REQUEST)
        remote.broken |= {i: why for i, why in refused if i in same}
        self.planner.observe_tail(flight.placement, compute_s, gateway, flight.rows)
        if now >= flight.deadline:
            return [*cancel, self._late(flight), *self._outbox.send_ready(now=now)]
        return [*cancel, self._finish(flight, gateway), *self._outbox.send_ready(now=now)]

    def rejected(
        self,
        seq: int,
        attempt: int,
        code: RejectCode,
        reason: str,
        retry_after_s: float,
        *,
        credit: int | None = None,
        gateway: str = "",
        now: float,
    ) -> list[Instruction]:
        """The gateway did not do it, and said why. Expected trouble, each with its own next step.

        `credit` is how many requests it takes beyond those that it has; None where it did not say.
        """
        flight = self.flights.get(seq)
        if flight is None or flight.phase is not Phase.SENT or attempt != flight.attempt or gateway != flight.gateway:
            return []
        why = Why.refused(code, reason)
        remote, placement = self._ways.of(flight), flight.placement
        prefer = None
        again = code in (RejectCode.BUSY, RejectCode.DRAINING, RejectCode.DEADLINE)
        elsewhere = code not in (RejectCode.BAD_REQUEST, RejectCode.TOO_LARGE)
        pause_s = max(min(retry_after_s, LONGEST_PAUSE_S), SHORTEST_PAUSE_S)
        remote.breaker.succeeded()  # whatever it says, it answers
        if credit is not None:
            others = self.fleet.loads(self.flights.values())[gateway].requests - 1
            remote.granted(others, credit, pause_s, now=now)
        if code is RejectCode.UNKNOWN_REFERENCE and not flight.encoded_anew and not flight.hedge:
            flight.encoded_anew = True
            remote.tails[placement].released()
            return self._steps.prepare(flight, placement, remote, now=now) + self._outbox.send_ready(now=now)
        if code is RejectCode.UNKNOWN_SEGMENT:
            unknown = self._rows[placement].segment
            remote.broken |= {row.id: why for row in remote.rows.values() if row.segment == unknown}
            prefer = self._ways.best_full_cloud(flight, now=now)
        elif code is RejectCode.INTERNAL:
            flight.avoid({placement, *self.device.sharing(placement)}, why, at=gateway)
            remote.tails[placement].failed(why, now=now)
        elif code in (RejectCode.BUSY, RejectCode.DRAINING, RejectCode.FORBIDDEN):
            # Full-cloud would add load: everything behind this gateway has to wait as long as it asked.
            remote.breaker.hold_off(why, pause_s, now=now)
        elif code is RejectCode.DEADLINE:
            flight.refusals += 1
            flight.left.add(gateway)
        elif not elsewhere:
            flight.avoided[placement] = why
            if code is RejectCode.BAD_REQUEST and self._rows[placement].kind is PlacementKind.FULL_CLOUD:
                prefer = self._ways.best_full_cloud(flight, now=now)  # perhaps it only lacks the codec
        if not elsewhere and prefer is None and self._local is None:
            return [self._refuse(flight, RefusalCode.BAD_REQUEST, reason), *self._outbox.send_ready(now=now)]
        another = self._ways.another(flight, now=now) if elsewhere else None
        backed = bool(flight.hedge) or another is not None or self._margins.local_can_follow(flight)
        if code is RejectCode.DEADLINE and flight.refusals > 1 and not backed:
            # Asking again would upload everything again, and the gateway has said twice that it cannot be in time.
            return [self._refuse(flight, RefusalCode.DEADLINE, why.sentence), *self._outbox.send_ready(now=now)]
        flight.not_before = now + pause_s
        down = self._steps.step_down(flight, why, prefer=prefer, again=again, another=another, now=now)
        return down + self._outbox.send_ready(now=now)

    def there(self, seq: int, attempt: int, left_nbytes: int, *, gateway: str = "", now: float) -> list[Instruction]:
        """All but `left_nbytes` of what this attempt sends in chunks has arrived."""
        flight = self.flights.get(seq)
        if flight is None or flight.gateway != gateway:
            return []
        return self._outbox.there(seq, attempt, left_nbytes, now=now)

    def budget_s(self, seq: int, rest_nbytes: int, *, now: float) -> float:
        """What the gateway may still take for this request if `rest_nbytes` have to cross first."""
        return self._outbox.budget_s(seq, rest_nbytes, now=now)

    def cancelled(self, seq: int, *, now: float) -> list[Instruction]:
        """Its caller wants no answer any more. One that has ended meanwhile is no news."""
        flight = self.flights.get(seq)
        if flight is None:
            return []
        out = self._steps.withdraw(flight)
        return [*out, self._refuse(flight, RefusalCode.CANCELLED, "its caller withdrew it"),
                *self._outbox.send_ready(now=now)]  # fmt: skip

    def unsent(self, seq: int, *, now: float) -> None:
        """A Send could not be carried out (no connection at this moment): it is ready again."""
        self._outbox.unsent(seq, now=now)

    def disable(self, id_: str, reason: str) -> None:
        """This placement's head could not be loaded: it is never used."""
        self.device.disabled[id_] = Why(Cause.DEVICE, reason)

    def close(self) -> list[Instruction]:
        return [self._refuse(f, RefusalCode.CLOSED, "the agent was shut down") for f in list(self.flights.values())]

    # ---- events of gateways -----------------------------------------------------------------------------------------

    def gateway_found(self, name: str, *, rank: int = 0, weight: int = 0) -> None:
        """A gateway that may be there; it is used once it has welcomed us, those of a higher rank only without it."""
        remote = self.fleet.add(name)
        remote.rank, remote.weight = rank, weight

    def gateway_gone(self, name: str, reason: str, *, now: float) -> list[Instruction]:
        """It is to be used no more, nor waited for."""
        out = self.link_lost(Why.lost(reason), gateway=name, now=now)
        self.fleet.remove(name)
        return out

    def link_up(
        self,
        *,
        held: frozenset[bytes],
        credit_requests: int,
        credit_nbytes: int,
        chunk_nbytes: int = 0,
        gateway: str = "",
        anew: bool = True,
        now: float,
    ) -> list[Instruction]:
        """A gateway welcomed us; `held` are the digests of the segments and models it can work on.

        `chunk_nbytes` is the largest chunk that it takes; 0: payloads go in one message. `anew` is False where it only
        answers another greeting on a connection that never broke.
        """
        remote = self.fleet.of(gateway)
        remote.chunk_nbytes = chunk_nbytes
        if anew or remote.link_reason is not None:
            remote.welcomed(held, credit_requests, credit_nbytes)
        else:
            remote.refreshed(held, credit_requests, credit_nbytes)
        return self._outbox.send_ready(now=now)

    def link_lost(self, why: Why, *, gateway: str = "", now: float) -> list[Instruction]:
        """The gateway is gone or no longer takes requests. What was in flight goes elsewhere, or waits."""
        self.fleet.of(gateway).link_reason = why
        return self._all_step_down(gateway, (Phase.SENT, Phase.READY), why, now=now)

    def draining(self, why: Why, *, gateway: str = "", now: float) -> list[Instruction]:
        """The gateway takes nothing new; what it holds it still answers."""
        self.fleet.of(gateway).link_reason = why
        return self._all_step_down(gateway, (Phase.READY,), why, now=now)

    def _all_step_down(self, gateway: str, phases: tuple[Phase, ...], why: Why, *, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        for flight in [f for f in self.flights.values() if f.gateway == gateway and f.phase in phases]:
            out += self._steps.step_down(flight, why, another=self._ways.another(flight, now=now), now=now)
        return out + self._outbox.send_ready(now=now)

    def link_measured(self, link: LinkState | None, *, gateway: str = "") -> None:
        self.fleet.of(gateway).link = link

    # ---- time -------------------------------------------------------------------------------------------------------

    def tick(self, *, now: float) -> list[Instruction]:
        """Time has passed: expire, time out, retry."""
        out = self._expire(*(f for f in self.flights.values() if now >= f.deadline), now=now)  # before any takes a step
        for flight in list(self.flights.values()):
            if flight.seq not in self.flights:
                continue  # another one's step has ended it
            if flight.not_before <= now:
                flight.not_before = 0.0
            if flight.phase is Phase.SENT and now >= flight.hedge_at:
                out += self._steps.begin_hedge(flight, now=now)
            if flight.phase is Phase.SENT and flight.unheard:
                out += self._steps.look_again(flight, now=now)
            elif flight.phase is Phase.SENT and now >= flight.attempt_until:
                out += self._time_out(flight, now=now)
            elif flight.phase is Phase.READY and now >= self._ways.too_late_at(flight):
                out += self._steps.step_down(flight, NO_TIME_LEFT, now=now)
                flight.local_hopeless = flight.phase is Phase.READY
        return out + self._outbox.send_ready(now=now)

    def _time_out(self, flight: Flight, *, now: float) -> list[Instruction]:
        out = self._not_answered(flight, now=now)
        flight.left.add(flight.gateway)
        if flight.hedge:
            flight.attempt_until = flight.deadline  # edge-only is at work already; the answer may still be first
            return out
        another = self._ways.another(flight, now=now)
        return out + self._steps.step_down(flight, NOT_IN_TIME, another=another, now=now)

    def _not_answered(self, flight: Flight, *, now: float) -> list[Instruction]:
        remote = self._ways.of(flight)
        silent = remote.timed_out(flight.sent_at, flight.deadline, now=now)
        return self._all_step_down(remote.name, (Phase.READY,), SILENT, now=now) if silent else []

    def _expire(self, *flights: Flight, now: float) -> list[Instruction]:
        out = [instruction for f in flights for instruction in (*self._steps.leave(f), self._late(f))]
        for flight in (f for f in flights if f.phase is Phase.SENT):
            out += self._not_answered(flight, now=now)
        return out

    def _late(self, flight: Flight) -> Finish:
        return self._refuse(flight, RefusalCode.DEADLINE, f"the budget ran out: {flight.whereabouts}")

    # ---- answers to the shell ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called at the latest."""
        return min((at for flight in self.flights.values() for at in self._ways.alarms(flight)), default=None)

    def sent_as(self, seq: int, attempt: int) -> str | None:
        """The placement with which this attempt was sent."""
        flight = self.flights.get(seq)
        return flight.sent_as[attempt - 1] if flight and 1 <= attempt <= len(flight.sent_as) else None

    def in_flight(self, gateway: str | None = None) -> list[Flight]:
        """What is unanswered, at one gateway or at all."""
        return [f for f in self.flights.values() if f.phase is Phase.SENT and gateway in (None, f.gateway)]

    def unavailable(self, *, now: float, gateway: str | None = None) -> dict[str, str]:
        """For every placement that cannot be used now, with this gateway or the one in use, why."""
        remote = self.fleet.current if gateway is None else self.fleet.of(gateway)
        return {id_: why.sentence for id_, why in self._ways.reasons(remote, now=now).items()}

    def explain(self, *, now: float) -> Explanation:
        """Why requests are placed as they are now, and what would change that. Changes nothing."""
        remote = self.fleet.current
        return self.planner.explain(
            remote.link, self.unavailable(now=now), demand=self._steps.demand_now(None, now=now), gateway=remote.name
        )

    def validate(self) -> None:
        """Raise InvariantViolation if a promise of this room is broken (called after every test)."""
        for seq, flight in self.flights.items():
            if flight.seq != seq or flight.placement not in self._rows:
                raise InvariantViolation(f"flight {seq} is {flight}")
            flight.validate()

    def _finish(self, flight: Flight, gateway: str = "") -> Finish:
        del self.flights[flight.seq]
        return flight.finish(gateway)

    def _refuse(self, flight: Flight, code: RefusalCode, reason: str) -> Finish:
        del self.flights[flight.seq]
        return flight.refusal(code, reason)
