"""Late answers, put together from the settings: the journal under state_dir, and who hands what waits to the agent."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.bundles.switch import Stage
from edge_agent.config import AgentSettings
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.routes import routes
from edge_agent.store.tickets import Caps, Full
from edge_agent.tenant import Tenant
from protocol.errors import InputError
from protocol.oip.routes import Route
from protocol.tensors import Tensors, check_inputs

MIB = 1024 * 1024


class Storing:
    """`open` before routes are served, `start` once an agent serves; `stop` before the agent, `close` last."""

    def __init__(
        self,
        settings: AgentSettings,
        stage: Stage[Tenant],
        *,
        live: Callable[[], int],
        said: Callable[[str], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        store = settings.store
        caps = Caps(
            most_tickets=store.most_requests,
            most_nbytes=store.most_mib * MIB,
            life_s=store.life_s,
            most_life_s=max(store.life_s, Caps().most_life_s),
            keep_s=store.keep_s,
            full=Full(store.full),
        )
        self._stage = stage
        self.journal = Journal(settings.state_dir / "store", caps, say=said, crashed=crashed)
        self._forwarder = Forwarder(
            self.journal,
            lambda: stage,
            accepts=self._check,
            live=live,
            serves=self._serves,
            said=said,
            crashed=crashed,
        )

    def routes(self) -> list[Route]:
        return routes(self.journal, self._check, why=lambda: self._forwarder.why)

    def open(self) -> None:
        """Raises StoreError, or InputError if a newer version wrote it."""
        self.journal.open()

    def start(self) -> None:
        self._forwarder.start()

    def stop(self) -> None:
        """Send nothing new. Safe to call twice."""
        self._forwarder.close()

    def close(self) -> None:
        self.journal.close()

    def _serves(self) -> str | None:
        tenant = self._stage.agent
        return None if tenant is None else tenant.agent.bundle.manifest.model.name

    def _check(self, model: str, inputs: Tensors) -> None:
        """Raises InputError for what is not answered here."""
        with self._stage.hold() as tenant:
            info = tenant.agent.bundle.manifest.model
        if model and model != info.name:
            raise InputError(f"model {model[:128]!r} is not here", f"this device serves {info.name!r}")
        check_inputs(info.inputs, inputs)
