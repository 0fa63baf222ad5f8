"""The keeper on the gateway's real catalogue: what its host promises, shown once with real engines."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.keeper import Keeper, VersionStatus
from cloud_gateway.models.repository import Repository
from cloud_gateway.models.states import State
from cloud_gateway.scheduling.admission import Limits
from tests import models

SOON_S = 30.0


class Served:
    """A model folder with one model, a keeper that polls it, and the catalogue that it fills."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.put(1, models.residual().SerializeToString())
        self.states: dict[int, State] = {}
        self._condition = threading.Condition()
        self.catalogue = Catalogue(Desk(Limits(), threads=1), Defaults(), orphaned=lambda items: None)
        repository = Repository(root, quiet_s=0.02)
        self.keeper = Keeper(self.catalogue, repository, mode="poll", poll_s=0.02, changed=self._changed)

    def put(self, version: int, data: bytes) -> None:
        folder = self.root / "m" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".part").write_bytes(data)
        (folder / ".part").rename(folder / "model.onnx")

    def wait(self, version: int, state: State) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.states.get(version) is state, SOON_S), self.keeper.index()

    def found(self) -> int | None:
        published = self.catalogue.find("m")
        return published.version.version if published else None

    def _changed(self, status: VersionStatus) -> None:
        with self._condition:
            self.states[status.version] = status.state
            self._condition.notify_all()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    served.keeper.start()
    served.wait(1, State.AVAILABLE)
    yield served
    assert served.keeper.stop()
    served.catalogue.close()


def test_a_request_ends_on_the_engine_where_it_began_though_a_newer_version_answers_already(served: Served) -> None:
    published = served.catalogue.find("m")
    assert published is not None
    assert published.whole is not None
    published.whole.pending += 1  # a request is admitted
    served.put(2, models.two_heads().SerializeToString())
    served.wait(1, State.DRAINING)
    assert served.found() == 2
    assert published.whole.lane.key in served.catalogue.lanes, "its engine stays while something is in flight"
    published.whole.pending -= 1
    served.wait(1, State.UNLOADED)
    assert published.whole.lane.key not in served.catalogue.lanes


def test_a_model_that_no_engine_takes_leaves_the_old_version_serving(served: Served) -> None:
    model = models.residual()
    model.graph.node[0].op_type = "NoSuchOperator"
    served.put(2, model.SerializeToString())
    served.wait(2, State.ERROR)
    assert served.found() == 1
    assert len(served.catalogue.lanes) == 1
    (reason,) = [status.reason for status in served.keeper.index() if status.version == 2]
    assert "NoSuchOperator" in reason


def test_two_versions_with_the_same_tail_share_its_lane_and_the_last_one_takes_it_along(served: Served) -> None:
    (lane,) = served.catalogue.lanes.values()
    served.put(2, models.residual().SerializeToString())
    served.wait(1, State.UNLOADED)
    assert list(served.catalogue.lanes.values()) == [lane]
    assert served.keeper.unload("m", wait_s=SOON_S) == ""
    assert not served.catalogue.lanes
