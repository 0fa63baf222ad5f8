"""The gateway's account of itself: what was offered, refused, executed and answered, and how long it took.

One lock, held for a handful of additions or for the copy of a snapshot, never for its arithmetic. Time is an argument
(`now`, monotonic seconds, from one clock for all threads). Labels are bounded: scopes beyond `most_scopes`, and those
forgotten, are added up under "other", so that sums over all scopes never fall and a scrape stays cheap.
"""

from __future__ import annotations

import threading
from functools import partial

from cloud_gateway.seeing.figures import OWN, Figures, Row, Scope, together
from protocol.seeing.snapshots import Snapshot
from protocol.seeing.sums import OTHER, count

MOST_SCOPES = 64
MOST_EVENTS = 256
UNKNOWN = Scope("unknown", "", "")  # a request that named nothing we hold, or that was refused before it could
FOLDED = Scope(OTHER, "", "")
ALL = Scope("", "", "")
__all__ = ["FOLDED", "MOST_EVENTS", "MOST_SCOPES", "UNKNOWN", "Ledger", "LedgerSnapshot", "Scope"]

LedgerSnapshot = Snapshot[Figures]


class Ledger:
    """Called by every thread that serves. Calls cost about 0.3 to 1 us each, 2 to 3 us for a whole request."""

    def __init__(self, *, now: float, most_scopes: int = MOST_SCOPES) -> None:
        self._most_scopes = most_scopes
        self._lock = threading.Lock()
        self._started = now
        self._now = now  # the latest that anyone said
        self._rows: dict[Scope, Row] = {UNKNOWN: Row(UNKNOWN, now=now)}
        self._events: dict[str, int] = {}

    def offered(self, scope: Scope | None) -> None:
        """A request came in; None where it names nothing that we hold. Once for each, whatever becomes of it."""
        with self._lock:
            (self._rows.get(scope or UNKNOWN) or self._row(scope)).counters.offered += 1

    def refused(self, scope: Scope | None, code: str, *, slack_s: float, budget_s: float) -> None:
        """It was not answered, before queueing or after. `slack_s` of `budget_s` is left to whoever asked.

        A budget of 0 or infinity is none: the refusal counts, its slack does not.
        """
        with self._lock:
            (self._rows.get(scope or UNKNOWN) or self._row(scope)).refuse(code, slack_s, budget_s)

    def executed(
        self,
        scope: Scope,
        *,
        rows: int,
        requests: int,
        decode_s: float,
        compute_s: float,
        predicted_s: float,
        engine: str,
        now: float,
        encode_s: float = 0.0,
    ) -> None:
        """One engine run. The times are the run's; `predicted_s` is what the cost curve had said for `compute_s`.

        A batch may hold requests of several scopes that share a tail: it counts under one of them, the first's. The
        gateway's own questions (OWN) are no run.
        """
        if scope == OWN:
            return
        with self._lock:
            self._now = now
            (self._rows.get(scope) or self._row(scope)).execute(
                rows, requests, decode_s, compute_s, encode_s, predicted_s, engine, now
            )

    def answered(
        self, scope: Scope, *, queue_s: float, residence_s: float, budget_s: float, late: bool, now: float
    ) -> None:
        """A result was handed to whoever asked; `late` if its budget had passed. No budget is 0 or infinity."""
        with self._lock:
            self._now = now
            (self._rows.get(scope) or self._row(scope)).answer(queue_s, residence_s, budget_s, late, now)

    def counted(self, what: str, by: int = 1) -> None:
        """Something that no scope has: a duplicate attached, a wire error, a reload. Names are ours, not a peer's."""
        with self._lock:
            count(self._events, what, MOST_EVENTS, by)

    def forget(self, scope: Scope) -> None:
        """Its version was unloaded: its counters go on under "other", its quantiles end."""
        if scope in (UNKNOWN, FOLDED):
            return
        with self._lock:
            row = self._rows.pop(scope, None)
            if row is not None:
                self._other().counters.absorb(row.counters)

    def snapshot(self, *, now: float) -> LedgerSnapshot:
        """Everything so far. The copy takes some 20 us a scope; the arithmetic is done when the figures are read."""
        with self._lock:
            self._now = now
            moments = tuple(row.copy(now) for row in self._rows.values())
            whole = partial(together, moments, ALL)
            return Snapshot(now - self._started, moments, dict(self._events), whole)

    def _row(self, scope: Scope | None) -> Row:
        """A new scope's row, or the one for those that are too many. Called with the lock held."""
        scope = scope or UNKNOWN
        if len(self._rows) >= self._most_scopes:
            return self._other()
        return self._rows.setdefault(scope, Row(scope, now=self._now))

    def _other(self) -> Row:
        return self._rows.setdefault(FOLDED, Row(FOLDED, now=self._now))
