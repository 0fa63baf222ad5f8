"""The agent's decisions, pure: events in, instructions out. Every request ends in exactly one `Finish`.

One request's life, whatever its placement (fallback is a placement, not a branch):

    Submitted -> Prepare ........ head and encoding on the device; for full-cloud encoding alone,
                                  for edge-only the whole model
    Prepared  -> Send | Finish .. edge-only is finished here: nothing crosses
    Answered  -> Finish

When a step fails, its *cause* decides the next placement:

    head failed                 -> full-cloud, else edge-only     (its breaker opens)
    gateway busy or draining    -> edge-only, else wait           (full-cloud would add load)
    segment unknown there       -> full-cloud if it holds the model, else edge-only
    frame before forgotten      -> the same placement at once, encoded anew without it
    attempt timed out           -> edge-only, else again under the same id (the gateway suppresses duplicates)
    link lost                   -> edge-only, else keep and send again under the same id when it is back
    budget used up              -> refusal

The caller's deadline bounds everything: an attempt may only take what leaves enough time for edge-only after it.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.control.availability import Availability
from protocol.control.flights import CancelRemote, Finish, Flight, Instruction, Phase, Prepare, RefusalCode, Row, Send
from protocol.control.margins import Margins
from protocol.control.planner import Planner
from protocol.errors import InvariantViolation
from protocol.latency import LinkState
from protocol.messages import PlacementKind, RejectCode

LONGEST_PAUSE_S = 30.0  # whatever a gateway asks for
SHORTEST_PAUSE_S = 0.01  # between two attempts of one request, whatever the gateway says
MOST_PENDING = 256
CODEC_REFUSED = f"gateway {RejectCode.BAD_REQUEST}:"


class Ladder:
    """Feed it events; carry out the instructions it returns. Times are monotonic seconds, `now` always given."""

    def __init__(self, rows: list[Row], planner: Planner, *, expects_gateway: bool = True) -> None:
        self.flights: dict[int, Flight] = {}
        self.planner = planner
        self._usable = Availability(rows)
        self._rows = self._usable.rows
        self._local = self._usable.local
        self._expects_gateway = expects_gateway
        self._credit_requests = 0
        self._credit_nbytes = 0
        self._margins = Margins(planner, self._usable)

    # ---- events -----------------------------------------------------------------------------------------------------

    def submitted(self, seq: int, deadline: float, *, now: float) -> list[Instruction]:
        """A caller wants an answer by `deadline`."""
        if seq in self.flights:
            raise InvariantViolation(f"request {seq} was submitted twice")
        flight = self.flights[seq] = Flight(seq, deadline)
        if len(self.flights) > MOST_PENDING:
            return [self._refuse(flight, RefusalCode.BUSY, f"{MOST_PENDING} requests are already waiting")]
        return self._place(flight, now=now)

    def prepared(self, seq: int, generation: int, nbytes: int, edge_s: float, *, now: float) -> list[Instruction]:
        """The device's share of the work is done; `nbytes` encoded bytes are ready to cross (0 for edge-only)."""
        flight = self.flights.get(seq)
        if flight is None or flight.phase is not Phase.PREPARING or flight.generation != generation:
            return []
        row = self._rows[flight.placement]
        self._usable.device[row.id].succeeded()
        self.planner.observe_edge(row.id, edge_s)
        self.planner.observe_nbytes(row.id, nbytes)
        if now >= flight.deadline:
            return self._expire(flight, now=now)
        if row.kind is PlacementKind.EDGE_ONLY:
            return [self._finish(flight)]
        flight.phase, flight.nbytes = Phase.READY, nbytes
        if self._usable.link_reason is not None:  # lost while the device was at work
            return self._step_down(flight, self._usable.link_reason, now=now)
        return self._send_ready(now=now)

    def preparation_failed(
        self, seq: int, generation: int, reason: str, *, sound: bool = False, now: float
    ) -> list[Instruction]:
        """The head (or the whole model on the device) failed; `sound` if only on this request's own values."""
        flight = self.flights.get(seq)
        if flight is None or flight.phase is not Phase.PREPARING or flight.generation != generation:
            return []
        if sound:
            self._usable.device[flight.placement].released()
        else:
            self._usable.device[flight.placement].failed(reason, now=now)
        flight.avoided |= dict.fromkeys(self._usable.sharing(flight.placement, head=True), reason)
        prefer = (
            self._best_full_cloud(flight, now=now) if self._rows[flight.placement].kind is PlacementKind.CUT else None
        )
        return self._step_down(flight, f"{flight.placement}: {reason}", prefer=prefer, now=now)

    def answered(self, seq: int, attempt: int, compute_s: float, *, now: float) -> list[Instruction]:
        """A result came. One of an earlier attempt is as good as any, and welcome even after a step down."""
        self._usable.gateway.succeeded()  # late, but it answers
        flight = self.flights.get(seq)
        if flight is None or not 1 <= attempt <= len(flight.sent_as):
            return []  # answered late or twice; the request has ended already
        flight.placement = flight.sent_as[attempt - 1]
        self._usable.tails[flight.placement].succeeded()
        # What one codec of the same work was refused for and another was not is that gateway's want of the codec.
        same = self._usable.sharing(flight.placement)
        self._usable.broken |= {i: why for i, why in flight.avoided.items() if i in same and CODEC_REFUSED in why}
        self.planner.observe_tail(flight.placement, compute_s)
        if now >= flight.deadline:
            return [self._late(flight), *self._send_ready(now=now)]
        return [self._finish(flight), *self._send_ready(now=now)]

    def rejected(
        self, seq: int, attempt: int, code: RejectCode, reason: str, retry_after_s: float, *, now: float
    ) -> list[Instruction]:
        """The gateway did not do it, and said why. Expected trouble, each with its own next step."""
        flight = self.flights.get(seq)
        if flight is None or flight.phase is not Phase.SENT or attempt != flight.attempt:
            return []
        why = f"gateway {code}: {reason}"
        placement = flight.placement
        prefer = None
        again = code in (RejectCode.BUSY, RejectCode.DRAINING, RejectCode.DEADLINE)
        self._usable.gateway.succeeded()  # whatever it says, it answers
        flight.refusals += code is RejectCode.DEADLINE
        if code is RejectCode.UNKNOWN_REFERENCE and not flight.encoded_anew:
            flight.encoded_anew = True
            self._usable.tails[placement].released()
            return self._prepare(flight, placement, now=now) + self._send_ready(now=now)
        if code is RejectCode.UNKNOWN_SEGMENT:
            unknown = self._rows[placement].segment
            self._usable.broken |= {row.id: why for row in self._rows.values() if row.segment == unknown}
            prefer = self._best_full_cloud(flight, now=now)
        elif code is RejectCode.INTERNAL:
            flight.avoided |= dict.fromkeys(self._usable.sharing(placement), why)
            self._usable.tails[placement].failed(why, now=now)
        elif code in (RejectCode.BUSY, RejectCode.DRAINING, RejectCode.FORBIDDEN):
            # Full-cloud would add load: everything behind this gateway has to wait as long as it asked.
            pause_s = max(min(retry_after_s, LONGEST_PAUSE_S), SHORTEST_PAUSE_S)
            self._usable.gateway.hold_off(why, pause_s, now=now)
        elif code is RejectCode.BAD_REQUEST and self._rows[placement].kind is PlacementKind.FULL_CLOUD:
            flight.avoided[placement] = why  # perhaps it only lacks the codec
            prefer = self._best_full_cloud(flight, now=now)
        if code in (RejectCode.BAD_REQUEST, RejectCode.TOO_LARGE) and prefer is None and self._local is None:
            return [self._refuse(flight, RefusalCode.BAD_REQUEST, reason), *self._send_ready(now=now)]
        if code is RejectCode.DEADLINE and flight.refusals > 1 and not self._margins.local_can_follow(flight):
            # Asking again would upload everything again, and the gateway has said twice that it cannot be in time.
            return [self._refuse(flight, RefusalCode.DEADLINE, why), *self._send_ready(now=now)]
        flight.not_before = now + max(min(retry_after_s, LONGEST_PAUSE_S), SHORTEST_PAUSE_S)
        return self._step_down(flight, why, prefer=prefer, again=again, now=now) + self._send_ready(now=now)

    def link_up(
        self, *, held: frozenset[bytes], credit_requests: int, credit_nbytes: int, now: float
    ) -> list[Instruction]:
        """A gateway welcomed us; `held` are the digests of the segments and models it can work on."""
        self._usable.welcomed(held)
        self._credit_requests, self._credit_nbytes = credit_requests, credit_nbytes
        return self._send_ready(now=now)

    def link_lost(self, reason: str, *, now: float) -> list[Instruction]:
        """The gateway is gone or no longer takes requests. What was in flight goes local, or waits for its return."""
        self._usable.link_reason = reason
        return self._all_step_down((Phase.SENT, Phase.READY), reason, now=now)

    def draining(self, reason: str, *, now: float) -> list[Instruction]:
        """The gateway takes nothing new; what it holds it still answers."""
        self._usable.link_reason = reason
        return self._all_step_down((Phase.READY,), reason, now=now)

    def _all_step_down(self, phases: tuple[Phase, ...], why: str, *, now: float) -> list[Instruction]:
        flights = [f for f in self.flights.values() if f.phase in phases]
        return [instruction for f in flights for instruction in self._step_down(f, why, now=now)]

    def disable(self, id_: str, reason: str) -> None:
        """This placement's head could not be loaded: it is never used."""
        self._usable.disabled[id_] = reason

    def unsent(self, seq: int, *, now: float) -> None:
        """A Send could not be carried out (no connection at this moment): it is ready again."""
        flight = self.flights.get(seq)
        if flight is not None and flight.phase is Phase.SENT:
            flight.phase, flight.not_before = Phase.READY, now + SHORTEST_PAUSE_S
            flight.attempt -= 1
            flight.sent_as.pop()
            self._usable.gateway.released()
            self._usable.tails[flight.placement].released()

    def link_measured(self, link: LinkState | None) -> None:
        self._margins.link = link

    def tick(self, *, now: float) -> list[Instruction]:
        """Time has passed: expire, time out, retry."""
        out: list[Instruction] = []
        for flight in list(self.flights.values()):
            if flight.not_before <= now:
                flight.not_before = 0.0
            if now >= flight.deadline:
                out += self._expire(flight, now=now)
            elif flight.phase is Phase.SENT and now >= flight.attempt_until:
                self._usable.gateway.failed("the gateway does not answer", now=now)
                out += self._step_down(flight, "the gateway did not answer in time", now=now)
            elif flight.phase is Phase.READY and now >= self._margins.remote_too_late_at(flight):
                out += self._step_down(flight, "no time left to wait for the gateway", now=now)
                flight.local_hopeless = flight.phase is Phase.READY
        return out + self._send_ready(now=now)

    def _expire(self, flight: Flight, *, now: float) -> list[Instruction]:
        out: list[Instruction] = []
        if flight.phase is Phase.SENT:
            out.append(CancelRemote(flight.seq))
            self._usable.tails[flight.placement].released()
            self._usable.gateway.failed("the gateway does not answer", now=now)
        out.append(self._late(flight))
        return out

    def _late(self, flight: Flight) -> Finish:
        doing = {Phase.PREPARING: "the device was at work", Phase.READY: "waiting for the gateway"}
        return self._refuse(
            flight, RefusalCode.DEADLINE, f"the budget ran out: {doing.get(flight.phase, 'on its way')}"
        )

    def close(self) -> list[Instruction]:
        return [self._refuse(f, RefusalCode.CLOSED, "the agent was shut down") for f in list(self.flights.values())]

    # ---- answers to the shell ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called at the latest."""
        times = []
        for flight in self.flights.values():
            times.append(flight.deadline)
            if flight.phase is Phase.SENT:
                times.append(flight.attempt_until)
            elif flight.phase is Phase.READY:
                times.append(self._margins.remote_too_late_at(flight))
                if flight.not_before:
                    times.append(flight.not_before)
        return min(times, default=None)

    def sent_as(self, seq: int, attempt: int) -> str | None:
        """The placement with which this attempt was sent."""
        flight = self.flights.get(seq)
        return flight.sent_as[attempt - 1] if flight and 1 <= attempt <= len(flight.sent_as) else None

    def in_flight(self) -> list[Flight]:
        return [f for f in self.flights.values() if f.phase is Phase.SENT]

    def unavailable(self, *, now: float) -> dict[str, str]:
        """For every placement that cannot be used now, why."""
        return self._usable.reasons(now=now)

    def validate(self) -> None:
        """Raise InvariantViolation if a promise of this room is broken (called after every test)."""
        for seq, flight in self.flights.items():
            if flight.seq != seq or flight.placement not in self._rows:
                raise InvariantViolation(f"flight {seq} is {flight}")
            if flight.phase is Phase.SENT and not flight.attempt_until <= flight.deadline:
                raise InvariantViolation(f"flight {seq} may wait beyond its deadline")

    # ---- decisions --------------------------------------------------------------------------------------------------

    def _best_full_cloud(self, flight: Flight, *, now: float) -> str | None:
        """The codec of the whole model's input that is predicted best now, if the gateway can be used at all."""
        rows = [r for r in self._rows.values() if r.kind is PlacementKind.FULL_CLOUD]
        usable = [r.id for r in rows if r.id not in flight.avoided and self._usable.reason(r, now=now) is None]
        predicted = self.planner.predict(self._margins.link) if len(usable) > 1 else {}
        return min(usable, key=lambda id_: predicted.get(id_, 0.0), default=None)

    def _place(self, flight: Flight, *, now: float) -> list[Instruction]:
        """Choose a placement for a request that has none (or lost it)."""
        unavailable = self._usable.reasons(now=now) | flight.avoided
        decision = self.planner.decide(self._margins.link, unavailable)
        if decision is None:
            return self._wait_or_refuse(flight, unavailable, now=now)
        if self._expects_gateway and self._margins.link is None and self._usable.link_reason is not None:
            flight.note(self._usable.link_reason)  # without a link the plan is a guess, but this much is known
        elif decision.because_of is not None:
            wanted, why = decision.because_of
            flight.note(why if wanted in why else f"{wanted}: {why}")
        return self._prepare(flight, decision.id, now=now)

    def _step_down(
        self, flight: Flight, why: str, *, prefer: str | None = None, again: bool = True, now: float
    ) -> list[Instruction]:
        """The current placement failed this request; take the next-best one. `again`: the same one may work later."""
        flight.note(why)
        was_sent = flight.phase is Phase.SENT
        if was_sent:
            self._usable.tails[flight.placement].released()
        again = again and flight.phase is not Phase.PREPARING
        if not again:
            flight.avoided[flight.placement] = why
        unavailable = self._usable.reasons(now=now) | flight.avoided
        for candidate in (prefer, self._local):
            if candidate is not None and candidate != flight.placement and candidate not in unavailable:
                cancel: list[Instruction] = [CancelRemote(flight.seq)] if was_sent else []
                return cancel + self._prepare(flight, candidate, now=now)
        if again:
            # Nothing on the device can take over. What is prepared stays so and goes out again under the same id,
            # which is why nothing was cancelled: the gateway attaches the new attempt to the work it may still do.
            flight.phase = Phase.READY
            return []
        return self._place(flight, now=now)

    def _wait_or_refuse(self, flight: Flight, unavailable: Mapping[str, str], *, now: float) -> list[Instruction]:
        """No placement can be used now. If only link or gateway need a moment the request waits, else it is refused."""
        waiting = [
            row.id
            for row in self._rows.values()
            if row.id not in flight.avoided and self._usable.waits_for_gateway(row, now=now)
        ]
        if waiting and (self._usable.link_reason is not None or self._usable.gateway.refuses(now=now)):
            predicted = self.planner.predict(self._margins.link)
            for why in dict.fromkeys(unavailable[id_] for id_ in waiting):
                flight.note(why)
            return self._prepare(flight, min(waiting, key=lambda id_: predicted[id_]), now=now)
        reason = "; ".join(dict.fromkeys(unavailable.values())) or "the bundle has no placement"
        return [self._refuse(flight, RefusalCode.NO_PLACEMENT, reason)]

    def _prepare(self, flight: Flight, placement: str, *, now: float) -> list[Instruction]:
        flight.placement, flight.phase = placement, Phase.PREPARING
        flight.generation += 1
        flight.attempt_until = flight.deadline
        self._usable.device[placement].passing(now=now)
        return [Prepare(flight.seq, placement)]

    def _send_ready(self, *, now: float) -> list[Instruction]:
        """Send what is prepared, oldest first, while link and credit allow."""
        if self._usable.link_reason is not None:
            return []
        out: list[Instruction] = []
        sent = self.in_flight()
        requests, nbytes = len(sent), sum(f.nbytes for f in sent)
        for flight in [f for f in self.flights.values() if f.phase is Phase.READY]:
            if (
                flight.not_before > now
                or self._usable.gateway.refuses(now=now)
                or now >= self._margins.remote_too_late_at(flight)
            ):
                continue
            # A request larger than the whole credit may go alone; the gateway refuses it in its own words if it must.
            too_large = requests > 0 and nbytes + flight.nbytes > self._credit_nbytes
            if requests >= self._credit_requests or too_large:
                break
            left_s = flight.deadline - now
            travel_s = self._margins.ahead_s(self.in_flight()) + self._margins.travel_s(flight)
            if left_s <= travel_s and not self._margins.local_can_follow(flight):
                why = f"{flight.nbytes} bytes need {travel_s:.3f} s to travel and {left_s:.3f} s are left"
                out.append(self._refuse(flight, RefusalCode.DEADLINE, why))
                continue
            out.append(self._send(flight, now=now))
            requests, nbytes = requests + 1, nbytes + flight.nbytes
        return out

    def _send(self, flight: Flight, *, now: float) -> Send:
        ahead_s = self._margins.ahead_s(self.in_flight())
        flight.phase = Phase.SENT
        flight.attempt += 1
        flight.sent_as.append(flight.placement)
        flight.attempt_until = self._margins.attempt_until(flight, ahead_s, now=now)
        self._usable.gateway.passing(now=now)
        self._usable.tails[flight.placement].passing(now=now)
        # The timer tells a lost message. Where nothing but a repetition under the same id follows it, the gateway may
        # work for as long as the caller waits: what it still holds then would only be asked for again.
        until = flight.attempt_until if self._margins.local_can_follow(flight) else flight.deadline
        budget_s = max(until - now - ahead_s - self._margins.travel_s(flight), 0.0)
        return Send(flight.seq, flight.placement, flight.attempt, budget_s)

    def _finish(self, flight: Flight) -> Finish:
        del self.flights[flight.seq]
        return Finish(flight.seq, flight.placement, flight.attempt, tuple(flight.degraded))

    def _refuse(self, flight: Flight, code: RefusalCode, reason: str) -> Finish:
        del self.flights[flight.seq]
        return Finish(flight.seq, flight.placement, flight.attempt, tuple(flight.degraded), code, reason)
