"""What is handed to the socket thread, what it keeps meanwhile, and what it hands back. Nouns only."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from edge_agent.compute import Crashed, Done, Failed, Rehearsal, Rehearsed
from edge_agent.heads import Prepared
from edge_agent.upload import Upload
from edge_agent.view import AgentView
from protocol import messages as m
from protocol.control.flights import Finish
from protocol.sockets import Endpoint
from protocol.tensors import Array, Tensors


@dataclass(frozen=True, slots=True)
class Submit:
    """A caller's request; `deadline` in monotonic seconds."""

    seq: int
    inputs: Tensors
    deadline: float
    identity: m.RequestId  # its name on the wire
    priority: int = 4
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The caller of this request wants no answer any more."""

    seq: int


@dataclass(frozen=True, slots=True)
class Found:
    """One gateway and where it listens now. Those of a higher rank are used only while none of a lower one can be;
    among those of one rank `weight` is the share in a draw."""

    name: str
    endpoints: tuple[Endpoint, ...]
    rank: int = 0
    weight: int = 0


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name of gateways stands for now; `trouble` says why nothing was found."""

    source: str
    found: tuple[Found, ...]
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """Somebody wants to know how things stand."""

    future: Future[AgentView]
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Refuse what is pending and end."""


Post = Submit | Withdraw | Resolved | Look | Done | Failed | Rehearsal | Rehearsed | Crashed | Stop


@dataclass(frozen=True, slots=True)
class Remote:
    """What the gateway's answer adds to a request's outcome."""

    outputs: dict[str, Array]
    result: m.Result
    round_trip_s: float
    up_nbytes: int
    down_nbytes: int


@dataclass(frozen=True, slots=True)
class Ending:
    """One request's end, handed to the agent."""

    finish: Finish
    prepared: Prepared | None
    remote: Remote | None


@dataclass(slots=True)
class Work:
    """What the socket thread keeps of a request while it is on its way."""

    inputs: Tensors
    identity: m.RequestId
    priority: int
    last_gateway: str = ""  # where it was sent last
    prepared: dict[str, Prepared] = field(default_factory=dict)  # by placement


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A message whose answer will say something about the link."""

    at: float
    nbytes: int
    ahead_nbytes: int  # sent before and not yet answered
    upload: Upload | None = None  # the payload goes in chunks, which are answered one by one

    @property
    def up_nbytes(self) -> int:
        """What crossed for it."""
        return self.nbytes + (self.upload.nbytes if self.upload is not None else 0)
