"""An order of preference whose first engine is TensorRT's on a SIMULATED GPU, and whose last is the real processor.

What it proves: both sides keep their contract. The build runs while the processor serves, batches lie in pinned rows,
a refused run and a lost device are told apart, and no batch is lost to either.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from cloud_gateway.models.asking import answered, room_of
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.rungs import Offer
from cloud_gateway.models.workshop import Workshop
from protocol.engines.gpu_thread import GpuThreads
from protocol.engines.ort import OrtEngine
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_options import TrtOptions
from tests.gpu.conftest import simulated_driver
from tests.gpu.graphs import graph, node
from tests.waiting import until

MODEL = graph(
    [node("Relu", "x", "r"), node("Sub", "r one", "y")],
    [("x", TensorProto.FLOAT, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])], [("one", np.float32(1))],
)  # fmt: skip
X = {"x": np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)}
Y = np.maximum(X["x"], 0) - 1
WITHIN_S = 60.0


RESERVED_NBYTES = 600 << 20  # before anything is known


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    workshop = Workshop()
    yield workshop
    assert workshop.stop()


@pytest.fixture
def engine(simulated_gpu: Any, tmp_path: Path, workshop: Workshop) -> Iterator[PreferredEngine]:
    threads = GpuThreads()
    options = TrtOptions(max_batch=8, run_timeout_s=20.0, build_timeout_s=60.0, cache=tmp_path / "plans")

    def on_gpu() -> TensorRtEngine:
        return TensorRtEngine(MODEL, label="tiny", options=options, driver=simulated_driver, threads=threads)

    offers = [
        Offer("tensorrt", on_gpu, is_built=True, gpu_nbytes=RESERVED_NBYTES),
        Offer("onnxruntime-cpu", lambda: OrtEngine(MODEL, label="tiny")),
    ]
    engine = PreferredEngine(offers, label="tiny", workshop=workshop, first_rest_s=0.05)
    engine.activate()
    yield engine
    engine.deactivate()


def states(engine: PreferredEngine) -> dict[str, str]:
    return {look.kind: look.state for look in engine.look()}


def test_the_processor_serves_until_the_plan_is_built_and_then_batches_lie_in_pinned_rows(
    engine: PreferredEngine, simulated_gpu: Any
) -> None:
    np.testing.assert_array_equal(answered(engine, X)["y"], Y)
    until(lambda: engine.kind == "tensorrt", "the plan to be built", within_s=WITHIN_S)
    room = room_of(engine)
    assert room is not None
    rows = room.make(X["x"].nbytes)[: X["x"].nbytes].view(np.float32).reshape(5, 4)
    rows[:] = X["x"]
    np.testing.assert_array_equal(engine.infer({"x": rows})["y"], Y)
    assert "Simulated GPU" in engine.ran
    assert simulated_gpu.violations == []


def test_a_refused_run_moves_to_the_processor_and_comes_back_a_lost_device_stays_away(
    engine: PreferredEngine, simulated_gpu: Any
) -> None:
    until(lambda: engine.kind == "tensorrt", "the plan to be built", within_s=WITHIN_S)
    simulated_gpu.fail("enqueue", "ANYTHING")
    np.testing.assert_array_equal(answered(engine, X)["y"], Y)
    until(lambda: engine.kind == "tensorrt", "the engine to be loaded again", within_s=WITHIN_S)
    simulated_gpu.sticky = "ILLEGAL_ADDRESS"
    np.testing.assert_array_equal(answered(engine, X)["y"], Y)
    until(lambda: states(engine)["tensorrt"] == "absent", "the device to be given up", within_s=WITHIN_S)
    np.testing.assert_array_equal(engine.infer(X)["y"], Y)
    assert engine.kind == "onnxruntime-cpu"


def test_a_lane_reserves_what_its_engine_holds_once_that_is_known(
    engine: PreferredEngine, workshop: Workshop, simulated_gpu: Any
) -> None:
    until(lambda: engine.kind == "tensorrt", "the plan to be built", within_s=WITHIN_S)
    held = simulated_gpu.plan_nbytes + sum(len(block) for block in simulated_gpu.blocks.values())
    assert workshop.gpu_memory()[0] == held < RESERVED_NBYTES
    engine.deactivate()
    assert workshop.gpu_memory()[0] == 0
