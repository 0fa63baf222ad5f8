"""What a device takes over the air, and when: the settings of updates, as those who carry them out want them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_agent.bundles import update as u

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Policy:
    """What a device takes, and when. One line of documentation per field."""

    model: str = ""  # only bundles of this model; empty takes that of the bundle that runs
    automatic: bool = True  # fetch what is offered; else only what an operator asks for
    check_every_s: float = 3600.0  # ask gateways for offers this often
    whole: bool = False  # fetch tails too, which a device never runs
    most_nbytes: int = 4096 * MIB  # the shelf may take so much
    reserve_nbytes: int = 64 * MIB  # and must leave so much of the disk to others
    trial: u.TrialRules = field(default_factory=u.TrialRules)
