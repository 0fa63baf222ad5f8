"""What really flows through the model on calibration data: the range of every float tensor, every tensor's true shape.

One pass over the whole model serves every cut: a head is a prefix of the model, so the ranges of its tensors are the
same, and no head is calibrated on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from partitioner.graph.model import LoadedModel, serialise
from partitioner.graph.split import clone, values_of
from partitioner.graph.topology import TensorInfo, Topology
from partitioner.judging.data import Samples
from protocol.engines.ort import OrtEngine
from protocol.errors import EngineError, InputError
from protocol.tensors import Array

Ranges = Mapping[str, tuple[float, float]]


def observed_topology(model: LoadedModel, samples: Samples) -> Topology:
    """The model's topology with the element types and shapes that one real sample shows at batch 1.

    Looked at is only what shape inference left open: a run with 100,000 outputs takes minutes.
    """
    copy = clone(model.graph)
    values = values_of(copy)
    shown = [n for n in model.topology.producer if n in values and _is_tensor(values[n]) and not _is_known(values[n])]
    copy.graph.outputs[:] = [values[n] for n in shown]
    seen = dict(samples.feed(0))
    if shown:
        with OrtEngine(serialise(copy), label=model.name, optimise=False) as engine:
            seen |= engine.infer(seen)
    infos = {name: TensorInfo(array.dtype.name, array.shape) for name, array in seen.items()}
    return replace(model.topology, tensors={**model.topology.tensors, **infos})


def ranges(
    model: LoadedModel, samples: Samples, *, threads: int = 1, progress: Callable[[int, int], None] | None = None
) -> Ranges:
    """Least and greatest value of every float32 tensor that is computed or given, over the calibration samples.

    One that is ever NaN or infinite has no range. Raises InputError for a sample that the model does not take.
    """
    flowing = (*model.topology.inputs, *model.topology.producer)
    names = [n for n in flowing if model.topology.tensors[n].dtype == "float32" and model.topology.tensors[n].elements]
    if not names:  # a model in half or double precision
        return {}
    data = serialise(_with_extremes(model.graph, names))
    low = dict.fromkeys(names, np.inf)
    high = dict.fromkeys(names, -np.inf)
    indices = samples.calibration
    with OrtEngine(data, label=f"{model.name} under calibration", threads=threads) as engine:
        for done, feed in enumerate(samples.feeds(indices), 1):
            try:
                seen = engine.infer(feed)
            except EngineError as error:
                fact = f"the model does not run on sample {indices[done - 1]} of the calibration data ({error.fact})"
                raise InputError(fact, "give data that the model accepts") from error
            for n in names:
                # Minima and maxima pass over NaN (measured: unless it comes first), sums never do.
                low[n] = -np.inf if np.isnan(seen[_sum(n)]) else min(low[n], _scalar(seen[_low(n)]))
                high[n] = max(high[n], _scalar(seen[_high(n)]))
            if progress:
                progress(done, len(indices))
    return {n: (low[n], high[n]) for n in names if np.isfinite(low[n]) and np.isfinite(high[n])}


def _with_extremes(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy whose outputs are the minimum, the maximum and the sum of magnitudes of each named tensor."""
    copy = clone(model)
    values = values_of(copy)
    outputs: list[ir.Value] = []
    for name in names:
        for op, output in (("ReduceMin", _low(name)), ("ReduceMax", _high(name)), ("ReduceL1", _sum(name))):
            value = ir.val(output, ir.DataType.FLOAT, [])
            copy.graph.append(ir.node(op, [values[name]], {"keepdims": 0}, outputs=[value]))
            outputs.append(value)
    copy.graph.outputs[:] = outputs
    return copy


def _low(name: str) -> str:
    return f"{name}/low"


def _high(name: str) -> str:
    return f"{name}/high"


def _sum(name: str) -> str:
    return f"{name}/sum"


def _scalar(value: Array) -> float:
    return float(value)


def _is_known(value: ir.Value) -> bool:
    return value.dtype is not None and value.shape is not None and all(isinstance(d, int) for d in value.shape)


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType)
