"""A graph of two nodes, what it is asked and what it answers, for tests on the simulated GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from protocol.engines.tensorrt import TensorRtEngine
from protocol.engines.trt_options import TrtOptions
from tests.gpu.graphs import graph, node

ROWS = [("x", TensorProto.FLOAT, ["N", 4])]
MODEL = graph(
    [node("Relu", "x", "r"), node("Sub", "r one", "y")],
    ROWS, [("y", TensorProto.FLOAT, ["N", 4])], [("one", np.float32(1))],
)  # fmt: skip
OPTIONS = TrtOptions(max_batch=8, run_timeout_s=20.0, build_timeout_s=60.0)

Make = Callable[..., TensorRtEngine]


def x_of(rows: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)


def y_of(x: Any) -> Any:
    return np.maximum(x, 0) - 1
