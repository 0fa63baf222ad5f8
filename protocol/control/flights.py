"""The nouns of the ladder: what it knows of a placement, one request on its way, and the instructions it gives."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from protocol.messages import PlacementKind


class RefusalCode(enum.StrEnum):
    DEADLINE = "DEADLINE"  # the budget ran out
    NO_PLACEMENT = "NO_PLACEMENT"  # nothing on the device or behind the link can do it now
    BAD_REQUEST = "BAD_REQUEST"  # the gateway says that the tensors do not fit
    BUSY = "BUSY"  # too many requests are already waiting on this device
    CLOSED = "CLOSED"  # the agent was shut down first


@dataclass(frozen=True, slots=True)
class Row:
    """What the ladder knows of one placement of the bundle.

    Placements that differ only in the codec share head and tail: what breaks one breaks its siblings.
    """

    id: str
    kind: PlacementKind
    segment: bytes | None
    head: str | None = None  # names the files; None: this placement's alone, or none
    tail: str | None = None


@dataclass(frozen=True, slots=True)
class Prepare:
    seq: int
    placement: str


@dataclass(frozen=True, slots=True)
class Send:
    seq: int
    placement: str
    attempt: int
    budget_s: float  # what is left for the gateway once upload and return are subtracted


@dataclass(frozen=True, slots=True)
class CancelRemote:
    seq: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The request is over: answered with the placement's result, or refused when `code` is set."""

    seq: int
    placement: str
    attempts: int
    degraded: tuple[str, ...]
    code: RefusalCode | None = None
    reason: str = ""


Instruction = Prepare | Send | CancelRemote | Finish


class Phase(enum.StrEnum):
    PREPARING = "preparing"
    READY = "ready"  # prepared, waiting for the link or for credit
    SENT = "sent"


@dataclass(slots=True)
class Flight:
    """One request on its way."""

    seq: int
    deadline: float
    nbytes: int = 0
    placement: str = ""
    phase: Phase = Phase.PREPARING
    attempt: int = 0
    not_before: float = 0.0
    attempt_until: float = float("inf")
    generation: int = 0  # counts preparations, so that a late one is told from the current one
    sent_as: list[str] = field(default_factory=list)  # placement of each attempt
    refusals: int = 0  # how often the gateway has said that it cannot be in time
    encoded_anew: bool = False  # since the gateway had forgotten the frame before
    local_hopeless: bool = False  # edge-only had to start but could not
    degraded: list[str] = field(default_factory=list)
    avoided: dict[str, str] = field(default_factory=dict)

    def note(self, why: str) -> None:
        """Reasons hold figures that differ each time: one of a kind is enough."""
        kind = why.split(":")[0]
        if all(noted.split(":")[0] != kind for noted in self.degraded):
            self.degraded.append(why)
