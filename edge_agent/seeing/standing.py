"""What stands at this moment, as agent, board, store and bundles tell it when somebody looks. Pure nouns.

The ledger counts what happened; this is what is: nothing here is kept up to date on a request's way. None is unknown,
which is not 0: a board that does not tell its temperature is not at 0 degrees.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlacementStanding:
    """One placement of the bundle: what the plan says of it now, or why it cannot be used."""

    id: str
    kind: str  # full-cloud, cut or edge-only
    predicted_s: float | None = None
    unavailable: str = ""  # why; empty where it can be used


@dataclass(frozen=True, slots=True)
class GatewayStanding:
    """One gateway, and the link to it as ordinary traffic has shown it."""

    name: str
    state: str  # of the session: GREETING, READY, DRAINING, ...
    ready: bool
    reason: str = ""  # why it takes nothing now
    in_use: bool = False  # chosen last, and kept while it is not clearly worse than another
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    rtt_s: float | None = None
    queue_s: float | None = None  # what it says that a request arriving now would wait
    wait_s: float | None = None  # what we expect: round trip, its queue, and what we have there already
    in_flight: int = 0
    in_flight_nbytes: int = 0
    tcp_rtt_s: float | None = None  # the kernel's own figures of the connection, which ends at the first proxy
    tcp_bytes_per_s: float | None = None  # only where the link and not what we had to send has limited it


@dataclass(frozen=True, slots=True)
class BundleStanding:
    """What is served, and what comes next."""

    model: str = ""
    version: str = ""
    digest: str = ""
    state: str = ""  # where it is in its life: trial, confirmed, ... ; empty where it was named by hand
    signed_by: str = ""  # empty where it is not signed
    coming: str = ""  # in words: what is fetched or tried now
    refused_offers: int = 0  # of bundles that were refused before, and still for the same reason
    built_at: float | None = None  # seconds since 1970, as it says itself
    unheard_s: float | None = None  # since a gateway last told what it offers, or the start; None where nobody is asked


@dataclass(frozen=True, slots=True)
class StoreStanding:
    """Requests and answers on the disk."""

    waiting: int = 0
    answered: int = 0
    nbytes: int = 0
    limit_nbytes: int | None = None
    oldest_s: float | None = None  # how long the oldest has waited
    trouble: str = ""  # why there is no store just now: it takes nothing, and is tried again


@dataclass(frozen=True, slots=True)
class BoardStanding:
    """The device itself. `heat` names the zone that is nearest to its limit."""

    model: str | None = None
    power_mode: str | None = None
    heat: str | None = None
    celsius: float | None = None
    limit_celsius: float | None = None  # at which that zone is throttled
    throttled: str = ""  # in words, empty where nothing is known to be
    gpu_load: float | None = None  # 0 to 1
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class AgentStanding:
    """The whole agent. `placement` is where a request that comes now goes, and `why` in a sentence."""

    ready: bool
    reason: str = ""  # why it is not ready
    placement: str = ""
    kind: str = ""
    why: str = ""
    flips: tuple[str, ...] = ()  # what would make it another one, in words
    degraded: str = ""  # why it is not where the plan wants it to be
    placements: tuple[PlacementStanding, ...] = ()
    gateways: tuple[GatewayStanding, ...] = ()
    pending: int = 0  # requests accepted and not yet ended
    edge_factor: float | None = None  # how much slower than planned the device computes; 1 is as planned
    events: dict[str, int] = field(default_factory=dict)  # counters that live elsewhere
    bundle: BundleStanding = BundleStanding()
    store: StoreStanding | None = None
    board: BoardStanding | None = None
    serves_alone: bool = False  # whether requests can be answered while no gateway is there
    known_answers: int | None = None  # how often the known question was answered well
    state_dir: str = ""
