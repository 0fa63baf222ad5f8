"""The keeper on a host in memory: the folder's versions come and go, and every request gets its answer."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_gateway.models.keeper import Keeper, VersionStatus
from cloud_gateway.models.repository import Repository
from cloud_gateway.models.served import ServedVersion
from cloud_gateway.models.settings import VersionPolicy
from cloud_gateway.models.states import State
from cloud_gateway.models.watching import Watcher
from protocol.errors import BundleError, EngineError, InputError, InvariantViolation, ModelError
from tests import models

MODEL = models.residual().SerializeToString()
OTHER = models.two_heads().SerializeToString()
BROKEN = b"\xff" * 64
SOON_S = 20.0


class MemoryHost:
    """Serves in sets. `refuse` names versions that fail, `busy` those with requests in flight; `gate` holds a load."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.published: list[ServedVersion] = []
        self.refuse: dict[str, int] = {}
        self.busy: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def load(self, version: ServedVersion) -> None:
        assert self.gate.wait(SOON_S)
        self._do("load", version)

    def warm_up(self, version: ServedVersion) -> None:
        self._do("warm_up", version)

    def publish(self, version: ServedVersion) -> None:
        self.published.append(version)
        self._do("publish", version)

    def withdraw(self, version: ServedVersion) -> None:
        self.published.remove(version)
        self._do("withdraw", version)

    def in_flight(self, version: ServedVersion) -> int:
        return int(version.version in self.busy)

    def unload(self, version: ServedVersion) -> None:
        assert version.version not in self.busy
        self._do("unload", version)

    def _do(self, what: str, version: ServedVersion) -> None:
        self.log.append((what, version.version))
        if self.refuse.get(what) == version.version:
            raise EngineError(f"{what} of {version} fails", "use another machine")

    @property
    def serving(self) -> list[int]:
        return sorted(version.version for version in self.published)


class Noting(Repository):
    """Notes what was opened."""

    def __init__(self, *args: Any, opened: Callable[[int], None], **more: Any) -> None:
        super().__init__(*args, **more)
        self._opened = opened

    def open(self, name: str, version: int, *, build: int) -> ServedVersion:
        self._opened(version)
        return super().open(name, version, build=build)


