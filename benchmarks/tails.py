"""Tails to serve, built with seeded random weights: latency work needs shapes, not knowledge.

tail_light  [N,256,14,14] -> 1x1 conv 64 -> 3x3/2 conv 64 -> mean -> 100     next to nothing to compute: overhead shows
tail_fc     [N,256,14,14] -> 1x1 conv 64 -> pool -> 3136 -> 4096 -> 1000     memory-bound: batching pays
tail_r18    [N,256,14,14] -> two residual blocks of 512 -> mean -> 1000      compute-bound: ResNet-18's last stage
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = (256, 14, 14)
NAMES = ("tail_light", "tail_fc", "tail_r18")
# A bundle needs a cut. Requests go full-cloud, so it is one that leaves next to nothing to load beside the whole.
CUTS = {"tail_light": "mean", "tail_fc": "active", "tail_r18": "mean"}


class Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(7)

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}.node", **attributes))
        return output

    def weight(self, name: str, *shape: int) -> str:
        values = self._rng.standard_normal(shape) * np.sqrt(2.0 / max(int(np.prod(shape[1:])), 1))
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, x: str, name: str, shape: tuple[int, int, int], stride: int = 1) -> str:
        return self.add("Relu", [self.sums(x, f"{name}.sum", f"{name}.w", shape, stride)], name)

    def sums(self, x: str, name: str, weight: str, shape: tuple[int, int, int], stride: int) -> str:
        """A convolution without activation: outputs, inputs and edge of the kernel, padded to keep the size."""
        outputs, inputs, kernel = shape
        return self.add(
            "Conv", [x, self.weight(weight, outputs, inputs, kernel, kernel)], name,
            kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2,
        )  # fmt: skip

    def residual(self, x: str, name: str, inputs: int, outputs: int) -> str:
        """Two 3x3 convolutions and a way past them; more channels come with half the edge."""
        stride = 1 if inputs == outputs else 2
        first = self.conv(x, f"{name}.a", (outputs, inputs, 3), stride)
        second = self.sums(first, f"{name}.b", f"{name}.b.w", (outputs, outputs, 3), 1)
        past = x if stride == 1 else self.sums(x, f"{name}.past", f"{name}.past.w", (outputs, inputs, 1), stride)
        return self.add("Relu", [self.add("Add", [second, past], f"{name}.sum")], name)

    def dense(self, x: str, name: str, inputs: int, outputs: int) -> str:
        return self.add("Gemm", [x, self.weight(f"{name}.w", outputs, inputs)], name, transB=1)


def build(name: str, folder: Path) -> Path:
    """Write `name`.onnx into `folder`: input `x` float32 [N, 256, 14, 14], output `logits` float32 [N, classes]."""
    graph = Graph()
    classes = 100 if name == "tail_light" else 1000
    if name == "tail_r18":
        blocks = graph.residual(graph.residual("x", "block_1", 256, 512), "block_2", 512, 512)
        graph.add("GlobalAveragePool", [blocks], "mean")
        graph.dense(graph.add("Flatten", ["mean"], "flat"), "logits", 512, classes)
    elif name == "tail_light":
        squeezed = graph.conv("x", "squeeze", (64, 256, 1))
        graph.add("GlobalAveragePool", [graph.conv(squeezed, "mix", (64, 64, 3), 2)], "mean")
        graph.dense(graph.add("Flatten", ["mean"], "flat"), "logits", 64, classes)
    else:
        squeezed = graph.conv("x", "squeeze", (64, 256, 1))
        graph.add("MaxPool", [squeezed], "pooled", kernel_shape=[2, 2], strides=[2, 2])
        hidden = graph.dense(graph.add("Flatten", ["pooled"], "flat"), "hidden", 3136, 4096)
        graph.dense(graph.add("Relu", [hidden], "active"), "logits", 4096, classes)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *INPUT])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path
