"""What may be looked at, as plain functions: metrics, status, page. Whoever has an HTTP server routes to them.

A scene is kept for `FRESH_S`: several scrapers, or one that hammers, cost one snapshot. The clock is read here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cloud_gateway.seeing.exposition import CONTENT_TYPE
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.machine import Machine
from cloud_gateway.seeing.metrics import Scene, metrics_text
from cloud_gateway.seeing.page import page_html
from cloud_gateway.seeing.standing import Standing
from cloud_gateway.seeing.status import status_json

FRESH_S = 0.25


class Views:
    """`standing` is called at most four times a second, on the thread of whoever looks."""

    def __init__(
        self,
        ledger: Ledger,
        standing: Callable[[], Standing],
        *,
        software: str,
        clock: Callable[[], float] = time.monotonic,
        machine: Machine | None = None,
    ) -> None:
        self._ledger = ledger
        self._standing = standing
        self._software = software
        self._clock = clock
        self._machine = Machine() if machine is None else machine
        self._lock = threading.Lock()
        self._scene: Scene | None = None
        self._taken_at = 0.0

    def scene(self) -> Scene:
        """Everything at this moment, or up to `FRESH_S` ago."""
        with self._lock:
            now = self._clock()
            if self._scene is None or now - self._taken_at >= FRESH_S:
                snapshot = self._ledger.snapshot(now=now)
                machine = self._machine.read(now=now)
                self._scene = Scene(snapshot, self._standing(), machine, self._software)
                self._taken_at = now
            return self._scene

    def metrics_text(self) -> tuple[str, bytes]:
        """Content type and body for Prometheus."""
        return CONTENT_TYPE, metrics_text(self.scene())

    def status_json(self) -> bytes:
        """The status document, UTF-8 JSON."""
        return status_json(self.scene())

    @staticmethod
    def page() -> tuple[bytes, str]:
        """The status page, UTF-8 HTML, and its ETag. It polls `status.json` beside itself."""
        return page_html()
