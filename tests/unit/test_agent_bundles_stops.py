"""Stopped at any durable act of an update, old or new always runs, the shelf is whole, and the next start finishes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from edge_agent.bundles import update as u
from edge_agent.bundles.disk import LEAVING, Disk
from edge_agent.bundles.record import Step
from protocol import signing
from protocol.bundle import SIGNATURE, Bundle
from protocol.signers import SigningKey
from protocol.signing import Statement, Trust
from tests.bundles import bundle_in
from tests.updating import Device, FolderGateway, Stop, Unsigned, folder_in_memory

KEY = SigningKey.of(bytes(32), "builder")

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


class TornDisk(Disk):
    """Stops in the middle of the act with that number: half of what it should write is there, or nothing is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number
        self.torn = ""

    def _is_torn(self, what: str) -> bool:
        self.left -= 1
        if self.left == -1:
            self.torn = what
        return self.left == -1

    def write(self, path: Path, data: bytes) -> None:
        if self._is_torn(f"writing {path.name}"):
            path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])
            raise Stop
        super().write(path, data)

    def append(self, path: Path, data: bytes) -> None:
        if data and self._is_torn(f"appending to {path.name}"):
            with path.open("ab") as file:
                file.write(data[: len(data) // 2])
            raise Stop
        super().append(path, data)

    def copy(self, path: Path, target: Path) -> str:
        if self._is_torn(f"copying to {target.name}"):
            target.with_name(f".{target.name}.part").write_bytes(path.read_bytes()[:7])
            raise Stop
        return super().copy(path, target)

    def remove(self, path: Path) -> None:
        if path.is_dir() and self._is_torn(f"removing {path.name}"):
            self.rename(path, leaving := path.with_name(f"{LEAVING}{path.name}"))
            next(p for p in leaving.rglob("*") if p.is_file()).unlink()
            raise Stop
        super().remove(path)


def test_stopped_in_the_middle_of_writing_copying_or_removing_the_next_start_finishes_too(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle
) -> None:
    seen = set()
    for number in range(1000):
        state, disk = tmp_path / "state", TornDisk(number)
        shutil.copytree(template, state)
        device = Device(state, FolderGateway(new.root))
        device.shelf.disk = disk
        ended = run(device)
        if ended:
            break
        seen.add(disk.torn.partition(" ")[0])
        assert_recovers(state, old, new, f"stopped while {disk.torn}")
        shutil.rmtree(state)
    else:
        pytest.fail("it never came to the end")
    assert seen == {"writing", "appending", "copying"}


KINDS = (
    "append to",
    "copy to",
    "rename .current.json.part",
    "synchronise folder held",
    "write .current.json",
    "remove",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_that_is_killed_at_an_act_leaves_what_the_next_one_finishes(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle, kind: str
) -> None:
    around, acts = stopping_at(10_000)
    shutil.copytree(template, tmp_path / "whole")
    assert run(Device(tmp_path / "whole", FolderGateway(new.root), around))
    numbers = [number for number, act in enumerate(acts) if kind in act]
    number = numbers[len(numbers) // 2]
    command = [sys.executable, "-m", "tests.updating", str(template), str(new.root), str(number)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert_recovers(template, old, new, f"killed {acts[number]}")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_any_one_act_stops_nobody_from_serving_and_the_update_goes_on_after_it(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle, error: int
) -> None:
    sentences = set()
    for number in range(0, 1000, 3):
        state = tmp_path / "state"
        shutil.copytree(template, state)
        left = number

        def around(act: str) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(error, os.strerror(error))

        device = Device(state, FolderGateway(new.root), around)
        device.start()
        device.update()
        assert device.serves in (old.digest, new.digest), number
        sentences |= set(device.told)
        device.updater.resume()
        device.update()
        assert (device.serves, device.step) == (new.digest, Step.IDLE), number
        device.close()
        assert_recovers(state, old, new, f"refused at act {number}")
        shutil.rmtree(state)
        if left >= 0:
            break
    wanted = "the disk is full" if error == errno.ENOSPC else f"the disk refuses ({os.strerror(error)})"
    assert any(wanted in sentence for sentence in sentences), sentences


def test_on_a_disk_that_takes_nothing_at_all_the_proven_bundle_serves_and_a_damaged_one_is_passed_over(
    tmp_path: Path, template: Path, old: Bundle, new: Bundle
) -> None:
    def full(act: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    device = Device(template, FolderGateway(new.root), full)
    device.start()
    for _ in range(3):
        device.update()
    assert device.serves == old.digest
    assert sum("the disk is full" in text for text in device.told) == 1, "it is told once"
    device.close()
    (template / "held" / old.digest / "edge.onnx").unlink()
    again = Device(template, None, full)
    again.start()
    assert again.serves == "", "nobody is left, and it does not hang"
    again.close()


def test_a_stop_before_the_number_is_remembered_is_made_good_at_the_next_start(tmp_path: Path, new: Bundle) -> None:
    class Forgets(Unsigned):
        confirmed: ClassVar[list[str]] = []
        stops = True

        def accept(self, statement: Statement) -> None:
            if Forgets.stops:
                raise Stop
            self.confirmed.append(statement.manifest_sha256)

        def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
            return Trust((KEY.public,), allow_unsigned=True)

    model = new.manifest.model
    made = Statement(new.digest, model.name, model.digest, 7, KEY.public.key_id, "")
    gateway = FolderGateway(new.root)
    device = Device(tmp_path / "state", gateway, trusting=Forgets())
    device.start()
    device.updater.check()
    (device.shelf.folder(new.digest) / SIGNATURE).write_bytes(signing.sign_statement(made, [KEY]))
    with pytest.raises(Stop):
        device.updater.handle(u.Health(ok=True))
    device.close()
    Forgets.stops = False
    again = Device(tmp_path / "state", None, trusting=Forgets())
    again.start()
    again.close()
    assert Forgets.confirmed == [new.digest]