class Room:
    """A keeper with its host and folder, and a way to wait for what it does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = MemoryHost()
        self.told: list[VersionStatus] = []
        self.warnings: list[str] = []
        self.opened: list[int] = []
        self.crash: list[BaseException] = []
        self.keeper: Keeper | None = None
        self._changed = threading.Condition()

    def put(self, version: int, data: bytes = MODEL, *, name: str = "m") -> None:
        """Another content under another name first, then moved there: never seen half written."""
        folder = self.root / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (self.root / ".new").write_bytes(data)
        (self.root / ".new").rename(folder / "model.onnx")

    def start(self, *, bundles: tuple[Path, ...] = (), policy: VersionPolicy | None = None, **more: Any) -> Keeper:
        repository = Noting(self.root, bundles, policy=policy, quiet_s=0.02, opened=self._note)
        self.keeper = Keeper(
            self.host, repository, changed=self._tell, warn=self._warn, crashed=self.crash.append, **more
        )
        self.keeper.start()
        return self.keeper

    def wait(self, true: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(true, SOON_S), (self.host.log, self.keeper and self.keeper.index())

    def status(self, version: int, name: str = "m") -> VersionStatus | None:
        assert self.keeper is not None
        return next((s for s in self.keeper.index() if (s.name, s.version) == (name, version)), None)

    def is_in(self, version: int, state: State) -> bool:
        status = self.status(version)
        return status is not None and status.state is state

    def _note(self, version: int) -> None:
        with self._changed:
            self.opened.append(version)
            self._changed.notify_all()

    def _warn(self, warning: str) -> None:
        with self._changed:
            self.warnings.append(warning)
            self._changed.notify_all()

    def _tell(self, status: VersionStatus) -> None:
        with self._changed:
            self.told.append(status)
            self._changed.notify_all()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    if room.keeper is not None:
        room.keeper.stop()
    assert room.crash == []


# ---- starting -------------------------------------------------------------------------------------------------------


def test_what_lies_in_the_folder_is_served_when_the_keeper_has_settled(room: Room) -> None:
    room.put(1)
    keeper = room.start()
    assert keeper.wait_settled(SOON_S)
    assert keeper.is_ready()
    assert room.host.log == [("load", 1), ("warm_up", 1), ("publish", 1)]
    (status,) = keeper.index()
    assert (status.name, status.version, status.state, status.format) == ("m", 1, State.AVAILABLE, "onnx")
    assert status.digest == room.host.published[0].digest
    assert [s.state for s in room.told] == [State.NEW, State.LOADING, State.WARMING, State.AVAILABLE]


def test_a_damaged_model_is_an_error_and_the_others_are_served(room: Room) -> None:
    room.put(1)
    room.put(1, BROKEN, name="bad")
    keeper = room.start()
    assert keeper.wait_settled(SOON_S)
    assert keeper.is_ready(), "a model that failed is no reason to refuse the others' work"
    status = room.status(1, "bad")
    assert status is not None
    assert status.state is State.ERROR
    assert "damaged" in status.reason
    assert isinstance(status.cause, ModelError)
    assert room.host.serving == [1]


def test_a_gateway_that_serves_nothing_is_not_ready(room: Room) -> None:
    room.put(1, BROKEN)
    keeper = room.start()
    assert keeper.wait_settled(SOON_S)
    assert not keeper.is_ready()


def test_an_engine_that_cannot_be_had_is_told_with_its_cause(room: Room) -> None:
    room.put(1)
    room.host.refuse["warm_up"] = 1
    keeper = room.start()
    keeper.wait_settled(SOON_S)
    status = room.status(1)
    assert status is not None
    assert (status.state, status.reason) == (State.ERROR, "warm_up of m version 1 fails; use another machine")
    assert isinstance(status.cause, EngineError)
    assert room.host.log[-1] == ("unload", 1)


def test_bundles_named_by_hand_are_served_in_every_mode_and_refused_at_once_if_they_are_none(
    room: Room, toy_bundle: Path, tmp_path: Path
) -> None:
    keeper = room.start(bundles=(toy_bundle,), load_at_start=())
    assert keeper.wait_settled(SOON_S)
    assert [(s.state, s.format) for s in keeper.index()] == [(State.AVAILABLE, "bundle")]
    with pytest.raises(BundleError):
        Keeper(MemoryHost(), Repository(None, [tmp_path / "nothing"])).start()


def test_names_to_load_at_the_start_must_be_there(room: Room) -> None:
    room.put(1)
    with pytest.raises(InputError, match="the model 'n' is to be loaded at the start; the repository has m"):
        Keeper(room.host, Repository(room.root), load_at_start=("n",)).start()


# ---- explicit -------------------------------------------------------------------------------------------------------


def test_explicit_mode_lists_what_it_does_not_serve_and_loads_it_when_asked(room: Room) -> None:
    room.put(1)
    keeper = room.start(load_at_start=())
    assert [(s.state, s.reason) for s in keeper.index()] == [(State.NEW, "not asked for")]
    assert not keeper.is_ready()
    assert keeper.load("m", wait_s=SOON_S) == ""
    assert room.host.serving == [1]
    room.put(2)
    assert keeper.load("m", wait_s=SOON_S) == ""
    assert room.host.serving == [2]
    assert keeper.unload("m", wait_s=SOON_S) == ""
    assert room.host.serving == []


def test_a_request_is_told_why_it_failed(room: Room) -> None:
    room.put(1)
    keeper = room.start()
    keeper.wait_settled(SOON_S)
    room.put(2, BROKEN)
    assert keeper.load("m", wait_s=SOON_S).startswith("version 2: the graph is damaged")
    assert room.host.serving == [1]
    assert keeper.load("n", wait_s=SOON_S) == "there is no model 'n' in the repository"
    assert keeper.unload("n", wait_s=SOON_S) == "there is no model 'n' here"


def test_who_does_not_want_to_wait_is_told_that_it_goes_on(room: Room) -> None:
    room.put(1)
    room.host.gate.clear()
    keeper = room.start()
    assert keeper.load("m", wait_s=0.01) == "not done after 0.01 s; it goes on"
    room.host.gate.set()
    assert keeper.load("m", wait_s=SOON_S) == ""


def test_an_unload_waits_for_what_is_in_flight(room: Room) -> None:
    room.put(1)
    keeper = room.start()
    keeper.wait_settled(SOON_S)
    room.host.busy.add(1)
    assert "goes on" in keeper.unload("m", wait_s=0.05)
    assert room.is_in(1, State.DRAINING)
    assert room.host.serving == []
    room.host.busy.clear()
    room.wait(lambda: room.is_in(1, State.UNLOADED))


def test_a_keeper_that_stops_sends_nobody_away_without_an_answer(room: Room) -> None:
    room.put(1)
    keeper = room.start()
    keeper.wait_settled(SOON_S)
    room.host.busy.add(1)
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(keeper.unload("m", wait_s=SOON_S)))
    asking.start()
    room.wait(lambda: room.is_in(1, State.DRAINING))
    assert keeper.stop()
    asking.join(SOON_S)
    assert answers == ["the gateway is shutting down"]
    assert keeper.load("m") == "the gateway is shutting down"


# ---- following the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["poll", "watch"])
def test_a_new_version_replaces_the_old_one_without_a_gap(room: Room, mode: str) -> None:
    room.put(1)
    keeper = room.start(mode=mode, poll_s=0.02)
    keeper.wait_settled(SOON_S)
    room.put(2, OTHER)
    room.wait(lambda: room.is_in(1, State.UNLOADED))
    assert room.host.log[3:] == [("load", 2), ("warm_up", 2), ("publish", 2), ("withdraw", 1), ("unload", 1)]


def test_a_touched_folder_is_opened_but_not_loaded_again(room: Room) -> None:
    room.put(1)
    keeper = room.start(mode="poll", poll_s=0.02)
    keeper.wait_settled(SOON_S)
    room.put(1)
    room.wait(lambda: room.opened == [1, 1])
    room.put(2)
    room.wait(lambda: room.is_in(2, State.AVAILABLE))
    assert room.host.log.count(("load", 1)) == 1


def test_a_changed_configuration_is_served_by_a_new_build(room: Room) -> None:
    room.put(1)
    keeper = room.start(mode="poll", poll_s=0.02)
    keeper.wait_settled(SOON_S)
    (room.root / "m" / "config.pbtxt").write_text("instance_group { count: 2 }")
    room.wait(lambda: ("unload", 1) in room.host.log)
    assert [v.settings.instances for v in room.host.published] == [2]


def test_a_broken_new_content_leaves_the_old_one_serving(room: Room) -> None:
    room.put(1)
    keeper = room.start(mode="poll", poll_s=0.02)
    keeper.wait_settled(SOON_S)
    room.put(1, BROKEN)
    room.wait(lambda: "cannot be served" in (room.told[-1].reason))
    assert room.host.serving == [1]


def test_a_folder_that_vanishes_for_a_moment_changes_nothing(room: Room) -> None:
    root = room.root / "models"
    root.mkdir()
    room.root = root
    room.put(1)
    keeper = room.start(mode="poll", poll_s=0.02)
    keeper.wait_settled(SOON_S)
    root.rename(root.parent / "away")
    room.wait(lambda: (not room.host.log[3:] and not keeper.look_soon() and bool(room.warnings)) or bool(room.warnings))
    (root.parent / "away").rename(root)
    room.put(2)
    room.wait(lambda: room.is_in(2, State.AVAILABLE))
    assert ("load", 1) not in room.host.log[3:]
    assert "cannot be read" in room.warnings[0]


def test_a_watch_that_the_system_refuses_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    watcher = Watcher([tmp_path / "nowhere"], changed=lambda: None, failed=told.append)
    watcher.start()
    watcher.stop()
    assert len(told) == 1


def test_a_removed_model_is_no_longer_served_or_listed(room: Room) -> None:
    room.put(1)
    room.put(1, OTHER, name="n")
    keeper = room.start(mode="poll", poll_s=0.02)
    keeper.wait_settled(SOON_S)
    shutil.rmtree(room.root / "n")
    room.wait(lambda: any((s.name, s.reason) == ("n", "removed") for s in room.told))
    assert [s.name for s in keeper.index()] == ["m"]


def test_the_policy_of_models_that_state_none_may_change_while_serving(room: Room) -> None:
    room.put(1)
    room.put(2, OTHER)
    keeper = room.start(mode="poll", poll_s=3600.0)
    keeper.wait_settled(SOON_S)
    assert room.host.serving == [2]
    keeper.retune(poll_s=3600.0, policy=VersionPolicy("all"))
    room.wait(lambda: room.is_in(1, State.AVAILABLE))
    assert room.host.serving == [1, 2]


def test_a_bug_in_the_host_ends_the_keeper_and_is_told(tmp_path: Path) -> None:
    class Faulty(MemoryHost):
        def publish(self, version: ServedVersion) -> None:
            raise InvariantViolation("a bug")

    room = Room(tmp_path)
    room.host = Faulty()
    room.put(1)
    keeper = room.start()
    assert not keeper.wait_settled(SOON_S)
    keeper.stop()
    assert [str(error) for error in room.crash] == ["a bug"]
    assert keeper.load("m") == "the gateway is shutting down"
