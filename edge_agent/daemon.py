"""What `edge-agent run` runs: an agent, the door for applications, and the question that feeds the watchdog.

    lock state_dir -> take the port -> open bundle, load heads -> record the known answer -> gateway, for a while
        -> listen -> READY=1 ... SIGTERM -> STOPPING=1 -> finish what is held -> close

A gateway that does not answer is no reason not to serve: the device answers alone and says so.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from edge_agent.agent import Agent, AgentConfig
from edge_agent.config import AgentSettings
from edge_agent.device.notify import Notifier
from edge_agent.known_answer import KnownAnswer
from edge_agent.seeing.observer import Observer
from edge_agent.seeing.sight import Sight
from edge_agent.seeing.surroundings import read_board
from edge_agent.serving.door import LocalDoor
from edge_agent.serving.service import AgentService
from edge_agent.serving.standing import Standing, routes
from edge_agent.state_dir import StateDir
from edge_agent.vitals import Vitals
from protocol.errors import InputError, NetworkError
from protocol.seeing.logs import Logs
from protocol.seeing.routes import ViewRoutes

_FIRST_ANSWER_S = 60.0  # a slow board, a large model, nothing in any cache


class Daemon:
    """Everything on one device. `start` returns when applications are answered; `close` ends it."""

    def __init__(self, settings: AgentSettings, *, notifier: Notifier, logs: Logs) -> None:
        """Check what can be checked without starting. Raises InputError, BundleError."""
        self.settings = settings
        self.state = StateDir(settings.state_dir)
        self._notifier = notifier
        self._log = logs.get()
        self._began = time.monotonic()
        self._agent: Agent | None = None
        self._known: KnownAnswer | None = None
        self._closing = threading.Lock()
        self.observer = Observer(Sight(lambda: self._agent, unwell=self.unwell, board=read_board), logs=logs)
        self.service = AgentService(
            lambda: self.agent,
            deadline_s=settings.requests.deadline_ms / 1e3,
            most_pending=settings.requests.most_pending,
            observe=lambda outcome, budget_s: self.observer.observe(outcome, budget_s=budget_s),
            unwell=self.unwell,
        )
        self.vitals = Vitals(
            lambda: self.known,
            notifier,
            every_s=settings.health.every_s,
            timeout_s=settings.health.timeout_s,
            changed=self._health_changed,
        )
        self.door = LocalDoor(
            settings, self.service, extra=[*routes(self.standing), *ViewRoutes(self.observer.views).routes()]
        )

    @property
    def agent(self) -> Agent:
        """The one that new requests go to."""
        assert self._agent is not None
        return self._agent

    @property
    def known(self) -> KnownAnswer:
        assert self._known is not None
        return self._known

    @property
    def fatal(self) -> BaseException | None:
        """The bug that ended the agent's threads, if one did: the process has to go."""
        return self._agent.fatal if self._agent is not None else None

    def unwell(self) -> str:
        """Why the device cannot answer, or ""."""
        if self.fatal is not None:
            return "the agent has failed and is about to be restarted"
        return self.vitals.reason

    def start(self) -> None:
        """Raises InputError, BundleError, NetworkError or EngineError, and leaves nothing running then."""
        self.state.hold()
        try:
            self.door.bind()
            self._agent = Agent(agent_config(self.settings))
            self._agent.start()
            self._known = self._asked(self._agent)
            self._wait_for_a_gateway(self._agent)
            self.door.start()
        except BaseException:
            self.close()
            raise
        self.vitals.start()
        self.observer.start()
        self._notifier.ready(self.in_a_sentence())

    def close(self) -> None:
        """Finish what is held, at most `drain.grace_s`, and stop. Safe to call twice."""
        with self._closing:
            self._notifier.stopping("finishing what was begun")
            self.vitals.stop()
            self.observer.close()
            self.door.close(self.settings.drain.grace_s)
            if self._agent is not None:
                self._agent.close()
            self.state.release()

    def in_a_sentence(self) -> str:
        """For `systemctl status`."""
        agent = self.agent
        where = f"with {agent.gateway}" if agent.wait_ready(0) else "on the device alone"
        unwell = self.unwell()
        return f"serves {agent.bundle.manifest.model.name} {where}" + (f"; unwell: {unwell}" if unwell else "")

    def standing(self) -> Standing:
        """What `edge-agent status` shows. May be called by any thread."""
        agent, unwell = self.agent, self.unwell()
        return Standing(
            model=agent.bundle.manifest.model.name,
            bundle=agent.bundle.digest,
            placements=tuple(entry.id for entry in agent.bundle.manifest.placements),
            failed=dict(agent.heads.failed),
            gateway=agent.gateway,
            connected=agent.wait_ready(0),
            serves_alone=agent.serves_alone,
            well=not unwell,
            reason=unwell,
            uptime_s=time.monotonic() - self._began,
            pending=self.service.pending,
            known_answers=self.vitals.answered,
            state_dir=str(self.settings.state_dir),
        )

    def counts(self) -> dict[str, int]:
        """What was done, for the last words."""
        return self.service.counts() | {f"uplink_{name}": n for name, n in self.agent.uplink.stats.items()}

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _asked(self, agent: Agent) -> KnownAnswer:
        usable, failed = self.settings.bundle.placements, tuple(agent.heads.failed)
        return KnownAnswer(agent, usable=usable, failed=failed, timeout_s=_FIRST_ANSWER_S)

    def _wait_for_a_gateway(self, agent: Agent) -> None:
        """Raises NetworkError if neither a gateway nor the device can answer anything."""
        named = ", ".join(self.settings.gateways.endpoints)
        if agent.wait_ready(self.settings.gateways.wait_s):
            self._log.info("gateway_found", gateway=agent.gateway)
            return
        if not agent.serves_alone:
            where = f"no gateway answers at {named}" if named else "no gateway was named"
            raise NetworkError(
                f"{where} and none of the placements that may be used runs on the device alone",
                "start the gateway, or allow edge-only",
            )
        if named:
            self._log.warning("no_gateway", gateway=named, reason="answering on the device until one does")

    def _health_changed(self, reason: str) -> None:
        if reason:
            self._log.error("unwell", reason=reason)
        else:
            self._log.info("well_again")
        self._notifier.status(self.in_a_sentence())


def agent_config(settings: AgentSettings) -> AgentConfig:
    """The agent's part of the settings. Raises InputError if no bundle is named."""
    gateways = settings.gateways
    if len(gateways.endpoints) > 1:
        raise InputError("gateways.endpoints names several gateways", "name one")
    return AgentConfig(
        bundle=bundle_path(settings),
        gateway=gateways.endpoints[0] if gateways.endpoints else None,
        name=gateways.name,
        threads=settings.device.threads,
        edge_slowdown=settings.device.slowdown,
        fault_file=settings.device.fault_file,
        insecure=gateways.insecure,
        keys=settings.keys.dir,
        server_key=settings.keys.server_key,
        placements=settings.bundle.placements,
        providers=settings.device.providers,
    )


def bundle_path(settings: AgentSettings) -> Path:
    """Raises InputError if there is none to serve."""
    if settings.bundle.path is not None:
        return settings.bundle.path
    raise InputError("no bundle is named", "name its folder with --bundle or bundle.path")
