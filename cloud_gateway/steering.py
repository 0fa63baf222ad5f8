"""New settings reach the parts of a running gateway: what each reloadable field changes, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_gateway.config import MIB, GatewaySettings
from cloud_gateway.parameters import limits_of, policy_of
from protocol.settings import Loaded
from protocol.settings_reload import Reload, Reloader, Watch

if TYPE_CHECKING:
    from cloud_gateway.gateway import Gateway


class Steering(Watch[GatewaySettings]):
    """`start` watches the files; `now` reads them again at once and may be called from a signal."""

    def __init__(
        self, gateway: Gateway, read: Callable[[], Loaded[GatewaySettings]], *, watched: Sequence[Path]
    ) -> None:
        self._gateway = gateway
        reloader = Reloader(read, started=gateway.settings)
        subscribe = reloader.subscribe
        subscribe("limits", self._limits)
        subscribe("drain", self._drain)
        subscribe("models", self._models)
        subscribe("scheduling", self._scheduling)
        subscribe("cache", self._cache)
        subscribe("access", self._access)
        subscribe("logs", self._logs)
        subscribe("updates", self._updates)
        super().__init__(reloader, watched, told=self._tell, crashed=gateway.crash)

    def _tell(self, reload: Reload) -> None:
        gateway = self._gateway
        gateway.ledger.counted(f"reload_{reload.outcome}")
        say = gateway.log.warning if reload.outcome in ("refused", "partly") else gateway.log.info
        say("settings_reloaded", outcome=reload.outcome, what=str(reload))

    # ---- one for each section ---------------------------------------------------------------------------------------

    def _limits(self, settings: GatewaySettings) -> None:
        self._gateway.desk.limits = limits_of(settings)

    def _drain(self, settings: GatewaySettings) -> None:
        self._gateway.drain_s = settings.drain.grace_s

    def _models(self, settings: GatewaySettings) -> None:
        self._gateway.keeper.retune(poll_s=settings.models.poll_s, policy=policy_of(settings))

    def _scheduling(self, settings: GatewaySettings) -> None:
        self._gateway.retune_lanes(settings)

    def _cache(self, settings: GatewaySettings) -> None:
        if self._gateway.cache is not None:
            self._gateway.cache.resize(settings.cache.size_mib * MIB, settings.cache.ttl_s)

    def _access(self, settings: GatewaySettings) -> None:
        if self._gateway.standard is not None:
            self._gateway.standard.guard.set_failures_per_minute(settings.access.failed_attempts_per_minute)

    def _logs(self, settings: GatewaySettings) -> None:
        self._gateway.logs.level = settings.logs.level
        self._gateway.logs.repeat_interval_s = settings.logs.repeat_interval_s

    def _updates(self, settings: GatewaySettings) -> None:
        updates = settings.updates
        self._gateway.offering.retune(offer=updates.offer, rate=updates.mib_per_s * MIB)
