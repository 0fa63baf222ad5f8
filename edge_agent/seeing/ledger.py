"""The agent's account of itself: what was answered where, refused why, degraded for what, and how long each stage took.

One call for each finished request, one lock, held for some additions or for the copy of a snapshot, never for its
arithmetic. Time is an argument (`now`, monotonic seconds, from one clock for all threads). Labels are bounded: scopes
beyond `most_scopes` are added up under "other", so that sums over all scopes never fall and a scrape stays cheap.
"""

from __future__ import annotations

import threading
from functools import partial

from edge_agent.outcomes import Answer, Outcome
from edge_agent.seeing.figures import Figures, Row, Scope, Stages, together
from protocol.messages import PlacementKind
from protocol.seeing.snapshots import Snapshot
from protocol.seeing.sums import OTHER, count

MOST_SCOPES = 48
MOST_EVENTS = 256
MOST_BUNDLES = 16
FOLDED = Scope(OTHER, "", "", "", "")
ALL = Scope("", "", "", "", "")
__all__ = ["FOLDED", "MOST_SCOPES", "Ledger", "LedgerSnapshot", "Scope"]

LedgerSnapshot = Snapshot[Figures]


class Ledger:
    """Called by whatever thread ends a request; `observe` takes about 5 us."""

    def __init__(self, *, now: float, most_scopes: int = MOST_SCOPES) -> None:
        self._most_scopes = most_scopes
        self._lock = threading.Lock()
        self._started = now
        self._now = now  # the latest that anyone said
        self._bundles: dict[str, tuple[str, str]] = {}  # digest -> model, version
        self._nowhere = Scope("", "", "", "", "")  # the scope of refusals: they were made nowhere
        self._rows: dict[Scope, Row] = {}
        self._events: dict[str, int] = {}

    def introduce(self, digest: str, model: str, version: str) -> None:
        """From now on the bundle of this digest serves: so its answers, and refusals from now on, are labelled."""
        with self._lock:
            if digest not in self._bundles and len(self._bundles) >= MOST_BUNDLES:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[digest] = model, version
            self._nowhere = Scope(model, version, "", "", "")

    def observe(self, outcome: Outcome, *, budget_s: float, predicted_s: float | None, now: float) -> None:
        """A request has ended. `budget_s` is what its caller gave it (0 or infinity: none), `predicted_s` what the plan
        had said for its placement, None where it said nothing."""
        if isinstance(outcome, Answer):
            self._answered(outcome, budget_s, predicted_s, now)
            return
        with self._lock:
            self._now = now
            self._row(self._nowhere).counters.refuse(str(outcome.code), outcome.slack_s, budget_s)

    def _answered(self, answer: Answer, budget_s: float, predicted_s: float | None, now: float) -> None:
        t = answer.timings
        stages = Stages(t.edge_s, t.encode_s, t.network_s, t.queue_s, t.decode_s, t.compute_s)
        with self._lock:
            self._now = now
            model, version = self._bundles.get(answer.bundle) or self._nowhere[:2]
            scope = Scope(model, version, answer.placement, answer.gateway, answer.precision)
            (self._rows.get(scope) or self._row(scope)).answer(
                stages,
                t.total_s,
                budget_s,
                predicted_s,
                answer.causes,
                answer.attempts,
                answer.hedged,
                answer.kind != PlacementKind.EDGE_ONLY,
                (answer.up_nbytes, answer.down_nbytes),
                answer.engine,
                now,
            )

    def counted(self, what: str, by: int = 1) -> None:
        """Something that no scope has: a socket made anew, a bundle switched, a stored request. Names are ours."""
        with self._lock:
            count(self._events, what, MOST_EVENTS, by)

    def snapshot(self, *, now: float) -> LedgerSnapshot:
        """Everything so far. The copy takes some 30 us a scope; the arithmetic is done when the figures are read."""
        with self._lock:
            self._now = now
            rows = self._rows or {self._nowhere: Row(self._nowhere, now=now)}
            moments = tuple(row.copy(now) for row in rows.values())
            whole = partial(together, moments, ALL)
            return Snapshot(now - self._started, moments, dict(self._events), whole)

    def _row(self, scope: Scope) -> Row:
        """A scope's row, or the one for those that are too many. Called with the lock held."""
        found = self._rows.get(scope)
        if found is not None:
            return found
        if len(self._rows) >= self._most_scopes:
            scope = FOLDED
        return self._rows.setdefault(scope, Row(scope, now=self._now))
