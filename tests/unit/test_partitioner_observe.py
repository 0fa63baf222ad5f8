"""What is seen on calibration data: ranges of float32 tensors, and none where there is none to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from partitioner.graph.model import load
from partitioner.judging.data import Samples
from partitioner.judging.observe import Ranges, ranges
from protocol.tensors import Array
from tests import models


#     x --Log--> logs --Relu--> y
def seen(x: Array, folder: Path) -> Ranges:
    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[x.dtype.name]
    nodes = [helper.make_node("Log", ["x"], ["logs"]), helper.make_node("Relu", ["logs"], ["y"])]
    x_info, y_info = (helper.make_tensor_value_info(n, element, [1, x.shape[1]]) for n in ("x", "y"))
    graph = helper.make_graph(nodes, "logs", [x_info], [y_info])
    model = load(models.write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder))
    return ranges(model, Samples({"x": x}, frozenset(), None, False, ""))


def test_a_range_is_the_least_and_the_greatest_value(tmp_path: Path) -> None:
    found = seen(np.full((4, 3), np.exp(2), np.float32), tmp_path)
    assert found["logs"] == (np.float32(2), np.float32(2))


def test_what_is_ever_nan_or_infinite_has_no_range(tmp_path: Path) -> None:
    x = np.ones((8, 5), np.float32)
    x[:, 2] = -1  # its logarithm is NaN, and not the first value, where minimum and maximum would show it
    assert "logs" not in seen(x, tmp_path)
    x[:, 2] = 0
    assert "logs" not in seen(x, tmp_path)


def test_a_model_in_half_precision_has_no_ranges(tmp_path: Path) -> None:
    assert seen(np.ones((4, 3), np.float16), tmp_path) == {}
