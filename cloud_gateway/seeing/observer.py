"""Looks at everything at once, when somebody asks: the scene that metrics, the status document and health are told of.

Nothing here is kept up to date on a request's way; one look takes the desk's lock once a lane, for microseconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue
from cloud_gateway.models.keeper import Keeper
from cloud_gateway.models.lanes import Lane, Segment
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.metrics import Scene
from cloud_gateway.seeing.standing import LaneState, ModelState, Standing
from protocol import __version__
from protocol.seeing.machine import Machine

KEY_DIGITS = 12
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Observer:
    """Any thread may ask."""

    def __init__(
        self,
        desk: Desk,
        catalogue: Catalogue,
        keeper: Keeper,
        ledger: Ledger,
        *,
        agents: Callable[[], int],
        events: Callable[[], Mapping[str, int]],
    ) -> None:
        self._desk = desk
        self._catalogue = catalogue
        self._keeper = keeper
        self._ledger = ledger
        self._agents = agents
        self._events = events  # counters that live elsewhere: the doors', the cache's, the front's
        self._machine = Machine()

    def scene(self) -> Scene:
        now = time.monotonic()
        snapshot = self._ledger.snapshot(now=now)
        events = Counter(snapshot.events) + Counter(self._events())
        snapshot = replace(snapshot, events=dict(events))
        return Scene(snapshot, self.standing(), self._machine.read(now=now), f"isthmus {__version__}")

    def standing(self) -> Standing:
        now = time.monotonic()
        _, nbytes = self._desk.pending()
        limits = self._desk.limits
        segments = self._catalogue.held()
        index = self._keeper.index()
        failed = [f"{s.name} version {s.version}: {s.reason}" for s in index if s.state == "ERROR"]
        pending: Counter[Scope] = Counter()
        for segment in segments:
            pending[segment.scope] += segment.pending
        return Standing(
            ready=self._keeper.is_ready(),
            draining=self._desk.is_draining,
            reason="; ".join(failed)[:1000],
            models=tuple(
                ModelState(s.name, str(s.version), str(s.state), max(now - s.since, 0.0), s.reason, s.digest, s.format)
                for s in index
            ),
            lanes=tuple(
                state
                for lane in self._catalogue.lanes.values()
                if (state := self._lane(lane, segments, now)) is not None
            ),
            pending=pending,
            pending_nbytes=nbytes,
            pending_limit_requests=limits.pending_requests,
            pending_limit_nbytes=limits.pending_nbytes,
            agents=self._agents(),
            credit_requests=limits.credit_requests,
            credit_nbytes=limits.credit_nbytes,
        )

    def _lane(self, lane: Lane, segments: list[Segment], now: float) -> LaneState | None:
        look = self._desk.look(lane, now=now)
        if look is None:  # not open yet, or closed in this moment
            return None
        return LaneState(
            key=lane.key[:KEY_DIGITS],
            label=lane.engine.label,
            scopes=tuple(dict.fromkeys(s.scope for s in segments if s.lane is lane)),
            engine=lane.engine.description,
            instances=lane.rules.instances,
            busy=look.busy,
            batch_bound=lane.max_rows,
            unbatched=lane.unbatched,
            predicted_s={size: lane.curve.predict(size) for size in SIZES if size <= lane.max_rows},
            wait_s=look.wait_s,
            pending_requests=look.waiting,
            pending_nbytes=look.waiting_nbytes,
        )
