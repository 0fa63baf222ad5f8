"""Reloading: what is applied, what waits for a restart, what is refused, and when a changed file is read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_gateway.config import GatewaySettings, LimitsSettings, load_settings
from protocol.errors import InputError
from protocol.settings_reload import Reload, Reloader, Settled, Watch, fingerprint
from protocol.settings_sources import LogsSettings

Say = Callable[[str], None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text("")
    return path


@pytest.fixture
def reloader(file: Path) -> Reloader[GatewaySettings]:
    return Reloader(lambda: load_settings(file=file, env={}), started=GatewaySettings())


def test_an_equal_file_changes_nothing(reloader: Reloader[GatewaySettings]) -> None:
    assert reloader.reload() == Reload("unchanged")
    assert reloader.counts == {"unchanged": 1}


def test_a_reloadable_value_reaches_who_subscribed_to_its_section(
    file: Path, reloader: Reloader[GatewaySettings]
) -> None:
    seen: list[LimitsSettings] = []
    reloader.subscribe("limits", lambda settings: seen.append(settings.limits))
    reloader.subscribe("logs.level", lambda _: pytest.fail("the level did not change"))
    file.write_text("[limits]\npending_requests = 7\ncredit_mib = 3\n")
    assert reloader.reload() == Reload("applied", ("limits.pending_requests", "limits.credit_mib"))
    assert seen == [LimitsSettings(pending_requests=7, credit_mib=3)]
    assert reloader.settings.limits == seen[0]
    assert reloader.reload().outcome == "unchanged"


def test_what_needs_a_restart_is_named_until_it_comes_and_the_rest_is_applied(
    file: Path, reloader: Reloader[GatewaySettings]
) -> None:
    seen: list[GatewaySettings] = []
    reloader.subscribe("logs", seen.append)
    file.write_text("zmq.bind = 'tcp://127.0.0.1:1'\nlogs.level = 'debug'\nlogs.format = 'json'\n")
    done = reloader.reload()
    assert done == Reload("partly", ("logs.level",), ("zmq.bind", "logs.format"))
    assert seen[0].logs == LogsSettings(level="debug")
    assert seen[0].zmq == GatewaySettings().zmq
    assert "zmq.bind, logs.format will change with a restart" in str(done)
    assert reloader.reload() == Reload("partly", (), ("zmq.bind", "logs.format"))
    assert len(seen) == 1


def test_a_reloadable_value_that_nobody_listens_to_needs_a_restart(
    file: Path, reloader: Reloader[GatewaySettings]
) -> None:
    file.write_text("limits.pending_requests = 7\n")
    assert reloader.reload() == Reload("partly", (), ("limits.pending_requests",))
    assert reloader.settings == GatewaySettings()


def test_a_wrong_file_keeps_the_old_settings_and_says_why(file: Path, reloader: Reloader[GatewaySettings]) -> None:
    reloader.subscribe("limits", lambda _: pytest.fail("applied"))
    file.write_text("[limits]\npending_requests = 7\npendng_mib = 3\n")
    done = reloader.reload()
    assert done.outcome == "refused"
    assert done.reason == f"limits.pendng_mib is unknown ({file}:3); did you mean limits.pending_mib?"
    assert str(done) == f"nothing changed: {done.reason}"
    file.unlink()
    assert "cannot be read" in reloader.reload().reason
    assert reloader.settings == GatewaySettings()
    assert reloader.counts == {"refused": 2}


def test_a_subscriber_that_refuses_keeps_its_values_and_is_asked_again(
    file: Path, reloader: Reloader[GatewaySettings]
) -> None:
    def refuse(_: GatewaySettings) -> None:
        raise InputError("no such level", "take another")

    told: list[GatewaySettings] = []
    reloader.subscribe("logs", refuse)
    reloader.subscribe("limits", told.append)
    file.write_text("logs.level = 'debug'\nlimits.pending_requests = 7\n")
    expected = (("logs.level", "no such level; take another"),)
    assert reloader.reload() == Reload("partly", ("limits.pending_requests",), failed=expected)
    assert reloader.settings.logs.level == "info"
    assert reloader.reload() == Reload("partly", failed=expected)
    assert len(told) == 1


def test_a_file_is_read_once_it_stands_still() -> None:
    settled = Settled("a")
    assert [settled.look(seen) for seen in "aabcddded"] == [False] * 5 + [True] + [False] * 3
    assert settled.look("d") is False, "it came back to what was acted on"


def test_a_fingerprint_tells_replacing_writing_and_removing(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to(file)
    seen = {fingerprint([file, folder, link])}
    file.write_text("x")
    seen.add(fingerprint([file, folder, link]))
    (tmp_path / "new").write_text("y")
    os.replace(tmp_path / "new", file)
    seen.add(fingerprint([file, folder, link]))
    (folder / "cache.redis_url").write_text("z")
    seen.add(fingerprint([file, folder, link]))
    file.unlink()
    seen.add(fingerprint([file, folder, link]))
    assert len(seen) == 5


def test_the_watch_reloads_when_asked_and_when_a_file_changed(file: Path, reloader: Reloader[GatewaySettings]) -> None:
    told: list[Reload] = []
    heard = threading.Semaphore(0)

    def tell(done: Reload) -> None:
        told.append(done)
        heard.release()

    reloader.subscribe("limits", lambda _: None)
    watch = Watch(reloader, [file], told=tell, crashed=lambda error: pytest.fail(str(error)), look_ivl_s=0.005)
    watch.start()
    try:
        watch.now()
        assert heard.acquire(timeout=10)
        file.write_text("limits.pending_requests = 8\n")
        while told[-1].outcome == "unchanged":  # a look that fell between the file's end and its content
            assert heard.acquire(timeout=10)
        assert told[-1] == Reload("applied", ("limits.pending_requests",))
    finally:
        watch.stop()
        watch.stop()


def test_a_bug_in_a_subscriber_ends_the_watch_and_is_handed_over(
    file: Path, reloader: Reloader[GatewaySettings]
) -> None:
    crashed: list[BaseException] = []
    done = threading.Event()

    def crash(error: BaseException) -> None:
        crashed.append(error)
        done.set()

    reloader.subscribe("limits", lambda _: [][0])
    file.write_text("limits.pending_requests = 8\n")
    watch = Watch(reloader, [], told=lambda _: None, crashed=crash)
    watch.start()
    watch.now()
    assert done.wait(10)
    assert isinstance(crashed[0], IndexError)
    watch.stop()
