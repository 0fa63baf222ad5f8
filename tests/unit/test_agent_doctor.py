"""The examination itself: every check has a verdict, none can end it, and each is bounded in time."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from edge_agent.doctor.case import Case, Once
from edge_agent.doctor.examination import Check, examine
from edge_agent.doctor.registry import CHECKS, chosen
from edge_agent.doctor.verdicts import Finding, Status, UnmetError, Verdict, fail, ok, skip, together, warn
from protocol.errors import BundleError, InputError

DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"
LOADING = ("installation.engine", "installation.requirements", "installation.files", "storage.sync", "bundle.machine")


def one(function: object, *, limit_s: float = 5.0) -> Finding:
    (finding,) = examine(Case(), [Check("group.name", "it holds", function, limit_s)])  # type: ignore[arg-type]
    return finding


def raises(error: Exception) -> object:
    def check(_: Case) -> Verdict:
        raise error

    return check


def test_there_are_at_least_thirty_checks_and_every_id_stands_once_in_its_group() -> None:
    ids = [check.id for check in CHECKS]
    assert len(ids) == len(set(ids)) >= 30
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", id_) for id_ in ids)
    groups = [check.group for check in CHECKS]
    assert len(set(groups)) == sum(a != b for a, b in zip(groups, [None, *groups], strict=False))  # each in one piece


def test_the_documentation_lists_every_check_in_order_with_its_title() -> None:
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([^|]+) \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert [(id_, title.strip()) for id_, title in rows] == [(check.id, check.title) for check in CHECKS]


def test_a_check_that_raises_has_a_verdict_and_the_next_one_is_made() -> None:
    checks = [
        Check("a.known", "", raises(BundleError("the bundle is damaged", "copy it again"))),  # type: ignore[arg-type]
        Check("a.unmet", "", raises(UnmetError("there is none"))),  # type: ignore[arg-type]
        Check("a.bug", "", raises(ZeroDivisionError("a\nb"))),  # type: ignore[arg-type]
        Check("a.missing", "", raises(ModuleNotFoundError("no", name="onnxruntime"))),  # type: ignore[arg-type]
        Check("a.well", "", lambda _: ok("fine")),
    ]
    heard: list[Finding] = []
    findings = examine(Case(), checks, heard.append)
    assert heard == findings
    assert [f.status for f in findings] == ["fail", "skip", "fail", "fail", "ok"]
    assert (findings[0].fact, findings[0].remedy) == ("the bundle is damaged", "copy it again")
    assert findings[2].fact == "the check itself failed: ZeroDivisionError: a b"
    assert all(f.remedy for f in findings if f.status is Status.FAIL)


def test_a_check_that_hangs_fails_within_its_limit_and_does_not_hold_up_the_others() -> None:
    released = threading.Event()

    def hangs(_: Case) -> Verdict:
        released.wait()
        return ok("at last")

    try:
        hung, after = examine(Case(), [Check("a.hangs", "", hangs, 0.05), Check("a.next", "", lambda _: ok("fine"))])
    finally:
        released.set()
    assert hung.status is Status.FAIL
    assert "0.05 s" in hung.fact
    assert after.status is Status.OK


def test_what_cannot_be_made_is_said_by_one_check_and_skipped_by_those_that_need_it() -> None:
    made = []

    def make() -> int:
        made.append(1)
        raise InputError("no such thing", "make one")

    thing = Once(make, "there is no thing (a.thing)")
    for _ in range(2):
        with pytest.raises(UnmetError, match=r"a\.thing"):
            thing()
    with pytest.raises(InputError, match="no such thing"):
        thing.really()
    assert made == [1]


def test_several_verdicts_together_are_as_bad_as_the_worst_and_name_its_remedy() -> None:
    assert together([ok("a"), warn("b", "mend b"), skip("c")]) == Verdict(Status.WARN, "a; b; c", "mend b")
    assert together([warn("a", "mend a"), fail("b", "mend b"), fail("c", "mend b")]).remedy == "mend b"
    assert together([skip("a"), ok("b")]).status is Status.OK
    assert together([]).status is Status.SKIP


def test_checks_are_chosen_by_id_or_group_and_an_unknown_one_is_refused() -> None:
    assert [check.id for check in chosen(("machine.cores",))] == ["machine.cores"]
    assert {check.group for check in chosen(("storage", "network"))} == {"storage", "network"}
    assert chosen(()) == CHECKS
    with pytest.raises(InputError, match="groups are configuration"):
        chosen(("machine.core",))


def test_an_empty_device_without_a_bundle_or_a_gateway_gets_a_verdict_of_every_check(tmp_path: Path) -> None:
    """Nothing of procfs and sysfs is there: what reads them says that it cannot."""
    case = Case(overrides={"state_dir": str(tmp_path / "state")}, root=tmp_path)
    findings = {f.id: f for f in examine(case, [check for check in CHECKS if check.id not in LOADING])}
    case.close()
    assert all(f.fact for f in findings.values())
    assert all(bool(f.remedy) == (f.status in (Status.WARN, Status.FAIL)) for f in findings.values())
    assert not [f for f in findings.values() if "itself failed" in f.fact]
    assert findings["bundle.opens"].status is Status.FAIL
    assert "no bundle is named" in findings["bundle.opens"].fact
    assert findings["bundle.speed"].status is Status.SKIP
    assert findings["network.welcome"].fact == "no gateway is configured: everything runs on the device"
    assert findings["machine.throttling"].status is Status.SKIP
    assert findings["service.systemd"].fact == "this system is not run by systemd"
    assert not list(tmp_path.rglob("*"))  # an examination leaves nothing behind


def test_settings_that_are_not_valid_fail_once_and_skip_what_needs_them(tmp_path: Path) -> None:
    case = Case(overrides={"device.threads": "many"}, root=tmp_path)
    findings = {f.id: f for f in examine(case, chosen(("configuration", "storage")))}
    failed = [id_ for id_, f in findings.items() if f.status is Status.FAIL]
    assert failed == ["configuration.valid"]
    assert "device.threads" in findings["configuration.valid"].fact
    assert "configuration.valid" in findings["storage.free"].fact
