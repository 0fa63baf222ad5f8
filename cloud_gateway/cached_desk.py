"""The cache in front of the desk: `submit` answers from what is kept, or passes the request on; `keep` takes answers.

    door -> submit -> on this gateway's shelf: posted to the door at once
                   -> in Redis (where configured): posted when found, on the shelf's own thread
                   -> else the desk's own submit

A request whose frame later ones may refer to, or that refers to earlier ones, passes by: its bytes alone do not say
what it is. A request that waits for Redis is admitted only afterwards, so that a late refusal reaches its door as
NotComputed.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from cloud_gateway.cache import Kept, Shelf, key_of
from cloud_gateway.cache_redis import RedisShelf
from cloud_gateway.models.lanes import Segment
from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.work import Computed, Item, NotComputed, Outcome
from protocol import wire

Submit = Callable[[Item], Verdict | None]


class CachedDesk:
    """Thread-safe. `wants` says which segments' answers are kept."""

    def __init__(
        self,
        submit: Submit,
        *,
        size_nbytes: int,
        ttl_s: float,
        wants: Callable[[Segment], bool] = lambda _: True,
        far: RedisShelf | None = None,
    ) -> None:
        self._submit = submit
        self._shelf = Shelf(size_nbytes, ttl_s)
        self._wants = wants
        self._far = far
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counter[str]:
        """hits, misses, expired, evicted, too_large of the shelf; those of Redis begin with `redis_`."""
        with self._lock:
            counts = Counter(self._shelf.counts)
        return counts + Counter({f"redis_{what}": n for what, n in self._far.counts.items()} if self._far else {})

    @property
    def nbytes(self) -> int:
        """What the shelf holds."""
        return self._shelf.nbytes

    def resize(self, size_nbytes: int, ttl_s: float) -> None:
        with self._lock:
            self._shelf.resize(size_nbytes, ttl_s)

    def submit(self, item: Item) -> Verdict | None:
        """As the desk's own: None means that the outcome will be posted to the item's door."""
        if item.reference is not None or not self._wants(item.segment):
            return self._submit(item)
        item.cache_key = key = key_of(_work(item.segment), item.headers, item.parts)
        with self._lock:
            kept = self._shelf.find(key, now=item.arrived)
        if kept is not None:
            item.door.post_all([_answer(item, kept)])
            return None
        if self._far is not None and self._far.ask(key, lambda found, left_s: self._resume(item, key, found, left_s)):
            return None
        return self._submit(item)

    def keep(self, outcomes: Iterable[Outcome]) -> None:
        """Keep the answers among `outcomes` whose requests were looked up. Called on engine threads."""
        for done in outcomes:
            if not isinstance(done, Computed) or done.item.cache_key is None:
                continue
            kept = Kept(done.headers, tuple(map(bytes, done.buffers)), done.engine, done.compute_s)
            with self._lock:
                self._shelf.keep(done.item.cache_key, kept, now=time.monotonic())
            if self._far is not None:
                self._far.keep(done.item.cache_key, kept, self._shelf.ttl_s)

    def _resume(self, item: Item, key: bytes, kept: Kept | None, left_s: float) -> None:
        """What Redis said, on its shelf's thread."""
        if kept is not None:
            with self._lock:
                self._shelf.keep(key, kept, now=time.monotonic(), ttl_s=left_s)
            item.door.post_all([_answer(item, kept)])
            return
        verdict = self._submit(item)
        if verdict is not None:
            item.door.post_all([NotComputed(item, verdict.code, verdict.reason)])


def _work(segment: Segment) -> Iterable[str]:
    """What is done with a payload. A gateway that computes in float32 only must find no answer of one that may not."""
    yield from (segment.lane.key, segment.bundle, segment.precision, segment.placement)
    if segment.lane.may_be_half:
        yield "float16"


def _answer(item: Item, kept: Kept) -> Computed:
    """What was computed once, as the outcome of another request; the engine's name says so."""
    checksum = wire.checksum(kept.buffers) if item.checksum is not None else 0
    return Computed(
        item, kept.headers, kept.buffers, checksum,
        queue_s=max(time.monotonic() - item.arrived, 0.0), decode_s=0.0, compute_s=0.0, batch_size=item.rows,
        engine=f"{kept.engine} (cached)",
    )  # fmt: skip
