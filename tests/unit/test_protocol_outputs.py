"""Files are written whole or not at all, and what cannot be written is refused before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.errors import InputError
from protocol.outputs import check_output, write_output


def test_a_file_appears_with_its_content_and_nothing_else(tmp_path: Path) -> None:
    check_output(tmp_path / "a.json")
    assert os.listdir(tmp_path) == []
    write_output(tmp_path / "a.json", b"one")
    write_output(tmp_path / "a.json", b"two")
    assert (tmp_path / "a.json").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "a.json", b"old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_output(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "a.json")
    write_output(tmp_path / "link.json", b"one")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "a.json").read_bytes() == b"one"


def test_what_is_no_plain_file_is_written_to_and_not_replaced() -> None:
    check_output(Path("/dev/null"))
    write_output(Path("/dev/null"), b"one")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["", "none/a.json", "file/a.json"])
def test_a_place_for_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be a file; give the path of a file in a folder that exists"):
        check_output(tmp_path / name)


def test_a_folder_that_takes_no_file_is_refused_at_once() -> None:
    for refuse in (check_output, lambda path: write_output(path, b"one")):
        with pytest.raises(InputError, match=r"/proc/a\.json cannot be written"):
            refuse(Path("/proc/a.json"))
