"""Runs the doors: one thread with one event loop for HTTP over TCP and a unix socket, and for what else is handed in.

    with OipServer(app, Listen(bind="127.0.0.1:0")) as server:
        print(server.endpoint)

Sockets are bound before the thread starts, so a port in use is an error of whoever starts the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
from uvicorn.config import Config

from protocol.errors import InputError, NetworkError
from protocol.oip.app import OipApp
from protocol.oip.http_protocol import Connection, Connections, Patience
from protocol.oip.tls import Tls
from protocol.sockets import Endpoint, parse_endpoint, require_loopback, reserve, resolve

_BACKLOG = 1024
_TLS_HANDSHAKE_S = 5.0


class Listen(msgspec.Struct, frozen=True):
    """Where the HTTP door listens: TCP, a unix socket, or both; neither, if only companions are to be served."""

    bind: str | None = "127.0.0.1:7480"  # HOST:PORT; port 0 picks one
    unix_socket: Path | None = None  # mode 0660
    tls: Tls | None = None  # of the TCP socket
    insecure: bool = False  # allow plain text off this machine
    patience: Patience = Patience()


class Companion(Protocol):
    """What shares the event loop with HTTP: the gRPC door, a service's own answers."""

    async def start(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class OipServer:
    """Serves until closed. Constructing has no side effects; `start` returns when connections are accepted."""

    def __init__(self, app: OipApp, listen: Listen, *, companions: Iterable[Companion] = ()) -> None:
        self._companions = tuple(companions)
        if listen.bind is None and listen.unix_socket is None and not self._companions:
            raise InputError("the HTTP door has neither an address nor a unix socket", "give it one of them")
        self._app = app
        self._listen = listen
        self._wanted = None if listen.bind is None else resolve(parse_endpoint(listen.bind))
        if self._wanted is not None and listen.tls is None:
            require_loopback(self._wanted, insecure=listen.insecure, doing="HTTP listening on")
        self.endpoint: Endpoint | None = None  # the TCP address that is really served
        self.connections = Connections(listen.patience)
        self._bound: socket.socket | None = None
        self._servers: list[asyncio.Server] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The doors' event loop; there from `start` to `close`."""
        assert self._loop is not None
        return self._loop

    def bind(self) -> None:
        """Take the TCP port, so that nobody else gets it; nobody is answered before `start`. Raises NetworkError.

        Whoever does not `start` after it must `close`.
        """
        if self._wanted is not None and self._bound is None:
            self._bound = _bind(self._wanted)
            self.endpoint = Endpoint(self._wanted.host, self._bound.getsockname()[1])

    def start(self) -> None:
        """Raises NetworkError if it cannot listen there, and leaves nothing running then."""
        tls = None if self._listen.tls is None else self._listen.tls.context()
        self.bind()
        bound, self._bound = self._bound, None
        try:
            if self._listen.unix_socket is not None:
                _make_way(self._listen.unix_socket)
            self._loop = _new_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="isthmus-http", daemon=True)
            self._thread.start()
        except BaseException:
            if bound is not None:
                bound.close()
            raise
        try:
            asyncio.run_coroutine_threadsafe(self._open(bound, tls), self._loop).result()
        except BaseException:
            if bound is not None:
                bound.close()
            self._end_thread()
            raise

    def close(self, grace_s: float = 5.0) -> None:
        """Refuse new work, finish what runs (at most `grace_s`), stop. Safe to call twice."""
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        if self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(grace_s), self.loop).result()
        self._end_thread()
        if self._listen.unix_socket is not None:
            self._listen.unix_socket.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _end_thread(self) -> None:
        assert self._thread is not None
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self._thread = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    # ---- on the loop ------------------------------------------------------------------------------------------------

    async def _open(self, bound: socket.socket | None, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        for companion in self._companions:
            await companion.start()
        config = Config(
            self._app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(self._listen.patience.keep_alive_s) + 1,  # the sweep comes first
        )
        config.load()
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # every malformed request would be a warning

        def connect() -> Connection:
            return Connection(config, self.connections, loop)

        if bound is not None:
            handshake_s = None if tls is None else _TLS_HANDSHAKE_S
            try:
                server = await loop.create_server(
                    connect, sock=bound, ssl=tls, backlog=_BACKLOG, ssl_handshake_timeout=handshake_s
                )
            except OSError as error:  # two may hold a port of which only one can listen
                raise _cannot_listen(bound.getsockname(), error) from error
            self._servers.append(server)
        if self._listen.unix_socket is not None:
            self._servers.append(await _listen_unix(loop, connect, self._listen.unix_socket))
        self._sweeper = loop.create_task(self._sweep())

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._listen.patience.sweep_s)
            self.connections.sweep(loop.time())

    async def _close(self, grace_s: float) -> None:
        self._app.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self.connections.connections):
            connection.shutdown()
        running = [asyncio.ensure_future(c.stop(grace_s)) for c in self._companions] + list(self.connections.tasks)
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until_all_are_gone(), timeout=0.5)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections.connections):
            connection.transport.abort()
        await asyncio.gather(*running, return_exceptions=True)

    async def _until_all_are_gone(self) -> None:
        """Answers that were handed over but not yet written still go out."""
        while self.connections.connections:
            await asyncio.sleep(0.005)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed: half the CPU of a request."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _bind(endpoint: Endpoint) -> socket.socket:
    try:
        return reserve(endpoint)
    except OSError as error:
        raise _cannot_listen((endpoint.host, endpoint.port), error) from error


def _cannot_listen(address: tuple[Any, ...], error: OSError) -> NetworkError:
    return NetworkError(
        f"cannot listen on {address[0]}:{address[1]}: {error.strerror or error}",
        "stop the other process or choose another port",
    )


def _make_way(path: Path) -> None:
    """A socket that a crashed process left behind is in the way; one that answers is not ours to remove."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise NetworkError(f"cannot listen on {path}: {error.strerror}", "choose another path") from error
    if not stat.S_ISSOCK(mode):
        raise NetworkError(f"cannot listen on {path}: a file is there", "remove it or choose another path")


async def _listen_unix(
    loop: asyncio.AbstractEventLoop, connect: Callable[[], Connection], path: Path
) -> asyncio.Server:
    """Bound beside its place with its mode set, then moved there: nobody meets it with another mode."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.close()
        raise NetworkError(f"cannot listen on {path}: another process does", "stop it or choose another path")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        server = await loop.create_unix_server(connect, path=str(beside), backlog=_BACKLOG)
        beside.chmod(0o660)
        beside.rename(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise NetworkError(f"cannot listen on {path}: {reason}", "choose a path in a folder of yours") from error
    return server
