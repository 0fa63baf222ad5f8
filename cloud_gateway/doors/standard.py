"""The standard door of a gateway: Open Inference Protocol over HTTP and gRPC, metrics, health and the status page.

One event loop in one thread serves all of it; what may take long (loading models, deep health, a scrape) runs in the
loop's pool.

    open      /v2, /v2/health/live, /v2/health/ready, /status (the page itself holds no numbers)
    infer     /v2/models/...
    metrics   /metrics, /status.json, /v2/health/deep
    admin     /v2/repository/... (only where `access.admin` is set; every act is on record)
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from cloud_gateway.access.api_keys import Rules
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.guard import ApiGuard
from cloud_gateway.config import MIB, GatewaySettings, GrpcSettings, HttpSettings
from cloud_gateway.doors.http_service import HttpService
from cloud_gateway.seeing.health import ready
from cloud_gateway.seeing.metrics import metrics_text
from cloud_gateway.seeing.page import page_html
from cloud_gateway.seeing.status import status_json
from cloud_gateway.work import Crashed
from protocol.oip.app import OipApp
from protocol.oip.http_protocol import Patience
from protocol.oip.http_server import Companion, Listen, OipServer
from protocol.oip.routes import Answer, Call, Route
from protocol.oip.service import OipError, Refusal
from protocol.oip.tls import Tls
from protocol.seeing.routes import ViewRoutes
from protocol.seeing.views import Views
from protocol.sockets import Endpoint

if TYPE_CHECKING:
    from cloud_gateway.gateway import Gateway
    from protocol.oip.grpc_server import GrpcDoor


class StandardDoor:
    """Made of a gateway whose parts are there; `start` listens."""

    def __init__(self, gateway: Gateway) -> None:
        settings = gateway.settings
        self._gateway = gateway
        self._views = Views(gateway.observer.scene, metrics=metrics_text, status=status_json, page=page_html)
        access, http = settings.access, settings.http
        self.guard = ApiGuard(
            lambda: gateway.authority.table,
            Rules(admin=access.admin, insecure=http.insecure),
            failures_per_minute=access.failed_attempts_per_minute,
            told=gateway.told,
        )
        audit_log = access.audit_log or (KeyFolder(access.keys_dir).audit_log if access.keys_dir else None)
        audit = {} if audit_log is None else {"audit": AuditLog(audit_log).act}
        self.service = HttpService(
            gateway.catalogue,
            gateway.desk,
            gateway.ledger,
            submit=None if gateway.cache is None else gateway.cache.submit,
            keeper=gateway.keeper,
            record=None if gateway.tracing is None else gateway.tracing.record,
            is_live=lambda: gateway.beats.live(now=time.monotonic()).ok,
            **audit,
        )
        companions: list[Companion] = [self.service]
        self._grpc: GrpcDoor | None = None
        if settings.grpc.enabled:
            self._grpc = self._grpc_door(settings)
            companions.append(self._grpc)
        app = OipApp(
            self.service,
            self.guard,
            admin=access.admin,
            extra=self._routes(settings),
            body_nbytes=http.max_body_mib * MIB,
            turned_away=self._turned_away,
        )
        self._server = OipServer(app, _listen(http), companions=companions)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where HTTP is served over TCP."""
        return self._server.endpoint

    @property
    def grpc_endpoint(self) -> Endpoint | None:
        return None if self._grpc is None else self._grpc.endpoint

    def bind(self) -> None:
        """Take the HTTP port before anything slow is done. Raises NetworkError. Without a `start` it must be closed."""
        self._server.bind()

    def start(self) -> None:
        """Raises NetworkError or InputError, and leaves nothing running then."""
        self._server.start()

    def crash(self, error: BaseException) -> None:
        """Whoever waits is told."""
        self.service.post_all([Crashed(error)])

    def close(self, grace_s: float) -> None:
        """Refuse new work, finish what is held, at most `grace_s`."""
        self._server.close(grace_s)

    def stats(self) -> dict[str, int]:
        counts = {f"http_{what}": n for what, n in self._server.connections.refused.items()}
        return counts | {f"api_{what}": n for what, n in self.guard.stats.items()}

    def _grpc_door(self, settings: GatewaySettings) -> GrpcDoor:
        from protocol.oip.grpc_server import GrpcDoor, GrpcListen  # the extra `grpc`

        grpc = settings.grpc
        listen = GrpcListen(bind=grpc.bind, tls=_tls(grpc), insecure=grpc.insecure, calls=grpc.max_concurrent)
        return GrpcDoor(
            self.service,
            self.guard,
            listen,
            admin=settings.access.admin,
            body_nbytes=grpc.max_message_mib * MIB,
            turned_away=self._turned_away,
        )

    def _turned_away(self, refusal: Refusal) -> None:
        """An inference that was refused before anybody knew for which model: malformed, too large, without a key."""
        self._gateway.ledger.offered(None)
        self._gateway.ledger.refused(None, refusal.name, slack_s=0.0, budget_s=0.0)

    # ---- routes of the gateway's own --------------------------------------------------------------------------------

    def _routes(self, settings: GatewaySettings) -> list[Route]:
        routes = [Route("GET", "/v2/health/deep", "metrics", "A known answer from every engine", self._deep)]
        routes += ViewRoutes(self._views).routes(metrics=settings.metrics.enabled, page=settings.http.status_page)
        return routes

    async def _deep(self, _: Call) -> Answer:
        verdict = ready(self._gateway.observer.standing())
        if not verdict.ok:
            raise OipError(Refusal.NOT_READY, verdict.reason)
        health = await asyncio.to_thread(self._gateway.deep.check)
        return Answer(msgspec.json.encode(health), status=200 if health.ok else 503)


def _listen(http: HttpSettings) -> Listen:
    patience = Patience(
        header_s=http.header_timeout_s,
        body_s=http.body_timeout_s,
        keep_alive_s=http.keep_alive_s,
        connections=http.max_connections,
        connections_per_address=http.max_connections,
    )
    return Listen(
        bind=http.bind if http.enabled else None,
        unix_socket=http.unix_socket if http.enabled else None,
        tls=_tls(http),
        insecure=http.insecure,
        patience=patience,
    )


def _tls(door: HttpSettings | GrpcSettings) -> Tls | None:
    if door.tls_certificate is None or door.tls_key is None:
        return None
    return Tls(door.tls_certificate, door.tls_key, door.client_ca)
