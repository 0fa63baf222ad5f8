"""Health of a gateway: readiness with its reason, and lanes whose answers are known beforehand."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cloud_gateway.seeing.health import DeepCheck, ready
from cloud_gateway.seeing.standing import Standing
from protocol.errors import EngineError
from protocol.seeing.health import known_input
from protocol.tensors import Tensors, TensorSpec
from tests.waiting import until

SPECS = (TensorSpec("x", "float32", ("N", 3)), TensorSpec("mask", "int64", (2, None)), TensorSpec("q", "uint8", (4,)))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def double(_: str, tensors: Tensors) -> Tensors:
    return {"y": tensors["x"] * 2}


def checked(run: Callable[[str, Tensors], Tensors | None], clock: Clock | None = None, **options: float) -> DeepCheck:
    check = DeepCheck(run, clock=clock or Clock(), **options)
    inputs = known_input(SPECS)
    check.remember("lane-1", inputs, double("", inputs))
    return check


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (Standing(ready=True), ""),
        (Standing(ready=False), "no model is available"),
        (Standing(ready=False, reason="digits 3 is LOADING"), "digits 3 is LOADING"),
        (Standing(ready=True, draining=True), "shutting down"),
    ],
)
def test_readiness_says_why_not(standing: Standing, reason: str) -> None:
    assert (ready(standing).ok, ready(standing).reason) == (not reason, reason)


def test_an_engine_that_still_computes_what_it_did_is_healthy() -> None:
    found = checked(double).check()
    assert (found.ok, found.reason, [lane.key for lane in found.lanes]) == (True, "", ["lane-1"])


def test_an_engine_that_computes_something_else_is_ill() -> None:
    found = checked(lambda _, tensors: {"y": tensors["x"] * 2 + 0.25}).check()
    assert not found.ok
    assert found.reason == "lane lane-1: y differs from the known answer by 0.25"


def test_an_engine_that_fails_is_ill_and_its_words_are_told() -> None:
    def fail(_: str, __: Tensors) -> Tensors:
        raise EngineError("the GPU fell off the bus", "reboot")

    assert checked(fail).check().reason == "lane lane-1: EngineError: the GPU fell off the bus; reboot"


def test_a_lane_too_busy_to_be_asked_is_not_ill() -> None:
    found = checked(lambda _, __: None).check()
    assert (found.ok, found.lanes[0].reason) == (True, "busy, not asked")


def test_a_verdict_stands_for_some_seconds() -> None:
    clock, asked = Clock(), []

    def run(key: str, tensors: Tensors) -> Tensors:
        asked.append(key)
        return double(key, tensors)

    check = checked(run, clock, keep_s=10.0)
    check.check()
    clock.now = 9.0
    assert check.check().age_s == 9.0
    assert len(asked) == 1
    clock.now = 10.0
    assert check.check().age_s == 0.0
    assert len(asked) == 2


def test_a_lane_that_is_loaded_meanwhile_is_asked_at_once_and_one_that_went_no_more() -> None:
    check = checked(double)
    check.check()
    inputs = known_input(SPECS[:1])
    check.remember("lane-2", inputs, double("", inputs))
    assert [lane.key for lane in check.check().lanes] == ["lane-1", "lane-2"]
    check.forget("lane-1")
    assert [lane.key for lane in check.check().lanes] == ["lane-2"]


def test_an_engine_that_hangs_is_told_and_never_asked_twice() -> None:
    release, asked = threading.Event(), []

    def hang(key: str, tensors: Tensors) -> Tensors:
        asked.append(key)
        release.wait(10)
        return double(key, tensors)

    check = checked(hang, timeout_s=0.02)
    assert not check.check().ok
    until(lambda: asked, "nobody asked it")
    for _ in range(3):
        found = check.check()
        assert not found.ok
        assert "lane lane-1 has not answered" in found.reason
    release.set()
    for thread in threading.enumerate():
        if thread.name == "isthmus-deep":
            thread.join(10)
    assert check.check().ok, "it came back"
    assert asked == ["lane-1"]


def test_callers_who_come_together_share_one_check() -> None:
    release, asked, found = threading.Event(), [], []

    def run(key: str, tensors: Tensors) -> Tensors:
        asked.append(key)
        release.wait(10)
        return double(key, tensors)

    check = checked(run, timeout_s=10.0)
    callers = [threading.Thread(target=lambda: found.append(check.check().ok)) for _ in range(4)]
    for caller in callers:
        caller.start()
    release.set()
    for caller in callers:
        caller.join(10)
    assert (found, asked) == ([True] * 4, ["lane-1"])


def test_a_lane_that_moved_to_another_engine_while_it_was_asked_is_not_ill() -> None:
    """Its batch failed and was run by the next engine, whose answer differs in the last digits: that is no illness."""

    def moves(key: str, tensors: Tensors) -> Tensors:
        check.forget(key)
        return {"y": tensors["x"] * 2.1}

    check = checked(moves)
    found = check.check()
    assert (found.ok, found.lanes) == (True, ())
