"""A plan is run only if this user sealed it, for exactly what it is asked for."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.engines.trt_cache import KEY_FILE, LOCK_FILE, MAGIC, PlanCache, file_name, seal, unseal
from protocol.errors import EngineError

IDENTITY = {"graph": "00" * 32, "library": "tensorrt 11.4.0", "gpu": "GPU (9, 0)", "profiles": [[1, 8]]}
PLAN = bytes(range(256)) * 3
KEY = b"k" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def test_a_plan_that_was_written_is_read_by_the_next_process(folder: Path) -> None:
    PlanCache(folder).write(IDENTITY, PLAN)
    assert PlanCache(folder).read(IDENTITY) == PLAN


def test_a_plan_that_was_never_built_is_absent(folder: Path) -> None:
    assert PlanCache(folder).read(IDENTITY) == "it was not built here before"


@pytest.mark.parametrize("part", IDENTITY)
def test_everything_that_a_plan_depends_on_gives_it_another_name(folder: Path, part: str) -> None:
    PlanCache(folder).write(IDENTITY, PLAN)
    assert PlanCache(folder).read({**IDENTITY, part: "another"}) == "it was not built here before"


def test_folder_and_files_are_for_their_owner_alone(folder: Path) -> None:
    PlanCache(folder).write(IDENTITY, PLAN)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600, 0o600]


@given(st.integers(0, len(seal(PLAN, IDENTITY, KEY)) - 1), st.integers(1, 255))
def test_a_plan_of_which_one_byte_was_changed_is_never_run(at: int, change: int) -> None:
    sealed = bytearray(seal(PLAN, IDENTITY, KEY))
    sealed[at] ^= change
    assert isinstance(unseal(bytes(sealed), IDENTITY, KEY), str)


@given(st.integers(0, len(seal(PLAN, IDENTITY, KEY)) - 1))
def test_a_plan_that_was_cut_short_is_never_run(length: int) -> None:
    assert isinstance(unseal(seal(PLAN, IDENTITY, KEY)[:length], IDENTITY, KEY), str)


@given(st.binary(max_size=200))
def test_whatever_stands_behind_the_magic_is_never_run(noise: bytes) -> None:
    assert isinstance(unseal(MAGIC + noise, IDENTITY, KEY), str)


def test_a_plan_sealed_with_another_key_is_foreign() -> None:
    assert "another key" in str(unseal(seal(PLAN, IDENTITY, b"x" * 32), IDENTITY, KEY))


def test_a_plan_cannot_be_passed_off_as_anothers(folder: Path) -> None:
    cache, other = PlanCache(folder), {**IDENTITY, "gpu": "another"}
    cache.write(other, PLAN)
    os.rename(folder / file_name(other), folder / file_name(IDENTITY))
    assert "something else" in str(cache.read(IDENTITY))


def test_bytes_moved_from_the_identity_to_the_plan_break_the_seal() -> None:
    sealed = seal(PLAN, IDENTITY, KEY)
    start = len(MAGIC) + 32
    length = int.from_bytes(sealed[start : start + 4], "big")
    moved = sealed[:start] + (length - 1).to_bytes(4, "big") + sealed[start + 4 :]
    assert "seal" in str(unseal(moved, IDENTITY, KEY))


def test_a_damaged_plan_is_built_again_and_replaced(folder: Path) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    (folder / file_name(IDENTITY)).write_bytes(b"")
    assert "no sealed plan" in str(cache.read(IDENTITY))
    cache.write(IDENTITY, PLAN)
    assert cache.read(IDENTITY) == PLAN


@pytest.mark.parametrize(("name", "mode"), [("", 0o770), (KEY_FILE, 0o640)])
def test_what_others_could_have_written_or_read_is_not_believed(folder: Path, name: str, mode: int) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    (folder / name).chmod(mode)
    with pytest.raises(EngineError, match=r"open to others.*chmod"):
        cache.read(IDENTITY)


def test_a_plan_that_others_could_have_written_is_built_again_in_its_place(folder: Path) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    (folder / file_name(IDENTITY)).chmod(0o620)
    assert "open to others" in str(cache.read(IDENTITY))
    cache.write(IDENTITY, PLAN)
    assert cache.read(IDENTITY) == PLAN


def test_a_link_is_no_plan(folder: Path, tmp_path: Path) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    path = folder / file_name(IDENTITY)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in str(cache.read(IDENTITY))


def test_a_key_of_another_length_is_refused(folder: Path) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    (folder / KEY_FILE).write_bytes(b"short")
    with pytest.raises(EngineError, match="holds 5 bytes"):
        cache.read(IDENTITY)


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be used"):
        PlanCache(tmp_path / "file" / "plans").write(IDENTITY, PLAN)


def test_of_too_many_plans_those_unused_for_longest_go(folder: Path) -> None:
    cache = PlanCache(folder, most_nbytes=2 * len(seal(PLAN, {"n": 0}, KEY)))
    for n in range(2):
        cache.write({"n": n}, PLAN)
        os.utime(folder / file_name({"n": n}), (n, n))
    cache.read({"n": 0})
    cache.write({"n": 2}, PLAN)
    assert cache.read({"n": 0}) == PLAN
    assert isinstance(cache.read({"n": 1}), str)
    assert cache.read({"n": 2}) == PLAN


def test_a_plan_larger_than_the_bound_is_kept_alone(folder: Path) -> None:
    cache = PlanCache(folder, most_nbytes=10)
    cache.write({"n": 0}, PLAN)
    cache.write({"n": 1}, PLAN)
    assert isinstance(cache.read({"n": 0}), str)
    assert cache.read({"n": 1}) == PLAN


def test_a_disk_that_is_full_leaves_no_half_plan_behind(folder: Path) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    target = folder / file_name({"n": 0})
    target.mkdir()  # a name that cannot be replaced by a file
    with pytest.raises(EngineError, match="cannot be kept"):
        cache.write({"n": 0}, PLAN)
    assert sorted(path.name for path in folder.iterdir()) == sorted([KEY_FILE, file_name(IDENTITY), target.name])


# ---- shared by several, and full ------------------------------------------------------------------------------------


def test_one_process_builds_at_a_time_and_whoever_waited_is_told_so(folder: Path) -> None:
    PlanCache(folder).write(IDENTITY, PLAN)
    held, other_is_there, ended = threading.Event(), threading.Event(), []

    def other() -> None:
        with PlanCache(folder).turn(lambda: bool(other_is_there.set()), timeout_s=60) as waited:
            ended.append((waited, held.is_set()))

    with PlanCache(folder).turn(lambda: False, timeout_s=60) as waited:
        assert not waited
        thread = threading.Thread(target=other)
        thread.start()
        assert other_is_there.wait(20), "the other one found it taken"
        assert ended == []
        held.set()
    thread.join(20)
    assert ended == [(True, True)]


def test_whoever_is_given_up_or_has_waited_long_enough_goes_on_without_its_turn(folder: Path) -> None:
    PlanCache(folder).write(IDENTITY, PLAN)
    with PlanCache(folder).turn(lambda: False, timeout_s=60):
        with PlanCache(folder).turn(lambda: True, timeout_s=60):
            pass
        with PlanCache(folder).turn(lambda: False, timeout_s=0):
            pass


def test_a_folder_that_takes_no_lock_file_is_used_without(folder: Path) -> None:
    PlanCache(folder).write(IDENTITY, PLAN)
    (folder / LOCK_FILE).mkdir()
    with PlanCache(folder).turn(lambda: False, timeout_s=60) as waited:
        assert not waited


def test_a_full_disk_is_said_and_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        with pytest.raises(EngineError, match=r"No space left.*make room"):
            cache.write({"graph": "another"}, PLAN)
    assert sorted(path.name for path in folder.iterdir()) == sorted([KEY_FILE, file_name(IDENTITY)])


def test_what_a_killed_writer_left_is_removed_once_it_is_old(folder: Path) -> None:
    cache = PlanCache(folder)
    cache.write(IDENTITY, PLAN)
    old, young = folder / ".isthmus-old", folder / ".isthmus-young"
    for path in (old, young):
        path.write_bytes(PLAN)
    os.utime(old, (0, 0))
    cache.write(IDENTITY, PLAN)
    assert not old.exists()
    assert young.exists()
