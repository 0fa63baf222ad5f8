"""A tail in float16 on TensorRT over a SIMULATED GPU, the same in float32 on the real processor behind it.

What it proves: the float16 graph goes through check, build and load, takes 8-bit codes from pinned rows, and gives way
to float32 when its device is lost. The simulation computes on the processor: nothing is shown about float16 itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from cloud_gateway.config import EnginesSettings
from cloud_gateway.models.asking import answered, what_ran
from cloud_gateway.models.making import Making
from cloud_gateway.models.preferred import PreferredEngine
from cloud_gateway.models.served import HalfForm, Tail
from cloud_gateway.models.settings import Wanted
from cloud_gateway.models.workshop import Workshop
from partitioner.crossing.half_tail import in_half
from protocol.bundle import BoundaryTensor
from protocol.engines.base import Engine
from protocol.engines.catalogue import CPU, KINDS, EngineOptions, Kind
from protocol.engines.gpu_thread import GpuThreads
from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_options import TrtOptions
from protocol.messages import PlacementKind
from protocol.tensors import TensorSpec
from tests.gpu.conftest import simulated_driver
from tests.gpu.graphs import graph, node
from tests.waiting import until

EXACT = graph(
    [node("Cast", "x", "c", to=TensorProto.FLOAT), node("Sub", "c zero", "s"), node("Mul", "s scale", "m"),
     node("Relu", "m", "r"), node("Div", "r many", "y")],
    [("x", TensorProto.UINT8, ["N", 4])], [("y", TensorProto.FLOAT, ["N", 4])],
    [("zero", np.float32(17)), ("scale", np.float32(0.1)), ("many", np.float32(3.1))],
)  # fmt: skip
HALF = in_half(EXACT)
X = {"x": np.random.default_rng(3).integers(0, 256, (5, 4), np.uint8)}
TAIL = Tail(
    key="a" * 64,
    label="cut-1/tail",
    placement="cut-1",
    kind=PlacementKind.CUT,
    precision="int8",
    segment=b"s" * 32,
    boundary=(BoundaryTensor(TensorSpec("x", "uint8", ("N", 4)), "raw", 0, 0.1, 17),),
    batchable=True,
    output_axes={"y": 0},
    graph=lambda: EXACT,
    half=HalfForm("b" * 64, lambda: HALF),
)


@pytest.fixture
def engine(simulated_gpu: Any, tmp_path: Path) -> Iterator[PreferredEngine]:
    threads, workshop = GpuThreads(), Workshop(gpu_memory=lambda: 1 << 40)

    def on_gpu(given: bytes, options: EngineOptions) -> Engine:
        assert given == HALF
        wanted = TrtOptions(
            max_batch=8, batch_axes=options.batch_axes or {}, run_timeout_s=20.0, build_timeout_s=60.0, cache=tmp_path
        )
        return TensorRtEngine(given, label=options.label, options=wanted, driver=simulated_driver, threads=threads)

    kinds = {"tensorrt": Kind("tensorrt", lambda: "", on_gpu, is_built=True, takes_half=True), CPU: KINDS[CPU]}
    made = Making(EnginesSettings(order=("tensorrt", "onnxruntime-cpu")), workshop, kinds=kinds)(
        TAIL, Wanted(max_rows=8)
    )
    assert isinstance(made, PreferredEngine)
    made.activate()
    yield made
    made.deactivate()
    assert workshop.stop()


def test_the_plan_is_of_the_float16_form_and_a_lost_device_costs_its_answers_nothing_but_that(
    engine: PreferredEngine, simulated_gpu: Any
) -> None:
    exact = np.maximum((X["x"].astype(np.float32) - 17) * np.float32(0.1), 0) / np.float32(3.1)
    np.testing.assert_allclose(answered(engine, X)["y"], exact, rtol=1e-6)
    assert "float16" not in what_ran(engine)
    until(lambda: engine.kind == "tensorrt", "the plan to be built", within_s=60)
    half = answered(engine, X)["y"]
    np.testing.assert_allclose(half, exact, rtol=2e-3)
    assert not np.array_equal(half, exact)
    assert what_ran(engine).endswith(", float16")
    simulated_gpu.sticky = "ILLEGAL_ADDRESS"
    np.testing.assert_allclose(answered(engine, X)["y"], exact, rtol=1e-6)
    assert "CPUExecutionProvider" in what_ran(engine)
    assert "float16" not in what_ran(engine)
