"""The authority reads its folder anew when it was changed, and a folder that cannot be read locks nobody out."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from cloud_gateway.access.authority import Authority
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import AgentEntry, add_agent, revoke
from protocol import keys
from protocol.errors import InputError
from protocol.sockets import Endpoint

HERE = Endpoint("127.0.0.1", 7447)
CAMERA = AgentEntry(name="camera-7", key="7" * 64, added=1)
GUEST = AgentEntry(name="guest", key="8" * 64, added=1, expires=100)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path)
    folder.make()
    with folder.locked():
        folder.create("gateway")
        folder.change(lambda roster: add_agent(add_agent(roster, CAMERA), GUEST))
    return folder


def test_without_a_folder_nobody_is_known_and_nobody_refused() -> None:
    authority = Authority(None)
    authority.look(utc=0)
    assert authority.table is None
    assert authority.refusal("") is None
    assert authority.secrets(HERE) == {}


def test_an_unreadable_folder_is_an_error_of_whoever_starts_with_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cloud-gateway keys init"):
        Authority(KeyFolder(tmp_path))


def test_only_known_user_ids_are_served(folder: KeyFolder) -> None:
    authority = Authority(folder)
    assert authority.refusal(CAMERA.user_id) is None
    for stranger in ("", "camera-7", "camera-7/0000000000000000", f"{CAMERA.user_id}0"):
        assert authority.refusal(stranger) is not None
    assert Authority.tenant(CAMERA.user_id) == "camera-7"


def test_what_a_command_changes_holds_from_the_next_look_on(folder: KeyFolder) -> None:
    authority = Authority(folder)
    with folder.locked():
        folder.change(lambda roster: revoke(roster, "camera-7", utc=50))
    assert authority.refusal(CAMERA.user_id) is None
    authority.look(utc=50)
    assert authority.refusal(CAMERA.user_id) is not None


def test_whoever_expires_is_refused_though_nothing_was_changed(folder: KeyFolder) -> None:
    told: list[str] = []
    authority = Authority(folder, told=lambda event, _: told.append(event))
    authority.look(utc=99)
    assert authority.refusal(CAMERA.user_id) is None
    authority.look(utc=100)
    assert authority.refusal(GUEST.user_id) is not None
    assert authority.refusal(CAMERA.user_id) is None
    assert told == []


def test_a_folder_that_was_spoilt_keeps_those_in_and_is_told_of_once(folder: KeyFolder) -> None:
    told: list[str] = []
    authority = Authority(folder, told=lambda event, _: told.append(event))
    roster = folder.path / "roster.json"
    sound = roster.read_bytes()
    roster.write_text("{")
    for utc in (1, 2, 3):
        authority.look(utc=utc)
    assert authority.refusal(CAMERA.user_id) is None
    assert told == ["keys_unreadable"]
    roster.write_bytes(sound)
    authority.look(utc=4)
    assert told == ["keys_unreadable", "keys_read"]


def test_both_server_keys_are_served_until_a_rotation_ends_and_then_only_the_next(folder: KeyFolder) -> None:
    authority = Authority(folder)
    old = folder.server_keys().current
    assert authority.secrets(HERE) == {HERE: old.secret}
    with folder.locked():
        new = folder.begin_rotation(7448)
    authority.look(utc=1)
    beside = HERE._replace(port=7448)
    assert authority.secrets(HERE) == {HERE: old.secret, beside: new.secret}
    with folder.locked():
        folder.finish_rotation()
    authority.look(utc=2)
    assert authority.secrets(HERE) == {HERE: new.secret, beside: new.secret}  # whoever is there already may stay
    assert Authority(folder).secrets(HERE) == {HERE: new.secret}


def test_a_rotation_that_is_given_up_leaves_the_old_key_alone(folder: KeyFolder) -> None:
    authority = Authority(folder)
    with folder.locked():
        folder.begin_rotation(7448)
    authority.look(utc=1)
    with folder.locked():
        folder.undo_rotation()
    authority.look(utc=2)
    assert authority.secrets(HERE) == {HERE: folder.server_keys().current.secret}


def test_a_next_key_at_the_gateways_own_port_does_not_take_it_from_the_current_one(folder: KeyFolder) -> None:
    authority = Authority(folder)
    with folder.locked():
        folder.begin_rotation(HERE.port)
    authority.look(utc=1)
    assert authority.secrets(HERE) == {HERE: folder.server_keys().current.secret}


def test_commands_exclude_each_other(folder: KeyFolder) -> None:
    with folder.locked(), (folder.path / ".lock").open() as handle, pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_key_that_was_opened_to_others_is_noticed(folder: KeyFolder) -> None:
    before = folder.stamp()
    (folder.path / "server.key").chmod(0o644)
    assert folder.stamp() != before
    with pytest.raises(InputError, match="open to others"):
        folder.server_keys()


def test_a_finished_rotation_that_a_crash_interrupts_can_be_finished_again(folder: KeyFolder) -> None:
    with folder.locked():
        new = folder.begin_rotation(7448)
        keys.write_pair(folder.path / "server.key", new, overwrite=True)  # and then the power went
        assert folder.finish_rotation() == new
    assert folder.server_keys() == (new, None, None)
