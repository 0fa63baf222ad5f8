"""What stands at this moment, as the desk, the lanes and the model keeper tell it when somebody looks. Pure nouns.

The ledger counts what happened; this is what is: nothing here is kept up to date on a request's way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloud_gateway.seeing.figures import Scope


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version: its place in the life cycle, and why it is there if that was not wished for."""

    name: str
    version: str
    state: str  # NEW, LOADING, WARMING, AVAILABLE, DRAINING, UNLOADED or ERROR
    since_s: float = 0.0  # how long it has been in that state
    reason: str = ""
    digest: str = ""  # of the bundle or model file, hex
    format: str = ""


@dataclass(frozen=True, slots=True)
class EngineState:
    """One engine of a lane's order of preference."""

    kind: str
    state: str  # absent, untried, loading, ready or resting
    serves: bool
    reason: str = ""  # why it is absent or rests
    failures: int = 0
    precision: str = ""  # "float16" where it runs that form of the tail


@dataclass(frozen=True, slots=True)
class EngineAccount:
    """What has happened to engines of all lanes since the start, by name, and the GPU's memory."""

    failures: Mapping[tuple[str, ...], int] = field(default_factory=dict)  # (engine, cause)
    loads: Mapping[tuple[str, ...], int] = field(default_factory=dict)  # (engine, "ok" or "failed")
    load_s: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    moves: Mapping[tuple[str, ...], int] = field(default_factory=dict)  # (from, to)
    reruns: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    gpu_reserved_nbytes: int | None = None
    gpu_limit_nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class LaneState:
    """One tail with its queue and engines."""

    key: str  # first hex digits of the tail's digest
    label: str
    scopes: tuple[Scope, ...]  # whose requests it serves
    engine: str
    instances: int = 1
    busy: int = 0  # instances that run now
    batch_bound: int = 1  # rows: the knee of the cost curve, or what the settings say
    predicted_s: Mapping[int, float] = field(default_factory=dict)  # rows -> seconds that a run of them takes
    wait_s: float = 0.0  # what a request arriving now would wait
    pending_requests: int = 0
    pending_nbytes: int = 0
    unbatched: str = ""  # why requests never share a batch, where they do not
    engines: tuple[EngineState, ...] = ()  # in order of preference, where there is a choice


@dataclass(frozen=True, slots=True)
class Standing:
    """The whole gateway. Credit is what each agent is told; held is what all of them use of it now."""

    ready: bool
    draining: bool = False
    reason: str = ""  # why it is not ready
    models: tuple[ModelState, ...] = ()
    lanes: tuple[LaneState, ...] = ()
    pending: Mapping[Scope, int] = field(default_factory=dict)  # requests admitted and not yet finished
    pending_nbytes: int = 0
    pending_limit_requests: int = 0
    pending_limit_nbytes: int = 0
    agents: int = 0
    credit_requests: int = 0
    credit_nbytes: int = 0
    engines: EngineAccount = field(default_factory=EngineAccount)

    @property
    def pending_requests(self) -> int:
        return sum(self.pending.values())
