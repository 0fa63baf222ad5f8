"""The TensorRT engine on a SIMULATED GPU: threads, contexts, memory, and everything that can go wrong.

What it proves: our calls are made in an order, on threads and with lifetimes that the real libraries demand; every
failure becomes an error with its cause. What it cannot prove: that the real ones compute, or how fast.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from protocol.engines.driver import Driver
from protocol.engines.gpu_memory import open_memory
from protocol.engines.gpu_thread import GpuThreads
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_cache import PlanCache
from protocol.engines.trt_options import GpuError, Span, TrtOptions
from protocol.errors import EngineError
from tests.gpu.conftest import simulated_driver
from tests.gpu.graphs import REFUSED, SCALE, graph, node
from tests.gpu.tiny import MODEL, OPTIONS, Make, x_of, y_of
from tests.waiting import until

# ---- it computes ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pycuda", "cuda-python"])
def library(request: pytest.FixtureRequest, simulated_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two gives memory."""
    if request.param == "cuda-python":
        monkeypatch.setitem(sys.modules, "pycuda", None)
    assert open_memory(0).name == request.param
    return str(request.param)


def test_it_computes_and_leaves_nothing_behind(simulated_gpu: Any, make: Make, library: str) -> None:
    with make() as engine:
        for rows in (1, 8, 3, 1, 1, 8):
            x = x_of(rows, rows)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        assert engine.description == "tensorrt-10.13.3.9/Simulated GPU"
    if library == "pycuda":  # the runtime's contexts live as long as their threads
        assert simulated_gpu.clean() == []
    assert simulated_gpu.violations == []
    assert simulated_gpu.blocks == simulated_gpu.pinned == {}


