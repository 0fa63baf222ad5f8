"""What we make for TensorRT goes through a real compiler of it: `python -m tests.gpu.compile_gate [NAME ...]`

TensorRT-RTX builds engines without a GPU: its parser, its checks of shapes and types and its optimiser run, its kernels
do not. For each model (the demo's, those of the shared folder, the `onnx` package's light models with random weights):
the whole model and tails at several cuts, each as

    fp32      as the splitter makes it                   8 bit    uint8 codes decoded by Cast, Sub, Mul
    half      float16 across the cut, float32 inside     fp16     float16 inside (the converter of `half_tail.py`)

the heads of those cuts as `partitioner split --head-engine tensorrt` makes them, and the whole model likewise

    int8      products in symmetric int8, the first convolutions too, biases float; calibrated on random inputs
    float     float32, codes of the boundary by arithmetic as in int8

with a dynamic batch 1..8 where the axis may be free. Then the small graphs of `tests/gpu/graphs.py`: all that our check
takes must build. Needs `tensorrt_rtx` and the partitioner's libraries; leaves with 1 if the compiler refused anything
that our check took. What our check refuses (the shapes behind a Loop are not known) is listed and no failure.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from benchmarks import cuts as sweep
from partitioner.crossing.boundary import Codes, emit_codes, take_codes
from partitioner.crossing.half_tail import in_half
from partitioner.crossing.halves import take_halves
from partitioner.graph.cuts import Sides
from partitioner.graph.large_weights import serialise
from partitioner.graph.model import LoadedModel
from partitioner.graph.split import free_axes, split
from partitioner.int8.quantise import quantise
from partitioner.int8.recipes import Recipe, for_tensorrt
from partitioner.judging import data
from partitioner.judging.observe import Ranges, ranges
from protocol.engines.ort import OrtEngine
from protocol.engines.trt_build import PlanBuild
from protocol.engines.trt_child import Order
from protocol.engines.trt_graphs import check_graph, profile_shapes
from protocol.engines.trt_options import GpuError, TrtOptions
from protocol.errors import IsthmusError, ModelError
from protocol.tensors import Array, TensorSpec
from tests.gpu.graphs import TAKEN

OPTIONS = TrtOptions(edition="tensorrt-rtx", max_batch=8)
BUILD_TIMEOUT_S = 300.0
CUTS = 2
KNOWN = ("control_flow",)  # an If beside a Loop: an assertion of the compiler's own fails
ROWS = 2
CODES = Codes(0.05, 17)
INT8 = for_tensorrt(Recipe(name="all products", float_first=False))
SAMPLES = 8


class Verdict(NamedTuple):
    model: str
    form: str
    where: str
    problem: str  # "" if it was built
    seconds: float
    nbytes: int
    is_dynamic: bool
    is_ours: bool = False  # the refusal: the compiler never saw the graph


def build(model: str, form: str, where: str, make: Callable[[], bytes]) -> Verdict:
    """Make one graph, judge it ourselves, have it compiled."""
    began = time.perf_counter()
    is_ours = True
    try:
        graph = make()
        outline = check_graph(graph)
        shapes = tuple(profile_shapes(outline, OPTIONS))
        is_ours = False
        order = Order("tensorrt-rtx", shapes, OPTIONS.workspace_nbytes)
        with PlanBuild(order, graph) as work:
            built = work.run(timeout_s=BUILD_TIMEOUT_S)
    except (IsthmusError, GpuError) as error:
        return Verdict(model, form, where, str(error)[:300], time.perf_counter() - began, 0, False, is_ours)
    dynamic = any(least != most for least, _, most in shapes[0].values())
    return Verdict(model, form, where, "", built.seconds, len(built.plan), dynamic)


def of_model(name: str, path: Path) -> Iterator[Verdict]:
    model, _ = sweep.prepared(path)
    yield build(name, "fp32", "whole", lambda: model.data)
    yield build(name, "fp16", "whole", lambda: in_half(model.data))
    seen = _ranges(model)
    yield build(name, "int8 whole", "whole", lambda: _free(quantise(model.graph, seen(), INT8)))
    alone = [s for s in sweep.choose(model.topology, sweep.Most(10_000, 0, 0)) if isinstance(s, Sides)]
    for sides in _spread(alone):
        try:
            head, tail = split(model, sides)
        except ModelError as error:
            yield Verdict(name, "fp32", sides.cut[0], str(error)[:300], 0.0, 0, False, True)
            continue
        where = ", ".join(sides.cut)
        floats = [v.name for v in tail.graph.inputs if v.name in sides.cut and v.dtype == ir.DataType.FLOAT]
        forms: dict[str, Callable[[], bytes]] = {"fp32": lambda t=tail: _free(t)}  # type: ignore[misc]
        if floats:
            forms["8 bit"] = lambda t=tail, f=floats: _free(take_codes(t, dict.fromkeys(f, CODES)))  # type: ignore[misc]
            forms["half"] = lambda t=tail, f=floats: _free(take_halves(t, f))  # type: ignore[misc]
            forms["8 bit, fp16"] = lambda t=tail, f=floats: in_half(_free(take_codes(t, dict.fromkeys(f, CODES))))  # type: ignore[misc]
        coded = [n for n in sides.cut if model.topology.crosses_as_codes(n)]
        forms["int8 head"] = lambda h=head, c=coded: _free(
            emit_codes(quantise(h, seen(), INT8), c, seen(), by_arithmetic=True)[0]
        )  # type: ignore[misc]
        forms["float head"] = lambda h=head, c=coded: _free(emit_codes(h, c, seen(), by_arithmetic=True)[0])  # type: ignore[misc]
        for form, make in forms.items():
            yield build(name, form, where, make)


def _ranges(model: LoadedModel) -> Callable[[], Ranges]:
    """Of every tensor on a few random inputs, found when they are first asked for."""
    return functools.cache(lambda: ranges(model, data.random(model.inputs, count=SAMPLES)))


def _spread(sides: list[Sides]) -> list[Sides]:
    """A few cuts from early to late."""
    if len(sides) <= CUTS:
        return sides
    ordered = sorted(sides, key=lambda s: len(s.head_steps))
    return [ordered[round((i + 1) * (len(ordered) - 1) / (CUTS + 1))] for i in range(CUTS)]


def _free(tail: ir.Model) -> bytes:
    """With a free batch where the tail runs two rows as well as one, as the product would leave it; else as it is."""
    axes = {v.name: 0 for v in tail.graph.inputs if v.name and v.shape is not None and len(v.shape) > 1}
    plain = serialise(tail)
    try:
        freed = free_axes(tail, axes)
        with OrtEngine(freed, label="tail") as engine:
            outputs = engine.infer({s.name: _zeros(s, axes) for s in engine.inputs})
    except Exception:  # whatever becomes of a Reshape with the batch baked in
        return plain
    return freed if all(len(o) == ROWS for o in outputs.values()) else plain


def _zeros(spec: TensorSpec, axes: dict[str, int]) -> Array:
    dims = [d if isinstance(d, int) else 1 for d in spec.shape]
    return np.zeros([ROWS, *dims[1:]] if spec.name in axes else dims, spec.numpy_dtype)


def all_verdicts(asked: list[str]) -> Iterator[Verdict]:
    digits = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
    if not asked or "digits" in asked:
        yield from of_model("digits", digits)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in sweep.sources(Path(folder), [n for n in asked if n not in ("digits", "cases")]):
            if not asked or name in asked:
                yield from of_model(name, path())
    if not asked or "cases" in asked:
        for case in TAKEN:
            yield build("cases", "small graphs that are taken", case.name, lambda c=case: c.model)  # type: ignore[misc]


def table(verdicts: list[Verdict]) -> str:
    """A line for each model and form: how many were built, how many of them with a free batch, and the problems."""
    rows: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        rows.setdefault((verdict.model, verdict.form), []).append(verdict)
    lines = [
        "| model | form | graphs | built | with free batch | seconds | not built |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, form), found in rows.items():
        built = [v for v in found if not v.problem]
        problems = "; ".join(dict.fromkeys(f"`{v.where}`: {v.problem}" for v in found if v.problem))
        lines.append(
            f"| {model} | {form} | {len(found)} | {len(built)} | {sum(v.is_dynamic for v in built)} "
            f"| {sum(v.seconds for v in built):.1f} | {problems} |"
        )
    return "\n".join(lines)


def main() -> int:
    asked = [a for a in sys.argv[1:] if not a.startswith("-")]
    verdicts = []
    for verdict in all_verdicts(asked):
        verdicts.append(verdict)
        state = verdict.problem or f"built, {verdict.nbytes / 1e6:.1f} MB in {verdict.seconds:.1f} s"
        print(f"{verdict.model} {verdict.form} {verdict.where}: {state}", file=sys.stderr, flush=True)
    print(table(verdicts))
    refused = sum(v.is_ours for v in verdicts)
    failed = [v for v in verdicts if v.problem and not v.is_ours]
    built = len(verdicts) - refused - len(failed)
    print(f"\n{built} of {len(verdicts)} graphs were built.")
    print(f"Our check refused {refused}, the compiler {len(failed)}.")
    return 1 if any(v.model not in KNOWN for v in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
