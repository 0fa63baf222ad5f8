"""What systemd is told, read from sockets as systemd would."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.device.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"isthmus-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
        listening.bind(f"\0{name}" if request.param == "abstract" else name)
        listening.settimeout(5)
        yield listening, f"@{name}" if request.param == "abstract" else name


def test_every_change_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listening, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("serves digits\nwith a gateway")
    notifier.feed()
    notifier.status("unwell")
    notifier.reloading("another bundle")
    notifier.stopping("draining")
    notifier.patience(2400.0, "builds")
    said = [listening.recv(4096).decode() for _ in range(6)]
    assert said[:3] == ["READY=1\nSTATUS=serves digits with a gateway", "WATCHDOG=1", "STATUS=unwell"]
    assert said[3].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert said[3].endswith("\nSTATUS=another bundle")
    assert said[4] == "STOPPING=1\nSTATUS=draining"
    assert said[5] == "EXTEND_TIMEOUT_USEC=2400000000\nSTATUS=builds"


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    for env in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:1:2"}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        notifier = Notifier(env)
        notifier.ready("serves")
        notifier.feed()
    assert not Notifier({}).is_listened_to


@pytest.mark.parametrize(
    ("env", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdogs_time_is_what_systemd_says_to_this_process(env: dict[str, str], watchdog_s: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/n", **env}).watchdog_s == watchdog_s


def test_a_full_queue_at_the_manager_holds_nobody_up(manager: tuple[socket.socket, str]) -> None:
    _, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(5000):  # far more than a socket keeps
        notifier.status("x" * 400)
