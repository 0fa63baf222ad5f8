"""Who may enter: refuse at the door what cannot finish, while the caller still has time to act. Pure.

Backlogs are bounded by deadline (predicted wait plus service must fit the budget), by bytes and by count, for the whole
gateway, for each lane that asks for it and for each tenant: nobody's burst becomes everybody's delay.
"""

from __future__ import annotations

from typing import NamedTuple

from protocol.errors import InvariantViolation
from protocol.messages import RejectCode


class Limits(NamedTuple):
    """Bounds of the whole gateway, and the credit of each tenant (an agent, or whoever an API key names)."""

    pending_requests: int = 1024
    pending_nbytes: int = 256 * 1024 * 1024
    credit_requests: int = 32
    credit_nbytes: int = 32 * 1024 * 1024


class Verdict(NamedTuple):
    """Not admitted: the code, the reason in words, when it may be worth coming back, and the tenant's credit now."""

    code: RejectCode
    reason: str
    retry_after_s: float
    credit: int = 0  # requests that this tenant may have in flight beyond those that it has


NOTHING = (0, 0)
LEAST_RETRY_S = 0.01  # never invite back at once what was refused for want of room


class Admission:
    """Counts what is pending; `decide` before `enter`, `leave` once for every `enter`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits  # may be replaced while requests are pending: what is inside stays
        self.requests = 0
        self.nbytes = 0
        self.draining = False
        self._held: dict[str, tuple[int, int]] = {}  # requests and bytes of each tenant that has any

    def credit(self, tenant: str) -> int:
        """How many more requests `tenant` may have pending."""
        return max(self.limits.credit_requests - self._held.get(tenant, NOTHING)[0], 0)

    def decide(self, *, tenant: str, nbytes: int, budget_s: float, wait_s: float, service_s: float) -> Verdict | None:
        """None admits. `wait_s` and `service_s` are the scheduler's predictions for this request."""
        limits = self.limits
        if self.draining:
            return Verdict(RejectCode.DRAINING, "the gateway is shutting down", 1.0)
        if nbytes > limits.pending_nbytes:
            return Verdict(
                RejectCode.TOO_LARGE, f"{nbytes} bytes exceed the gateway's bound of {limits.pending_nbytes}", 0.0
            )
        mine, held = self._held.get(tenant, NOTHING)
        credit, soon = limits.credit_requests - mine, max(wait_s, LEAST_RETRY_S)
        if credit <= 0:
            return Verdict(RejectCode.BUSY, f"your credit of {limits.credit_requests} requests is used up", soon)
        if held and held + nbytes > limits.credit_nbytes:
            return Verdict(RejectCode.BUSY, f"your credit of {limits.credit_nbytes} bytes is used up", soon, credit)
        if self.requests >= limits.pending_requests:
            return Verdict(RejectCode.BUSY, f"{self.requests} requests are pending", soon, credit)
        if self.nbytes + nbytes > limits.pending_nbytes:
            return Verdict(RejectCode.BUSY, f"{self.nbytes} bytes are pending", soon, credit)
        if wait_s + service_s > budget_s:
            reason = (
                f"{wait_s * 1e3:.1f} ms of queue and {service_s * 1e3:.1f} ms of compute do not fit the "
                f"{budget_s * 1e3:.1f} ms that are left"
            )
            return Verdict(RejectCode.DEADLINE, reason, wait_s, credit)
        return None

    def enter(self, tenant: str, nbytes: int) -> None:
        self.requests += 1
        self.nbytes += nbytes
        requests, held = self._held.get(tenant, NOTHING)
        self._held[tenant] = requests + 1, held + nbytes

    def leave(self, tenant: str, nbytes: int) -> None:
        self.requests -= 1
        self.nbytes -= nbytes
        requests, held = self._held.get(tenant, NOTHING)
        if requests < 1 or held < nbytes:
            raise InvariantViolation(f"more of {tenant!r} left than entered")
        if requests == 1:
            del self._held[tenant]
        else:
            self._held[tenant] = requests - 1, held - nbytes
