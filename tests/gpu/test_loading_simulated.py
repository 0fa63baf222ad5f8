"""Loading beside lanes that serve, on a SIMULATED GPU: plans, contexts, what was compiled, and giving all of it up.

No test waits for a time: the simulation stops where it is told to, and goes on when it is told so.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from protocol.engines.gpu_aside import forget_locals
from protocol.engines.gpu_thread import GpuThread
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_loaded import LoadedPlan
from protocol.engines.trt_options import GpuError, Span
from tests.gpu.graphs import graph, node
from tests.gpu.tiny import Make, x_of, y_of
from tests.waiting import PATIENCE_S, until


def beside(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do it on a thread of its own; what it gave or raised is in the list once it has ended."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(work())
        except GpuError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


def loading(engine: TensorRtEngine, gpu: Any) -> tuple[threading.Thread, list[object]]:
    """The engine, stopped while its plan is loaded."""
    before = gpu.calls["deserialize"]
    gpu.loading.clear()
    thread, ended = beside(engine.activate)
    until(lambda: gpu.calls["deserialize"] > before, "the plan is being loaded")
    return thread, ended


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a plan was closed: a load that was left alone has then come to its end."""
    event, close = threading.Event(), LoadedPlan.close

    def and_say_so(plan: LoadedPlan) -> None:
        close(plan)
        event.set()

    monkeypatch.setattr(LoadedPlan, "close", and_say_so)
    return event


def test_a_lane_serves_while_the_plan_of_another_is_loaded(simulated_gpu: Any, make: Make) -> None:
    with make() as serves:
        serves.infer({"x": x_of(1)})
        thread, ended = loading(late := make(label="late"), simulated_gpu)
        for rows in (1, 1, 5, 5, 5):  # a shape that is known, and one that is made and captured meanwhile
            np.testing.assert_array_equal(serves.infer({"x": x_of(rows)})["y"], y_of(x_of(rows)))
        assert ended == []
        simulated_gpu.loading.set()
        thread.join(PATIENCE_S)
        assert ended == [None]
        np.testing.assert_array_equal(late.infer({"x": x_of(2)})["y"], y_of(x_of(2)))
        assert simulated_gpu.launched_on == {"isthmus-gpu-0"}
        late.deactivate()
    assert simulated_gpu.clean() == []


def test_a_lane_serves_while_another_makes_a_context_for_a_new_shape(simulated_gpu: Any, make: Make) -> None:
    with make() as serves, make(label="late") as late:
        for _ in range(4):  # both slots
            serves.infer({"x": x_of(1)})
        before = simulated_gpu.calls["context"]
        simulated_gpu.making.clear()
        thread, ended = beside(lambda: late.infer({"x": x_of(3)}))
        until(lambda: simulated_gpu.calls["context"] > before, "a context is being made")
        np.testing.assert_array_equal(serves.infer({"x": x_of(1)})["y"], y_of(x_of(1)))
        assert ended == []
        simulated_gpu.making.set()
        thread.join(PATIENCE_S)
        assert isinstance(ended[0], dict)
    assert simulated_gpu.clean() == []


def test_an_engine_no_longer_wanted_is_gone_before_its_plan_is_loaded(simulated_gpu: Any, make: Make) -> None:
    with make() as serves:
        before = set(threading.enumerate())
        thread, ended = loading(late := make(label="late"), simulated_gpu)
        late.deactivate()
        thread.join(PATIENCE_S)
        assert "given up" in str(ended[0])
        np.testing.assert_array_equal(serves.infer({"x": x_of(1)})["y"], y_of(x_of(1)))
        simulated_gpu.loading.set()
        until(lambda: set(threading.enumerate()) <= before, "the load has ended")
        late.activate()  # it can be wanted again
        late.deactivate()
    assert simulated_gpu.clean() == []


