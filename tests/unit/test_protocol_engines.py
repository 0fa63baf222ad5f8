"""One contract, run on every engine that this machine has. All of them compute y = relu(x) - 1 on rows of four."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from protocol.engines.base import ActivationScope, Engine
from protocol.engines.catalogue import KINDS, EngineOptions, present
from protocol.engines.fake import FakeEngine
from protocol.engines.ort import OrtEngine, first_line, nvidia_folders
from protocol.engines.ort_cuda import BoundOrtEngine
from protocol.errors import EngineError
from protocol.tensors import Array, Tensors, TensorSpec
from tests.processes import ROOT

X = TensorSpec("x", "float32", ("N", 4))
Y = TensorSpec("y", "float32", ("N", 4))


def model_bytes(element: int = TensorProto.FLOAT) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["positive"]), helper.make_node("Sub", ["positive", "one"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", element, ["N", 4])],
        [helper.make_tensor_value_info("y", element, ["N", 4])],
        [helper.make_tensor("one", element, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised


MODEL = model_bytes()


def compute(tensors: Tensors) -> dict[str, Array]:
    (x,) = tensors.values()
    if x.ndim != 2 or x.shape[1] != 4 or x.dtype != np.float32 or list(tensors) != ["x"]:
        raise ValueError("x must be rows of four float32")
    return {"y": np.maximum(x, 0) - 1}


def fake() -> FakeEngine:
    return FakeEngine(compute, label="tiny", inputs=(X,), outputs=(Y,))


def ort() -> OrtEngine:
    return OrtEngine(MODEL, label="tiny")


Make = Callable[[], Any]


def bound() -> BoundOrtEngine:
    return BoundOrtEngine(MODEL, label="tiny", on="cpu")


def by_name(name: str) -> Make:
    """An engine of the catalogue, for a graph of free batch."""
    options = EngineOptions("tiny", max_rows=8, batch_axes={"x": 0})
    return functools.partial(KINDS[name].make, MODEL, options)


FOUND, LACKING = present(KINDS, list(KINDS))
every_engine = pytest.mark.parametrize(
    "make", [fake, ort, bound, *(pytest.param(by_name(name), id=name) for name in FOUND)]
)


@pytest.mark.parametrize("name", LACKING)
def test_an_engine_that_this_machine_lacks_was_not_tried(name: str) -> None:
    pytest.skip(f"{name}: {LACKING[name]}")


@every_engine
def test_it_is_an_engine_and_knows_its_label_before_it_is_active(make: Make) -> None:
    engine = make()
    assert isinstance(engine, Engine)
    assert isinstance(engine, ActivationScope)
    assert engine.label == "tiny"


@every_engine
def test_active_it_says_what_it_takes_what_it_gives_and_what_really_runs(make: Make) -> None:
    with make() as engine:
        assert engine.inputs == (X,)
        assert engine.outputs == (Y,)
        assert engine.description


@every_engine
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_it_computes_by_name_at_any_batch(make: Make, rows: int) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
    with make() as engine:
        outputs = engine.infer({"x": x})
    assert list(outputs) == ["y"]
    assert outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outputs["y"], np.maximum(x, 0) - 1)


@every_engine
def test_inputs_are_left_as_they_were_and_may_be_read_only(make: Make) -> None:
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    before = x.copy()
    x.flags.writeable = False
    with make() as engine:
        engine.infer({"x": x})
    np.testing.assert_array_equal(x, before)


@every_engine
def test_an_answer_is_not_overwritten_by_the_next_one(make: Make) -> None:
    with make() as engine:
        first = engine.infer({"x": np.zeros((1, 4), np.float32)})["y"]
        engine.infer({"x": np.full((1, 4), 9, np.float32)})
        np.testing.assert_array_equal(first, np.full((1, 4), -1, np.float32))


@every_engine
@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"z": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
    ],
    ids=["nothing", "another name", "another width", "another rank", "another type"],
)
def test_tensors_that_do_not_fit_are_an_engine_error_and_leave_it_usable(make: Make, tensors: Tensors) -> None:
    with make() as engine:
        with pytest.raises(EngineError, match="tiny"):
            engine.infer(tensors)
        assert engine.infer({"x": np.ones((1, 4), np.float32)})["y"].shape == (1, 4)


@every_engine
def test_it_does_not_run_before_it_was_activated_or_after_it_gave_everything_back(make: Make) -> None:
    engine = make()
    good = {"x": np.zeros((1, 4), np.float32)}
    with pytest.raises(EngineError, match=r"not active.*activate"):
        engine.infer(good)
    with engine:
        engine.infer(good)
    with pytest.raises(EngineError, match="not active"):
        engine.infer(good)


@every_engine
def test_activating_and_deactivating_twice_is_no_error_and_it_can_come_back(make: Make) -> None:
    engine = make()
    engine.deactivate()
    for _ in range(2):
        engine.activate()
        engine.activate()
        assert engine.infer({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[0, 0, 0, 0]]
        engine.deactivate()
        engine.deactivate()


@every_engine
def test_leaving_the_scope_by_an_error_gives_everything_back(make: Make) -> None:
    engine = make()

    def fail_inside() -> None:
        with engine:
            raise LookupError("while active")

    with pytest.raises(LookupError):
        fail_inside()
    with pytest.raises(EngineError, match="not active"):
        engine.infer({"x": np.zeros((1, 4), np.float32)})


# ---- ONNX Runtime alone ---------------------------------------------------------------------------------------------


def test_what_runs_is_named_with_library_version_and_provider() -> None:
    engine = ort()
    assert engine.description.endswith("/inactive")
    with engine:
        assert engine.description.startswith("onnxruntime-")
        assert engine.description.endswith("/CPUExecutionProvider")


def test_a_provider_that_is_not_there_is_refused_and_never_silently_replaced() -> None:
    engine = OrtEngine(MODEL, label="tiny", providers=("NoSuchExecutionProvider",))
    with pytest.raises(EngineError, match=r"no NoSuchExecutionProvider.*CPUExecutionProvider"):
        engine.activate()


@pytest.mark.parametrize("model", [b"", b"no onnx", MODEL[:-20]])
def test_bytes_that_are_no_model_are_an_engine_error(model: bytes) -> None:
    with pytest.raises(EngineError, match="tiny"):
        OrtEngine(model, label="tiny").activate()


def test_without_optimisation_the_values_are_the_same() -> None:
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    with OrtEngine(MODEL, label="tiny", optimise=False) as engine:
        np.testing.assert_array_equal(engine.infer({"x": x})["y"], np.maximum(x, 0) - 1)


@pytest.mark.parametrize(
    ("element", "name"),
    [(TensorProto.DOUBLE, "float64"), (TensorProto.INT64, "int64"), (TensorProto.FLOAT16, "float16")],
)
def test_element_types_keep_their_names(element: int, name: str) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", element, [None, 2])],
        [helper.make_tensor_value_info("y", element, [None, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with OrtEngine(model.SerializeToString(), label="same") as engine:
        assert engine.inputs == (TensorSpec("x", name, (None, 2)),)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "/onnxruntime_src/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, onnxruntime::Status> "
            "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] "
            "/onnxruntime_src/core/providers/cuda/cuda_call.cc:146 std::conditional_t<THRW, void> CUDA failure 700: an "
            "illegal memory access was encountered ; GPU=0 ; hostname=vm ; expr=cudaStreamSynchronize(0); \n\n",
            "CUDA failure 700: an illegal memory access was encountered",
        ),
        (
            "Error in execution: Non-zero status code returned while running MatMul node. Name:'' Status Message: "
            "/onnxruntime_src/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, "
            "bool, onnxruntime::Stream*) Available memory of 12582912 is smaller than requested bytes of 33554432\n",
            "Error in execution: Non-zero status code returned while running MatMul node. Name:'' Status Message: "
            "Available memory of 12582912 is smaller than requested bytes of 33554432",
        ),
        ("no graph was found\nand more", "no graph was found"),
        ("", "RuntimeError"),
    ],
)
def test_what_the_runtime_fails_of_is_told_without_the_names_of_its_functions(said: str, told: str) -> None:
    assert first_line(RuntimeError(said)) == told


def test_cuda_is_looked_for_where_onnx_runtime_does_not_look_itself(tmp_path: Path) -> None:
    own, empty, other, third = (tmp_path / name for name in ("own", "empty", "other", "third"))
    for site in (other, third):
        for kept in ("nvidia/cu13/lib/libcublas.so.13", "nvidia/cudnn/lib/libcudnn.so.9", "nvidia/cu13/include/a.h"):
            (site / kept).parent.mkdir(parents=True, exist_ok=True)
            (site / kept).touch()
    found = [other / "nvidia" / "cu13" / "lib", other / "nvidia" / "cudnn" / "lib"]
    assert nvidia_folders(own, [str(empty), str(other), str(third)]) == found
    assert nvidia_folders(other, [str(third)]) == []  # it finds its own
    assert nvidia_folders(own, [str(empty)]) == []


def test_strings_are_refused_when_the_graph_is_loaded() -> None:
    text = TensorProto.STRING
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "words",
        [helper.make_tensor_value_info("x", text, [1])],
        [helper.make_tensor_value_info("y", text, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(EngineError, match=r"'x'.*tensor\(string\)"):
        OrtEngine(model.SerializeToString(), label="words").activate()


def test_onnx_runtime_tells_nobody_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own, where nothing that a developer's machine sets keeps it quiet."""
    (tmp_path / "model.onnx").write_bytes(MODEL)
    code = (
        "import os, sys; from protocol.engines.ort import OrtEngine; "
        "OrtEngine(open(sys.argv[1], 'rb').read(), label='tiny').activate(); print(os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]
