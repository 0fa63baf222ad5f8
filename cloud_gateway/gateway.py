"""The gateway: bundles, lanes, workers and the front put together.

with Gateway(GatewayConfig(bundles=(Path("bundle"),), bind="tcp://127.0.0.1:0")) as gateway:
    print(gateway.endpoint)
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from cloud_gateway.desk import Desk
from cloud_gateway.doors.frontend import Frontend, Shutdown
from cloud_gateway.doors.supervision import Policy
from cloud_gateway.doors.supervisor import MEMORY_NBYTES, FrontPlan, FrontProcess
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.lanes import MAX_ROWS
from cloud_gateway.models.served import open_bundle
from cloud_gateway.models.worker import Worker
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Crashed, Item, NotComputed
from protocol import sockets
from protocol.errors import InputError
from protocol.messages import RejectCode

JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Everything a gateway needs to know. One line of documentation per field."""

    bundles: Sequence[Path]  # directories written by `partitioner split`
    bind: str = "tcp://127.0.0.1:7447"  # where to listen; port 0 picks one
    insecure: bool = False  # allow listening off this machine in plain text
    workers: int | None = None  # engine threads, shared by all lanes; None: what the processors allow
    threads: int = 1  # intra-op threads of each engine
    max_rows: int = MAX_ROWS  # bound of a batch; the measured knee may be lower
    drain_s: float = 10.0  # how long shutdown waits for what is in flight
    front: Literal["thread", "process"] = "thread"  # where agents' connections end: here, or in a process of its own
    front_memory_nbytes: int = MEMORY_NBYTES  # bound of a front that is a process
    front_policy: Policy = field(default_factory=Policy)  # when that is started again
    limits: Limits = field(default_factory=Limits)


def engine_threads(threads: int) -> int:
    """How many engines this machine can run side by side, one processor left to the doors."""
    usable = len(os.sched_getaffinity(0))
    return max((usable - 1) // threads, 1)


class Gateway:
    """Serves bundles until closed. Constructing has no side effects; `start` loads, warms up, binds and serves."""

    def __init__(self, config: GatewayConfig) -> None:
        if not config.bundles:
            raise InputError("no bundle to serve", "name at least one directory written by `partitioner split`")
        if config.max_rows < 1:
            raise InputError(f"a batch bound of {config.max_rows} rows", "give 1 or more")
        self.config = config
        self.fatal: BaseException | None = None
        self.stopped = threading.Event()
        self.ledger = Ledger(now=time.monotonic())
        workers = config.workers or engine_threads(config.threads)
        self.desk = Desk(config.limits, threads=workers)
        self.catalogue = Catalogue(
            self.desk,
            Defaults(threads=config.threads, max_rows=config.max_rows, instances=workers),
            orphaned=_refuse_orphans,
        )
        self._workers = [Worker(n, self.desk, self.ledger, crashed=self._worker_crashed) for n in range(workers)]
        self._wanted = sockets.resolve(sockets.parse_endpoint(config.bind))
        sockets.require_loopback(self._wanted, insecure=config.insecure, doing="listening on")
        self.front_process: FrontProcess | None = None
        if config.front == "process":
            plan = FrontPlan(
                self._wanted, config.front_memory_nbytes, insecure=config.insecure, policy=config.front_policy
            )
            self.front_process = FrontProcess(plan, told=_tell, gave_up=self._crashed)
        self._started = False
        self._closed = False

    def start(self) -> None:
        """Ready when it returns. Raises BundleError, EngineError or NetworkError, and leaves nothing running then."""
        sys.setswitchinterval(0.0005)
        versions = [open_bundle(path) for path in self.config.bundles]
        self._context = sockets.make_context()
        try:
            # Bind first: a port in use should not cost a warm-up. Nobody is answered before the loop runs.
            socket, self.endpoint = self._bind()
            try:
                for build, version in enumerate(versions):
                    version = replace(version, build=build)
                    self.catalogue.load(version)
                    self.catalogue.warm_up(version)
                    self.catalogue.publish(version)
            except BaseException:
                self.catalogue.close()
                socket.close(0)
                raise
        except BaseException:
            self._context.term()
            if self.front_process is not None:
                self.front_process.stop()
            raise
        self.frontend = Frontend(socket, self.catalogue, self.desk, self.ledger, crashed=self._crashed)
        for worker in self._workers:
            worker.start()
        self.frontend.start()
        self._started = True
        if self.front_process is not None:
            try:
                self.front_process.start()
            except BaseException:
                self.close()
                raise

    def _bind(self) -> tuple[sockets.Socket, sockets.Endpoint]:
        """The socket that the frontend serves, and where agents connect. Raises NetworkError."""
        if self.front_process is None:
            return sockets.router(self._context, self._wanted)
        self.front_process.listen()
        return sockets.hub(self._context, self.front_process.hub), self.front_process.endpoint

    def stats(self) -> dict[str, int]:
        """Counters since the start: requests, results, rejections by code, duplicates, wire errors, ...

        Those of a front that is a process begin with `front_`.
        """
        front = {} if self.front_process is None else self.front_process.stats()
        return self.frontend.stats | {f"front_{name}": value for name, value in front.items()}

    def close(self) -> None:
        """Drain: refuse new work, finish what is held (at most `drain_s`), stop. Safe to call twice."""
        if self._closed or not self._started:
            return
        self._closed = True
        self.desk.drain()
        self.frontend.post_all([Shutdown(self.config.drain_s)])
        self.frontend.join(self.config.drain_s + 5)
        self.desk.stop()
        for worker in self._workers:
            worker.join(JOIN_S)
        self.catalogue.close()
        self._context.term()
        if self.front_process is not None:
            self.front_process.stop()  # after the last answers are on their way to it
        self.stopped.set()

    def _worker_crashed(self, error: BaseException) -> None:
        self.frontend.post_all([Crashed(error)])

    def _crashed(self, error: BaseException) -> None:
        self.fatal = error
        traceback.print_exception(error, file=sys.stderr)
        self.stopped.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _tell(event: str, text: str) -> None:
    print(f"{event}: {text}", file=sys.stderr, flush=True)


def _refuse_orphans(items: list[Item]) -> None:
    """Requests whose lane was closed under them; only a forced end does that."""
    for item in items:
        item.door.post_all([NotComputed(item, RejectCode.DRAINING, "the model was unloaded")])
