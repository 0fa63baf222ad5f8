"""Answers kept in Redis, for several gateways in front of the same models. The extra `redis`, imported when configured.

One thread owns the connection; the doors and engine threads only hand over. Redis is never waited for longer than its
timeout, and trouble with it never becomes a request's: a question is then answered "not there", what was to be kept is
dropped, and after a few failures a breaker leaves Redis alone for a while. Everything is counted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cloud_gateway.cache import Kept
from protocol.control.breaker import Breaker
from protocol.errors import EngineError, InputError

if TYPE_CHECKING:
    from redis import Redis

PREFIX = b"isthmus:1:"
MOST_WAITING = 256  # questions and answers handed over and not yet sent; more are dropped
MOST_NBYTES = 16 * 1024 * 1024  # of one answer

T = TypeVar("T")
Then = Callable[[Kept | None, float], None]  # what was found, and for how many seconds it is still good


class RedisShelf:
    """Ask and keep without waiting. `start` it, `stop` it; constructing touches no network."""

    def __init__(self, url: str, *, timeout_s: float, crashed: Callable[[BaseException], None]) -> None:
        """Raises EngineError if the library is missing, InputError if `url` is none (its text is not repeated)."""
        self.counts: Counter[str] = Counter()  # hits, misses, kept, skipped, failed, damaged
        self._redis = _client(url, timeout_s)
        self._crashed = crashed
        self._breaker = Breaker[str]()
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._decoder = msgspec.msgpack.Decoder(Kept)
        self._encoder = msgspec.msgpack.Encoder()
        self._thread = threading.Thread(target=self._main, name="isthmus-redis", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What was handed over is still asked. Safe to call twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def ask(self, key: bytes, then: Then) -> bool:
        """Look `key` up and call `then` on the shelf's own thread. False: not now, and `then` is never called."""
        if self._breaker.refuses(now=time.monotonic()):
            self.counts["skipped"] += 1
            return False
        return self._hand_over(lambda: then(*self._find(key)))

    def keep(self, key: bytes, kept: Kept, ttl_s: float) -> None:
        """Keep an answer there, if Redis is well and nothing is in the way."""
        if kept.nbytes <= MOST_NBYTES and not self._breaker.refuses(now=time.monotonic()):
            self._hand_over(lambda: self._keep(key, kept, ttl_s))

    def _hand_over(self, job: Callable[[], None]) -> bool:
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self.counts["skipped"] += 1
            return False
        return True

    def _main(self) -> None:
        try:
            while (job := self._queue.get()) is not None:
                job()
        except BaseException as error:  # the top of the thread
            self._crashed(error)
        finally:
            self._redis.close()

    def _find(self, key: bytes) -> tuple[Kept | None, float]:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.get(PREFIX + key)
        pipeline.pttl(PREFIX + key)
        found = self._guarded(pipeline.execute)
        if found is None:
            return None, 0.0
        data, left_ms = found
        if data is None:
            self.counts["misses"] += 1
            return None, 0.0
        try:
            kept = self._decoder.decode(data)
            left_s = float(left_ms) / 1e3
        except (
            msgspec.MsgspecError,
            UnicodeDecodeError,
            TypeError,
            ValueError,
        ):  # somebody else's, or another version's
            self.counts["damaged"] += 1
            return None, 0.0
        self.counts["hits"] += 1
        return kept, left_s

    def _keep(self, key: bytes, kept: Kept, ttl_s: float) -> None:
        data = self._encoder.encode(kept)
        if self._guarded(lambda: self._redis.set(PREFIX + key, data, px=max(int(ttl_s * 1e3), 1))):
            self.counts["kept"] += 1

    def _guarded(self, call: Callable[[], T]) -> T | None:
        """What Redis says; None when the breaker is open or the call failed."""
        now = time.monotonic()
        if self._breaker.refuses(now=now):
            self.counts["skipped"] += 1
            return None
        self._breaker.passing(now=now)
        try:
            result = call()
        except Exception as error:  # the client takes a foreign process at its word and raises what comes of it
            self.counts["failed"] += 1
            self._breaker.failed(type(error).__name__, now=time.monotonic())
            return None
        self._breaker.succeeded()
        return result


def _client(url: str, timeout_s: float) -> Redis:
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise EngineError("the package redis is not installed", "pip install 'isthmus[redis]'") from error
    try:
        # No retries: the breaker decides when to come back. RESP 2 is what every version of Redis speaks.
        return Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0),
            max_connections=1, protocol=2,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(
            "cache.redis_url is no address of a Redis", "give redis://[:PASSWORD@]HOST:PORT[/DB]"
        ) from error
