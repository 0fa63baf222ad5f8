"""The states of a version, as a table, and what the life cycle is told and tells. Frozen nouns, pure.

      start        loaded         warmed             retired           idle
  NEW -----> LOADING -----> WARMING -----> AVAILABLE ------> DRAINING -----> UNLOADED
   |          |    |         |    |            ^                |               ^
   |          |    |         |    |            `---- wanted ----'               |
   |          |    |         |    `--- dropped (nobody wants it any more) ------+
   |          |    |         |                                                  |
   |          |    `---------+--- failed ---> ERROR                             |
   |          `--- same (what serves already) ----------------------------------+
   `--- dropped ----------------------------------------------------------------'

What goes through these states is a *build*: one content of one version folder. When a folder's content changes, a new
build of the same version begins at NEW while the old one stays AVAILABLE until the new one is.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from cloud_gateway.models.settings import VersionPolicy
from protocol.errors import InvariantViolation


class State(enum.StrEnum):
    NEW = "NEW"
    LOADING = "LOADING"
    WARMING = "WARMING"
    AVAILABLE = "AVAILABLE"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    ERROR = "ERROR"


class Step(enum.StrEnum):
    START = "start"
    LOADED = "loaded"
    SAME = "same"
    WARMED = "warmed"
    FAILED = "failed"
    RETIRED = "retired"
    WANTED = "wanted"
    IDLE = "idle"
    DROPPED = "dropped"


TABLE: dict[tuple[State, Step], State] = {
    (State.NEW, Step.START): State.LOADING,
    (State.NEW, Step.DROPPED): State.UNLOADED,
    (State.LOADING, Step.LOADED): State.WARMING,
    (State.LOADING, Step.SAME): State.UNLOADED,
    (State.LOADING, Step.FAILED): State.ERROR,
    (State.WARMING, Step.WARMED): State.AVAILABLE,
    (State.WARMING, Step.FAILED): State.ERROR,
    (State.WARMING, Step.DROPPED): State.UNLOADED,
    (State.AVAILABLE, Step.RETIRED): State.DRAINING,
    (State.DRAINING, Step.WANTED): State.AVAILABLE,
    (State.DRAINING, Step.IDLE): State.UNLOADED,
}
ENDED = frozenset({State.UNLOADED, State.ERROR})


def following(state: State, step: Step) -> State:
    """The state after `step`. Raises InvariantViolation for a step that the table does not list."""
    if (state, step) not in TABLE:
        raise InvariantViolation(f"{step} in state {state} of a version")
    return TABLE[state, step]


@dataclass(frozen=True, slots=True)
class Ref:
    """One build: the `build`-th content that a version had since the start."""

    name: str
    version: int
    build: int


# ---- what the repository shows --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sighting:
    """A version folder as it was just seen: another fingerprint is another content.

    While it is not `quiet` somebody is still writing to it, and nothing is decided about it.
    """

    fingerprint: str
    quiet: bool = True


@dataclass(frozen=True, slots=True)
class FoundModel:
    versions: Mapping[int, Sighting]
    policy: VersionPolicy


# ---- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scanned:
    """Everything that lies in the repository; what is missing was removed."""

    models: Mapping[str, FoundModel]


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """Somebody wants a model (the versions that its policy names), or one version of it, served."""

    name: str
    version: int | None
    ticket: int


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    name: str
    version: int | None
    ticket: int


@dataclass(frozen=True, slots=True)
class Loaded:
    ref: Ref


@dataclass(frozen=True, slots=True)
class Same:
    """Nothing was loaded: the content is what the version serves already."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Warmed:
    ref: Ref


@dataclass(frozen=True, slots=True)
class Failed:
    """Loading or warming up did not succeed; after a failed load nothing is held."""

    ref: Ref
    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is in flight on a withdrawn version."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Scanned | LoadAsked | UnloadAsked | Loaded | Same | Warmed | Failed | Idle | Tick


# ---- instructions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Load:
    """Answer with Loaded, Same or Failed."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Answer with Warmed or Failed."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Publish:
    ref: Ref


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Nothing new finds it; say Idle when nothing is in flight."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class Unload:
    ref: Ref


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request; `problem` is empty when it was done."""

    ticket: int
    problem: str = ""


Instruction = Load | WarmUp | Publish | Withdraw | Unload | Reply


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one version stands; `reason` says why, where that is no matter of course."""

    name: str
    version: int
    state: State
    reason: str
    since: float
    ref: Ref | None  # None while the folder is known but was never begun
