"""Late answers, put together from the settings: the journal under state_dir, and who hands what waits to the agent.

A store that cannot be opened (no space, no permission, a newer version's file, another process on it) keeps nobody from
being served: the daemon goes on without it, says so wherever it is looked at, and tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_agent.bundles.switch import Stage
from edge_agent.config import AgentSettings
from edge_agent.seeing.standing import StoreStanding
from edge_agent.seeing.surroundings import read_store
from edge_agent.store.forwarder import Forwarder
from edge_agent.store.journal import Journal
from edge_agent.store.routes import routes
from edge_agent.store.tickets import Caps, Full, StoreError
from edge_agent.tenant import Tenant
from protocol.errors import InputError, IsthmusError
from protocol.oip.routes import Route
from protocol.tensors import Tensors, check_inputs

MIB = 1024 * 1024
AGAIN_S = 15.0  # between two attempts to open it


class Storing:
    """`open` before routes are served, `start` once an agent serves; `stop` before the agent, `close` last.

    `trouble` says why there is no store just now, or "".
    """

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

        self.trouble = ""
        self._said = said
        self._crashed = crashed
        self._stopping = False
        self._wanted = threading.Event()
        self._opener = threading.Thread(target=self._open_later, name="store-opener", daemon=True)

    def routes(self) -> list[Route]:
        return routes(self.journal, self._check, why=lambda: self._forwarder.why, trouble=lambda: self.trouble)

    def open(self) -> None:
        """Where it cannot be opened, `trouble` says why, and `start` sees to it that it is tried again."""
        try:
            self.journal.open()
        except IsthmusError as error:
            if str(error) != self.trouble:
                self._said(f"requests for late answers are refused: {error}")
            self.trouble = str(error)
        else:
            if self.trouble:
                self._said("requests for late answers are taken again")
            self.trouble = ""

    def start(self) -> None:
        if self.trouble:
            self._opener.start()
        else:
            self._forwarder.start()

    def retry(self) -> None:
        """If it could not be opened: try at once, as after a repair."""
        self._wanted.set()

    def wake(self) -> None:
        """A gateway has come back, or another bundle serves: what waited for that goes at once."""
        self._forwarder.wake()

    def standing(self) -> StoreStanding:
        """How it stands. Raises nothing that the disk does."""
        if self.trouble:
            return StoreStanding(trouble=self.trouble)
        try:
            return read_store(self.journal)
        except StoreError as error:
            return StoreStanding(trouble=str(error))

    def stop(self) -> None:
        """Send nothing new. Safe to call twice."""
        self._stopping = True
        self._wanted.set()
        if self._opener.is_alive():
            self._opener.join()
        self._forwarder.close()

    def close(self) -> None:
        self.journal.close()

    def _open_later(self) -> None:
        try:
            while self.trouble:
                self._wanted.wait(AGAIN_S)
                self._wanted.clear()
                if self._stopping:
                    return
                self.open()
            self._forwarder.start()
        except BaseException as error:  # the top of the thread
            self._crashed(error)

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
