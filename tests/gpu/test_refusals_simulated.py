"""What TensorRT refuses when a plan is loaded or built, on a SIMULATED GPU: the reason is told, what follows fits it.

The library says little: no engine, no context, a bare TypeError, and lines in its log. Whether a plan is to be built
again, asked for later or never again depends on what they mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_options import GpuError
from tests.gpu.graphs import graph, node
from tests.gpu.tiny import ROWS, Make, x_of, y_of
from tests.waiting import until


def told_of(engine: TensorRtEngine) -> list[str]:
    told: list[str] = []
    engine._told = told.append
    return told


@pytest.mark.parametrize("call", ["deserialize", "runtime"])
def test_a_plan_that_finds_no_room_on_the_gpu_is_not_built_again(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path], call: str
) -> None:
    engine = make(cache=kept())
    told = told_of(engine)
    simulated_gpu.fail(call, "OUT_OF_MEMORY")
    with pytest.raises(GpuError, match="OutOfMemory") as refused:
        engine.activate()
    assert (refused.value.cause, refused.value.is_final) == ("out-of-memory", False)
    assert not any("being built" in line for line in told)
    assert simulated_gpu.clean() == []
    engine.activate()  # there is room now
    np.testing.assert_array_equal(engine.infer({"x": x_of(2)})["y"], y_of(x_of(2)))


@pytest.mark.parametrize("call", ["deserialize", "runtime"])
def test_a_device_that_another_library_lost_is_not_taken_for_a_bad_plan(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path], call: str
) -> None:
    """ONNX Runtime in the same process has the same context: after its failed kernel no plan loads any more."""
    engine = make(cache=kept())
    told = told_of(engine)
    simulated_gpu.fail(call, "ILLEGAL_ADDRESS")
    with pytest.raises(GpuError, match="illegal memory access") as refused:
        engine.activate()
    assert (refused.value.cause, refused.value.is_final) == ("device-lost", True)
    assert not any("being built" in line for line in told)
    simulated_gpu.sticky = ""


def test_words_of_an_earlier_failure_are_not_taken_for_this_ones(
    simulated_gpu: Any, make: Make, kept: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt

    engine = make(cache=kept())
    simulated_gpu.fail("deserialize", "OUT_OF_MEMORY")
    with pytest.raises(GpuError, match="OutOfMemory"):
        engine.activate()
    monkeypatch.setattr(tensorrt, "_MAGIC", b"a newer plan\n")
    with pytest.raises(GpuError, match="magic tag") as refused:
        engine.activate()
    assert refused.value.cause == "build-failed"
    assert "memory" not in str(refused.value)


@pytest.mark.parametrize("call", ["set_input_shape", "infer_shapes"])
def test_what_the_bindings_raise_is_an_error_of_ours(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Some calls return False, some None, and some raise."""
    with make() as engine:
        engine.infer({"x": x_of(1)})
        import tensorrt

        def refuse(*_: object) -> None:
            raise RuntimeError("infer_shapes error code: -1")

        with monkeypatch.context() as real:
            real.setattr(tensorrt.IExecutionContext, call, refuse)
            with pytest.raises(GpuError, match="error code: -1") as failed:
                engine.infer({"x": x_of(3)})
        assert failed.value.cause == "run-failed"
        np.testing.assert_array_equal(engine.infer({"x": x_of(3)})["y"], y_of(x_of(3)))
    assert simulated_gpu.clean() == []


def test_an_output_that_the_library_gives_on_the_host_is_refused(simulated_gpu: Any, make: Make) -> None:
    """Given an address of the GPU, the processor would write there: the end of the process."""
    model = graph(
        [node("Relu", "x", "y"), node("Shape", "x", "s")],
        ROWS, [("y", TensorProto.FLOAT, ["N", 4]), ("s", TensorProto.INT64, [2])],
    )  # fmt: skip
    with pytest.raises(GpuError, match="'s' is a tensor of the processor's") as refused:
        make(model).activate()
    assert (refused.value.cause, refused.value.is_final) == ("unsupported-graph", True)
    assert simulated_gpu.clean() == []


def test_a_plan_that_outlives_updates_loads(simulated_gpu: Any, make: Make) -> None:
    """It carries code for the processor, which the library runs only if it is told to."""
    with make(version_compatible=True) as engine:
        np.testing.assert_array_equal(engine.infer({"x": x_of(2)})["y"], y_of(x_of(2)))


def test_what_was_timed_on_another_device_does_not_cost_the_plan(
    simulated_gpu: Any, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "plans"
    with make(cache=cache, max_batch=3):
        pass
    monkeypatch.setenv("ISTHMUS_SIMULATED_BUILD", "other device")
    with make(cache=cache, max_batch=4) as engine:
        assert engine.build_s is not None


@pytest.mark.parametrize(
    ("version", "is_taken"), [("12.8.0", False), ("12.9.0", False), ("12.9.1", True), ("13.0.0", True)]
)
def test_a_cuda_python_that_stops_every_thread_while_it_waits_is_refused(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch, version: str, is_taken: bool
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    import cuda.bindings

    monkeypatch.setattr(cuda.bindings, "__version__", version)
    if is_taken:
        with make() as engine:
            np.testing.assert_array_equal(engine.infer({"x": x_of(2)})["y"], y_of(x_of(2)))
        return
    with pytest.raises(GpuError, match=f"cuda-bindings is {version}.*>=12.9.1") as refused:
        make().activate()
    assert refused.value.cause == "no-library"


def test_an_error_that_was_told_is_not_found_again_by_a_library_on_the_same_thread(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA keeps the last error of each thread, and TensorRT asks for it after its own calls."""
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with make(slots=1) as engine:
        engine.infer({"x": x_of(1)})
        simulated_gpu.fail("unpin", "INVALID_VALUE")
        rows = engine.rows(64)
        address = rows.ctypes.data
        del rows
        until(lambda: address not in engine._session._pinned, "the rows were let go", within_s=20)
        np.testing.assert_array_equal(engine.infer({"x": x_of(3)})["y"], y_of(x_of(3)))
        simulated_gpu.pinned.pop(address)


@pytest.mark.parametrize("library", ["pycuda", "cuda-python"])
def test_where_no_memory_can_be_pinned_it_computes_all_the_same_and_says_so(
    simulated_gpu: Any, make: Make, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    if library == "cuda-python":
        monkeypatch.setitem(sys.modules, "pycuda", None)
    simulated_gpu.pins_nothing = True
    engine = make()
    told = told_of(engine)
    with engine:
        rows = engine.rows(64)[:32].view(np.float32).reshape(2, 4)
        rows[:] = x_of(2)
        for _ in range(3):
            np.testing.assert_array_equal(engine.infer({"x": rows})["y"], y_of(x_of(2)))
    assert any("it pins no memory" in line and "upported" in line.lower() for line in told)
    assert simulated_gpu.violations == []
    assert simulated_gpu.blocks == {}
