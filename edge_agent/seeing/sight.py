"""One look at an agent and all that is around it, in the nouns of `standing`. Asks; keeps only what is dear to read.

    Agent.look() ---+
    board.look() ---+--> AgentStanding        the board is read every few seconds at most: sysfs takes milliseconds
    store, bundle --+

Whoever is asked may be broken: a board that cannot be read, or a store that fails, leaves out its part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from edge_agent.seeing.standing import (
    AgentStanding,
    BoardStanding,
    BundleStanding,
    GatewayStanding,
    PlacementStanding,
    StoreStanding,
)
from edge_agent.version import built_at, version_of
from edge_agent.view import AgentView, GatewayView
from protocol import phrases
from protocol.bundle import Bundle
from protocol.control.explanation import Explanation
from protocol.errors import IsthmusError

BOARD_EVERY_S = 5.0
T = TypeVar("T")
CLEARLY = 1.01  # a prediction that is better by less is as good


class Watched(Protocol):
    """What of an agent is looked at."""

    @property
    def bundle(self) -> Bundle: ...

    @property
    def serves_alone(self) -> bool: ...

    def look(self, timeout_s: float = ..., *, explain: bool = ...) -> AgentView: ...


class Sight:
    """Gives an AgentStanding whenever it is called, by any thread but the one that runs callbacks of requests."""

    def __init__(
        self,
        agent: Callable[[], Watched | None],
        *,
        unwell: Callable[[], str] = lambda: "",
        board: Callable[[], BoardStanding | None] = lambda: None,
        store: Callable[[], StoreStanding | None] = lambda: None,
        bundle: Callable[[], BundleStanding | None] = lambda: None,
        events: Callable[[], Mapping[str, int]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`agent` gives the one that new requests go to, None while there is none. `unwell` says why the device cannot
        answer, or "". `bundle` tells more of what is served than its manifest does; `events` are counters that live
        elsewhere, under names of ours."""
        self._agent = agent
        self._unwell = unwell
        self._read_board = board
        self._store, self._bundle, self._events = store, bundle, events
        self._clock = clock
        self._board: BoardStanding | None = None
        self._board_at: float | None = None

    def __call__(self) -> AgentStanding:
        agent = self._agent()
        store, board = _unless_broken(self._store), self._look_at_board()
        if agent is None:
            reason, coming = self._unwell() or "no agent runs yet", _unless_broken(self._bundle) or BundleStanding()
            return AgentStanding(ready=False, reason=reason, bundle=coming, store=store, board=board)
        try:
            view = agent.look(explain=True)
        except IsthmusError as error:
            return AgentStanding(ready=False, reason=str(error), store=store, board=board)
        kinds = {entry.id: str(entry.kind) for entry in agent.bundle.manifest.placements}
        using, degraded = in_use(view)
        reason = self._unwell() or _without_gateway(view, alone=agent.serves_alone)
        return AgentStanding(
            ready=not reason,
            reason=reason,
            placement=using,
            kind=kinds.get(using, ""),
            why=why(view, using),
            flips=() if view.explanation is None else tuple(map(phrases.flip_if, view.explanation.flips)),
            degraded=degraded,
            placements=tuple(
                PlacementStanding(id_, kind, view.predicted_s.get(id_), view.unavailable.get(id_, ""))
                for id_, kind in kinds.items()
                if id_ in view.predicted_s
            ),
            gateways=tuple(map(gateway_standing, view.gateways)),
            pending=view.pending,
            edge_factor=view.edge_factor,
            events={**view.counters, "placement_switches": view.switches, **self._events()},
            bundle=_unless_broken(self._bundle) or bundle_standing(agent.bundle),
            store=store,
            board=board,
            serves_alone=agent.serves_alone,
        )

    def _look_at_board(self) -> BoardStanding | None:
        """Two threads that come at once may both read it: that is cheaper than a lock for a file system."""
        now = self._clock()
        if self._board_at is None or now - self._board_at >= BOARD_EVERY_S:
            self._board_at = now
            self._board = _unless_broken(self._read_board)
        return self._board


