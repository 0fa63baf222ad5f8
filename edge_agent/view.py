"""How things stand with an agent, at one moment: gateways, links, placements, requests. Frozen nouns, safe to keep."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.control.explanation import Explanation
from protocol.latency import LinkState, TcpView


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One gateway that the agent knows."""

    name: str  # as it was given, or as DNS calls it
    endpoint: str  # the literal address in use or tried next; "" while none is known
    state: str  # of the session: ready, greeting, draining, disconnected, incompatible
    reason: str  # why it cannot be used now; "" if it can
    in_use: bool  # chosen last, and kept while it is not clearly worse than another
    encrypted: bool
    rank: int  # those of a higher rank are used only while none of a lower one can be
    epoch: str  # changes with every life of the gateway; "" before its first Welcome
    link: LinkState | None  # as measured; None before the first sample
    wait_s: float | None  # predicted, for a request sent now; None while the link is unknown
    in_flight: int
    in_flight_nbytes: int
    credit_requests: int
    credit_nbytes: int
    breaker: str  # closed, open, half-open
    tails: dict[str, str]  # state of the breaker of each placement that is not closed
    broken: dict[str, str]  # placements it cannot do in this life, and why
    heard_s: float | None  # since its last message; None without a connection
    tcp: TcpView | None = None  # what the kernel says of the connection, to hold `link` against


@dataclass(frozen=True, slots=True)
class AgentView:
    """The whole agent. `at` in monotonic seconds."""

    at: float
    gateways: tuple[GatewayView, ...]
    placement: str | None  # the one that the planner keeps to
    predicted_s: dict[str, float]  # by placement, with the gateway in use
    unavailable: dict[str, str]  # placements that cannot be used now, and why
    pending: int  # requests without an outcome
    in_flight: int  # of these, at gateways
    waiting: int  # of these, prepared and not sent
    counters: dict[str, int] = field(default_factory=dict)
    edge_factor: float = 1.0  # how many times slower than planned the device is
    switches: int = 0  # how often the planner has changed its mind about the placement
    explanation: Explanation | None = None  # why this placement, and what would flip it; only where it was asked for

    @property
    def ready(self) -> bool:
        """Whether any gateway can be used now."""
        return any(not g.reason for g in self.gateways)
