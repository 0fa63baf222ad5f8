"""Requests of the gateway's own, through the same desk, lanes and engine threads as everybody's: deep health asks them.

They come last in priority and hold one place, so that they never push anybody out; a lane that is too busy to take one
is not ill.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from cloud_gateway.desk import Desk
from cloud_gateway.models.asking import answered
from cloud_gateway.models.lanes import Lane, Segment
from cloud_gateway.seeing.figures import OWN
from cloud_gateway.work import Computed, Item, NotComputed, Outcome, nbytes_of
from protocol import codecs
from protocol.errors import EngineError
from protocol.messages import RejectCode
from protocol.tensors import Array, Tensors

TENANT = "isthmus-health"
LAST = 9
PASSING = (RejectCode.BUSY, RejectCode.DEADLINE, RejectCode.DRAINING)


class Probe:
    """`ask` blocks for at most `timeout_s`. Any thread but those of doors and engines may call it."""

    def __init__(self, desk: Desk, lane: Callable[[str], Lane | None], *, timeout_s: float) -> None:
        self._desk = desk
        self._lane = lane
        self._timeout_s = timeout_s

    def ask(self, key: str, tensors: Tensors) -> Tensors | None:
        """The outputs of one request to lane `key`; None where it is gone or too busy. Raises EngineError."""
        lane = self._lane(key)
        if lane is None or not lane.is_open:
            return None
        waiting = _Waiting()
        item = self._item(lane, tensors, waiting)
        verdict = self._desk.submit(item)
        if verdict is not None:
            if verdict.code in PASSING:
                return None
            raise EngineError(verdict.reason, "")
        if not waiting.done.wait(self._timeout_s):
            self._desk.withdraw(lambda queued: queued is item)
            raise EngineError(f"it has not answered within {self._timeout_s:g} s", "look at the engine and its device")
        outcome = waiting.outcome
        if isinstance(outcome, NotComputed):
            if outcome.code in PASSING:
                return None
            raise EngineError(outcome.reason, "")
        assert isinstance(outcome, Computed)
        return {h.name: codecs.decode(h, b) for h, b in zip(outcome.headers, outcome.buffers, strict=True)}

    def _item(self, lane: Lane, tensors: Tensors, door: _Waiting) -> Item:
        names = [b.spec.name for b in lane.boundary]
        encoded = [codecs.encode(name, tensors[name], "raw") for name in names]
        headers = tuple(header for header, _ in encoded)
        segment = Segment(lane, lane.boundary, "", "", "health", OWN)
        rows, layout = segment.fit(headers)
        now = time.monotonic()
        return Item(
            segment, headers, [data for _, data in encoded], [1] * len(encoded), None, rows, layout, nbytes_of(headers),
            now, now + self._timeout_s, LAST, TENANT, door, None,
        )  # fmt: skip


class _Waiting:
    """The door of one request: keeps what comes and tells whoever waits."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.outcome: Outcome | None = None

    def post_all(self, items: Iterable[Outcome], /) -> None:
        for self.outcome in items:
            self.done.set()


def remembered(lane: Lane, tensors: dict[str, Array]) -> dict[str, Array] | None:
    """What a lane that just warmed up answers to `tensors`; None where they are no request of its."""
    try:
        return answered(lane.engine, tensors)
    except EngineError:
        return None
