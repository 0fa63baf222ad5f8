"""One folder, one daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_agent.state_dir import StateDir
from protocol.errors import InputError


def test_a_second_daemon_is_told_who_has_the_folder_until_that_one_ends(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path / "a" / "b"), StateDir(tmp_path / "a" / "b")
    first.hold()
    with pytest.raises(InputError, match=f"belongs to another edge-agent, process {os.getpid()}"):
        second.hold()
    first.release()
    first.release()
    second.hold()
    second.release()


def test_a_lock_file_without_its_process_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("4711\n")
    held = StateDir(tmp_path)
    held.hold()
    assert (tmp_path / "run" / "lock").read_text() == f"{os.getpid()}\n"
    held.release()


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to \(Not a directory\); choose another with state_dir"):
        StateDir(tmp_path / "file").hold()
