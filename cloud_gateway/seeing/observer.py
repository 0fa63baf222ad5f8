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
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.metrics import Scene
from cloud_gateway.seeing.standing import EngineAccount, EngineState, LaneState, ModelState, Standing
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
        workshop: Workshop,
    ) -> None:
        self._desk = desk
        self._catalogue = catalogue
        self._keeper = keeper
        self._ledger = ledger
        self._agents = agents
        self._events = events  # counters that live elsewhere: the doors', the cache's, the front's
        self._workshop = workshop
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
            engines=self._account(),
        )

    def _account(self) -> EngineAccount:
        counts = self._workshop.counts()
        reserved, limit = self._workshop.gpu_memory()
        return EngineAccount(
            failures={(failure.kind, str(failure.cause)): n for failure, n in counts.failures.items()},
            loads={(kind, "ok" if ok else "failed"): n for (kind, ok), n in counts.loads.items()},
            load_s={(kind,): seconds for kind, seconds in counts.load_s.items()},
            moves={(old, new): n for (old, new), n in counts.moves.items()},
            reruns={(kind,): n for kind, n in counts.reruns.items()},
            gpu_reserved_nbytes=reserved if reserved or limit else None,
            gpu_limit_nbytes=limit,
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
            engines=_engines(lane),
        )


def _engines(lane: Lane) -> tuple[EngineState, ...]:
    """Where every engine of the lane's order stands; of a lane of several parts, the common suffix's."""
    engine = lane.engine
    return tuple(EngineState(*look) for look in engine.look()) if isinstance(engine, PreferredEngine) else ()
