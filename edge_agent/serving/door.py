"""Where applications come in: HTTP on loopback and a Unix socket, gRPC where the extra is there. One loop, one thread.

    open      /v2, /v2/health/live, /v2/health/ready
    infer     /v2/models/..., /v2/isthmus/status, and what the daemon adds

Who may ask is who is on this machine. Other machines only where `http.insecure` says so or with a client certificate
that `http.client_ca` has signed: TLS itself turns others away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.config import AgentSettings, GrpcSettings, HttpSettings
from edge_agent.serving.service import AgentService
from protocol.errors import InputError
from protocol.oip.app import OipApp
from protocol.oip.http_protocol import Patience
from protocol.oip.http_server import Companion, Listen, OipServer
from protocol.oip.routes import Route
from protocol.oip.service import OpenGuard
from protocol.oip.tls import Tls
from protocol.sockets import Endpoint

if TYPE_CHECKING:
    from protocol.oip.grpc_server import GrpcDoor

MIB = 1024 * 1024
# What sun_path of a Unix socket's address holds, less what the server puts beside it while it binds.
_LONGEST_PATH_NBYTES = 107 - 12


class LocalDoor:
    """Constructing has no side effects; `start` listens."""

    def __init__(self, settings: AgentSettings, service: AgentService, *, extra: Iterable[Route] = ()) -> None:
        http = settings.http
        self.unix_socket = unix_socket(settings) if http.enabled else None
        guard = OpenGuard(anywhere=http.insecure or http.client_ca is not None)
        companions: list[Companion] = []
        self._grpc: GrpcDoor | None = None
        if settings.grpc.enabled:
            self._grpc = _grpc_door(settings.grpc, service)
            companions.append(self._grpc)
        app = OipApp(service, guard, extra=extra, body_nbytes=http.max_body_mib * MIB)
        self._server = None
        if http.enabled or companions:
            self._server = OipServer(app, _listen(http, self.unix_socket), companions=companions)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where HTTP is served over TCP."""
        return None if self._server is None else self._server.endpoint

    @property
    def grpc_endpoint(self) -> Endpoint | None:
        return None if self._grpc is None else self._grpc.endpoint

    def bind(self) -> None:
        """Take the port before anything slow is done. Raises NetworkError. Without a `start` it must be closed."""
        if self._server is not None:
            self._server.bind()

    def start(self) -> None:
        """Raises NetworkError or InputError, and leaves nothing running then."""
        if self._server is None:
            return
        if self.unix_socket is not None:
            try:
                self.unix_socket.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            except OSError as error:
                fact = f"{self.unix_socket.parent} cannot be made ({error.strerror})"
                raise InputError(fact, "choose a folder of yours with http.unix_socket or state_dir") from error
        self._server.start()

    def close(self, grace_s: float) -> None:
        """Refuse new work, finish what is held, at most `grace_s`. Safe to call twice."""
        if self._server is not None:
            self._server.close(grace_s)


def unix_socket(settings: AgentSettings) -> Path:
    """Where the daemon's Unix socket lies. Raises InputError if the path is longer than such an address may be."""
    path = settings.http.unix_socket or settings.state_dir / "run" / "agent.sock"
    if len(os.fsencode(path)) > _LONGEST_PATH_NBYTES:
        fact = f"the path of a Unix socket has at most {_LONGEST_PATH_NBYTES} bytes, {path} has more"
        raise InputError(fact, "choose a shorter one with http.unix_socket")
    return path


def _listen(http: HttpSettings, socket: Path | None) -> Listen:
    patience = Patience(
        header_s=http.header_timeout_s,
        body_s=http.body_timeout_s,
        keep_alive_s=http.keep_alive_s,
        connections=http.max_connections,
        connections_per_address=http.max_connections,
    )
    tls = None
    if http.tls_certificate is not None and http.tls_key is not None:
        tls = Tls(http.tls_certificate, http.tls_key, http.client_ca)
    return Listen(
        bind=http.bind if http.enabled and http.bind != "off" else None,
        unix_socket=socket,
        tls=tls,
        insecure=http.insecure,
        patience=patience,
    )


def _grpc_door(grpc: GrpcSettings, service: AgentService) -> GrpcDoor:
    from protocol.oip.grpc_server import GrpcDoor, GrpcListen  # the extra `grpc`

    listen = GrpcListen(bind=grpc.bind, calls=grpc.max_concurrent)
    return GrpcDoor(service, OpenGuard(), listen, body_nbytes=grpc.max_message_mib * MIB)
