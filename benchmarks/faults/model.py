"""A model through which a number travels unharmed.

    x [N, 1024] -> MatMul -> h [N, 256] -> MatMul -> [N, 1024] -> MatMul -> y [N, 32]

The first columns of every weight pass the first columns on, and nothing else touches them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.faults.numbering import KEPT, WIDTHS, question
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search


def numbered_bundle(folder: Path) -> Path:
    """Build the bundle, float32 but for the eight bits at its cut `h`; the folder it lies in."""
    rng = np.random.default_rng(7)
    nodes, weights = [], []
    names = ["x", "h", "wide", "y"]
    for at, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        weight[:KEPT] = weight[:, :KEPT] = 0.0
        weight[:KEPT, :KEPT] = np.eye(KEPT)
        weights.append(numpy_helper.from_array(weight, f"w{at}"))
        nodes.append(helper.make_node("MatMul", [names[at], f"w{at}"], [names[at + 1]], name=f"layer{at}"))
    graph = helper.make_graph(
        nodes,
        "numbered",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTHS[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTHS[-1]])],
        weights,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "numbered.onnx"
    )
    np.savez(folder / "data.npz", x=np.concatenate([question(number)["x"] for number in range(1, 33)]))
    order = Order(
        model=folder / "numbered.onnx",
        target=folder / "bundle",
        cuts=(("h",),),
        calibration=folder / "data.npz",
        precision="fp32",
        search=Search(memory=False),
        recipe_budget_s=0.0,
        bound=0.5,
    )
    return build(order, Silent()).target
