"""The guard of the HTTP and gRPC doors: the decisions of `api_keys`, with clocks and a lock."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from cloud_gateway.access import api_keys
from cloud_gateway.access.api_keys import Denial, Role, Rules
from cloud_gateway.access.limits import Failures, Meter
from cloud_gateway.access.roster import ANONYMOUS, Table
from protocol.oip.service import AccessDenied

FAILURES_PER_MINUTE = 10


class ApiGuard:
    """A `protocol.oip.service.Guard`. `table` gives who is known at the moment (`Authority.table`). Thread-safe."""

    def __init__(
        self,
        table: Callable[[], Table | None],
        rules: Rules,
        *,
        failures_per_minute: int = FAILURES_PER_MINUTE,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
        told: Callable[[str, str], None] = lambda event, text: None,
    ) -> None:
        self.stats: Counter[str] = Counter()
        self._table = table
        self._rules = rules
        self._meter = Meter()
        self._failures = Failures(per_minute=failures_per_minute)
        self._lock = threading.Lock()
        self._monotonic = monotonic
        self._clock = clock
        self._told = told

    def check(self, *, role: Role, credential: str | None, address: str, nbytes: int) -> str:
        """The tenant that asks. Raises AccessDenied. Whoever was let in must `release`."""
        with self._lock:
            verdict = api_keys.decide(
                self._table(),
                self._rules,
                self._meter,
                self._failures,
                role=role,
                credential=credential,
                address=address,
                nbytes=nbytes,
                now=self._monotonic(),
                utc=self._clock(),
            )
            if isinstance(verdict, Denial):
                self.stats[f"denied_{verdict.status}"] += 1
        if not isinstance(verdict, Denial):
            return verdict
        self._told("request_denied", f"{address}: {verdict.reason}")
        raise AccessDenied(verdict.status, verdict.reason, verdict.retry_after_s)

    def release(self, tenant: str) -> None:
        """What `check` let in has ended."""
        if tenant != ANONYMOUS:
            with self._lock:
                self._meter.leave(tenant)

    def set_failures_per_minute(self, limit: int) -> None:
        """From now on; the setting may change while the gateway serves."""
        with self._lock:
            self._failures.per_minute = limit
