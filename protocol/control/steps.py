"""The steps of one request: which placement it takes first, and which one next when that fails. Pure.

What fails, and what is preferred then, stands at the top of `ladder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocol.control.availability import SILENT, Remote
from protocol.control.causes import Cause, Why, sentences
from protocol.control.demand import Demand, DemandMeter
from protocol.control.fleet import Fleet
from protocol.control.flights import CancelRemote, Flight, Instruction, Phase, Prepare, RefusalCode
from protocol.control.planner import Planner
from protocol.control.ways_out import WaysOut
from protocol.messages import PlacementKind


class Steps:
    """Changes flights and says what is to be done. Times are monotonic seconds, `now` always given."""

    def __init__(
        self,
        flights: dict[int, Flight],
        ways: WaysOut,
        fleet: Fleet,
        planner: Planner,
        demand: DemandMeter,
        *,
        expects_gateway: bool,
    ) -> None:
        self._flights = flights
        self._ways = ways
        self._fleet = fleet
        self._device = fleet.device
        self._rows = fleet.rows
        self._local = fleet.device.local
        self._planner = planner
        self._demand = demand
        self._expects_gateway = expects_gateway

    def place(self, flight: Flight, *, now: float) -> list[Instruction]:
        """Choose gateway and placement for a request that has none (or lost it)."""
        remote = self._fleet.for_any_work(flight, self._flights.values(), now=now)
        unavailable = self._ways.reasons(remote, now=now) | flight.avoided_with(remote.name)
        demand = self.demand_now(flight, now=now)
        budget_s = flight.deadline - now
        decision = self._planner.decide(
            remote.link, unavailable, demand=demand, budget_s=budget_s, gateway=remote.name, rows=flight.rows, now=now
        )
        if decision is None:
            return self._wait_or_refuse(flight, unavailable, now=now)
        if self._expects_gateway and remote.link is None and remote.link_reason is not None:
            flight.note(remote.link_reason)  # without a link the plan is a guess, but this much is known
        elif (wanted := decision.instead_of) is not None:
            flight.note(unavailable[wanted].about(wanted))
        flight.predicted_s = decision.predicted_s if flight.generation == 0 else None
        return self.prepare(flight, decision.id, remote, now=now)

    def demand_now(self, flight: Flight | None, *, now: float) -> Demand:
        """What device and uplink have to do, beside `flight`."""
        phases = {Phase.PREPARING if f.hedge else f.phase for f in self._flights.values() if f is not flight}
        phases |= {f.phase for f in self._flights.values() if f is not flight}
        return self._demand.read(preparing=Phase.PREPARING in phases, sent=Phase.SENT in phases, now=now)

    def leave(self, flight: Flight) -> list[Instruction]:
        """If an attempt is out, nobody waits for it any more."""
        if flight.phase is not Phase.SENT:
            return []
        self._ways.of(flight).tails[flight.placement].released()
        return [CancelRemote(flight.seq, flight.gateway)]

    def withdraw(self, flight: Flight) -> list[Instruction]:
        """Nobody waits for this request any more: whoever may be at work on it is told."""
        if flight.phase is Phase.PREPARING:
            self._device.breakers[flight.placement].released()
        elif flight.phase is Phase.SENT:
            self._ways.of(flight).tails[flight.placement].released()
        if flight.hedge and self._local is not None:
            self._device.breakers[self._local].released()
        return [CancelRemote(flight.seq, gateway) for gateway in dict.fromkeys(flight.sent_to)]

    def step_down(
        self,
        flight: Flight,
        why: Why,
        *,
        prefer: tuple[str, Remote] | None = None,
        again: bool = True,
        another: Remote | None = None,
        now: float,
    ) -> list[Instruction]:
        """The current placement failed this request; take the next-best one: `another` gateway, what is preferred,
        edge-only. `again`: the same one may work later. Whoever calls lets `send_ready` follow."""
        flight.note(why)
        flight.predicted_s = None
        again = again and flight.phase is not Phase.PREPARING
        if flight.phase is Phase.PREPARING:
            flight.avoided[flight.placement] = why
        elif not again:
            flight.avoid((flight.placement,), why, at=flight.gateway)
        cancel = self.leave(flight)
        if flight.hedge and self._local is not None:
            flight.hedge, flight.placement, flight.phase = 0, self._local, Phase.PREPARING  # it is at work already
            flight.gateway = ""
            return cancel
        if another is not None:
            flight.gateway, flight.phase, flight.not_before = another.name, Phase.READY, 0.0
            return cancel
        if prefer is not None and prefer[0] != flight.placement:
            return cancel + self.prepare(flight, *prefer, now=now)
        local = self._local
        able = local is not None and self._device.reason(self._rows[local], now=now) is None
        if local is not None and able and local != flight.placement and local not in flight.avoided:
            return cancel + self.prepare(flight, local, None, now=now)
        if again and not self._ways.leads_elsewhere(flight, now=now):
            # Nothing else can take over. What is prepared stays so and goes out again under the same id,
            # which is why nothing is cancelled: the gateway attaches the new attempt to the work it may still do.
            # Where nothing at all has come since, it would only follow itself on the same connection: it stays out.
            silent = why.cause is Cause.SILENCE and self._ways.of(flight).is_silent
            if flight.phase is Phase.SENT and silent:
                flight.unheard, flight.attempt_until = True, flight.deadline
            else:
                flight.phase = Phase.READY
            return []
        return (cancel if again else []) + self.place(flight, now=now)

    def look_again(self, flight: Flight, *, now: float) -> list[Instruction]:
        """Another gateway that can be used by now takes what stayed out; where anything came its time begins anew."""
        if (another := self._ways.another(flight, now=now)) is not None:
            return self.step_down(flight, SILENT, another=another, now=now)
        if not self._ways.of(flight).is_silent:
            flight.unheard, flight.attempt_until = False, self._ways.attempt_until(flight, now=now)
        return []

    def _wait_or_refuse(self, flight: Flight, unavailable: Mapping[str, Why], *, now: float) -> list[Instruction]:
        """No placement can be used now. If only link or gateway need a moment the request waits, else it is refused."""
        waiting = self._ways.worth_waiting_for(flight, now=now)
        if waiting is not None:
            placement, remote, reasons = waiting
            for why in reasons:
                flight.note(why)
            return self.prepare(flight, placement, remote, now=now)
        reason = "; ".join(sentences(unavailable.values())) or "the bundle has no placement"
        del self._flights[flight.seq]
        return [flight.refusal(RefusalCode.NO_PLACEMENT, reason)]

    def prepare(self, flight: Flight, placement: str, remote: Remote | None, *, now: float) -> list[Instruction]:
        flight.placement, flight.phase = placement, Phase.PREPARING
        crosses = remote is not None and self._rows[placement].kind is not PlacementKind.EDGE_ONLY
        flight.gateway = remote.name if remote is not None and crosses else ""
        flight.generation += 1
        flight.hedge = 0
        flight.attempt_until = flight.deadline
        self._device.breakers[placement].passing(now=now)
        self._demand.preparing(self._planner.local_s(placement, flight.rows), now=now)
        return [Prepare(flight.seq, placement, flight.gateway)]

    def begin_hedge(self, flight: Flight, *, now: float) -> list[Instruction]:
        """Edge-only, beside the attempt that is out."""
        flight.hedge_at = float("inf")
        local = self._local
        if local is None or local in flight.avoided or self._device.reason(self._rows[local], now=now) is not None:
            return []
        flight.generation += 1
        flight.hedge, flight.hedged = flight.generation, True
        self._device.breakers[local].passing(now=now)
        self._demand.preparing(self._planner.local_s(local, flight.rows), now=now)
        return [Prepare(flight.seq, local)]
