"""What a board may draw and what it draws: the power mode, the rails."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge_agent.device.tree import Tree
from protocol import rails as rails_

_STATE = re.compile(r"pmode:(\d+)")
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>")


@dataclass(frozen=True, slots=True)
class PowerMode:
    """What a Jetson was told to draw at most. `others` are the names of the modes that it may be given instead."""

    number: int
    name: str | None
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RailPower:
    name: str
    watts: float


def power_mode(tree: Tree) -> PowerMode | None:
    """The mode that nvpmodel has set; its names come from the configuration beside it."""
    state = _STATE.search(tree.text("var/lib/nvpmodel/status") or "")
    if state is None:
        return None
    number = int(state[1]) % 1000
    named = {int(m[1]): m[2][:60] for line in tree.lines("etc/nvpmodel.conf") if (m := _MODEL.search(line))}
    return PowerMode(number, named.pop(number, None), tuple(named.values()))


def rails(tree: Tree) -> tuple[RailPower, ...]:
    """Every rail that can be read now."""
    found = []
    for rail in rails_.rails(tree.root / "sys"):
        watts = _watts(tree, rail)
        if watts is not None:
            found.append(RailPower(rail.label, watts))
    return tuple(found)


def _watts(tree: Tree, rail: rails_.Rail) -> float | None:
    paths = [path.relative_to(tree.root).as_posix() for path in (rail.first, rail.second) if path is not None]
    if any(tree.number(path) is None for path in paths):
        return None  # it holds no number, or is no plain file
    try:
        return rail.watts()
    except (OSError, ValueError):
        return None
