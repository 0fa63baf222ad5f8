"""What systemd hears of a daemon: that it is ready, that it is well for as long as it answers, and that it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.daemon import Daemon
from tests.daemons import Manager, compute_hangs, daemon_of, socket_hangs
from tests.waiting import PATIENCE_S, until


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def daemon(toy_bundle: Path, tmp_path: Path, manager: Manager) -> Iterator[Daemon]:
    """Asked three times in the watchdog's time, which is 0.3 s here."""
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
    daemon = daemon_of(toy_bundle, tmp_path / "s", env=env, settings={"health.every_s": 10.0, "health.timeout_s": 1.0})
    daemon.start()
    yield daemon
    daemon.close()


def test_it_is_ready_once_applications_are_answered_and_then_fed_by_answers(daemon: Daemon, manager: Manager) -> None:
    first = manager.heard()
    assert "READY=1" in first
    assert "STATUS=serves model on the device alone" in first
    heard: list[str] = []
    until(lambda: (heard.extend(manager.heard()) or heard).count("WATCHDOG=1") >= 3, "the watchdog is not fed")
    daemon.close()
    assert manager.heard()[-2:] == ["STOPPING=1", "STATUS=finishing what was begun"]


def test_a_compute_thread_that_hangs_is_not_fed_and_systemd_reads_why(daemon: Daemon, manager: Manager) -> None:
    until(lambda: daemon.vitals.answered >= 1)
    with compute_hangs(daemon.agent):
        heard: list[str] = []
        until(lambda: any("unwell" in line for line in (heard.extend(manager.heard()) or heard)), "systemd is not told")
        told = next(at for at, line in enumerate(heard) if "unwell" in line)
        wanted = "STATUS=serves model on the device alone; unwell: edge-only has not answered a known question"
        assert wanted in heard[told]
        answered = daemon.vitals.answered
        assert daemon.unwell()
    assert "WATCHDOG=1" not in heard[told:]
    until(lambda: daemon.vitals.answered > answered, "it was never asked again")
    until(lambda: not daemon.unwell(), "it never got well")


def test_a_socket_thread_that_hangs_is_not_fed_either(daemon: Daemon) -> None:
    until(lambda: daemon.vitals.answered >= 1)
    with socket_hangs(daemon.agent):
        until(daemon.unwell, "nobody noticed")
        answered = daemon.vitals.answered
        assert "has not answered a known question" in daemon.vitals.reason
    until(lambda: daemon.vitals.answered > answered, "it was never asked again")


def test_an_answer_that_is_another_one_is_a_bad_one(daemon: Daemon) -> None:
    wanted = daemon.known.wanted
    assert daemon.known.check(PATIENCE_S) == ""
    daemon.known.wanted = dataclasses.replace(
        wanted, outputs={name: array + 1000.0 for name, array in wanted.outputs.items()}
    )
    assert daemon.known.check(PATIENCE_S) == "a known question got another answer in 'logits'"
    daemon.known.wanted = wanted
