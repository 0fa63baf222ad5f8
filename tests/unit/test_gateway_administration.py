"""Loading and unloading over the network: which version is meant, who did it, and that nothing happens unrecorded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloud_gateway.access.audit import AuditLog
from cloud_gateway.doors.administration import Audit, administer, unrecorded, version_of
from cloud_gateway.models.keeper import VersionStatus
from protocol.oip.service import OipError, Parameter, Refusal


class Shelf:
    def __init__(self, trouble: str = "") -> None:
        self.done: list[tuple[str, str, int | None]] = []
        self.trouble = trouble

    def index(self) -> list[VersionStatus]:
        return []

    def is_ready(self) -> bool:
        return True

    def load(self, name: str, version: int | None = None, *, wait_s: float) -> str:
        self.done.append(("load", name, version))
        return self.trouble

    def unload(self, name: str, version: int | None = None, *, wait_s: float) -> str:
        self.done.append(("unload", name, version))
        return self.trouble


def ask(shelf: Shelf | None, action: str, audit: Audit = unrecorded, **parameters: Parameter) -> None:
    asyncio.run(administer(shelf, audit, "ops", action, "digits", parameters))


def test_a_version_is_meant_only_where_one_is_named(tmp_path: Path) -> None:
    shelf, log = Shelf(), AuditLog(tmp_path / "audit.log")
    ask(shelf, "load", log.act)
    ask(shelf, "unload", log.act, version=3)
    ask(shelf, "unload", log.act, version="4", unload_dependents=True)
    assert shelf.done == [("load", "digits", None), ("unload", "digits", 3), ("unload", "digits", 4)]
    told = [(r.actor, r.action, r.target, r.outcome) for r in log.records()]
    assert told == [
        ("ops", "load", "digits", "begun"),
        ("ops", "load", "digits", "done"),
        ("ops", "unload", "digits/3", "begun"),
        ("ops", "unload", "digits/3", "done"),
        ("ops", "unload", "digits/4", "begun"),
        ("ops", "unload", "digits/4", "done"),
    ]


@pytest.mark.parametrize("given", [0, -1, True, 1.0, "", "x", "0", "٣", "9" * 30])
def test_what_is_no_version_is_refused_and_nothing_is_done(given: Parameter) -> None:
    shelf = Shelf()
    with pytest.raises(OipError, match="positive whole number") as caught:
        ask(shelf, "load", version=given)
    assert caught.value.refusal is Refusal.BAD_REQUEST
    assert shelf.done == []
    assert version_of(None) is None


def test_the_keepers_reason_is_the_answer_and_stands_in_the_record(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.log")
    with pytest.raises(OipError, match="no such folder") as caught:
        ask(Shelf("there is no such folder"), "load", log.act)
    assert caught.value.refusal is Refusal.BAD_REQUEST
    assert [r.outcome for r in log.records()] == ["begun", "failed: there is no such folder"]


def test_what_cannot_be_recorded_is_not_done() -> None:
    shelf = Shelf()
    with pytest.raises(OipError, match="cannot be written") as caught:
        ask(shelf, "unload", AuditLog(Path("/dev/full/audit.log")).act)
    assert caught.value.refusal is Refusal.INTERNAL
    assert shelf.done == []


def test_a_gateway_without_a_repository_says_so() -> None:
    with pytest.raises(OipError, match="named at its start") as caught:
        ask(None, "load")
    assert caught.value.refusal is Refusal.UNSUPPORTED