def test_a_device_lost_while_a_plan_is_loaded_fails_the_load_and_who_serves(simulated_gpu: Any, make: Make) -> None:
    with make() as serves:
        serves.infer({"x": x_of(1)})
        thread, ended = loading(make(label="late"), simulated_gpu)
        simulated_gpu.sticky = "ILLEGAL_ADDRESS"
        with pytest.raises(GpuError, match="lost"):
            serves.infer({"x": x_of(1)})
        simulated_gpu.loading.set()
        thread.join(PATIENCE_S)
        (failed,) = ended
        assert isinstance(failed, GpuError)
        assert failed.cause == "device-lost"


def test_a_plan_whose_load_hangs_loses_the_device_after_the_timeout(
    simulated_gpu: Any, make: Make, closed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make() as serves:
        serves.infer({"x": x_of(1)})
        monkeypatch.setattr("protocol.engines.tensorrt.SETUP_TIMEOUT_S", 0.2)
        thread, ended = loading(make(label="late"), simulated_gpu)
        thread.join(PATIENCE_S)
        assert "did not end within" in str(ended[0])
        with pytest.raises(GpuError, match="lost"):
            serves.infer({"x": x_of(1)})
        simulated_gpu.loading.set()
        assert closed.wait(PATIENCE_S)


def test_no_thread_of_a_lost_device_ends_with_a_context_which_would_end_the_process(
    simulated_gpu: Any, make: Make
) -> None:  # fmt: skip
    with make() as serves:
        serves.infer({"x": x_of(1)})
        thread, _ = loading(make(label="late"), simulated_gpu)
        simulated_gpu.sticky = "ILLEGAL_ADDRESS"
        with pytest.raises(GpuError, match="lost"):
            serves.infer({"x": x_of(1)})
        simulated_gpu.loading.set()
        thread.join(PATIENCE_S)
        aside, watcher = ([t for t in threading.enumerate() if t.name.startswith(f"isthmus-gpu-{name}")][-1]
                          for name in ("aside", "wait"))  # fmt: skip
    watcher.join(0.2)
    aside.join(0.2)
    assert simulated_gpu.ended_attached() == 0


def test_a_load_that_hangs_and_was_given_up_does_not_hide_a_gpu_that_hangs(
    simulated_gpu: Any, make: Make, closed: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(run_timeout_s=0.3, slots=1) as serves:
        serves.infer({"x": x_of(1)})
        serves.infer({"x": x_of(1)})
        thread, _ = loading(late := make(label="late"), simulated_gpu)
        late.deactivate()
        thread.join(PATIENCE_S)
        monkeypatch.setattr("protocol.engines.gpu_thread.ASIDE_AT_MOST_S", 0.0)
        simulated_gpu.hangs = True
        with pytest.raises(GpuError, match="not answered") as failed:
            serves.infer({"x": x_of(1)})
        assert failed.value.cause == "device-lost"
        simulated_gpu.hangs = False
        simulated_gpu.loading.set()
        assert closed.wait(PATIENCE_S)


def test_a_loss_is_a_new_error_each_time_and_errors_in_a_ring_are_let_go_once() -> None:
    gpu = GpuThread.__new__(GpuThread)
    gpu._why_lost = ""
    assert gpu.lost is None
    gpu.lose("it burns")
    gpu.lose("something else")
    assert "it burns" in str(gpu.lost)
    assert gpu.lost is not gpu.lost
    first, second = ValueError("one"), ValueError("two")
    first.__cause__, second.__cause__ = second, first
    forget_locals(first)


def test_what_an_error_holds_of_the_gpu_is_freed_where_it_happened(simulated_gpu: Any, make: Make) -> None:
    with make(graphs=False) as engine:
        simulated_gpu.fail("enqueue", "ANYTHING")
        with pytest.raises(GpuError) as refused:
            engine.infer({"x": x_of(1)})
        simulated_gpu.fail("context", "ANYTHING")
        with pytest.raises(GpuError):
            engine.infer({"x": x_of(2)})
    del refused
    assert simulated_gpu.clean() == []


def test_a_failed_thread_start_leaves_nothing_on_the_gpu(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    engine = make()
    monkeypatch.setattr("protocol.engines.tensorrt.Watcher", none)
    with pytest.raises(RuntimeError, match="new thread"):
        engine.activate()
    assert simulated_gpu.clean() == []


def test_the_engine_says_how_much_of_the_gpu_it_holds(simulated_gpu: Any, make: Make) -> None:
    engine = make(slots=3)
    assert engine.gpu_nbytes is None
    with engine:
        assert engine.gpu_nbytes == simulated_gpu.plan_nbytes + sum(
            len(block) for block in simulated_gpu.blocks.values()
        )
    assert engine.gpu_nbytes is None


# ---- several profiles -----------------------------------------------------------------------------------------------


def told_by(engine: TensorRtEngine) -> list[str]:
    told: list[str] = []
    engine._told = told.append
    return told


def test_single_rows_run_in_a_profile_of_their_own(simulated_gpu: Any, make: Make) -> None:
    with make(several=True, knee=4) as engine:
        assert engine.profiles == (Span(1, 1, 1), Span(2, 4, 8))
        for rows in (1, 2, 8, 1):
            np.testing.assert_array_equal(engine.infer({"x": x_of(rows)})["y"], y_of(x_of(rows)))
    assert simulated_gpu.clean() == []


def test_a_library_that_refuses_several_profiles_gets_one(
    simulated_gpu: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_SIMULATED_BUILD", "one profile")
    told = told_by(engine := make(several=True, cache=tmp_path / "plans"))
    with engine:
        assert engine.profiles == (Span(1, 8, 8),)
        np.testing.assert_array_equal(engine.infer({"x": x_of(1)})["y"], y_of(x_of(1)))
    assert any("one profile instead of 2" in line for line in told)


def test_several_profiles_that_need_more_memory_than_there_may_be_give_way_to_one(
    simulated_gpu: Any, make: Make
) -> None:  # fmt: skip
    with make(several=True) as engine:
        both = engine.gpu_nbytes
    with make() as engine:
        alone = engine.gpu_nbytes
    assert both is not None
    assert alone is not None
    assert alone < both
    with make(several=True, memory_nbytes=alone) as engine:
        assert engine.profiles == (Span(1, 8, 8),)
        assert engine.gpu_nbytes == alone
    assert simulated_gpu.clean() == []


def test_several_profiles_that_took_too_long_are_not_waited_for_again(
    simulated_gpu: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as slow:
        slow.setenv("ISTHMUS_SIMULATED_BUILD", "hang")
        told = told_by(engine := make(several=True, cache=tmp_path / "plans", build_timeout_s=0.1))
        with pytest.raises(GpuError, match="took longer"):
            engine.activate()
    assert any("one profile instead of 2" in line for line in told)
    told = told_by(engine := make(several=True, cache=tmp_path / "plans"))
    with engine:
        assert engine.profiles == (Span(1, 8, 8),)
    assert any("several were refused before" in line for line in told)


def test_a_graph_of_one_size_is_built_once(simulated_gpu: Any, make: Make) -> None:
    fixed = [("x", TensorProto.FLOAT, [1, 4])]
    model = graph([node("Relu", "x", "y")], fixed, [("y", TensorProto.FLOAT, [1, 4])])
    with make(model, several=True) as engine:
        assert len(engine.profiles) == 1


# ---- nothing grows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_that_comes_and_goes_leaves_nothing_behind(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path], library: str
) -> None:
    cache = kept(edition=library)
    engine = make(edition=library, cache=cache)

    def left() -> tuple[int, int, list[str], int]:
        gc.collect()
        files = sorted(path.name for path in cache.iterdir())
        return len(os.listdir("/proc/self/fd")), threading.active_count(), files, len(gc.get_objects())

    def cycle(times: int) -> None:
        for round_ in range(times):
            with engine:
                for _ in range(2):
                    engine.infer({"x": x_of(1 + round_ % 8)})
                engine.rows(100)

    cycle(5)
    *before, objects = left()
    cycle(20)
    *after, objects_after = left()
    assert after == before
    assert objects_after - objects < 20, "less than one object a cycle"
    assert simulated_gpu.clean() == []
