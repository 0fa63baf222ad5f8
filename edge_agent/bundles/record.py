"""What a device knows of its bundles, as one small file that is replaced whole: `bundles/current.json`. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated

import msgspec

from protocol.documents import decode_document
from protocol.errors import BundleError

SCHEMA_VERSION = 1
MOST_BAD = 64
Digest = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]  # of a bundle; empty for none


class Step(enum.StrEnum):
    """How far an update has come. Only ON_TRIAL runs what is not yet proven."""

    IDLE = "idle"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    TESTING = "testing"
    SWITCHING = "switching"
    ON_TRIAL = "on trial"
    REVERTING = "reverting"
    REVERTED = "reverted"  # like IDLE, after an update that failed on trial


class Bad(msgspec.Struct, frozen=True):
    """A bundle that is not taken again, however often it is offered."""

    bundle: Digest
    reason: str


class Record(msgspec.Struct, frozen=True):
    """`current` is what is to run, whatever step we are in; `proven` ran well, `previous` was proven before it."""

    current: Digest = ""
    proven: Digest = ""
    previous: Digest = ""
    step: Step = Step.IDLE
    candidate: Digest = ""
    by_hand: bool = False  # the candidate was installed here, it did not come over the air
    asked: bool = False  # an operator wants the candidate: it may be older than what ran here
    back_to: Digest = ""  # what was gone back to, or asked for: by itself nothing but what is newer takes its place
    starts: int = 0  # of this process since the candidate reached its step: a crash must not repeat for ever
    bad: tuple[Bad, ...] = ()
    said: str = ""  # how the last update ended
    schema_version: int = SCHEMA_VERSION

    @property
    def wanted(self) -> frozenset[str]:
        """Bundles that must stay on the shelf."""
        return frozenset({self.current, self.proven, self.previous, self.candidate} - {""})

    def why_bad(self, bundle: str) -> str | None:
        return next((bad.reason for bad in self.bad if bad.bundle == bundle), None)

    def with_bad(self, bundle: str, reason: str) -> Record:
        """The same, and `bundle` is not taken again. The oldest is forgotten where there are too many."""
        kept = [bad for bad in self.bad if bad.bundle != bundle]
        return msgspec.structs.replace(self, bad=(*kept, Bad(bundle, reason))[-MOST_BAD:])


@dataclass(frozen=True, slots=True)
class UpdateView:
    """For status, metrics and doctor: how far things are. Times are monotonic seconds."""

    record: Record
    trial: str  # how the trial goes; empty without one
    fetched_nbytes: int
    checked_at: float | None
    trouble: str  # why the last check came to nothing
    held: tuple[str, ...]
    unheard_s: float | None = (
        None  # since a gateway last told what it offers, or since the start; None: nobody is asked
    )
    passed_over: int = 0  # offers of bundles that were refused before, for the same reason


def encode(record: Record) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(data: bytes, *, name: str) -> Record:
    """Raises BundleError; `name` is what it calls the file."""
    remedy = "remove it and install a bundle with `edge-agent bundles install DIR`"
    return decode_document(data, Record, version=SCHEMA_VERSION, name=name, error=BundleError, remedy=remedy)


changed = msgspec.structs.replace
