"""The nouns of the ladder: what it knows of a placement, one request on its way, and the instructions it gives."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.control.causes import Cause, Why, causes, sentences
from protocol.errors import InvariantViolation
from protocol.messages import PlacementKind


class RefusalCode(enum.StrEnum):
    DEADLINE = "DEADLINE"  # the budget ran out
    NO_PLACEMENT = "NO_PLACEMENT"  # nothing on the device or behind the link can do it now
    BAD_REQUEST = "BAD_REQUEST"  # the gateway says that the tensors do not fit
    BUSY = "BUSY"  # too many requests are already waiting on this device
    CLOSED = "CLOSED"  # the agent was shut down first
    CANCELLED = "CANCELLED"  # its caller wants no answer any more


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
    """Do the device's share. `gateway` is where it will probably be sent: frames refer to what that one knows."""

    seq: int
    placement: str
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    seq: int
    placement: str
    attempt: int
    budget_s: float  # what is left for the gateway once upload and return are subtracted
    gateway: str = ""
    chunk_nbytes: int = 0  # the payload goes in chunks of this size; 0: in one message


@dataclass(frozen=True, slots=True)
class CancelRemote:
    seq: int
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Finish:
    """The request is over: answered with the placement's result, or refused when `code` is set.

    `gateway` did the remote share of the answer; "" for one made on the device. `hedged`: both were at work.
    `degraded` are sentences, `causes` the causes of these, each once.
    """

    seq: int
    placement: str
    attempts: int
    degraded: tuple[str, ...]
    code: RefusalCode | None = None
    reason: str = ""
    gateway: str = ""
    hedged: bool = False
    causes: tuple[Cause, ...] = ()
    predicted_s: float | None = field(default=None, compare=False)  # what was planned; None after a detour


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
    priority: int = 4  # 0 first
    rows: int = 1  # how many times the work that was planned
    nbytes: int = 0
    placement: str = ""
    gateway: str = ""  # where it is, or will probably be sent
    phase: Phase = Phase.PREPARING
    attempt: int = 0
    not_before: float = 0.0
    sent_at: float = 0.0  # the current attempt
    attempt_until: float = float("inf")
    unheard: bool = False  # the current attempt's time is up, and nothing has come: it stays out
    until: float = float("inf")  # when the answer to the current attempt must be back
    chunk_nbytes: int = 0  # the current attempt goes in chunks of this size; 0: in one message
    left_nbytes: int = 0  # of the current attempt, what is not known to be at the gateway
    generation: int = 0  # counts preparations, so that a late one is told from the current one
    sent_as: list[str] = field(default_factory=list)  # placement of each attempt
    sent_to: list[str] = field(default_factory=list)  # gateway of each attempt
    hedge_at: float = float("inf")  # when edge-only is started beside the current attempt
    hedge: int = 0  # generation of the edge-only preparation that runs beside the current attempt
    hedged: bool = False
    refusals: int = 0  # how often the gateway has said that it cannot be in time
    encoded_anew: bool = False  # since the gateway had forgotten the frame before
    local_hopeless: bool = False  # edge-only had to start but could not
    predicted_s: float | None = None  # of the placement that was chosen first, until a step fails
    degraded: list[Why] = field(default_factory=list)
    avoided: dict[str, Why] = field(default_factory=dict)  # placements, wherever
    avoided_at: dict[str, dict[str, Why]] = field(default_factory=dict)  # placements, by gateway
    left: set[str] = field(default_factory=set)  # gateways that were not in time: others are tried first

    def avoid(self, placements: Iterable[str], why: Why, *, at: str) -> None:
        """Not these again for this request at the gateway `at`."""
        self.avoided_at.setdefault(at, {}).update(dict.fromkeys(placements, why))

    def avoided_with(self, gateway: str) -> dict[str, Why]:
        """What this request shall not be done as, with that gateway, and why."""
        return self.avoided | self.avoided_at.get(gateway, {})

    def was_sent(self, attempt: int, gateway: str) -> bool:
        """Whether that attempt was made, and there."""
        return 1 <= attempt <= len(self.sent_to) and self.sent_to[attempt - 1] == gateway

    @property
    def whereabouts(self) -> str:
        """For people."""
        doing = {Phase.PREPARING: "the device was at work", Phase.READY: "waiting for the gateway"}
        return doing.get(self.phase, "on its way")

    def note(self, why: Why) -> None:
        """Reasons hold figures that differ each time: one of a kind is enough."""
        kind = why.sentence.split(":")[0]
        if all(noted.sentence.split(":")[0] != kind for noted in self.degraded):
            self.degraded.append(why)

    def finish(self, gateway: str) -> Finish:
        """Answered, with the remote share done by `gateway`; "" for none."""
        return Finish(
            self.seq, self.placement, self.attempt, sentences(self.degraded), gateway=gateway, hedged=self.hedged,
            causes=causes(self.degraded), predicted_s=self.predicted_s,
        )  # fmt: skip

    def refusal(self, code: RefusalCode, reason: str) -> Finish:
        """Not answered."""
        return Finish(
            self.seq, self.placement, self.attempt, sentences(self.degraded), code, reason, hedged=self.hedged,
            causes=causes(self.degraded),
        )  # fmt: skip

    def validate(self) -> None:
        """Raise InvariantViolation if it is in a state that cannot be."""
        if self.phase is Phase.SENT and not self.attempt_until <= self.deadline:
            raise InvariantViolation(f"flight {self.seq} may wait beyond its deadline")
        if self.unheard and self.phase is Phase.SENT and self.attempt_until < self.deadline:
            raise InvariantViolation(f"flight {self.seq} stays out and has a timer")
        if self.hedge and self.phase is not Phase.SENT:
            raise InvariantViolation(f"flight {self.seq} has a hedge beside nothing")
        if not len(self.sent_as) == len(self.sent_to) == self.attempt:
            raise InvariantViolation(f"flight {self.seq} lost count of its attempts")
