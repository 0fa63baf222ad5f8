"""A model through which a number travels unharmed: whoever sees any tensor of a request knows whose it is.

    x [N, 1024] -> MatMul -> h [N, 256] -> MatMul -> [N, 1024] -> MatMul -> y [N, 32]

The first columns of every weight pass the first columns on, and nothing else touches them. There the number stands in
binary, a digit a column, beside a mark that no warm-up bears; digits are so far apart that eight bits at the cut leave
them what they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from partitioner.people.report import Silent
from partitioner.planning.build import Order, build
from partitioner.planning.explore import Search
from protocol.tensors import Array

WIDTHS = (1024, 256, 1024, 32)
DIGITS = 24
MARK = (1, 0, 1, 1)
HIGH = 8.0  # a digit is this or its negative; everything else is noise around 1
_KEPT = DIGITS + len(MARK)
_PLACES = 1 << np.arange(DIGITS)
_NOISE = np.random.default_rng(3).standard_normal(WIDTHS[0]).astype(np.float32)


def numbered_bundle(folder: Path) -> Path:
    """Build the bundle, float32 but for the eight bits at its cut `h`; the folder it lies in."""
    rng = np.random.default_rng(7)
    nodes, weights = [], []
    names = ["x", "h", "wide", "y"]
    for at, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
        weight = (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
        weight[:_KEPT] = weight[:, :_KEPT] = 0.0
        weight[:_KEPT, :_KEPT] = np.eye(_KEPT)
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


def question(number: int) -> dict[str, npt.NDArray[np.float32]]:
    """The inputs of request `number`. Raises ValueError for one that has too many digits."""
    if not 0 < number < 1 << DIGITS:
        raise ValueError(f"number {number} does not have {DIGITS} binary digits: at most {(1 << DIGITS) - 1}")
    x = _NOISE.copy()
    x[:_KEPT] = np.where([*(number & _PLACES), *MARK], HIGH, -HIGH)
    return {"x": x[None]}


def numbers_in(tensors: Mapping[str, Array]) -> list[int]:
    """The numbers of the requests in a batch, of inputs, of what crosses or of answers; warm-up has none."""
    rows = [row[:_KEPT] for values in tensors.values() for row in _plain(values)]
    return [int((row[:DIGITS] > 0) @ _PLACES) for row in rows if _is_marked(row)]


def _plain(values: Array) -> npt.NDArray[np.float32]:
    """Codes of eight bits as numbers around zero; the range that calibration saw is symmetric."""
    flat = values.reshape(len(values), -1).astype(np.float32)
    return (flat - 127.5) * (HIGH / 127.5) if values.dtype == np.uint8 else flat


def _is_marked(row: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(row) > HIGH / 2).all() and ((row[DIGITS:] > 0) == np.array(MARK, bool)).all())
