"""What is meant to be copied onto a device is true of the code."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_agent.config import load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "isthmus-agent.service"
WORST_EXPOSURE = 2.0  # systemd's scale goes from 0 to 10; most services on a device score 9


def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(UNIT)
    return unit["Service"]


def test_the_example_settings_are_taken_and_say_something() -> None:
    settings = load_settings(file=DEPLOY / "agent.toml", env={}).settings
    assert settings.gateways.endpoints
    assert settings.keys.dir is not None
    assert settings.keys.dir.is_relative_to(settings.state_dir)


def test_the_unit_checks_its_settings_runs_them_and_waits_longer_than_the_agent_drains() -> None:
    unit = service()
    settings = load_settings(file=DEPLOY / "agent.toml", env={}).settings
    assert unit["ExecStartPre"].split()[1:3] == ["config", "check"]
    assert unit["ExecStart"].split()[1:3] == ["run", "--config"]
    assert float(unit["TimeoutStopSec"]) > settings.drain.grace_s + 10
    assert settings.state_dir == Path("/var/lib") / unit["StateDirectory"]


def test_the_watchdog_outlasts_two_questions_that_are_answered_late() -> None:
    watchdog_s = float(service()["WatchdogSec"])
    health = load_settings(file=DEPLOY / "agent.toml", env={}).settings.health
    assert service()["Type"] == "notify"
    assert watchdog_s > 2 * (min(health.every_s, watchdog_s / 3) + health.timeout_s)


def test_the_unit_may_do_nothing_that_it_does_not_need() -> None:
    unit = service()
    assert (unit["ProtectSystem"], unit["CapabilityBoundingSet"], unit["NoNewPrivileges"]) == ("strict", "", "yes")
    assert unit["MemoryMax"].endswith("%")
    assert "User" in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_itself_calls_the_unit_well_confined(tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot judge a file: {done.stderr.strip()[:200]}")
    assert float(found[1]) <= WORST_EXPOSURE
