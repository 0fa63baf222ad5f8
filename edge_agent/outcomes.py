"""What a request ends in: exactly one `Answer` or one `Refusal`. Both say where it was made and why it was degraded."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.control.causes import Cause
from protocol.control.flights import RefusalCode
from protocol.errors import IsthmusError
from protocol.tensors import Array


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds a request spent in each stage. `network_s` is the round trip less the gateway's own time."""

    edge_s: float = 0.0  # head (or whole model) on the device
    encode_s: float = 0.0
    network_s: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    compute_s: float = 0.0  # tail at the gateway
    total_s: float = 0.0  # submit to answer, waiting on the device included


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's outputs by ONNX name (read-only arrays: copy before writing), and their provenance."""

    request: str
    outputs: dict[str, Array]
    placement: str
    kind: str
    precision: str
    engine: str
    bundle: str
    timings: StageTimings
    up_nbytes: int
    down_nbytes: int
    attempts: int
    batch_size: int
    degraded: tuple[str, ...] = ()  # why it was not the placement that the plan wanted; empty when it was
    gateway: str = ""  # which gateway did the remote share; "" where there was none
    hedged: bool = False  # both the gateway and edge-only were at work; this one was first
    predicted_s: float | None = None  # what the plan had said of `timings.total_s`; None if the request took a detour
    causes: tuple[Cause, ...] = ()  # `degraded` for programs: each cause once


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not answered: why, and how much of the caller's budget is left to act."""

    request: str
    code: RefusalCode
    reason: str
    slack_s: float
    degraded: tuple[str, ...] = ()  # what went wrong before
    causes: tuple[Cause, ...] = ()


Outcome = Answer | Refusal


class RefusedError(IsthmusError):
    """Raised only by callers who ask for it (`unwrap`): a refusal is a value everywhere else."""

    exit_code = 9

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.code}: {refusal.reason}", "")
        self.refusal = refusal


def unwrap(outcome: Outcome) -> Answer:
    """The answer, or RefusedError."""
    if isinstance(outcome, Refusal):
        raise RefusedError(outcome)
    return outcome
