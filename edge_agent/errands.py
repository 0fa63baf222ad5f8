"""What is handed to the socket thread, what it keeps meanwhile, and what it hands back. Nouns only."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_agent.compute import Crashed, Done, Failed, Rehearsal, Rehearsed
from edge_agent.heads import Prepared
from protocol import messages as m
from protocol.control.flights import Finish
from protocol.tensors import Array, Tensors


@dataclass(frozen=True, slots=True)
class Submit:
    """A caller's request; `deadline` in monotonic seconds."""

    seq: int
    inputs: Tensors
    deadline: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Refuse what is pending and end."""


Post = Submit | Done | Failed | Rehearsal | Rehearsed | Crashed | Stop


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
    prepared: dict[str, Prepared] = field(default_factory=dict)  # by placement


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A message whose answer will say something about the link."""

    at: float
    nbytes: int
    ahead_nbytes: int  # sent before and not yet answered
