"""What this machine has of engines, why it lacks the others, and what an engine's words mean."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from protocol.engines import catalogue
from protocol.engines.catalogue import CPU, KINDS, EngineOptions, Kind, both_onnxruntimes, present
from protocol.engines.causes import Cause, cause_of, is_final
from protocol.engines.fake import FakeEngine
from protocol.engines.ort import OrtEngine, available
from protocol.engines.ort_cuda import BoundOrtEngine
from protocol.engines.trt_options import GpuError
from protocol.errors import EngineError
from tests.unit.test_protocol_engines import MODEL

ROOT = Path(__file__).parents[2]


def test_the_processor_is_always_there_and_stands_last() -> None:
    assert list(KINDS)[-1] == CPU
    assert KINDS[CPU].absent() == ""
    found, absent = present(KINDS, list(KINDS))
    assert found[-1] == CPU
    assert set(found) | set(absent) == set(KINDS)


def test_what_is_lacking_is_said_in_one_sentence_with_a_remedy() -> None:
    _, absent = present(KINDS, list(KINDS))
    for name, reason in absent.items():
        assert "; " in reason, f"{name}: {reason}"
        assert "\n" not in reason


def test_both_builds_of_onnx_runtime_together_are_found_out() -> None:
    here, there = Path("site-packages"), Path("carried")
    assert both_onnxruntimes({"onnxruntime": here}.get) == ""
    assert both_onnxruntimes({"onnxruntime-gpu": here}.get) == ""
    assert "uninstall both, then install onnxruntime-gpu alone" in both_onnxruntimes(lambda name: here)
    assert both_onnxruntimes({"onnxruntime": here, "onnxruntime-gpu": there}.get) == ""


def test_a_build_of_onnx_runtime_that_was_carried_here_does_not_clash_with_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime_gpu-9.9.dist-info").mkdir()
    (tmp_path / "onnxruntime_gpu-9.9.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert both_onnxruntimes() == ""
    (tmp_path / "onnxruntime-9.9.dist-info").mkdir()
    (tmp_path / "onnxruntime-9.9.dist-info" / "METADATA").write_text("Name: onnxruntime\nVersion: 9.9\n")
    importlib.invalidate_caches()
    assert "overwrite each other" in both_onnxruntimes()


def test_only_what_is_ordered_is_asked_for() -> None:
    asked: list[str] = []

    def kind(name: str, absent: str) -> Kind:
        def ask() -> str:
            asked.append(name)
            return absent

        return Kind(name, ask, lambda graph, options: FakeEngine(lambda t: {}, label=options.label))

    kinds = {name: kind(name, absent) for name, absent in (("a", "no a; buy one"), ("b", ""), ("c", ""))}
    assert present(kinds, ["b", "a"]) == (("b",), {"a": "no a; buy one"})
    assert asked == ["b", "a"]


def test_an_engine_for_the_processor_loads_no_library_for_a_gpu() -> None:
    code = (
        "import sys; from protocol.engines.catalogue import KINDS, EngineOptions; "
        "KINDS['onnxruntime-cpu'].make(b'', EngineOptions('x')); KINDS['onnxruntime-cpu'].absent(); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    gpu = {"tensorrt", "tensorrt_rtx", "pycuda", "cuda", "protocol.engines.tensorrt", "protocol.engines.driver"}
    assert not loaded & gpu


def test_without_a_driver_the_driver_is_what_is_missing() -> None:
    reason = catalogue.no_gpu()
    if not reason:
        pytest.skip("this machine has a GPU")
    assert catalogue.gpu_memory() is None
    assert KINDS["tensorrt"].absent() == KINDS["tensorrt-rtx"].absent() == reason


def test_another_package_of_the_name_cuda_is_no_cuda_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "isthmus_cuda" / "core").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalogue._can_import("isthmus_cuda.core")
    assert not catalogue._can_import("isthmus_cuda.bindings")
    assert not catalogue._can_import("isthmus_cuda_of_nobody.bindings")


def test_onnx_runtimes_tensorrt_wants_tensorrt_10_where_the_loader_looks() -> None:
    asked: list[str] = []
    assert catalogue._no_tensorrt_10(asked.append) == ""
    assert asked == ["libnvinfer.so.10"]

    def load(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    assert "libnvinfer.so.10 is not found; install TensorRT 10" in catalogue._no_tensorrt_10(load)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", "out-of-memory"),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 1", "out-of-memory"),
        ("CUBLAS_STATUS_ALLOC_FAILED", "out-of-memory"),
        ("CUDA failure 700: an illegal memory access was encountered", "device-lost"),
        ("cuLaunchKernel failed: unspecified launch failure", "device-lost"),
        ("CUDA error: no CUDA-capable device is detected", "device-lost"),
        ("CUDA failure 702: the launch timed out and was terminated ; GPU=0", "device-lost"),
        ("CUDA failure 714: hardware stack error", "device-lost"),
        ("cuStreamSynchronize failed: an illegal instruction was encountered", "device-lost"),
        ("CUDA failure 716: misaligned address", "device-lost"),
        ("cuCtxSynchronize failed: operation not supported on global/shared address space", "device-lost"),
        ("invalid program counter", "device-lost"),
        ("CUDA failure 721: tensor memory not completely freed", "device-lost"),
        ("CUDA failure 226: Invalid access of peer GPU memory over nvlink or a hardware error", "device-lost"),
        ("CUDA failure 214: uncorrectable ECC error encountered", "device-lost"),
        ("CUDA failure 7001: what is no code of CUDA's", "run-failed"),
        ("CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable", "run-failed"),
        ("cuDevicePrimaryCtxRetain failed: CUDA-capable device(s) is/are busy or unavailable", "run-failed"),
        ("CUDA failure 900: operation not permitted when stream is capturing", "run-failed"),
        ("CUDA failure 9: invalid configuration argument", "run-failed"),
        ("CUDNN_STATUS_EXECUTION_FAILED", "run-failed"),
        ("indices element out of data bounds, idx=13", "other"),
        ("Got invalid dimensions for input: x", "other"),
    ],
)
def test_what_a_library_says_is_understood(words: str, cause: Cause) -> None:
    assert cause_of(EngineError(f"tail failed: {words}", "")) == cause


def test_an_engine_that_says_its_cause_is_believed() -> None:
    assert cause_of(GpuError("out of memory", cause="bad-input")) == "bad-input"
    assert is_final(GpuError("gone", cause="device-lost"))
    assert not is_final(EngineError("device lost", ""))


# ---- binding ---------------------------------------------------------------------------------------------------------


def test_bindings_are_kept_by_shape_and_several_threads_have_one_each() -> None:
    wrong: list[object] = []

    def run(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            x = random.standard_normal((int(random.integers(1, 5)), 4)).astype(np.float32)
            if not np.array_equal(engine.infer({"x": x})["y"], np.maximum(x, 0) - 1):
                wrong.append(x)

    with BoundOrtEngine(MODEL, label="tiny", on="cpu") as engine:
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(engine._free) == 4, "one entry a batch size"
        assert sum(map(len, engine._free.values())) <= 16, "and no more bindings than threads"
    assert not wrong
    assert not engine._free


def test_an_output_may_have_another_shape_in_the_next_run_of_the_same_inputs_shape() -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "where",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, "found"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with BoundOrtEngine(model.SerializeToString(), label="where", on="cpu") as engine:
        first = engine.infer({"x": np.array([1, 0, 1], np.float32)})["y"]
        assert engine.infer({"x": np.array([0, 1, 0], np.float32)})["y"].tolist() == [[1]]
        assert first.tolist() == [[0, 2]]


def test_a_gpu_that_is_not_there_is_refused_and_never_replaced_by_the_processor() -> None:
    if not KINDS["onnxruntime-cuda"].absent():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="no CUDAExecutionProvider"):
        BoundOrtEngine(MODEL, label="tiny").activate()


def test_options_reach_the_engine() -> None:
    engine = KINDS[CPU].make(MODEL, EngineOptions("tiny", threads=2))
    with engine:
        assert engine.label == "tiny"


def test_no_way_of_the_runtime_to_fall_back_by_itself_is_left_open() -> None:
    """Its Python part moves a session to the CPU when a provider fails in a run, unless it is told not to."""
    with OrtEngine(MODEL, label="tiny") as engine:
        assert engine._session is not None
        assert engine._session._enable_fallback is False


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_is_made_without_touching_anything_and_says_what_is_missing_when_it_is_wanted(name: str) -> None:
    if not catalogue.no_gpu():
        pytest.skip("this machine has a GPU")
    options = EngineOptions("tiny", max_rows=8, batch_axes={"x": 0}, gpu_memory_nbytes=1 << 30)
    engine = KINDS[name].make(MODEL, options)
    assert engine.description.startswith(name)
    with pytest.raises(GpuError, match="tiny: no NVIDIA driver") as caught:
        engine.activate()
    assert caught.value.cause == "no-driver"
    assert is_final(caught.value)


def test_a_graph_that_a_provider_would_leave_to_the_processor_is_refused_and_that_is_said() -> None:
    """Azure's provider is in every build and has a kernel for next to nothing: what CUDA is for a few graphs."""
    azure = "AzureExecutionProvider"
    if azure not in available():
        pytest.skip(f"this build has no {azure}")
    with pytest.raises(GpuError, match=f"{azure} has no kernel for some of its nodes.*; run it on") as caught:
        OrtEngine(MODEL, label="tiny", providers=(azure,)).activate()
    assert caught.value.cause == "unsupported-graph"