def test_all_work_is_given_to_the_gpu_by_one_thread(simulated_gpu: Any, make: Make) -> None:
    with make() as first, make(max_batch=4) as second:
        threads = [
            threading.Thread(target=lambda e=engine: [e.infer({"x": x_of(2)}) for _ in range(20)])
            for engine in (first, second, first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert simulated_gpu.launched_on == {"isthmus-gpu-0"}
    assert simulated_gpu.clean() == []


def test_many_callers_each_get_their_own_answer(simulated_gpu: Any, make: Make) -> None:
    wrong = []
    with make() as engine:

        def call(seed: int) -> None:
            for step in range(25):
                x = x_of(1 + (seed + step) % 8, seed * 1000 + step)
                if not np.array_equal(engine.infer({"x": x})["y"], y_of(x)):
                    wrong.append((seed, step))

        threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert simulated_gpu.clean() == []


def test_the_next_batch_is_given_to_the_gpu_before_this_one_is_done(simulated_gpu: Any, make: Make) -> None:
    with make() as engine:
        engine.infer({"x": x_of(1)})
        given = simulated_gpu.calls["record"]
        simulated_gpu.paused.clear()
        callers = [threading.Thread(target=engine.infer, args=({"x": x_of(1)},)) for _ in range(3)]
        for caller in callers:
            caller.start()
        until(lambda: simulated_gpu.calls["record"] == given + 2, "two batches are on the GPU", within_s=20)
        assert any(caller.is_alive() for caller in callers)
        simulated_gpu.paused.set()
        for caller in callers:
            caller.join()


def test_whoever_waits_for_a_slot_when_the_engine_goes_is_told_so(simulated_gpu: Any, make: Make) -> None:
    engine = make(slots=1)
    engine.activate()
    ended: list[object] = []

    def call() -> None:
        try:
            ended.append(engine.infer({"x": x_of(1)}))
        except EngineError as error:
            ended.append(error)

    given = simulated_gpu.calls["record"]
    simulated_gpu.paused.clear()
    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    until(lambda: simulated_gpu.calls["record"] == given + 1, "one of them is on the GPU", within_s=20)
    leaving = threading.Thread(target=engine.deactivate)
    leaving.start()
    simulated_gpu.paused.set()
    for thread in (*callers, leaving):
        thread.join(60)
    assert len(ended) == 4
    assert all(isinstance(end, dict) or "not active" in str(end) for end in ended)
    assert simulated_gpu.clean() == []


def test_a_run_sets_nothing_that_an_earlier_one_set(simulated_gpu: Any, make: Make) -> None:
    with make(slots=1, graphs=False) as engine:
        for _ in range(5):
            engine.infer({"x": x_of(2)})
        made = simulated_gpu.calls["context"]
        for _ in range(5):
            engine.infer({"x": x_of(2)})
        assert simulated_gpu.calls["context"] == made
        assert simulated_gpu.calls["enqueue"] == 10


def test_a_second_run_of_a_shape_is_captured_and_replayed_from_then_on(simulated_gpu: Any, make: Make) -> None:
    with make(slots=1) as engine:
        for seed in range(6):
            x = x_of(2, seed)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        assert simulated_gpu.calls["enqueue"] == 2  # plainly, and into the capture
        assert simulated_gpu.calls["launch_graph"] == 5
        assert engine.graphs == "1 CUDA graphs"


def test_of_too_many_shapes_the_one_unused_for_longest_goes(simulated_gpu: Any, make: Make) -> None:
    with make(slots=1, most_graphs=2) as engine:
        for rows in (1, 1, 2, 2, 1, 3, 1, 2):
            x = x_of(rows)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        assert simulated_gpu.calls["destroy_executable"] == 1  # of two rows; three rows were never captured


@pytest.mark.parametrize("call", ["capture", "instantiate"])
def test_what_cannot_be_captured_is_enqueued_plainly_and_not_tried_for_ever(
    simulated_gpu: Any, make: Make, call: str
) -> None:
    with make(slots=1) as engine:
        for seed in range(40):
            simulated_gpu.fail(call, "CAPTURE")
            x = x_of(2, seed)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        assert simulated_gpu.calls["launch_graph"] == 0
        assert simulated_gpu.calls["capture"] == 3
        assert "CaptureUnsupported" in engine.graphs
        simulated_gpu.faults.clear()
    assert simulated_gpu.clean() == []


def test_an_engine_that_fails_while_another_is_captured_does_not_take_the_gpu_for_lost(
    simulated_gpu: Any, make: Make, library: str
) -> None:
    """To ask the device whether it is well is to wait for it, which CUDA allows nobody during a capture."""
    with make(slots=1) as first, make(slots=1, graphs=False) as second:
        first.infer({"x": x_of(1)})
        second.infer({"x": x_of(2)})
        simulated_gpu.recording.clear()
        answers: list[Any] = []
        captured = threading.Thread(target=lambda: answers.append(first.infer({"x": x_of(1)})))
        captured.start()
        until(lambda: simulated_gpu.calls["end_capture"] == 1, "the first is being captured", within_s=20)
        simulated_gpu.fail("record", "INVALID_VALUE")
        failures: list[GpuError] = []

        def fail() -> None:
            with pytest.raises(GpuError) as failed:
                second.infer({"x": x_of(2)})
            failures.append(failed.value)

        failing = threading.Thread(target=fail)
        failing.start()
        failing.join(0.3)  # it waits for the capture, or has spoilt it by then
        simulated_gpu.recording.set()
        failing.join(60)
        captured.join(60)
        assert [failure.cause for failure in failures] == ["run-failed"]
        assert len(answers) == 1
        assert first.graphs == "1 CUDA graphs"
        np.testing.assert_array_equal(second.infer({"x": x_of(2)})["y"], y_of(x_of(2)))


def test_a_device_that_somebody_else_captures_on_is_not_lost(simulated_gpu: Any, make: Make, library: str) -> None:
    with make() as engine:
        stranger = simulated_gpu.new_stream()
        simulated_gpu.begin_capture(stranger)
        simulated_gpu.fail("record", "INVALID_VALUE")
        with pytest.raises(GpuError) as failed:
            engine.infer({"x": x_of(1)})
        assert failed.value.cause == "run-failed"
        with pytest.raises(Exception, match="INVALIDATED"):
            simulated_gpu.end_capture(stranger)
        del simulated_gpu.streams[stranger]
        np.testing.assert_array_equal(engine.infer({"x": x_of(1)})["y"], y_of(x_of(1)))


def test_a_capture_that_somebody_else_spoilt_is_tried_again(simulated_gpu: Any, make: Make) -> None:
    with make(slots=1) as engine:
        engine.infer({"x": x_of(2)})
        simulated_gpu.recording.clear()
        second = threading.Thread(target=engine.infer, args=({"x": x_of(2)},))
        second.start()
        until(lambda: simulated_gpu.calls["end_capture"] == 1, "a capture is under way", within_s=20)
        with pytest.raises(Exception, match="CAPTURE"):
            simulated_gpu.synchronize()  # as a library would that knows nothing of ours
        simulated_gpu.recording.set()
        second.join(60)
        assert "CaptureInvalidated" in engine.graphs
        for seed in range(6):
            x = x_of(2, seed)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        assert simulated_gpu.calls["capture"] == 2
        assert engine.graphs == "1 CUDA graphs"


def test_nothing_is_captured_while_a_plan_is_loaded_and_it_is_made_up_for(simulated_gpu: Any, make: Make) -> None:
    with make(slots=1) as engine, make(max_batch=4) as later:
        later.deactivate()
        engine.infer({"x": x_of(2)})
        simulated_gpu.loading.clear()
        loaded = simulated_gpu.calls["deserialize"]
        loading = threading.Thread(target=later.activate)
        loading.start()
        until(lambda: simulated_gpu.calls["deserialize"] == loaded + 1, "a plan is being loaded", within_s=60)
        for _ in range(4):
            engine.infer({"x": x_of(2)})
        assert simulated_gpu.calls["capture"] == 0
        simulated_gpu.loading.set()
        loading.join(60)
        for _ in range(8):
            engine.infer({"x": x_of(2)})
        assert engine.graphs == "1 CUDA graphs"


def test_without_cuda_python_it_enqueues_plainly(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with make(slots=1) as engine:
        for _ in range(3):
            engine.infer({"x": x_of(2)})
        assert simulated_gpu.calls["enqueue"] == 3


def test_several_profiles_each_serve_their_batches(simulated_gpu: Any, make: Make) -> None:
    with make(batches=(Span(1, 1, 1), Span(2, 8, 8))) as engine:
        for rows in (1, 5, 8, 1):
            x = x_of(rows, rows)
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        with pytest.raises(GpuError, match=r"no profile takes 'x' \[9, 4\] \(at most \[8, 4\]\)"):
            engine.infer({"x": x_of(9)})


def test_eight_bits_come_in_and_go_through_cast_sub_mul(simulated_gpu: Any, make: Make) -> None:
    steps = [node("Cast", "x", "c", to=TensorProto.FLOAT), node("Sub", "c z", "d"), node("Mul", "d s", "y")]
    model = graph(steps, [("x", TensorProto.UINT8, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])],
                  [SCALE, ("z", np.float32(131))])  # fmt: skip
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with make(model) as engine:
        y = engine.infer({"x": codes})["y"]
    np.testing.assert_allclose(y, (codes.astype(np.float32) - 131) * np.float32(0.1))


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_inputs_in_pinned_rows_are_copied_from_where_they_lie(simulated_gpu: Any, make: Make) -> None:
    with make() as engine:
        rows = engine.rows(4 * 16)
        x = rows[: 3 * 16].view(np.float32).reshape(3, 4)
        x[:] = x_of(3)
        sources = []
        copy = simulated_gpu.copy

        def spy(to: int, source: int, nbytes: int, *, inwards: bool, **more: Any) -> None:
            sources.extend([source] if inwards else [])
            copy(to, source, nbytes, inwards=inwards, **more)

        simulated_gpu.copy = spy
        try:
            np.testing.assert_array_equal(engine.infer({"x": x})["y"], y_of(x))
        finally:
            del simulated_gpu.copy
        assert sources == [x.ctypes.data]
    assert simulated_gpu.clean() == []
    owner = rows.base
    assert owner is not None
    assert owner.array.ctypes.data == rows.ctypes.data, "the memory outlives the engine"


def test_rows_are_unpinned_when_nobody_looks_at_them_any_more(simulated_gpu: Any, make: Make) -> None:
    with make() as engine:
        before = set(simulated_gpu.pinned)
        rows = engine.rows(100)
        view = rows[:64].view(np.float32).reshape(4, 4)[1:]
        (address,) = set(simulated_gpu.pinned) - before
        del rows
        gc.collect()
        engine.infer({"x": view})
        assert address in simulated_gpu.pinned
        del view
        gc.collect()
        until(lambda: address not in simulated_gpu.pinned, "the rows are unpinned", within_s=20)
    assert simulated_gpu.clean() == []


def test_inputs_that_are_not_contiguous_or_read_only_are_taken(simulated_gpu: Any, make: Make) -> None:
    wide = x_of(8).repeat(2, axis=1)
    wide.flags.writeable = False
    with make() as engine:
        np.testing.assert_array_equal(engine.infer({"x": wide[::2, ::2]})["y"], y_of(wide[::2, ::2]))
    assert simulated_gpu.violations == []


def test_a_budget_that_is_too_small_is_refused_before_anything_is_taken(simulated_gpu: Any, make: Make) -> None:
    engine = make(memory_nbytes=5000)
    with pytest.raises(GpuError, match="may have 0") as refused:
        engine.activate()
    assert (refused.value.cause, refused.value.is_final) == ("out-of-memory", False)
    assert simulated_gpu.calls["allocate"] == 0
    assert simulated_gpu.clean() == []


@pytest.mark.parametrize("after", range(4))
def test_memory_that_cannot_be_pinned_is_an_error_and_everything_taken_is_given_back(
    simulated_gpu: Any, make: Make, library: str, after: int
) -> None:
    engine = make()
    simulated_gpu.fail("pin", "OUT_OF_MEMORY", after=after)
    with pytest.raises(GpuError, match="no memory left") as refused:
        engine.activate()
    assert refused.value.cause == "out-of-memory"
    assert simulated_gpu.violations == []
    assert simulated_gpu.blocks == simulated_gpu.pinned == {}


@pytest.mark.parametrize("after", range(6))
def test_a_gpu_without_room_is_an_error_and_everything_taken_is_given_back(
    simulated_gpu: Any, make: Make, after: int
) -> None:
    engine = make()
    simulated_gpu.fail("allocate", "OUT_OF_MEMORY", after=after)
    with pytest.raises(GpuError, match="tiny: the GPU has no memory left") as refused:
        engine.activate()
    assert refused.value.cause == "out-of-memory"
    assert simulated_gpu.clean() == []
    engine.activate()  # there is room now
    np.testing.assert_array_equal(engine.infer({"x": x_of(1)})["y"], y_of(x_of(1)))


# ---- runs that fail -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["enqueue", "context"])
def test_a_run_that_is_refused_fails_alone(simulated_gpu: Any, make: Make, call: str) -> None:
    with make(graphs=False) as engine:
        engine.infer({"x": x_of(1)})
        simulated_gpu.fail(call, "ANYTHING")
        with pytest.raises(GpuError, match="tiny failed") as failed:
            engine.infer({"x": x_of(5)})
        assert failed.value.cause == ("run-failed" if call == "enqueue" else "out-of-memory")
        assert not failed.value.is_final
        np.testing.assert_array_equal(engine.infer({"x": x_of(5)})["y"], y_of(x_of(5)))
    assert simulated_gpu.clean() == []


@pytest.mark.parametrize("call", ["copy_in", "record", "wait"])
def test_a_call_that_fails_once_leaves_the_engine_usable(simulated_gpu: Any, make: Make, call: str) -> None:
    with make() as engine:
        simulated_gpu.fail(call, "INVALID_VALUE")
        with pytest.raises(GpuError, match="refuses a call") as failed:
            engine.infer({"x": x_of(1)})
        assert failed.value.cause == "run-failed"
        np.testing.assert_array_equal(engine.infer({"x": x_of(2)})["y"], y_of(x_of(2)))


def test_a_lost_device_fails_every_engine_at_once_and_for_good(simulated_gpu: Any, make: Make, library: str) -> None:
    first, second = make(), make(max_batch=2)
    with first, second:
        simulated_gpu.sticky = "ILLEGAL_ADDRESS"
        with pytest.raises(GpuError, match="lost") as failed:
            first.infer({"x": x_of(1)})
        assert (failed.value.cause, failed.value.is_final) == ("device-lost", True)
        with pytest.raises(GpuError, match="lost"):
            second.infer({"x": x_of(1)})
        calls = simulated_gpu.calls.total()
        with pytest.raises(GpuError, match="restart"):
            first.infer({"x": x_of(1)})
        assert simulated_gpu.calls.total() == calls, "a lost device is not asked again"
    with pytest.raises(GpuError, match="lost"):
        first.activate()


def test_a_gpu_that_hangs_is_lost_after_the_timeout(simulated_gpu: Any, make: Make) -> None:
    with make(run_timeout_s=0.3, slots=1) as engine:
        engine.infer({"x": x_of(1)})  # the first run of a shape may take long
        until(lambda: time.monotonic() - engine._gpu._slow_ended > 0.3, "nothing slow is going on", within_s=20)
        simulated_gpu.hangs = True
        with pytest.raises(GpuError, match="not answered within 0 s") as failed:
            engine.infer({"x": x_of(1)})
        assert failed.value.cause == "device-lost"
    simulated_gpu.hangs = False


def test_whoever_waits_behind_something_slow_does_not_take_the_gpu_for_lost(simulated_gpu: Any, make: Make) -> None:
    with make(run_timeout_s=1.0, slots=1) as engine:
        engine.infer({"x": x_of(1)})
        started, go_on = threading.Event(), threading.Event()
        gpu = engine._gpu
        assert gpu is not None

        def slow() -> None:
            started.set()
            go_on.wait(20)

        other = threading.Thread(target=lambda: gpu.call(slow, timeout_s=60))
        other.start()
        started.wait(20)
        answers: list[Any] = []
        caller = threading.Thread(target=lambda: answers.append(engine.infer({"x": x_of(1)})))
        caller.start()
        caller.join(1.6)  # longer than its timeout
        assert caller.is_alive()
        go_on.set()
        caller.join()
        other.join()
        assert len(answers) == 1


@pytest.mark.parametrize("call", ["init", "retain", "push"])
def test_a_context_that_cannot_be_had_is_said_at_activation(simulated_gpu: Any, make: Make, call: str) -> None:
    simulated_gpu.fail(call, "INVALID_DEVICE")
    with pytest.raises(GpuError, match="INVALID_DEVICE"):
        make().activate()


def test_a_driver_too_old_for_the_libraries_is_said_and_not_asked_again(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    simulated_gpu.fail("push", "OLD_DRIVER")
    with pytest.raises(GpuError, match="driver is older than the installed CUDA libraries") as refused:
        make().activate()
    assert (refused.value.cause, refused.value.is_final) == ("no-driver", True)


@pytest.mark.parametrize(
    "tensors",
    [{}, {"z": x_of(1)}, {"x": x_of(1)[0]}, {"x": x_of(1).astype(np.float64)}, {"x": x_of(9)}],
    ids=["nothing", "another name", "another rank", "another type", "too many rows"],
)
def test_tensors_that_do_not_fit_touch_no_gpu(simulated_gpu: Any, make: Make, tensors: Any) -> None:
    with make() as engine:
        calls = simulated_gpu.calls.total()
        with pytest.raises(GpuError, match="tiny failed") as refused:
            engine.infer(tensors)
        assert (refused.value.cause, refused.value.is_final) == ("bad-input", False)
        assert simulated_gpu.calls.total() == calls


# ---- what stands in the way of a plan -------------------------------------------------------------------------------


def test_a_machine_without_a_driver_touches_no_library(simulated_gpu: Any) -> None:
    engine = TensorRtEngine(MODEL, label="tiny", options=OPTIONS, driver=lambda: "there is none")
    with pytest.raises(GpuError, match="tiny: there is none") as refused:
        engine.activate()
    assert refused.value.cause == "no-driver"
    assert "tensorrt" not in sys.modules


def test_a_gpu_that_is_not_there_is_named(simulated_gpu: Any, make: Make) -> None:
    with pytest.raises(GpuError, match="there is no GPU 3; this machine has 1"):
        make(device=3).activate()


def test_a_library_that_is_missing_says_how_to_install_it(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(GpuError, match=r"tensorrt cannot be loaded.*pip install tensorrt") as refused:
        make().activate()
    assert (refused.value.cause, refused.value.is_final) == ("no-library", True)


def test_without_pycuda_and_cuda_python_it_says_what_to_install(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pycuda", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GpuError, match=r"neither pycuda .* cuda-bindings") as refused:
        make().activate()
    assert refused.value.cause == "no-library"


def test_an_old_library_is_refused(simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt, "__version__", "8.6.1")
    with pytest.raises(GpuError, match=r"8\.6\.1; 10\.3 or newer"):
        make().activate()


def test_a_graph_that_we_refuse_never_reaches_the_library(simulated_gpu: Any, make: Make) -> None:
    with pytest.raises(GpuError, match="tiny: TensorRT does not take this graph") as refused:
        make(REFUSED[0].model).activate()
    assert refused.value.cause == "unsupported-graph"
    assert "tensorrt" not in sys.modules


# ---- building -------------------------------------------------------------------------------------------------------


def built(make: Make, monkeypatch: pytest.MonkeyPatch, how: str, **changes: Any) -> TensorRtEngine:
    monkeypatch.setenv("ISTHMUS_SIMULATED_BUILD", how)
    engine = make(cache=None, **changes)
    engine.activate()
    return engine


def test_the_parsers_own_words_are_passed_on(simulated_gpu: Any, make: Make) -> None:
    square = graph([node("Det", "x", "y")], [("x", TensorProto.FLOAT, [3, 3])], [("y", TensorProto.FLOAT, [])])
    with pytest.raises(GpuError, match=r"this operator is refused \(node 'the_node', Det\)") as refused:
        make(square, cache=None).activate()
    assert refused.value.cause == "unsupported-graph"


@pytest.mark.parametrize(
    ("how", "words", "cause"),
    [
        ("crash", "ended by signal 6", "build-failed"),
        ("nothing", "no plan could be built: no tactic", "build-failed"),
        ("memory", "out of memory", "out-of-memory"),
    ],
)
def test_a_build_that_fails_is_told_with_its_reason(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch, how: str, words: str, cause: str
) -> None:
    with pytest.raises(GpuError, match=words) as failed:
        built(make, monkeypatch, how)
    assert failed.value.cause == cause
    assert not failed.value.is_final
    assert simulated_gpu.calls.total() == 0


def test_a_build_that_hangs_is_ended_after_the_timeout(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GpuError, match="took longer than") as failed:
        built(make, monkeypatch, "hang", build_timeout_s=0.2)
    assert failed.value.cause == "build-timeout"


def test_an_engine_no_longer_wanted_gives_up_its_build(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTHMUS_SIMULATED_BUILD", "hang")
    told: list[str] = []
    engine = TensorRtEngine(MODEL, label="tiny", options=OPTIONS, told=told.append, driver=simulated_driver)
    failed: list[EngineError] = []

    def activate() -> None:
        with contextlib.suppress(GpuError):
            try:
                engine.activate()
            except EngineError as error:
                failed.append(error)
                raise

    thread = threading.Thread(target=activate)
    thread.start()
    until(lambda: any("Building engine" in line for line in told), "the build has begun", within_s=60)
    engine.deactivate()
    thread.join()
    assert "given up" in str(failed[0])


def test_a_library_that_talks_on_standard_output_is_not_taken_for_the_child(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with built(make, monkeypatch, "words") as engine:
        assert engine.infer({"x": x_of(1)})


def test_every_flag_reaches_the_builder(simulated_gpu: Any, make: Make) -> None:
    with make(tf32=True, optimisation=5, version_compatible=True, same_capability=True, cache=None) as engine:
        assert engine.build_s is not None


# ---- the cache ------------------------------------------------------------------------------------------------------


def sentences(engine: TensorRtEngine) -> list[str]:
    told: list[str] = []
    engine._told = told.append
    engine.activate()
    engine.deactivate()
    return told


def test_a_plan_is_built_once(simulated_gpu: Any, make: Make, tmp_path: Path) -> None:
    cache = tmp_path / "plans"
    assert any("is being built" in line for line in sentences(make(cache=cache)))
    assert sentences(make(cache=cache)) == ["tiny: the plan was built here before"]
    assert any("is being built" in line for line in sentences(make(cache=cache, max_batch=4)))


def test_a_plan_that_another_process_builds_is_waited_for(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path], tmp_path: Path
) -> None:
    cache = kept()
    elsewhere = [path.rename(tmp_path / path.name) for path in cache.glob("*.plan")]
    told: list[str] = []
    engine = make(cache=cache)
    engine._told = told.append
    with PlanCache(cache).turn(lambda: False, timeout_s=0):
        thread = threading.Thread(target=engine.activate)
        thread.start()
        until(lambda: "tiny: another process is building a plan, which is waited for" in told, "it waits")
        for path in elsewhere:
            path.rename(cache / path.name)
    thread.join(20)
    assert told[-1] == "tiny: another process built the plan meanwhile"
    assert engine.build_s is None


def test_an_engine_no_longer_wanted_does_not_wait_for_another_process(
    simulated_gpu: Any, make: Make, tmp_path: Path
) -> None:  # fmt: skip
    cache = PlanCache(tmp_path / "plans")
    cache.write({"graph": "any"}, b"plan")
    told: list[str] = []
    engine = make(cache=tmp_path / "plans")
    engine._told = told.append
    failed: list[EngineError] = []

    def activate() -> None:
        try:
            engine.activate()
        except EngineError as error:
            failed.append(error)

    with cache.turn(lambda: False, timeout_s=0):
        thread = threading.Thread(target=activate)
        thread.start()
        until(lambda: any("waited for" in line for line in told), "it waits")
        engine.deactivate()
        thread.join(20)
    assert "given up" in str(failed[0])


def test_a_disk_without_room_to_build_is_said_and_nothing_is_left_there(
    simulated_gpu: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("protocol.engines.trt_build.PlanBuild._lay_out", full)
        with pytest.raises(GpuError, match=r"no room to build a plan.*TMPDIR") as refused:
            make(cache=None).activate()
    assert refused.value.cause == "build-failed"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_starts_no_more_processes_is_an_error(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", none)
    with pytest.raises(GpuError, match="cannot be built here") as refused:
        make(cache=None).activate()
    assert refused.value.cause == "build-failed"


def test_what_builders_measured_is_begun_anew_before_it_grows_without_bound(
    simulated_gpu: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.engines.trt_plans.MOST_TIMING_NBYTES", 1)
    cache = tmp_path / "plans"
    known = {"timing": "tensorrt 10.13.3.9", "gpu": "Simulated GPU"}
    lengths = []
    for most in (3, 4, 5):
        sentences(make(cache=cache, max_batch=most))
        measured = PlanCache(cache).read(known)
        assert isinstance(measured, bytes)
        lengths.append(len(measured))
    assert lengths == [1, 2, 1]  # every build adds one


def test_a_plan_that_somebody_changed_is_built_again(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path]
) -> None:  # fmt: skip
    cache = kept()
    for path in cache.glob("*.plan"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert any("seal does not hold" in line for line in sentences(make(cache=cache)))


def test_a_plan_that_the_library_no_longer_loads_is_built_again(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    cache = kept()
    monkeypatch.setattr(tensorrt, "_MAGIC", b"a newer plan\n")
    engine = make(cache=cache)
    told: list[str] = []
    engine._told = told.append
    with pytest.raises(GpuError, match="the plan is refused: magic tag"):
        engine.activate()  # the child builds with the old magic still
    assert any("the kept one did not load" in line for line in told)
    assert simulated_gpu.clean() == []


def test_a_cache_that_is_open_to_others_stops_the_engine(simulated_gpu: Any, make: Make, tmp_path: Path) -> None:
    cache = tmp_path / "plans"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(GpuError, match="open to others"):
        make(cache=cache).activate()


def test_a_driver_that_went_away_is_asked_again_at_each_activation(simulated_gpu: Any, plans: Path) -> None:
    answers: list[Driver | str] = [simulated_driver(), "the driver went away"]
    engine = TensorRtEngine(
        MODEL, label="tiny", options=TrtOptions(max_batch=8, cache=plans), driver=lambda: answers.pop(0),
        threads=GpuThreads(),
    )  # fmt: skip
    with engine:
        pass
    with pytest.raises(GpuError, match="went away"):
        engine.activate()
