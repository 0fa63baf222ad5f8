"""A model and bundle on which every kind of placement is best at some bandwidth: for suites that decide for real.

    x [N,3,96,96] --convs--> 72 x 24 x 24 --conv--> 72 x 12 x 12 --convs--> mean --> 10
                                                                    ^ cut-1

The input is some 110 kB and what crosses at the cut a few; the device does about a third of the work before it. Behind
a device that is SLOWDOWN times slower full-cloud wins on fast links, the cut between, edge-only on the slowest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.tails import Graph
from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.clock import Machines
from partitioner.planning.explore import Search
from protocol.tensors import Array

INPUT = (3, 96, 96)
WIDE, DEEP = 72, 256  # channels before and behind the cut
SAMPLES = 16
SLOWDOWN = 10.0


def make_bundle(folder: Path) -> Path:
    """Build it; takes some seconds."""
    graph = Graph()
    x = graph.conv("x", "conv_1", (24, 3, 3), 2)
    x = graph.conv(x, "conv_2", (WIDE, 24, 3), 2)
    for number in range(3, 8):
        x = graph.conv(x, f"conv_{number}", (WIDE, WIDE, 3))
    x = graph.conv(x, "cut", (WIDE, WIDE, 3), 2)
    x = graph.conv(x, "deep_1", (DEEP, WIDE, 3))
    for number in range(2, 6):
        x = graph.conv(x, f"deep_{number}", (DEEP, DEEP, 3))
    graph.add("GlobalAveragePool", [x], "mean")
    graph.dense(graph.add("Flatten", ["mean"], "flat"), "logits", DEEP, 10)
    made = helper.make_graph(
        graph.nodes,
        "deciding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *INPUT])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        graph.weights,
    )
    model, data = folder / "deciding.onnx", folder / "samples.npz"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    np.savez(data, x=np.concatenate(frames(SAMPLES)))
    order = Order(
        model,
        folder / "bundle",
        cuts=(("cut",),),
        search=Search(Machines(slowdown=SLOWDOWN), memory=False),
        precision="fp32",
        bound=0.0,
        calibration=data,
    )
    return build(order, Silent()).target


def frames(count: int) -> list[Array]:
    """`count` inputs, float32 [1, 3, 96, 96], that no codec makes much smaller."""
    return seeded(count, INPUT)


def seeded(count: int, shape: tuple[int, ...], seed: int = 3) -> list[Array]:
    """Normal float32 arrays of `shape` behind a batch axis of 1."""
    chance = np.random.default_rng(seed)
    return [chance.standard_normal((1, *shape), np.float32) for _ in range(count)]
