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


def test_the_drop_in_for_a_gpu_takes_back_what_the_units_bar_and_no_more() -> None:
    drop_in = _unit("gpu.conf")["Service"]
    gateway, agent = (_unit(f"isthmus-{name}.service")["Service"] for name in ("gateway", "agent"))
    assert gateway["PrivateDevices"] == agent["PrivateDevices"] == agent["PrivateUsers"] == "yes"
    assert drop_in["PrivateDevices"] == drop_in["PrivateUsers"] == "no"
    assert drop_in["DevicePolicy"] == "closed"  # only what is named
    added = {"SupplementaryGroups", "DeviceAllow"}
    assert set(drop_in) - added <= set(agent)


def test_plans_lie_where_the_unit_may_write() -> None:
    plans_dir = load_settings(file=DEPLOY / "gateway.toml", env={}).settings.engines.plans_dir
    assert plans_dir is not None
    assert plans_dir.is_relative_to(Path("/var/lib") / _unit("isthmus-gateway.service")["Service"]["StateDirectory"])


def _unit(name: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(DEPLOY / "systemd" / name)
    return unit


def test_the_unit_checks_its_settings_serves_them_and_waits_longer_than_the_gateway_drains() -> None:
    service = _unit("isthmus-gateway.service")["Service"]
    assert service["ExecStartPre"].split()[1:3] == ["config", "check"]
    assert service["ExecStart"].split()[1:3] == ["serve", "--config"]
    assert service["ExecReload"].split()[1] == "-HUP"
    grace_s = load_settings(file=DEPLOY / "gateway.toml", env={}).settings.drain.grace_s
    assert float(service["TimeoutStopSec"]) > grace_s + 10
