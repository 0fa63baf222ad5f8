"""Runs checks one after another: each bounded in time, none of them able to end the examination.

A check runs on a thread of its own. One that has not ended within its limit is left behind (what hangs in a driver or
in a file system cannot be stopped from outside), counts as failed, and those after it are made all the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from edge_agent.doctor.case import Case
from edge_agent.doctor.verdicts import Finding, UnmetError, Verdict, fail, skip
from protocol.errors import IsthmusError


class Check(NamedTuple):
    """`id` is GROUP.NAME and never changes its meaning: monitoring knows it. `title` is what should hold."""

    id: str
    title: str
    function: Callable[[Case], Verdict]
    limit_s: float = 5.0

    @property
    def group(self) -> str:
        return self.id.partition(".")[0]


def examine(case: Case, checks: Iterable[Check], found: Callable[[Finding], None] = lambda _: None) -> list[Finding]:
    """Every check's finding, in order; `found` hears each as it comes. Raises nothing."""
    findings = []
    for check in checks:
        began = time.monotonic()
        verdict = _within(check, case)
        seconds = round(time.monotonic() - began, 4)
        finding = Finding(check.id, check.group, check.title, *_plain(verdict), seconds)
        findings.append(finding)
        found(finding)
    return findings


def _within(check: Check, case: Case) -> Verdict:
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(_judge(check, case)), name=check.id, daemon=True)
    thread.start()
    thread.join(check.limit_s)
    if verdicts:
        return verdicts[0]
    return fail(f"it did not end within {check.limit_s:g} s", "something hangs: see the system's log for the reason")


def _judge(check: Check, case: Case) -> Verdict:
    try:
        return check.function(case)
    except UnmetError as reason:
        return skip(str(reason))
    except IsthmusError as error:
        return fail(error.fact, error.remedy or "see the log")
    except ModuleNotFoundError as error:
        return fail(f"the package {error.name} is not installed", "pip install 'isthmus[edge]'")
    except Exception as error:  # the one place where a bug of a check ends
        return fail(f"the check itself failed: {type(error).__name__}: {error}", "report it with this sentence")


def _plain(verdict: Verdict) -> Verdict:
    """One line each, whatever the facts were made of."""
    fact, remedy = (" ".join(text.split()) for text in (verdict.fact, verdict.remedy))
    return Verdict(verdict.status, fact, remedy)
