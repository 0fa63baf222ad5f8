"""What a check says. Every complaint comes with its remedy; a check that cannot be made says why."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class Status(enum.StrEnum):
    OK = "ok"
    WARN = "warn"  # it works, but worse, slower or less safely than it could
    FAIL = "fail"  # something will not work
    SKIP = "skip"  # not applicable here, or something else is missing first


WORST_FIRST = (Status.FAIL, Status.WARN, Status.OK, Status.SKIP)


class Verdict(NamedTuple):
    """`fact` is what was found, or for SKIP the reason; `remedy` stands with every WARN and FAIL."""

    status: Status
    fact: str
    remedy: str = ""


class Finding(msgspec.Struct, frozen=True):
    """A verdict with the check that gave it, as it is printed and as JSON holds it."""

    id: str
    group: str
    title: str
    status: Status
    fact: str
    remedy: str
    seconds: float


class UnmetError(Exception):
    """A check cannot be made: what it needs is not there, and another check says why. The text is the reason."""


def ok(fact: str) -> Verdict:
    return Verdict(Status.OK, fact)


def warn(fact: str, remedy: str) -> Verdict:
    return Verdict(Status.WARN, fact, remedy)


def fail(fact: str, remedy: str) -> Verdict:
    return Verdict(Status.FAIL, fact, remedy)


def skip(reason: str) -> Verdict:
    return Verdict(Status.SKIP, reason)


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict about several things of a kind: the worst status, all facts, each remedy once."""
    found = list(verdicts)
    status = min((v.status for v in found), key=WORST_FIRST.index, default=Status.SKIP)
    remedies = dict.fromkeys(v.remedy for v in found if v.remedy and v.status is status)
    return Verdict(status, "; ".join(v.fact for v in found), "; ".join(remedies))
