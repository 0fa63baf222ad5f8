"""What is meant to be copied onto a machine is true of the code."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

from cloud_gateway.config import load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_example_settings_are_taken_and_say_something() -> None:
    file = DEPLOY / "gateway.toml"
    settings = load_settings(file=file, env={}).settings
    assert settings.zmq.front == "process"
    assert settings.models.keep == tomllib.loads(file.read_text("utf-8"))["models"]["keep"] == 2


def test_the_unit_checks_its_settings_serves_them_and_waits_longer_than_the_gateway_drains() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(DEPLOY / "systemd" / "isthmus-gateway.service")
    service = unit["Service"]
    assert service["ExecStartPre"].split()[1:3] == ["config", "check"]
    assert service["ExecStart"].split()[1:3] == ["serve", "--config"]
    assert service["ExecReload"].split()[1] == "-HUP"
    grace_s = load_settings(file=DEPLOY / "gateway.toml", env={}).settings.drain.grace_s
    assert float(service["TimeoutStopSec"]) > grace_s + 10
