"""Daemons for tests: in this process, in a folder of their own, on free ports, told nothing by systemd."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.agent import Agent
from edge_agent.compute import Rehearsal, Rehearsed
from edge_agent.config import from_flags, load_settings
from edge_agent.daemon import Daemon
from edge_agent.device.notify import Notifier
from edge_agent.heads import Prepared
from protocol.errors import EngineError
from protocol.seeing.logs import Logs
from tests.waiting import PATIENCE_S


def daemon_of(
    bundle: Path | None,
    state_dir: Path,
    *,
    gateways: tuple[str, ...] = (),
    settings: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    log: io.StringIO | None = None,
) -> Daemon:
    """A daemon that is not started. `settings` are dotted keys, as in `--set`; `env` is what systemd sets."""
    flags = from_flags(bundle=bundle, gateways=gateways, state_dir=state_dir, http="127.0.0.1:0", wait_s=0.0)
    loaded = load_settings(env={}, overrides=flags | {"health.every_s": 3600.0, "health.timeout_s": 3600.0}
                           | dict(settings or {}))  # fmt: skip
    logs = Logs(level="debug", style="json", stream=log or io.StringIO(), repeat_interval_s=0.0)
    return Daemon(loaded.settings, notifier=Notifier(env or {}), logs=logs)


class Manager:
    """systemd's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Everything since the last time."""
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += self._socket.recv(4096).decode().splitlines()
        return found

    def close(self) -> None:
        self._socket.close()


def got(daemon: Daemon, path: str, *, method: str = "GET", body: bytes = b"") -> tuple[int, str]:
    """Status and body of one request over TCP."""
    assert daemon.door.endpoint is not None
    connection = http.client.HTTPConnection("127.0.0.1", daemon.door.endpoint.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body or None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@contextmanager
def compute_hangs(agent: Agent, placement: str = "edge-only") -> Iterator[None]:
    """While this lasts the agent's compute thread does nothing: what a hung driver looks like from outside."""
    entered, over = threading.Event(), threading.Event()

    class Slow(Mapping[str, Any]):
        """Inputs whose reading takes as long as we like."""

        def __getitem__(self, name: str) -> Any:
            entered.set()
            over.wait(PATIENCE_S)
            raise KeyError(name)

        def __iter__(self) -> Iterator[str]:
            return iter(["x"])

        def __len__(self) -> int:
            return 1

    hung: Future[Prepared] = Future()
    agent.uplink.post(Rehearsal(placement, Slow(), hung))
    assert entered.wait(PATIENCE_S)
    try:
        yield
    finally:
        over.set()


@contextmanager
def socket_hangs(agent: Agent) -> Iterator[None]:
    """While this lasts the agent's socket thread does nothing."""
    entered, over = threading.Event(), threading.Event()

    class Slow(Future[Prepared]):
        """A caller whose callback takes as long as we like."""

        def set_exception(self, exception: BaseException | None) -> None:
            entered.set()
            over.wait(PATIENCE_S)

    agent.uplink.post(Rehearsed(Rehearsal("", {}, Slow()), EngineError("nothing", "")))
    assert entered.wait(PATIENCE_S)
    try:
        yield
    finally:
        over.set()
