"""What may be looked at, as plain functions: metrics, status, page. Whoever has an HTTP server routes to them.

A scene is everything that one look shows, whatever a daemon calls so. It is kept for `FRESH_S`: several scrapers, or
one that hammers, cost one look. The clock is read here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.seeing.exposition import CONTENT_TYPE

FRESH_S = 0.25

Scene = TypeVar("Scene")


class Views(Generic[Scene]):
    """`look` is called at most four times a second, on the thread of whoever asks."""

    def __init__(
        self,
        look: Callable[[], Scene],
        *,
        metrics: Callable[[Scene], bytes],
        status: Callable[[Scene], bytes],
        page: Callable[[], tuple[bytes, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._metrics, self._status = metrics, status
        self.page = page  # the status page, UTF-8 HTML, and its ETag. It asks for `status.json` beside itself
        self._clock = clock
        self._lock = threading.Lock()
        self._scene: Scene | None = None
        self._looked_at = 0.0

    def scene(self) -> Scene:
        """Everything at this moment, or up to `FRESH_S` ago."""
        with self._lock:
            now = self._clock()
            if self._scene is None or now - self._looked_at >= FRESH_S:
                self._scene, self._looked_at = self._look(), now
            return self._scene

    def metrics_text(self) -> tuple[str, bytes]:
        """Content type and body for Prometheus; about 10 ms when all labels are in use."""
        return CONTENT_TYPE, self._metrics(self.scene())

    def status_json(self) -> bytes:
        """The status document, UTF-8 JSON."""
        return self._status(self.scene())
