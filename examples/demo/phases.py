"""The script of the demo as data: what happens, in which order, for how long. Pure.

Law: the script tells the stage (link, gateway, device) what to do; nothing in it ever reaches the agent, which has to
notice by itself.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass


class Act(enum.StrEnum):
    """What is done to the stage when a phase begins."""

    SET_RATE = "set the link's rate"
    KILL_GATEWAY = "SIGKILL the gateway"
    START_GATEWAY = "start the gateway"
    BREAK_HEAD = "make the heads of cuts fail"
    MEND_HEAD = "mend the heads"


@dataclass(frozen=True)
class Phase:
    """One step of the script.

    `share` is its length in units of --phase-s. `steady` says that link, gateway and device are all sound, so that
    what requests cost may be compared with the prediction for `rate_mbit`.
    """

    name: str
    event: str
    act: Act
    rate_mbit: float
    share: float = 1.0
    steady: bool = False


@dataclass(frozen=True)
class Slot:
    """A phase and when it is due, in seconds from the start of the script."""

    phase: Phase
    from_s: float
    to_s: float


SCRIPT: tuple[Phase, ...] = (
    Phase("100 Mbit/s", "a fast link", Act.SET_RATE, 100.0, steady=True),
    Phase("10 Mbit/s", "the link slows down", Act.SET_RATE, 10.0, steady=True),
    Phase("2 Mbit/s", "the link slows down again", Act.SET_RATE, 2.0, steady=True),
    Phase("30 Mbit/s", "the link recovers", Act.SET_RATE, 30.0, steady=True),
    Phase("gateway killed", "SIGKILL, no farewell", Act.KILL_GATEWAY, 30.0, share=0.8),
    Phase("gateway back", "new process, same port", Act.START_GATEWAY, 30.0),
    Phase("head fails", "on the device, at every cut", Act.BREAK_HEAD, 30.0, share=0.6),
    Phase("head mended", "the device is well again", Act.MEND_HEAD, 30.0, share=0.8),
)


def schedule(phase_s: float, script: Sequence[Phase] = SCRIPT) -> tuple[Slot, ...]:
    """When each phase begins and ends; they follow one another without a gap.

    Raises ValueError for a length that is not positive and finite.
    """
    if not 0 < phase_s < math.inf:
        raise ValueError(f"a phase of {phase_s} s: give a positive number of seconds")
    slots = []
    at = 0.0
    for phase in script:
        slots.append(Slot(phase, at, at + phase.share * phase_s))
        at = slots[-1].to_s
    return tuple(slots)


def rates(script: Sequence[Phase] = SCRIPT) -> tuple[float, ...]:
    """The link rates in Mbit/s at which costs are compared, in order of appearance, each once."""
    return tuple(dict.fromkeys(phase.rate_mbit for phase in script if phase.steady))
