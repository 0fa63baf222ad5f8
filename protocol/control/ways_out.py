"""The ways out for one request: which gateways and placements could take it now, or may be waited for. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from protocol.control.availability import Device, Remote
from protocol.control.causes import Why
from protocol.control.fleet import Fleet
from protocol.control.flights import Flight, Phase
from protocol.control.margins import Margins
from protocol.control.planner import Planner
from protocol.messages import PlacementKind


class WaysOut:
    """Looks, and changes nothing but the fleet's memory of the gateway in use. Times are monotonic seconds."""

    def __init__(
        self, flights: Mapping[int, Flight], fleet: Fleet, device: Device, margins: Margins, planner: Planner
    ) -> None:
        self._flights = flights
        self._fleet = fleet
        self._device = device
        self._rows = device.rows
        self._margins = margins
        self._planner = planner

    def of(self, flight: Flight) -> Remote:
        """The gateway where the request is, or will probably be sent."""
        return self._fleet.of(flight.gateway)

    def too_late_at(self, flight: Flight) -> float:
        """From when on sending it there is in vain."""
        return self._margins.remote_too_late_at(flight, self.of(flight).link)

    def attempt_until(self, flight: Flight, *, now: float) -> float:
        """When the attempt that is out is given up, if its time began now."""
        return self._margins.attempt_until(flight, 0.0, self.of(flight).link, now=now)

    def alarms(self, flight: Flight) -> tuple[float, ...]:
        """When something has to be done about it, whatever happens."""
        if flight.phase is Phase.SENT:
            return flight.deadline, flight.attempt_until, flight.hedge_at
        if flight.phase is Phase.READY:
            return flight.deadline, self.too_late_at(flight), flight.not_before or flight.deadline
        return (flight.deadline,)

    def reasons(self, remote: Remote, *, now: float) -> dict[str, Why]:
        """For every placement that cannot be used now with this gateway, why."""
        found = {}
        for row in self._rows.values():
            why = self._device.reason(row, now=now)
            if why is None and row.kind is not PlacementKind.EDGE_ONLY:
                why = remote.reason(row, now=now)
            if why is not None:
                found[row.id] = why
        return found

    def best_full_cloud(self, flight: Flight, *, now: float) -> tuple[str, Remote] | None:
        """The codec of the whole model's input that is predicted best now, if a gateway can be used at all."""
        rows = [r for r in self._rows.values() if r.kind is PlacementKind.FULL_CLOUD]
        here = self.of(flight)
        for remote in (here, *(r for r in self._fleet.remotes.values() if r is not here)):
            unavailable = self.reasons(remote, now=now).keys() | flight.avoided_with(remote.name).keys()
            usable = [r.id for r in rows if r.id not in unavailable]
            if usable:
                predicted = self._planner.predict(remote.link, remote.name, flight.rows) if len(usable) > 1 else {}
                return min(usable, key=lambda id_: predicted.get(id_, 0.0)), remote
        return None

    def another(self, flight: Flight, *, now: float) -> Remote | None:
        """Another gateway that can take what is prepared, in time."""
        row = self._rows[flight.placement]
        without = {flight.gateway, *flight.left, *(g for g, ids in flight.avoided_at.items() if row.id in ids)}
        other = self._fleet.for_row(row, self._flights.values(), without=without, now=now)
        return None if other is None or now >= self._margins.remote_too_late_at(flight, other.link) else other

    def leads_elsewhere(self, flight: Flight, *, now: float) -> bool:
        """Whether another gateway could do it as some other placement."""
        return any(
            remote.name != flight.gateway
            and remote.name not in flight.left
            and self._fleet.able(remote, flight, now=now)
            for remote in self._fleet.remotes.values()
        )

    def worth_waiting_for(self, flight: Flight, *, now: float) -> tuple[str, Remote, tuple[Why, ...]] | None:
        """The placement that only waits for link or gateway, where, and what is in its way."""
        current = self._fleet.current
        for remote in (current, *(r for r in self._fleet.remotes.values() if r is not current)):
            avoided = flight.avoided_with(remote.name)
            waiting = {
                row.id: remote.reason(row, now=now)
                for row in remote.rows.values()
                if row.id not in avoided
                and self._device.reason(row, now=now) is None
                and remote.may_return(row, now=now)
            }
            if waiting:
                predicted = self._planner.predict(remote.link, remote.name, flight.rows)
                best = min(waiting, key=lambda id_: predicted[id_])
                return best, remote, tuple(dict.fromkeys(why for why in waiting.values() if why is not None))
        return None
