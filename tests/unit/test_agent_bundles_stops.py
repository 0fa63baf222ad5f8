"""Stopped at any durable act of an update, old or new always runs, the shelf is whole, and the next start finishes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.bundles.record import Step
from protocol.bundle import Bundle
from tests.bundles import bundle_in
from tests.updating import Device, FolderGateway, Stop, folder_in_memory

ROOT = Path(__file__).parents[2]
SHARED = {"full.onnx": b"full model" * 10, "weights/a": b"weights"}
OLD = {**SHARED, "edge.onnx": b"old edge"}
NEW = {**SHARED, "edge.onnx": b"new edge" * 12, "cut-1/head.onnx": b"a new cut"}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with folder_in_memory() as folder:
        yield folder


@pytest.fixture
def old(tmp_path: Path) -> Bundle:
    return bundle_in(tmp_path / "old", OLD)


@pytest.fixture
def new(tmp_path: Path) -> Bundle:
    return bundle_in(tmp_path / "new", NEW)


@pytest.fixture
def template(tmp_path: Path, old: Bundle) -> Path:
    """A shelf on which the old bundle is proven."""
    device = Device(tmp_path / "template", FolderGateway(old.root))
    device.start()
    device.update()
    device.close()
    assert device.updater.look().record.proven == old.digest
    return tmp_path / "template"


def stopping_at(number: int) -> tuple[Callable[[str], None], list[str]]:
    acts: list[str] = []

    def around(act: str) -> None:
        acts.append(act)
        if len(acts) > number:
            raise Stop

    return around, acts


def run(device: Device) -> bool:
    """Whether it came to the end."""
    try:
        device.start()
        device.update()
    except Stop:
        return False
    finally:
        device.close()
    return True


def assert_recovers(state: Path, old: Bundle, new: Bundle, stopped: str) -> None:
    """Start again: what serves first is old or new, and whole; in the end it is new."""
    device = Device(state, FolderGateway(new.root))
    device.start()
    assert device.served[0] in (old.digest, new.digest), stopped
    device.update()
    record = device.updater.look().record
    assert (record.current, record.proven, record.step) == (new.digest, new.digest, Step.IDLE), stopped
    assert device.serves == new.digest, stopped
    device.close()
    assert sorted(device.shelf.held()) == sorted({new.digest, record.previous} - {""}), stopped
    for digest in device.shelf.held():
        assert Bundle.open(device.shelf.folder(digest)).verify(), stopped
    assert not list((state / "incoming").iterdir()), stopped
    assert not list((state / "parts").iterdir()), stopped
    leftovers = [p for p in state.rglob("*.part") if p.is_file()]
    assert all(p.parent == state for p in leftovers), f"{stopped}: {leftovers}"


def test_stopped_before_or_after_any_durable_act_old_or_new_runs_and_the_next_start_finishes(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle
) -> None:
    seen = set()
    for number in range(1000):
        state = tmp_path / "state"
        shutil.copytree(template, state)
        around, acts = stopping_at(number)
        ended = run(Device(state, FolderGateway(new.root), around))
        if ended:
            break
        seen.add(acts[-1])
        assert_recovers(state, old, new, f"stopped {acts[-1]} (act {number})")
        shutil.rmtree(state)
    else:
        pytest.fail("it never came to the end")
    assert number > 60
    for word in ("append to", "rename .current.json.part", "copy to", "synchronise folder held", "remove"):
        assert any(word in act for act in seen), f"no stop at {word!r}"


def test_a_device_that_is_stopped_at_every_second_act_gets_there_in_the_end(
    tmp_path: Path, template: Path, new: Bundle
) -> None:
    """Each life does a few acts more than the last: whatever was done stays done."""
    lives = 0
    while True:
        lives += 1
        around, _ = stopping_at(3 * lives)
        if run(Device(template, FolderGateway(new.root), around)):
            break
        assert lives < 200
    device = Device(template, None)
    device.start()
    device.close()
    assert device.served == [new.digest]


def test_giving_up_a_bundle_on_trial_may_be_stopped_anywhere_too(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle
) -> None:
    for number in range(1000):
        state = tmp_path / "state"
        shutil.copytree(template, state)
        device = Device(state, FolderGateway(new.root))
        device.start()
        device.updater.check()
        assert (device.step, device.serves) == (Step.ON_TRIAL, new.digest)
        acts: list[str] = []

        def around(act: str, acts: list[str] = acts, number: int = number) -> None:
            acts.append(act)
            if len(acts) > number:
                raise Stop

        device.shelf.disk._around = around
        try:
            device.updater.roll_back()
            device.updater._turn()
        except Stop:
            ended = False
        else:
            ended = True
        device.close()
        again = Device(state, FolderGateway(new.root))
        again.start()
        assert again.served[0] in (old.digest, new.digest), acts
        if again.step is Step.ON_TRIAL:
            assert again.serves == new.digest
        else:
            assert (again.serves, again.step) == (old.digest, Step.REVERTED), acts
            again.updater.check()
            assert again.serves == old.digest, "it is not taken again"
        again.close()
        shutil.rmtree(state)
        if ended:
            return
    pytest.fail("it never came to the end")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_process_that_is_killed_at_an_act_leaves_what_the_next_one_finishes(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle, share: float
) -> None:
    around, acts = stopping_at(10_000)
    shutil.copytree(template, tmp_path / "whole")
    assert run(Device(tmp_path / "whole", FolderGateway(new.root), around))
    number = int(share * len(acts))
    command = [sys.executable, "-m", "tests.updating", str(template), str(new.root), str(number)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert_recovers(template, old, new, f"killed {acts[number]}")
