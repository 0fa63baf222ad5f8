"""Who may enter: refuse at the door what cannot finish, while the caller still has time to act. Pure.

Backlogs are bounded three ways: by deadline (predicted wait plus service must fit the budget), by bytes and by count.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.errors import InvariantViolation
from protocol.messages import RejectCode


class Limits(NamedTuple):
    """Bounds of the whole gateway, and the credit each agent is told."""

    pending_requests: int = 1024
    pending_nbytes: int = 256 * 1024 * 1024
    credit_requests: int = 32
    credit_nbytes: int = 32 * 1024 * 1024


class Verdict(NamedTuple):
    """Not admitted: the code, the reason in words and when it may be worth coming back."""

    code: RejectCode
    reason: str
    retry_after_s: float


class Admission:
    """Counts what is pending; `decide` before `enter`, `leave` once for every `enter`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.nbytes = 0
        self.draining = False

    def decide(self, *, nbytes: int, budget_s: float, wait_s: float, service_s: float) -> Verdict | None:
        """None admits. `wait_s` and `service_s` are the lane's predictions for this request."""
        if self.draining:
            return Verdict(RejectCode.DRAINING, "the gateway is shutting down", 1.0)
        if nbytes > self.limits.pending_nbytes:
            reason = f"{nbytes} bytes exceed the gateway's bound of {self.limits.pending_nbytes}"
            return Verdict(RejectCode.TOO_LARGE, reason, 0.0)
        if self.requests >= self.limits.pending_requests:
            return Verdict(RejectCode.BUSY, f"{self.requests} requests are pending", max(wait_s, 0.01))
        if self.nbytes + nbytes > self.limits.pending_nbytes:
            return Verdict(RejectCode.BUSY, f"{self.nbytes} bytes are pending", max(wait_s, 0.01))
        if wait_s + service_s > budget_s:
            reason = (
                f"{wait_s * 1e3:.1f} ms of queue and {service_s * 1e3:.1f} ms of compute do not fit the "
                f"{budget_s * 1e3:.1f} ms that are left"
            )
            return Verdict(RejectCode.DEADLINE, reason, wait_s)
        return None

    def enter(self, nbytes: int) -> None:
        self.requests += 1
        self.nbytes += nbytes

    def leave(self, nbytes: int) -> None:
        self.requests -= 1
        self.nbytes -= nbytes
        if self.requests < 0 or self.nbytes < 0:
            raise InvariantViolation(f"more left than entered: {self.requests} requests, {self.nbytes} bytes")
