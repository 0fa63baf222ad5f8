"""How things stand, read from the ladder and the links by the thread that owns them. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edge_agent.link import GatewayLink
from edge_agent.view import AgentView, GatewayView
from protocol.control.breaker import BreakerState
from protocol.control.fleet import Load
from protocol.control.flights import Phase
from protocol.control.ladder import Ladder


def view_of(
    ladder: Ladder, links: Mapping[str, GatewayLink], counters: Mapping[str, int], *, explain: bool = False, now: float
) -> AgentView:
    """`now` in monotonic seconds."""
    loads = ladder.fleet.loads(ladder.flights.values())
    phases = [flight.phase for flight in ladder.flights.values()]
    current = ladder.fleet.current
    return AgentView(
        at=now,
        gateways=tuple(_gateway(ladder, link, loads.get(link.name, Load()), now=now) for link in links.values()),
        placement=ladder.planner.current,
        predicted_s=dict(ladder.planner.predict(current.link, current.name)),
        unavailable=ladder.unavailable(now=now),
        pending=len(phases),
        in_flight=phases.count(Phase.SENT),
        waiting=phases.count(Phase.READY),
        counters=dict(counters),
        edge_factor=ladder.planner.learned.device_factor,
        switches=ladder.planner.switches,
        explanation=ladder.explain(now=now) if explain else None,
    )


def _gateway(ladder: Ladder, link: GatewayLink, load: Load, *, now: float) -> GatewayView:
    remote = ladder.fleet.of(link.name)
    in_the_way = remote.link_reason or (remote.breaker.reason if remote.breaker.refuses(now=now) else None)
    measured = link.estimator.estimate(now)
    wait_s = remote.wait_s(load.requests, load.way_nbytes)
    connected = link.connection.is_open and link.connection.heard_at > 0
    return GatewayView(
        name=link.name,
        endpoint=str(link.endpoint or ""),
        state=str(link.state),
        reason=in_the_way.sentence if in_the_way else "",
        in_use=link.name == ladder.fleet.in_use,
        encrypted=link.encrypted,
        rank=remote.rank,
        epoch=link.epoch.hex(),
        link=measured,
        wait_s=None if math.isinf(wait_s) else wait_s,
        in_flight=load.requests,
        in_flight_nbytes=load.nbytes,
        credit_requests=remote.credit_requests,
        credit_nbytes=remote.credit_nbytes,
        breaker=str(remote.breaker.state),
        tails={id_: str(b.state) for id_, b in remote.tails.items() if b.state is not BreakerState.CLOSED},
        broken={id_: why.sentence for id_, why in remote.broken.items()},
        heard_s=max(now - link.connection.heard_at, 0.0) if connected else None,
        tcp=link.connection.tcp if connected else None,
    )
