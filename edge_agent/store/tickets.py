"""The nouns of the store: what is put in, what a ticket stands for, how much may lie there, and what time it is.

A ticket is a request's identity, `BOOT-SEQUENCE`, kept on disk: sent before and after a restart, it is the same
request to the gateway, which answers it once. Every ticket goes one way:

    waiting --> answered     its answer lies here until it is taken, or `keep_s` has passed
       |------> expired      nobody answered within `life_s`
       `------> refused      for good: it does not fit the model, was dropped for others, or lay damaged on the disk
    any of them --> gone     taken, dropped by its caller, or ended longer than `keep_s` ago

How old something is survives changes of the clock: as long as the machine is up, the time since its boot counts; only
over a reboot the difference of dates does, which is never taken for less than nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.outcomes import Answer
from edge_agent.store.states import Full as Full
from edge_agent.store.states import State as State
from protocol.errors import InputError, IsthmusError
from protocol.messages import RequestId
from protocol.tensors import Tensors

Accepts = Callable[[str, Tensors], None]  # raises InputError for a model, or tensors, that are not answered here
MOST_PRIORITY = 9
MOST_KEY_LENGTH = 200
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)  # without slots: its defaults can be read from the class
class Caps:
    """How much may lie in the store, and for how long. Waiting requests and answers count; what else ended has no data.

    Raises InputError for what makes no sense.
    """

    most_tickets: int = 10_000  # waiting or answered; as many others that ended are remembered
    most_nbytes: int = 256 << 20  # of tensors, in both directions
    life_s: float = 86_400.0  # how long a request may wait unless it says otherwise
    most_life_s: float = 7 * 86_400.0  # and at most
    keep_s: float = 86_400.0  # how long an answer, or why there is none, waits for its caller
    full: Full = Full.REFUSE

    def __post_init__(self) -> None:
        for name in ("most_tickets", "most_nbytes", "life_s", "most_life_s", "keep_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of the store is {getattr(self, name)}", "give a number above 0")


@dataclass(frozen=True, slots=True)
class Wish:
    """One request to be stored."""

    inputs: Tensors
    model: str = ""
    priority: int = 5  # 0 first .. 9
    life_s: float | None = None  # None: the store's own `life_s`; never more than its `most_life_s`
    tenant: str = ""  # whose it is; nobody else is shown it
    key: str = ""  # the caller's own name for it: put twice under one key, it is stored once
    note: str = ""  # kept beside it and handed back, for example the caller's wishes about its answer


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket stands for now. Times are remaining or elapsed seconds, except `stored_wall_s` (Unix time)."""

    id: str
    sequence: int
    state: State
    model: str
    tenant: str
    priority: int
    attempts: int  # how often it was handed to the agent
    unreturned: int  # of these, how often the process ended before an outcome came
    nbytes: int
    stored_wall_s: float
    left_s: float  # until it expires while it waits, until it is forgotten once it has ended
    code: str  # why it was refused
    reason: str
    note: str
    answer: Answer | None = None  # only where it was asked for


@dataclass(frozen=True, slots=True)
class Totals:
    """How many tickets are in each state, and the bytes of them that the caps count."""

    tickets: dict[State, int]
    nbytes: int

    @property
    def held(self) -> int:
        """What `most_tickets` bounds."""
        return self.tickets[State.WAITING] + self.tickets[State.ANSWERED]


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, on both clocks: seconds since this boot of the machine, and the date (Unix time)."""

    boot: str
    since_boot_s: float
    wall_s: float


class StoreError(IsthmusError):
    """The store cannot do it now: nothing was stored or changed."""

    exit_code = 12


class StoreFullError(StoreError):
    """No room under the caps; a refusal, not a fault."""


def moment() -> Moment:
    """The machine's clocks. Without Linux's clock since boot, which runs on while suspended, the monotonic one."""
    since_boot_s = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    return Moment(_boot(), since_boot_s, time.time())


def _boot() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


def identity(text: str) -> RequestId:
    """A ticket's request id. Raises InputError for what is no ticket."""
    boot, dash, sequence = text.partition("-")
    if len(boot) != 16 or not dash or not sequence.isascii() or not sequence.isdigit() or len(sequence) > 15:
        raise InputError(f"{text[:64]!r} is no ticket", "it looks like 0123456789abcdef-17")
    try:
        return RequestId(bytes.fromhex(boot), int(sequence))
    except ValueError:
        raise InputError(f"{text[:64]!r} is no ticket", "it looks like 0123456789abcdef-17") from None
