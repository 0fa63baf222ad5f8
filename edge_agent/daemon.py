"""What `edge-agent run` runs: an agent, the door for applications, and the question that feeds the watchdog.

    lock state_dir -> take the port -> open the bundle, load heads, record the known answer -> gateway, for a while
        -> listen -> READY=1 ... SIGTERM -> STOPPING=1 -> finish what is held -> close

A gateway that does not answer is no reason not to serve: the device answers alone and says so. Where no bundle is there
yet but a gateway may offer one, the daemon is live and not ready, and serves as soon as that has been proven. Whose
turn it is to serve is `bundles.switch.Stage`'s: updates put another agent there, and applications notice nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_agent.agent import Agent, nobody_answers
from edge_agent.bundles.shelf import Shelf
from edge_agent.bundles.smoke import MOST_BUILD_S
from edge_agent.bundles.switch import Stage
from edge_agent.config import AgentSettings
from edge_agent.device.notify import Notifier
from edge_agent.first_bundle import ASK_EVERY_S, awaited
from edge_agent.known_answer import KnownAnswer
from edge_agent.outcomes import Answer, Outcome
from edge_agent.seeing.observer import Observer
from edge_agent.seeing.sight import Sight
from edge_agent.seeing.standing import AgentStanding, BundleStanding
from edge_agent.seeing.surroundings import bundle_standing, read_board
from edge_agent.serving.documents import routes
from edge_agent.serving.door import LocalDoor
from edge_agent.serving.service import AgentService
from edge_agent.state_dir import StateDir
from edge_agent.storing import Storing
from edge_agent.tenant import Front, Tenant
from edge_agent.updating import addresses_of, policy_of, trust_of, updater_of
from edge_agent.vitals import Vitals
from protocol.bundle import Bundle
from protocol.control.flights import RefusalCode
from protocol.errors import InputError
from protocol.seeing.logs import Logs

_LAST_REQUEST_S = 60.0
_START_S = 180.0  # as TimeoutStartSec of the unit


class Daemon:
    """Everything on one device. `start` returns when applications are answered; `close` ends it."""

    def __init__(self, settings: AgentSettings, *, notifier: Notifier, logs: Logs) -> None:
        """Check what can be checked without starting. Raises InputError, BundleError."""
        self.settings = settings
        self.state = StateDir(settings.state_dir)
        self._notifier = notifier
        self._logs = logs
        self._log = logs.get()
        self._bug: BaseException | None = None
        self._closing = threading.Lock()
        self._switching = threading.Lock()
        self._folder: Path | None = None  # of the bundle that serves, where it is not that of the settings
        self._grace_s = settings.drain.grace_s
        self._trust = trust_of(settings)
        self._shelf = Shelf(settings.state_dir / "bundles")
        base = settings.bundle.path
        self._base = None if base is None else Bundle.open(base, self._trust.trust())
        self.stage: Stage[Tenant] = Stage()
        self.front = Front(self.stage, self.unwell)
        self.service = AgentService(
            lambda: self.front,
            deadline_s=settings.requests.deadline_ms / 1e3,
            most_pending=settings.requests.most_pending,
            observe=self._ended,
            unwell=self.unwell,
            live=lambda: not self._stuck(),
        )
        self.vitals = Vitals(
            lambda: self.known,
            notifier,
            every_s=settings.health.every_s,
            timeout_s=settings.health.timeout_s,
            asked=lambda reason: self._updates.health(not reason, reason),
            changed=self._health_changed,
        )
        self.store: Storing | None = None
        if settings.store.enabled:
            self.store = Storing(
                settings,
                self.stage,
                live=lambda: self.service.pending,
                said=lambda sentence: self._log.warning("store", text=sentence),
                crashed=self.crash,
            )
        self._addresses = addresses_of(settings, self._told)
        self._updates = updater_of(
            settings,
            self._shelf,
            self._trust,
            addresses=lambda: self._addresses,
            switch=self._switch,
            base=self._base,
            told=self._told,
            crashed=self.crash,
        )
        self._policy = self._updates.policy
        self._awaits = "the next one"
        store = self.store
        self.sight = Sight(
            lambda: None if (tenant := self.stage.agent) is None else tenant.agent,
            unwell=self.unwell,
            board=read_board,
            store=(lambda: None) if store is None else store.standing,
            bundle=self._bundle_standing,
        )
        self.observer = Observer(self.standing, logs=logs)
        extra = routes(self.observer.views, self.explanation)
        if self.store is not None:
            extra += self.store.routes()
        self.door = LocalDoor(settings, self.service, extra=extra)

    @property
    def tenant(self) -> Tenant:
        """Who serves. Raises InputError while nobody does."""
        if (tenant := self.stage.agent) is None:
            raise InputError(self.unwell(), "install one with `edge-agent bundles install DIR`")
        return tenant

    @property
    def agent(self) -> Agent:
        """The agent of whoever serves. Raises InputError while nobody does."""
        return self.tenant.agent

    @property
    def known(self) -> KnownAnswer | None:
        """The question of whoever serves, None while nobody does."""
        tenant = self.stage.agent
        return None if tenant is None else tenant.known

    @property
    def fatal(self) -> BaseException | None:
        """The bug that ended one of the threads: the process has to go."""
        tenant = self.stage.agent
        return self._bug or (None if tenant is None else tenant.agent.fatal)

    def unwell(self) -> str:
        """Why the device cannot answer, or ""."""
        if self.stage.agent is None and self.fatal is None:
            trouble = self._updates.look().trouble
            return f"no bundle serves on this device: it waits for {self._awaits}" + (
                f" ({trouble})" if trouble else ""
            )
        return self._stuck()

    def _stuck(self) -> str:
        """Why only another process could answer, or ""."""
        return "the agent has failed and is about to be restarted" if self.fatal is not None else self.vitals.reason

    def start(self) -> None:
        """Raises InputError, BundleError, NetworkError or EngineError, and leaves nothing running then."""
        self.state.hold()
        try:
            self.door.bind()
            self._shelf.make()
            if self.store is not None:
                self.store.open()
            self._updates.begin(self._serve_first)
            self._wait_for_a_gateway()
            self.door.start()
        except BaseException:
            self.close()
            raise
        self.observer.start()
        self.vitals.start()
        self._updates.start()
        if self.store is not None:
            self.store.start()
        self._notifier.ready(self.in_a_sentence())

    def close(self) -> None:
        """Finish what is held, at most `drain.grace_s`, and stop. Safe to call twice."""
        with self._closing:
            self._notifier.stopping("finishing what was begun")
            self.vitals.stop()
            self._updates.close()
            self.door.close(self._grace_s)
            if self.store is not None:
                self.store.stop()
            self.observer.close()
            if (tenant := self.stage.agent) is not None:
                tenant.close()
            if self.store is not None:
                self.store.close()
            self.state.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- what is said of it -----------------------------------------------------------------------------------------

    def in_a_sentence(self) -> str:
        """For `systemctl status`."""
        unwell, tenant = self.unwell(), self.stage.agent
        if tenant is None:
            return unwell
        agent = tenant.agent
        where = f"with {agent.gateway}" if agent.wait_ready(0) else "on the device alone"
        said = f"serves {agent.bundle.manifest.model.name} {where}" + (f"; unwell: {unwell}" if unwell else "")
        return said + (f"; without its store: {self.store.trouble}" if self.store and self.store.trouble else "")

    def standing(self) -> AgentStanding:
        """One look at everything, as `edge-agent status` shows it. May be called by any thread."""
        here = str(self.settings.state_dir)
        return dataclasses.replace(self.sight(), known_answers=self.vitals.answered, state_dir=here)

    def explanation(self) -> dict[str, object]:
        """What `edge-agent explain` shows. Raises InputError while nobody serves."""
        from edge_agent.explaining import document

        seen = self.agent.look(explain=True).explanation
        return {} if seen is None else document(seen)

    def counts(self) -> dict[str, int]:
        """What was done, for the last words."""
        tenant = self.stage.agent
        uplink = {} if tenant is None else tenant.agent.uplink.stats
        return self.service.counts() | {f"uplink_{name}": count for name, count in uplink.items()}

    def _bundle_standing(self) -> BundleStanding:
        tenant = self.stage.agent
        return bundle_standing(None if tenant is None else tenant.agent.bundle, self._updates.look())

    # ---- who serves -------------------------------------------------------------------------------------------------

    def _tenant_on(self, folder: Path | None) -> Tenant:
        """None is the bundle of the settings. Raises InputError if there is none.

        What came over the air was held to more before it was kept: here it only may not have been revoked since.
        """
        kept = folder is not None  # on the shelf, where its number was judged before it came there
        folder = folder or self.settings.bundle.path
        if folder is None:
            raise InputError(
                "no bundle is named and none is installed",
                "name one with --bundle or bundle.path, or `edge-agent bundles install DIR`",
            )
        had_gateway = self.stage.agent is not None and self.agent.wait_ready(0)
        link_s = self.settings.gateways.wait_s if had_gateway else 0.0
        trust = self._trust.trust(kept=kept)
        return Tenant(self.settings, folder, trust, readied=self._better, link_s=link_s, building=self._building)

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """Whoever starts the daemon is to wait: a head may be built for this device."""
        if self.stage.agent is not None:
            yield
            return
        self._notifier.patience(MOST_BUILD_S, "loads a head that may have to be built for this device, in minutes")
        try:
            yield
        finally:
            self._notifier.patience(_START_S, "starts")

    def _serve_first(self, folder: Path | None) -> None:
        if folder is None and self.settings.bundle.path is None:
            self._await(awaited(self.settings))
            return
        self.stage.swap(self._tenant_on(folder))
        self._folder = folder
        self._tell_heads()

    def _switch(self, folder: Path | None) -> None:
        with self._switching:
            self._let_serve(folder)

    def _let_serve(self, folder: Path | None) -> None:
        if folder is None and self.settings.bundle.path is None:
            self.stage.swap(None, patience_s=_LAST_REQUEST_S)  # all was revoked, or the first one was no good
            self._await("the next one")
            self._notifier.status(self.in_a_sentence())
            return
        self._notifier.reloading("another bundle is being started")
        try:
            took = self.stage.swap(self._tenant_on(folder), patience_s=_LAST_REQUEST_S)
            self._folder, self._updates.policy = folder, self._policy
            self._better()
            self._tell_heads()
            self._log.info("switched", start_ms=took.start_s * 1e3, swap_us=took.swap_s * 1e6)
        finally:
            self._notifier.ready(self.in_a_sentence())

    def _tell_heads(self) -> None:
        """No head runs on less than was asked for without a word."""
        tenant = self.stage.agent
        for sentence in () if tenant is None else tenant.shortfalls():
            self._log.warning("heads", reason=sentence)

    def _await(self, what: str) -> None:
        """Nobody serves: ask for bundles often."""
        self._awaits = what
        often = min(ASK_EVERY_S, self._policy.check_every_s)
        self._updates.policy = dataclasses.replace(self._policy, check_every_s=often)
        self._log.warning("no_bundle", waits_for=what)

    def _wait_for_a_gateway(self) -> None:
        """Raises NetworkError if neither a gateway nor the device can answer anything."""
        if self.stage.agent is None:
            return
        agent, named = self.agent, ", ".join(self.settings.gateways.endpoints)
        if agent.wait_ready(self.settings.gateways.wait_s):
            self._log.info("gateway_found", gateway=agent.gateway)
            return
        if not agent.serves_alone:
            raise nobody_answers(named, agent.heads.failed)
        if named:
            self._log.warning("no_gateway", gateway=named, reason="answering on the device until one does")

    # ---- other settings while it serves: see `steering` -------------------------------------------------------------

    def serve_with(self, settings: AgentSettings) -> None:
        """Let an agent with these settings serve the same bundle. Raises IsthmusError: nothing has changed then."""
        with self._switching:
            before = self.settings
            addresses = addresses_of(settings, self._told)
            if self.stage.agent is None and settings.bundle.path is None:
                self._awaits = awaited(settings)
            self.settings = settings
            try:
                if self.stage.agent is not None:
                    self._let_serve(self._folder)
            except BaseException:
                self.settings = before
                raise
            self._addresses = addresses
            if settings.gateways != before.gateways and self._policy.automatic:
                self._updates.check_now()  # who is new may offer something

    def retune(self, settings: AgentSettings) -> None:
        """Take what is a number somewhere."""
        requests, health, logs = settings.requests, settings.health, settings.logs
        self.service.retune(deadline_s=requests.deadline_ms / 1e3, most_pending=requests.most_pending)
        self.vitals.retune(every_s=health.every_s, timeout_s=health.timeout_s)
        self._logs.level, self._logs.repeat_interval_s = logs.level, logs.repeat_interval_s
        self._grace_s = settings.drain.grace_s
        self._policy = self._updates.policy = policy_of(settings)
        if self.stage.agent is None:
            self._await(self._awaits)

    def reloaded(self, outcome: str, what: str) -> None:
        """The settings were read again: `what` became of that."""
        self.observer.ledger.counted(f"reload_{outcome}")
        say = self._log.warning if outcome in ("refused", "partly") else self._log.info
        say("settings_reloaded", outcome=outcome, what=what)
        self._notifier.status(self.in_a_sentence() + (f"; settings: {what}" if outcome != "unchanged" else ""))
        if self.store is not None:
            self.store.retry()

    def _better(self) -> None:
        """A gateway is there where none was, or another bundle serves."""
        if self.store is not None:
            self.store.wake()

    # ---- what the parts tell ----------------------------------------------------------------------------------------

    def _told(self, event: str, text: str) -> None:
        self._log.info(event, text=text)

    def _ended(self, outcome: Outcome, budget_s: float) -> None:
        self.observer.observe(outcome, budget_s=budget_s)
        if isinstance(outcome, Answer):
            self._updates.answered(True)
        elif outcome.code is RefusalCode.NO_PLACEMENT:
            self._updates.answered(False)  # other refusals say nothing of the bundle

    def _health_changed(self, reason: str) -> None:
        if reason:
            self._log.error("unwell", reason=reason)
        else:
            self._log.info("well_again")
        self._notifier.status(self.in_a_sentence())

    def crash(self, error: BaseException) -> None:
        """A bug on a thread of one of the parts: the process ends, and its supervisor starts it again."""
        self._bug = error
        self._log.error("crashed", exc_info=error)
