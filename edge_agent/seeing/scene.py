"""Everything that one look shows: what happened, what stands, and what the process and its machine use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.seeing.figures import Counters
from edge_agent.seeing.ledger import LedgerSnapshot
from edge_agent.seeing.standing import AgentStanding
from protocol.seeing.machine import MachineState


@dataclass(frozen=True, slots=True)
class Scene:
    """At one moment."""

    snapshot: LedgerSnapshot
    standing: AgentStanding
    machine: MachineState
    software: str

    def of_models(self, read: Callable[[Counters], float]) -> dict[tuple[str, str], float]:
        """A counter's sum over the scopes of every model and version."""
        sums: dict[tuple[str, str], float] = {}
        for figures in self.snapshot.scopes:
            model = figures.scope[:2]
            sums[model] = sums.get(model, 0) + read(figures.counters)
        return sums
