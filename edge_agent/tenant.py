"""An agent on one bundle, proven on this device before anybody is served by it: `bundles.switch` swaps these."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent.agent import Agent, AgentConfig
from edge_agent.bundles.switch import Stage
from edge_agent.config import AgentSettings
from edge_agent.device.providers import plans_in
from edge_agent.known_answer import KnownAnswer
from edge_agent.outcomes import Outcome
from protocol.bundle import Bundle
from protocol.control.objectives import Objective
from protocol.oip.service import OipError, Refusal
from protocol.signing import Trust
from protocol.tensors import Tensors

_FIRST_ANSWER_S = 60.0  # a slow board, a large model, nothing in any cache


class Tenant:
    """Constructing checks the bundle's signature and opens it. Raises InputError, BundleError, UntrustedError."""

    def __init__(
        self,
        settings: AgentSettings,
        folder: Path,
        trust: Trust,
        *,
        readied: Callable[[], None] = lambda: None,
        link_s: float = 0.0,
        building: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Before it serves, it waits so long for a gateway: whoever takes over from one that has a gateway does.

        `building` is entered while a head may be built for this device, which takes minutes.
        """
        self.agent = Agent(replace(agent_config(settings, folder), trust=trust), readied=readied)
        self.agent.heads.building = building
        self._usable = settings.bundle.placements
        self._link_s = link_s
        self._known: KnownAnswer | None = None

    @property
    def known(self) -> KnownAnswer:
        assert self._known is not None
        return self._known

    def start(self) -> None:
        """Load the heads and record the known answer. Raises BundleError, EngineError."""
        self.agent.start()
        failed = tuple(self.agent.heads.failed)
        self._known = KnownAnswer(self.agent, usable=self._usable, failed=failed, timeout_s=_FIRST_ANSWER_S)
        self.agent.wait_ready(self._link_s)

    def shortfalls(self) -> list[str]:
        """In sentences: the heads that do not run, and those that run on less than what is preferred."""
        found: dict[str, list[str]] = {}
        for id_, reason in self.agent.heads.failed.items():
            found.setdefault(f"cannot be used: {reason}", []).append(id_)
        for file, started in self.agent.heads.started.items():
            if over := ", ".join(f"not on {name} ({why})" for name, why in started.passed_over):
                found.setdefault(f"on {started.name}, {over}", []).append(file)
        return [f"{' and '.join(which)} {how}" for how, which in found.items()]

    def submit(self, inputs: Tensors, **more: Any) -> Future[Outcome]:
        return self.agent.submit(inputs, **more)

    def close(self) -> None:
        self.agent.close()


class Front:
    """Whoever serves now, as applications see it: a request belongs to the tenant that took it, also after a switch."""

    def __init__(self, stage: Stage[Tenant], unwell: Callable[[], str]) -> None:
        """`unwell` says why nobody serves, where nobody does."""
        self._stage = stage
        self._unwell = unwell

    @property
    def bundle(self) -> Bundle:
        """Raises OipError while nobody serves."""
        tenant = self._stage.agent
        if tenant is None:
            raise OipError(Refusal.NOT_READY, self._unwell())
        return tenant.agent.bundle

    def submit(self, inputs: Tensors, *, deadline_s: float, priority: int = 4) -> Future[Outcome]:
        return self._stage.submit(inputs, deadline_s=deadline_s, priority=priority)


def agent_config(settings: AgentSettings, folder: Path) -> AgentConfig:
    """The agent's part of the settings, on the bundle in `folder`."""
    gateways, device = settings.gateways, settings.device
    return AgentConfig(
        bundle=folder,
        gateway=gateways.endpoints,
        name=gateways.name,
        threads=device.threads,
        edge_slowdown=device.slowdown,
        fault_file=device.fault_file,
        insecure=gateways.insecure,
        keys=settings.keys.dir,
        server_key=settings.keys.server_key,
        placements=settings.bundle.placements,
        providers=device.providers,
        plans=plans_in(device.plans_dir, settings.state_dir),
        hedge=gateways.hedge,
        name_servers=gateways.name_servers,
        objective=Objective.parse(settings.planner.objective),
    )
