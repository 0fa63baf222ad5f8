"""A look at everything: models, lanes and queues as they stand, and counters of every room added up once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.desk import Desk
from cloud_gateway.models.catalogue import Catalogue, Defaults
from cloud_gateway.models.keeper import Keeper
from cloud_gateway.models.repository import Repository
from cloud_gateway.models.workshop import Workshop
from cloud_gateway.scheduling.admission import Limits
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.metrics import metrics_text
from cloud_gateway.seeing.observer import KEY_DIGITS, Observer
from cloud_gateway.seeing.probe import Probe
from cloud_gateway.seeing.status import status_json
from cloud_gateway.work import Item, Outcome
from protocol import codecs
from protocol.errors import EngineError
from tests import models

SOON_S = 30.0


class Room:
    """What an observer looks at: a good and a damaged model, and no engine threads, so that nothing moves by itself."""

    def __init__(self, root: Path) -> None:
        for name, data in (("good", models.residual().SerializeToString()), ("bad", b"no model")):
            (root / name / "1").mkdir(parents=True)
            (root / name / "1" / "model.onnx").write_bytes(data)
        self.desk = Desk(Limits(pending_requests=100, credit_requests=7), threads=1)
        self.ledger = Ledger(now=time.monotonic())
        self.catalogue = Catalogue(self.desk, Defaults(warm_up_s=0.01), orphaned=lambda items: None)
        self.keeper = Keeper(self.catalogue, Repository(root))
        self.elsewhere: Counter[str] = Counter()
        self.observer = Observer(
            self.desk, self.catalogue, self.keeper, self.ledger, agents=lambda: 3, events=lambda: self.elsewhere,
            workshop=Workshop(),
        )  # fmt: skip

    def submit(self) -> Item:
        published = self.catalogue.find("good")
        assert published is not None
        assert published.whole is not None
        header, buffer = codecs.encode("x", np.ones((1, 3, 16, 16), np.float32), "raw")
        rows, layout = published.whole.fit((header,))
        now = time.monotonic()
        item = Item(
            published.whole, (header,), [buffer], [1], None, rows, layout, header.nbytes, now, now + 60, 4, "one", self,
            None,
        )  # fmt: skip
        assert self.desk.submit(item) is None
        return item

    def post_all(self, items: Iterable[Outcome], /) -> None:
        pass


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.keeper.stop()
    room.catalogue.close()


@pytest.fixture
def served(room: Room) -> Room:
    room.keeper.start()
    assert room.keeper.wait_settled(SOON_S)
    return room


def test_before_anything_is_loaded_it_is_not_ready_and_shows_nothing(room: Room) -> None:
    standing = room.observer.standing()
    assert (standing.ready, standing.draining, standing.models, standing.lanes) == (False, False, (), ())


def test_every_version_stands_there_with_its_state_and_the_reason_of_what_failed(served: Room) -> None:
    standing = served.observer.standing()
    states = {m.name: (m.version, m.state, bool(m.reason), m.format, bool(m.digest)) for m in standing.models}
    assert states == {"good": ("1", "AVAILABLE", False, "onnx", True), "bad": ("1", "ERROR", True, "", False)}
    assert standing.ready, "one model that fails does not take the others with it"
    assert standing.reason.startswith("bad version 1: ")
    assert all(m.since_s >= 0.0 for m in standing.models)


def test_a_lane_shows_what_it_costs_whom_it_serves_and_what_waits(served: Room) -> None:
    for _ in range(2):
        served.submit()
    standing = served.observer.standing()
    (lane,) = standing.lanes
    (found,) = served.catalogue.lanes.values()
    assert found.key.startswith(lane.key)
    assert len(lane.key) == KEY_DIGITS
    assert lane.scopes == (Scope("good", "1", "full-cloud"),)
    assert (lane.pending_requests, lane.pending_nbytes, lane.busy) == (2, 2 * 3072, 0)
    assert lane.predicted_s[1] > 0
    assert max(lane.predicted_s) <= lane.batch_bound
    assert lane.unbatched == ""
    assert standing.pending == {Scope("good", "1", "full-cloud"): 2}
    assert (standing.pending_requests, standing.pending_nbytes) == (2, 2 * 3072)
    assert served.desk.take(0) is not None
    (lane,) = served.observer.standing().lanes
    assert lane.busy == 1


def test_a_version_that_drains_still_shows_what_waits_for_it(served: Room) -> None:
    served.submit()
    (published,) = served.catalogue.published()
    served.catalogue.withdraw(published.version)
    standing = served.observer.standing()
    assert standing.pending == {Scope("good", "1", "full-cloud"): 1}
    assert standing.lanes[0].scopes == (Scope("good", "1", "full-cloud"),)


def test_limits_agents_and_draining_are_those_of_this_moment(served: Room) -> None:
    served.desk.limits = served.desk.limits._replace(credit_requests=9)
    served.desk.drain()
    standing = served.observer.standing()
    assert (standing.agents, standing.credit_requests, standing.pending_limit_requests) == (3, 9, 100)
    assert standing.draining


def test_counters_of_all_rooms_are_added_up(served: Room) -> None:
    served.ledger.counted("reload_applied", 2)
    served.elsewhere.update(reload_applied=1, wire_errors=4, nothing=0)
    assert served.observer.scene().snapshot.events == {"reload_applied": 3, "wire_errors": 4}


def test_what_is_seen_can_be_told_as_metrics_and_as_a_document(served: Room) -> None:
    served.submit()
    scene = served.observer.scene()
    assert b'model="good"' in metrics_text(scene)
    assert b'"ready":true' in status_json(scene)


def test_a_lane_that_is_closing_is_left_out(served: Room) -> None:
    (lane,) = served.catalogue.lanes.values()
    served.desk.close(lane)
    assert served.observer.standing().lanes == ()
    lane.is_open = False


# ---- the gateway's own questions ------------------------------------------------------------------------------------


def test_a_question_of_its_own_waits_like_everybodys_and_gives_up_after_its_time(served: Room) -> None:
    (lane,) = served.catalogue.lanes.values()
    probe = Probe(served.desk, served.catalogue.lane, timeout_s=0.05)
    with pytest.raises(EngineError, match="has not answered within"):
        probe.ask(lane.key, {"x": np.ones((1, 3, 16, 16), np.float32)})
    assert served.desk.pending() == (0, 0), "it does not go on waiting"
    assert served.observer.standing().pending_requests == 0


def test_a_lane_that_is_gone_or_too_busy_is_not_asked(served: Room) -> None:
    (lane,) = served.catalogue.lanes.values()
    probe = Probe(served.desk, served.catalogue.lane, timeout_s=0.05)
    tensors = {"x": np.ones((1, 3, 16, 16), np.float32)}
    assert probe.ask("no such lane", tensors) is None
    served.desk.limits = served.desk.limits._replace(pending_requests=1)
    served.submit()
    assert probe.ask(lane.key, tensors) is None
