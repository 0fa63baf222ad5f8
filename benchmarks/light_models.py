"""The nine networks of the `onnx` package ("light" models), given seeded random weights.

Law: as shipped their weights are *constant*, so that every comparison of outputs is vacuous. Weights are drawn with
He's scale, batch normalisation is near the identity, and what was a ConstantOfShape becomes an initializer, as an
exporter would have written it. Times depend on shapes and are those of the real networks; outputs mean nothing, and
some saturate: compare before the Softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from protocol.tensors import Array

SEED = 20_261_121
NAMES = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
OPSET = 17  # the version converter was exact up to here


def load_light(name: str, *, seed: int = SEED) -> onnx.ModelProto:
    """The light model `name` with seeded weights, opset 17, batch 1, weights no longer listed as graph inputs.

    Raises KeyError for a name that is not in NAMES.
    """
    if name not in NAMES:
        raise KeyError(f"{name!r} is no light model; these are: {', '.join(NAMES)}")
    model = onnx.load(_folder() / f"light_{name}.onnx")
    _fill(model.graph, np.random.default_rng(seed))
    read = {name for node in model.graph.node for name in node.input}
    weights = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name in read - weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)
    converted: onnx.ModelProto = onnx.version_converter.convert_version(model, OPSET)
    return converted


def write_light(name: str, folder: Path, *, seed: int = SEED) -> Path:
    """`load_light` written to `folder`/NAME.onnx, and the path of it."""
    path = folder / f"{name}.onnx"
    path.write_bytes(load_light(name, seed=seed).SerializeToString())
    return path


def _folder() -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def _fill(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    made = [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]
    dims = {n.output[0]: tuple(int(d) for d in shapes[n.input[0]]) for n in made}
    dims |= {name: a.shape for name, a in shapes.items() if a.dtype == np.float32}
    roles = _roles(graph)
    used = {name for n in graph.node if n not in made for name in n.input}
    fresh = {n: _draw(roles.get(n, ""), shape, rng) for n, shape in sorted(dims.items()) if n in used}
    kept = [i for i in graph.initializer if i.name in used and i.name not in fresh]
    nodes = [n for n in graph.node if n not in made]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *(numpy_helper.from_array(a, n) for n, a in fresh.items())])
    graph.node.extend(nodes)


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What a weight does: "scale" and "variance" lie near one, "shift" near zero; anything else is a kernel."""
    alias = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Unsqueeze"}
    return {alias.get(name, name): role for node in graph.node for name, role in _roles_in(node)}


def _roles_in(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    if node.op_type == "BatchNormalization":
        yield from zip(node.input[1:5], ("scale", "shift", "shift", "variance"), strict=True)
    elif node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
        yield node.input[2], "shift"
    elif node.op_type in ("Mul", "Add"):
        yield node.input[1], "scale" if node.op_type == "Mul" else "shift"


def _draw(role: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if role in ("scale", "variance"):
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    if role == "shift":
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = max(int(np.prod(shape[1:])), 1)
    drawn: Array = (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)
    return drawn
