"""Runs that may hang: whoever waits gives up, what hung is never asked again, and nothing is left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from protocol.engines import ort_cuda
from protocol.engines.causes import Cause, cause_of, failed
from protocol.engines.deputies import Deputies
from protocol.engines.ort_cuda import BoundOrtEngine
from protocol.engines.trt_options import GpuError
from protocol.tensors import Tensors
from tests.unit.test_protocol_engines import MODEL
from tests.waiting import until

WITHIN_S = 30.0
X: Tensors = {"x": np.ones((2, 4), np.float32)}


def deputies_named(name: str) -> int:
    return sum(thread.name == f"isthmus-deputy-{name}" for thread in threading.enumerate())


def test_what_the_work_returns_or_raises_is_the_callers() -> None:
    deputies = Deputies("returns")
    assert deputies.run(lambda: threading.current_thread().name, timeout_s=WITHIN_S) == "isthmus-deputy-returns"
    with pytest.raises(ZeroDivisionError):
        deputies.run(lambda: 1 // 0, timeout_s=WITHIN_S)
    assert deputies_named("returns") == 1, "one caller at a time needs one"
    deputies.stop()
    until(lambda: deputies_named("returns") == 0, "it to end", within_s=WITHIN_S)


def test_a_timeout_that_the_work_itself_raises_costs_no_deputy() -> None:
    deputies = Deputies("raises")

    def work() -> None:
        raise TimeoutError("a lock")

    for _ in range(3):
        with pytest.raises(TimeoutError, match="a lock"):
            deputies.run(work, timeout_s=WITHIN_S)
    assert deputies_named("raises") == 1
    deputies.stop()


def test_one_that_does_not_come_back_is_given_up_and_ends_when_it_does() -> None:
    deputies, comes_back = Deputies("hangs"), threading.Event()
    with pytest.raises(TimeoutError, match=r"not come back within 0\.01 s"):
        deputies.run(lambda: comes_back.wait(WITHIN_S), timeout_s=0.01)
    assert deputies.run(lambda: 7, timeout_s=WITHIN_S) == 7
    deputies.stop()
    comes_back.set()
    until(lambda: deputies_named("hangs") == 0, "both to end", within_s=WITHIN_S)


def test_one_that_works_while_the_others_are_stopped_ends_afterwards() -> None:
    deputies = Deputies("stopped")

    def stop() -> int:
        deputies.stop()
        return 1

    assert deputies.run(stop, timeout_s=WITHIN_S) == 1
    until(lambda: deputies_named("stopped") == 0, "it to end", within_s=WITHIN_S)
    deputies.start()
    assert deputies.run(lambda: 2, timeout_s=WITHIN_S) == 2
    assert deputies_named("stopped") == 1
    deputies.stop()


# ---- an engine that hangs -------------------------------------------------------------------------------------------


class Hanging(BoundOrtEngine):
    """On the processor, where nothing hangs by itself."""

    hangs = False
    comes_back: threading.Event

    def _bound_run(self, session: Any, binding: Any, tensors: Tensors) -> Any:
        if self.hangs:
            assert self.comes_back.wait(WITHIN_S)
        return super()._bound_run(session, binding, tensors)


@pytest.fixture
def engine() -> Iterator[Hanging]:
    engine = Hanging(MODEL, label="hangs", on="cpu", run_timeout_s=WITHIN_S)
    engine.comes_back = threading.Event()
    try:
        yield engine
    finally:
        engine.comes_back.set()
        engine.deactivate()
        ort_cuda._LOST.clear()
        ort_cuda._ABANDONED.clear()


def test_a_run_that_hangs_is_given_up_and_the_device_is_lost_to_every_session(engine: Hanging) -> None:
    with engine:
        assert engine.infer(X)["y"].shape[0] == 2
        engine.hangs, engine._timeout_s = True, 0.01
        with pytest.raises(GpuError, match="lost to this process") as caught:
            engine.infer(X)
        assert (caught.value.cause, caught.value.is_final) == ("device-lost", True)
        engine.hangs = False
        with pytest.raises(GpuError, match="lost"):
            engine.infer(X)
    assert len(ort_cuda._ABANDONED) == 2, "what it holds is not freed: that would hang as well"
    with pytest.raises(GpuError, match="lost"):
        BoundOrtEngine(MODEL, label="another", on="cpu").activate()


def test_deputies_end_with_their_engine_and_it_can_come_back(engine: Hanging) -> None:
    for _ in range(3):
        with engine:
            for _ in range(3):
                engine.infer(X)
            assert deputies_named("hangs") == 1
        until(lambda: deputies_named("hangs") == 0, "its thread to end", within_s=WITHIN_S)


@pytest.mark.parametrize(("memory_nbytes", "kept_nbytes"), [(None, 100), (800, 1000), (1000, 100)])
def test_inputs_that_stay_on_the_device_are_bounded_in_bytes_and_by_an_eighth_of_the_share(
    memory_nbytes: int | None, kept_nbytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_cuda, "KEPT_NBYTES", kept_nbytes)
    with BoundOrtEngine(MODEL, label="bounded", on="cpu", memory_nbytes=memory_nbytes) as engine:
        for rows in (1, 2, 3, 4, 3, 2):
            engine.infer({"x": np.ones((rows, 4), np.float32)})
            kept = [binding.nbytes for each in engine._free.values() for binding in each]
            assert sum(kept) == engine._kept_nbytes <= 100
            assert kept


def test_tensors_that_do_not_fit_say_so(engine: Hanging) -> None:
    with engine:
        for wrong in ({"z": X["x"]}, {"x": X["x"].astype(np.float64)}):
            with pytest.raises(GpuError) as caught:
                engine.infer(wrong)
            assert caught.value.cause == "bad-input"


@pytest.mark.parametrize(("cause", "is_a_gpus"), [("out-of-memory", True), ("device-lost", True), ("other", False)])
def test_a_failure_keeps_its_cause_where_it_is_one_of_a_gpus(cause: Cause, is_a_gpus: bool) -> None:
    error = failed("it fell over", cause)
    assert (isinstance(error, GpuError), cause_of(error)) == (is_a_gpus, cause)