def _unless_broken(read: Callable[[], T | None]) -> T | None:
    try:
        return read()
    except (IsthmusError, OSError):
        return None


# ---- translations ---------------------------------------------------------------------------------------------------


def in_use(view: AgentView) -> tuple[str, str]:
    """The placement that a request takes that comes now, and why it is not the planner's; both may be empty."""
    usable = {id_: s for id_, s in view.predicted_s.items() if id_ not in view.unavailable}
    held = view.placement or min(view.predicted_s, key=view.predicted_s.__getitem__, default="")
    if held in usable or not usable:
        return (held if held in usable else ""), "" if held in usable else view.unavailable.get(held, "")
    return min(usable, key=usable.__getitem__), f"{held}: {view.unavailable[held]}"


def why(view: AgentView, using: str) -> str:
    """Why it is this one, in a sentence."""
    if not using:
        return "no placement can be used now"
    usable = {id_: s for id_, s in view.predicted_s.items() if id_ not in view.unavailable and id_ != using}
    mine = f"predicted to take {phrases.ms(view.predicted_s[using])}"
    if not usable:
        return f"It is the only placement that can be used now, {mine}."
    if view.explanation is not None and view.explanation.using == using:
        return _explained(view.explanation)
    rival = min(usable, key=usable.__getitem__)
    if usable[rival] * CLEARLY < view.predicted_s[using]:
        return f"It is {mine}; {rival} with {phrases.ms(usable[rival])} is not clearly better."
    return f"It is {mine}; the next best, {rival}, would take {phrases.ms(usable[rival])}."


def _explained(explanation: Explanation) -> str:
    """The planner's own reason: against the best of those that could be used instead."""
    mine = explanation.of(explanation.using or "")
    weighed = "" if explanation.objective == "latency" else f", weighed by {explanation.objective}"
    text = f"It is predicted to take {phrases.ms(mine.expected_s)}{weighed}"
    rivals = [p for p in explanation.placements if p.id != mine.id and p.verdict != "unavailable"]
    if not rivals:
        return f"{text}; no other can be used now."
    rival = rivals[0]  # best score first
    if rival.verdict == "overloaded":
        return f"{text}; requests come faster than {rival.id} could take them."
    if rival.score < mine.score:
        return f"{text}; {rival.id} with {phrases.ms(rival.expected_s)} is not clearly better."
    trade = phrases.trade(mine.stages, rival.stages)
    return f"{text}; the next best, {rival.id} with {phrases.ms(rival.expected_s)}, {trade}."


def gateway_standing(gateway: GatewayView) -> GatewayStanding:
    link, tcp = gateway.link, gateway.tcp
    return GatewayStanding(
        name=gateway.name,
        state=gateway.state,
        ready=not gateway.reason,
        reason=gateway.reason,
        in_use=gateway.in_use,
        uplink_bytes_per_s=None if link is None else link.uplink_bytes_per_s,
        downlink_bytes_per_s=None if link is None else link.downlink_bytes_per_s,
        rtt_s=None if link is None else link.rtt_s,
        queue_s=None if link is None else link.queue_s,
        wait_s=gateway.wait_s,
        in_flight=gateway.in_flight,
        in_flight_nbytes=gateway.in_flight_nbytes,
        tcp_rtt_s=None if tcp is None else tcp.rtt_s,
        tcp_bytes_per_s=None if tcp is None or tcp.is_limited_by_us else tcp.bytes_per_s,
    )


def bundle_standing(bundle: Bundle) -> BundleStanding:
    """What a bundle says of itself."""
    statement = bundle.statement
    signer = "" if statement is None else f"{statement.signer[:12]}, number {statement.counter}"
    return BundleStanding(
        bundle.manifest.model.name, version_of(bundle), bundle.digest, signed_by=signer, built_at=built_at(bundle)
    )


def _without_gateway(view: AgentView, *, alone: bool) -> str:
    if alone or view.ready:
        return ""
    reasons = "; ".join(dict.fromkeys(gateway.reason for gateway in view.gateways)) or "no gateway is named"
    return f"{reasons}, and none of the placements runs on the device alone"
