"""New settings reach the parts that they are about, and no others; what a model asked for itself stays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from cloud_gateway.config import MIB, load_settings
from cloud_gateway.gateway import Gateway
from cloud_gateway.steering import Steering
from protocol.seeing.logs import Logs
from tests import models

START: dict[str, object] = {
    "zmq.bind": "tcp://127.0.0.1:0", "http.bind": "127.0.0.1:0", "cache.enabled": True, "models.warm_up_s": 0.01,
    "drain.grace_s": 1.0, "models.override.calm.efficiency_delay_ms": 7,
}  # fmt: skip


class Drill:
    """A gateway that runs, and settings that the test changes."""

    def __init__(self, repository: Path) -> None:
        self.wanted = START | {"models.repository": str(repository)}
        self.lines = io.StringIO()
        self.logs = Logs(stream=self.lines)
        self.gateway = Gateway(load_settings(env={}, overrides=self.wanted).settings, logs=self.logs)
        self.gateway.start()
        self.steering = Steering(self.gateway, lambda: load_settings(env={}, overrides=self.wanted), watched=[])

    def change(self, **settings: object) -> Any:
        self.wanted = self.wanted | {key.replace("__", "."): value for key, value in settings.items()}
        return self.steering.reloader.reload()

    def delays_ms(self) -> dict[str, float]:
        """Of every model's lane, as it is scheduled now."""
        found = {}
        for entry in self.gateway.catalogue.published():
            assert entry.whole is not None
            queue = self.gateway.desk._scheduler.queue(entry.whole.lane)
            found[entry.version.name] = queue.delay_s * 1e3
        return found


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("models")
    for name, make in (("calm", models.residual), ("plain", models.two_heads)):
        folder = root / name / "1"
        folder.mkdir(parents=True)
        models.write(make(), folder)
    drill = Drill(root)
    yield drill
    drill.gateway.close()


def test_nothing_that_differs_changes_nothing(drill: Drill) -> None:
    assert drill.change().outcome == "unchanged"


def test_limits_reach_the_desk(drill: Drill) -> None:
    done = drill.change(limits__pending_requests=5, limits__credit_mib=3)
    assert (done.outcome, done.applied) == ("applied", ("limits.pending_requests", "limits.credit_mib"))
    assert drill.gateway.desk.limits.pending_requests == 5
    assert drill.gateway.desk.limits.credit_nbytes == 3 * MIB


def test_scheduling_reaches_lanes_that_serve_but_not_what_a_model_asked_for_itself(drill: Drill) -> None:
    drill.change(scheduling__efficiency_delay_ms=2.0)
    assert drill.delays_ms() == {"calm": 7.0, "plain": 2.0}
    assert drill.gateway.catalogue.defaults.delay_s == 0.002
    drill.change(scheduling__margin=1.5)
    assert drill.delays_ms() == {"calm": 7.0, "plain": 2.0}


def test_the_log_the_drain_the_cache_and_the_guard_hear_of_it(drill: Drill) -> None:
    done = drill.change(
        logs__level="debug", logs__repeat_interval_s=3.0, drain__grace_s=0.5, cache__size_mib=1,
        access__failed_attempts_per_minute=3,
    )  # fmt: skip
    assert done.outcome == "applied"
    assert (drill.logs.level, drill.logs.repeat_interval_s, drill.gateway.drain_s) == ("debug", 3.0, 0.5)
    assert drill.gateway.cache is not None
    assert drill.gateway.cache._shelf.size_nbytes == MIB


def test_what_needs_a_restart_is_named_and_the_rest_applied(drill: Drill) -> None:
    done = drill.change(scheduling__workers=3, drain__grace_s=0.75)
    assert (done.outcome, done.applied, done.needs_restart) == ("partly", ("drain.grace_s",), ("scheduling.workers",))
    assert drill.gateway.drain_s == 0.75
    drill.wanted.pop("scheduling.workers")


def test_a_wrong_setting_changes_nothing_and_every_attempt_is_counted_and_logged(drill: Drill) -> None:
    before = drill.gateway.drain_s
    drill.wanted |= {"drain.grace_s": 0.1, "drain.grce_s": 1}
    done = drill.steering.reloader.reload()
    assert done.outcome == "refused"
    assert "drain.grace_s" in done.reason, "the nearest name is told"
    assert drill.gateway.drain_s == before
    drill.steering._told(done)
    assert drill.gateway.ledger.snapshot(now=0.0).events["reload_refused"] == 1
    del drill.wanted["drain.grce_s"]


def test_asked_by_a_signal_it_reads_the_settings_again(drill: Drill) -> None:
    drill.wanted |= {"drain.grace_s": 0.25}
    drill.steering.start()
    drill.steering.now()
    drill.steering.stop()
    drill.logs.close()
    assert drill.gateway.drain_s in (0.25, 0.75)  # stopping may come first
