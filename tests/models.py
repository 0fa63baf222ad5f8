"""Small ONNX models for every test of the house: deterministic weights, one peculiarity each, milliseconds to run.

residual          x[N,3,16,16] -> conv -> relu -> (conv -> relu -> conv, +) -> relu -> pool -> flatten -> gemm
two_heads         the residual net's trunk with an early output and a late one
fixed_batch       exported at batch 1, with a Reshape that has the 1 baked in
branching         an If whose branches capture a tensor of the main graph
looping           a Loop whose body captures a tensor of the main graph
tokens            int64 ids and mask; the mask is needed up to the end, so that it crosses every cut
old_export        opset 11, Squeeze and Clip in their old forms, every initializer listed as an input
constant_scale    a subgraph that depends on no input and is used on both sides of every cut
with_function     a model-local function
outliers          a channel 10,000 times larger than the others: eight bits cannot hold it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
CLASSES = 10


class Net:
    """Collects nodes and seeded weights; each node is named like its first output with "node_" before it."""

    def __init__(self, seed: int = 7) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: Sequence[str], output: str | Sequence[str], **attributes: Any) -> str:
        outputs = [output] if isinstance(output, str) else list(output)
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"node_{outputs[0]}", **attributes))
        return outputs[0]

    def constant(self, name: str, array: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.constant(name, (self.rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32))

    def conv(self, x: str, output: str, inputs: int, outputs: int, *, stride: int = 1) -> str:
        names = [x, self.weight(f"{output}.w", outputs, inputs, 3, 3), self.weight(f"{output}.b", outputs)]
        return self.add("Conv", names, output, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)

    def classify(self, x: str, channels: int, output: str = "logits") -> str:
        self.add("GlobalAveragePool", [x], "pooled")
        self.add("Flatten", ["pooled"], "flat")
        names = ["flat", self.weight("fc.w", channels, CLASSES), self.weight("fc.b", CLASSES)]
        return self.add("Gemm", names, output)

    def model(
        self,
        inputs: Mapping[str, tuple[int, Sequence[Any]]],
        outputs: Mapping[str, Sequence[Any]],
        *,
        opset: int = OPSET,
        ir_version: int = IR_VERSION,
        **more: Any,
    ) -> onnx.ModelProto:
        """Inputs are (element type, shape) by name; outputs are float shapes by name."""
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info(n, t, list(s)) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in outputs.items()],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **more)
        onnx.checker.check_model(model)
        return model


IMAGE = {"x": (TensorProto.FLOAT, ["N", 3, 16, 16])}
LOGITS = {"logits": ["N", CLASSES]}


def _trunk(net: Net) -> str:
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.add("Relu", [net.conv("r1", "c2", 8, 8)], "r2")
    net.add("Add", ["r1", net.conv("r2", "c3", 8, 8)], "sum")
    return net.add("Relu", ["sum"], "r3")


def residual() -> onnx.ModelProto:
    net = Net()
    net.classify(net.conv(_trunk(net), "c4", 8, 16, stride=2), 16)
    return net.model(IMAGE, LOGITS)


def two_heads() -> onnx.ModelProto:
    net = Net()
    _trunk(net)
    net.add("GlobalMaxPool", ["r1"], "early")
    net.classify(net.conv("r3", "c4", 8, 16, stride=2), 16)
    return net.model(IMAGE, {**LOGITS, "early": ["N", 8, 1, 1]})


def fixed_batch() -> onnx.ModelProto:
    net = Net()
    net.conv(_trunk(net), "c4", 8, 4, stride=4)
    net.add("Reshape", ["c4", net.constant("shape", np.array([1, 64], np.int64))], "flat")
    net.add("Gemm", ["flat", net.weight("fc.w", 64, CLASSES), net.weight("fc.b", CLASSES)], "logits")
    return net.model({"x": (TensorProto.FLOAT, [1, 3, 16, 16])}, {"logits": [1, CLASSES]})


def branching() -> onnx.ModelProto:
    net = Net()
    trunk = _trunk(net)
    net.add("ReduceMean", [trunk], "mean", keepdims=0)
    net.add("Greater", ["mean", net.constant("threshold", np.float32(0.5))], "above")
    net.constant("half", np.float32(0.5))
    net.add("If", ["above"], "chosen", then_branch=_branch("then", "Mul"), else_branch=_branch("else", "Add"))
    net.classify("chosen", 8)
    return net.model(IMAGE, LOGITS)


def _branch(name: str, op: str) -> onnx.GraphProto:
    node = helper.make_node(op, ["r1", "half"], [f"{name}_out"], name=f"{name}_node")
    out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
    return helper.make_graph([node], name, [], [out])


def looping() -> onnx.ModelProto:
    net = Net()
    trunk = _trunk(net)
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried_in", "r1"], ["carried_out"], name="body_add"),
            helper.make_node("Identity", ["going_in"], ["going_out"], name="body_going"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_in", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, None),
        ],
    )
    net.add("Loop", [net.constant("trips", np.int64(3)), "", trunk], "looped", body=body)
    net.classify("looped", 8)
    return net.model(IMAGE, LOGITS)


def tokens() -> onnx.ModelProto:
    net = Net()
    net.add("Gather", [net.weight("table", 50, 16), "ids"], "embedded")
    net.add("MatMul", ["embedded", net.weight("m1", 16, 16)], "hidden")
    net.add("Relu", ["hidden"], "active")
    net.add("Cast", ["mask"], "mask_float", to=TensorProto.FLOAT)
    net.add("Unsqueeze", ["mask_float", net.constant("last", np.array([2], np.int64))], "mask_column")
    net.add("Mul", ["active", "mask_column"], "masked")
    net.add("ReduceMean", ["masked"], "pooled", axes=[1], keepdims=0)
    net.add("Gemm", ["pooled", net.weight("fc.w", 16, CLASSES), net.weight("fc.b", CLASSES)], "logits")
    int64 = (TensorProto.INT64, ["N", 7])
    return net.model({"ids": int64, "mask": int64}, LOGITS)


def old_export() -> onnx.ModelProto:
    net = Net()
    net.add(
        "Clip",
        [net.conv("x", "c1", 3, 8), net.constant("low", np.float32(0)), net.constant("high", np.float32(6))],
        "k1",
    )
    net.conv("k1", "c2", 8, 8, stride=2)
    net.add("GlobalAveragePool", ["c2"], "pooled")
    net.add("Squeeze", ["pooled"], "flat", axes=[2, 3])
    net.add("Gemm", ["flat", net.weight("fc.w", 8, CLASSES), net.weight("fc.b", CLASSES)], "logits")
    listed = {i.name: (i.data_type, list(i.dims)) for i in net.initializers}
    return net.model({**IMAGE, **listed}, LOGITS, opset=11, ir_version=4)


def constant_scale() -> onnx.ModelProto:
    net = Net()
    net.add(
        "ConstantOfShape",
        [net.constant("one", np.array([1], np.int64))],
        "filled",
        value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.25]),
    )
    net.add("Exp", ["filled"], "scale")
    net.add("Mul", [net.conv("x", "c1", 3, 8), "scale"], "scaled")
    net.add("Relu", ["scaled"], "r1")
    net.add("Mul", [net.conv("r1", "c2", 8, 8), "scale"], "scaled_again")
    net.classify("scaled_again", 8)
    return net.model(IMAGE, LOGITS)


def with_function() -> onnx.ModelProto:
    net = Net()
    net.conv("x", "c1", 3, 8)
    net.nodes.append(helper.make_node("Gate", ["c1"], ["gated"], name="node_gated", domain="toy"))
    net.classify(net.conv("gated", "c2", 8, 8), 8)
    nodes = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["b"])]
    gate = helper.make_function("toy", "Gate", ["a"], ["b"], nodes, [helper.make_opsetid("", OPSET)])
    return net.model(IMAGE, LOGITS, opsets=[helper.make_opsetid("toy", 1)], functions=[gate])


def outliers() -> onnx.ModelProto:
    net = Net()
    net.add("Relu", [net.conv("x", "c1", 3, 8)], "r1")
    net.conv("r1", "c2", 8, 8)
    scale = np.ones((1, 8, 1, 1), np.float32)
    scale[0, 0] = 1e4
    net.add("Mul", ["c2", net.constant("up", scale)], "stretched")
    net.add("Conv", ["stretched", net.weight("dw.w", 8, 1, 3, 3), net.weight("dw.b", 8)], "dw", group=8, pads=[1] * 4)
    net.add("Mul", ["dw", net.constant("down", (1.0 / scale).astype(np.float32))], "restored")
    net.classify(net.conv("restored", "c3", 8, 16, stride=2), 16)
    return net.model(IMAGE, LOGITS)


ALL: dict[str, Callable[[], onnx.ModelProto]] = {
    maker.__name__: maker
    for maker in (
        residual,
        two_heads,
        fixed_batch,
        branching,
        looping,
        tokens,
        old_export,
        constant_scale,
        with_function,
        outliers,
    )
}


def write(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def image_samples(count: int = 32, seed: int = 3) -> np.ndarray[Any, Any]:
    """Seeded float32 [count,3,16,16]; blobs of different brightness, so that the classes differ."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((count, 3, 1, 1)) * 1.5
    return (base + rng.standard_normal((count, 3, 16, 16))).astype(np.float32)
