"""The gateway: bundles, lanes, workers and the front put together.

with Gateway(GatewayConfig(bundles=(Path("bundle"),), bind="tcp://127.0.0.1:0")) as gateway:
    print(gateway.endpoint)
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cloud_gateway.doors.frontend import Frontend, Shutdown
from cloud_gateway.models.lanes import MAX_ROWS, LaneTable
from cloud_gateway.models.worker import Worker
from cloud_gateway.scheduling.admission import Limits
from protocol import sockets
from protocol.bundle import Bundle
from protocol.errors import InputError


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything a gateway needs to know. One line of documentation per field."""

    bundles: Sequence[Path]  # directories written by `partitioner split`
    bind: str = "tcp://127.0.0.1:7447"  # where to listen; port 0 picks one
    insecure: bool = False  # allow listening off this machine in plain text
    threads: int = 1  # intra-op threads of each engine
    max_rows: int = MAX_ROWS  # bound of a batch; the measured knee may be lower
    drain_s: float = 10.0  # how long shutdown waits for what is in flight
    limits: Limits = field(default_factory=Limits)


class Gateway:
    """Serves bundles until closed. Constructing has no side effects; `start` loads, warms up, binds and serves."""

    def __init__(self, config: GatewayConfig) -> None:
        if not config.bundles:
            raise InputError("no bundle to serve", "name at least one directory written by `partitioner split`")
        if config.max_rows < 1:
            raise InputError(f"a batch bound of {config.max_rows} rows", "give 1 or more")
        self.config = config
        self.lanes = LaneTable(threads=config.threads, max_rows=config.max_rows)
        self.fatal: BaseException | None = None
        self.stopped = threading.Event()
        self._wanted = sockets.resolve(sockets.parse_endpoint(config.bind))
        sockets.require_loopback(self._wanted, insecure=config.insecure, doing="listening on")
        self._workers: list[Worker] = []
        self._closed = False

    def start(self) -> None:
        """Ready when it returns. Raises BundleError, EngineError or NetworkError, and leaves nothing running then."""
        sys.setswitchinterval(0.0005)
        bundles = [Bundle.open(path) for path in self.config.bundles]
        self._context = sockets.make_context()
        try:
            # Bind first: a port in use should not cost a warm-up. Nobody is answered before the loop runs.
            socket, self.endpoint = sockets.router(self._context, self._wanted)
            try:
                for bundle in bundles:
                    self.lanes.load(bundle)
            except BaseException:
                self.lanes.deactivate()
                socket.close(0)
                raise
        except BaseException:
            self._context.term()
            raise
        self.frontend = Frontend(socket, self.lanes, limits=self.config.limits, crashed=self._crashed)
        self._workers = [Worker(lane, self.frontend.post) for lane in self.lanes.lanes.values()]
        for worker in self._workers:
            worker.start()
        self.frontend.start()

    def stats(self) -> dict[str, int]:
        """Counters since the start: requests, results, rejections by code, duplicates, wire errors, ..."""
        return dict(self.frontend.stats)

    def close(self) -> None:
        """Drain: refuse new work, finish what is held (at most `drain_s`), stop. Safe to call twice."""
        if self._closed or not self._workers:
            return
        self._closed = True
        self.frontend.post([Shutdown(self.config.drain_s)])
        self.frontend.join(self.config.drain_s + 5)
        for worker in self._workers:
            worker.stop()
        self.lanes.deactivate()
        self._context.term()
        self.stopped.set()

    def _crashed(self, error: BaseException) -> None:
        self.fatal = error
        traceback.print_exception(error, file=sys.stderr)
        self.stopped.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()
