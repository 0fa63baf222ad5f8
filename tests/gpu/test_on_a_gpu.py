"""What only a real GPU can show. Skipped, with the driver's own reason, where there is none.

Every engine that the machine has computes what ONNX Runtime computes on the processor, within a stated tolerance;
memory and streams of both libraries move bytes; CUDA graphs replay; and of TensorRT-RTX the verdict on this GPU is
known. Each engine that is missing is a skip with its reason, so that a report shows what was not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from partitioner.crossing.half_tail import in_half
from protocol.engines.catalogue import CPU, KINDS, EngineOptions
from protocol.engines.driver import Driver, probe
from protocol.engines.gpu_memory import GpuMemory, aligned
from protocol.engines.gpu_thread import GpuThreads, Watcher
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_options import GpuError
from protocol.tensors import TensorSpec
from tests import models

pytestmark = pytest.mark.gpu
DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
ON_GPU = [name for name in KINDS if name != CPU]
# Largest difference over the largest magnitude. TF32 and FP16 have 10 bits of fraction, sums run in another order.
TOLERANCE, HALF_TOLERANCE = 2e-3, 2e-2


def feed_of(specs: tuple[TensorSpec, ...], rows: int) -> dict[str, Any]:
    chance = np.random.default_rng(rows)
    feed = {}
    for spec in specs:
        shape = [d if isinstance(d, int) else rows for d in spec.shape]
        floats = np.dtype(spec.dtype).kind == "f"
        feed[spec.name] = (chance.standard_normal(shape) if floats else chance.integers(0, 255, shape)).astype(
            spec.dtype
        )
    return feed


def relative(a: Any, b: Any) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() / max(np.abs(b).max(), 1e-9))


def engine_of(name: str, graph: bytes, cache: Path) -> Any:
    if reason := KINDS[name].absent():
        pytest.skip(f"not run: {name}: {reason}")
    engine = KINDS[name].make(graph, EngineOptions("tail", max_rows=8, batch_axes={}, cache_dir=cache))
    try:
        engine.activate()
    except GpuError as error:
        if name == "tensorrt-rtx" and error.cause in ("build-failed", "unsupported-graph"):
            pytest.skip(f"not run: TensorRT-RTX's verdict on this GPU: {error}")
        raise
    return engine


@pytest.mark.parametrize("name", ON_GPU)
@pytest.mark.parametrize(("form", "tolerance"), [("fp32", TOLERANCE), ("fp16", HALF_TOLERANCE)], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    "make", [lambda: DIGITS.read_bytes(), lambda: models.residual().SerializeToString()], ids=["digits", "residual"]
)
def test_every_engine_computes_what_the_processor_computes(
    name: str, form: str, tolerance: float, make: Callable[[], bytes], tmp_path: Path
) -> None:
    graph = make()
    engine = engine_of(name, graph if form == "fp32" else in_half(graph), tmp_path / "plans")
    with engine, OrtEngine(graph, label="reference") as reference:
        for rows in (1, 3, 8, 8, 1):
            feed = feed_of(reference.inputs, rows)
            expected, got = reference.infer(feed), engine.infer(feed)
            for output, array in expected.items():
                assert relative(got[output], array) < tolerance, (output, rows)


@pytest.fixture(params=["pycuda", "cuda-python"])
def memory(request: pytest.FixtureRequest) -> Callable[[int], GpuMemory]:
    if request.param == "pycuda":
        pytest.importorskip("pycuda", reason="not run: pycuda is not installed")
        from protocol.engines.cuda_memory import PycudaMemory

        return PycudaMemory
    pytest.importorskip("cuda.bindings", reason="not run: cuda-python is not installed")
    from protocol.engines.cuda_runtime import RuntimeMemory

    return RuntimeMemory


def test_bytes_go_to_the_gpu_and_come_back(memory: Callable[[int], GpuMemory]) -> None:
    threads = GpuThreads(memory)
    gpu = threads.hold(0)
    watcher = Watcher(gpu, "test")
    sent, got = aligned(1 << 20), aligned(1 << 20)
    sent[:] = np.random.default_rng(0).integers(0, 255, sent.size, np.uint8)
    made: dict[str, Any] = {}

    def make() -> None:
        made.update(stream=gpu.memory.stream(), event=gpu.memory.event(), block=gpu.memory.allocate(sent.nbytes))
        made["unpin"] = [gpu.memory.pin(sent), gpu.memory.pin(got)]

    def launch() -> Any:
        gpu.memory.copy_in(made["block"].address, sent, made["stream"])
        gpu.memory.copy_out(got, made["block"].address, made["stream"])
        gpu.memory.record(made["event"], made["stream"])
        return made["event"]

    def free() -> None:
        made["block"].free()
        for unpin in made["unpin"]:
            unpin()
        gpu.memory.drop(made.pop("stream"), made.pop("event"))
        made.clear()

    gpu.call(make, timeout_s=60)
    watcher.run(launch, timeout_s=60)
    np.testing.assert_array_equal(got, sent)
    gpu.call(free, timeout_s=60)
    watcher.stop()
    threads.release(0)


def test_more_than_the_gpu_has_is_out_of_memory_and_leaves_it_well(memory: Callable[[int], GpuMemory]) -> None:
    threads = GpuThreads(memory)
    gpu = threads.hold(0)
    found = probe()
    assert isinstance(found, Driver)
    with pytest.raises(GpuError) as refused:
        gpu.call(lambda: gpu.memory.allocate(2 * found.devices[0].memory_nbytes), timeout_s=60)
    assert refused.value.cause == "out-of-memory"
    assert gpu.call(gpu.memory.free_nbytes, timeout_s=60) > 0
    threads.release(0)


def test_a_second_run_replays_a_cuda_graph(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="not run: cuda-python is not installed")
    engine = engine_of("tensorrt", models.residual().SerializeToString(), tmp_path / "plans")
    with engine:
        for _ in range(8):
            engine.infer(feed_of(engine.inputs, 2))
        assert engine.graphs in ("1 CUDA graphs", "2 CUDA graphs")  # one a slot that ran twice
