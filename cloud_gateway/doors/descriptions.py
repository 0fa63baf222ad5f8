"""What a gateway says about its models and requests in the standard protocol's and Triton's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cloud_gateway.models.catalogue import Published
from cloud_gateway.models.states import State
from cloud_gateway.scheduling.lane_queue import AGEING_S
from cloud_gateway.seeing.figures import Counters, Figures
from cloud_gateway.seeing.trace_context import from_traceparent
from cloud_gateway.seeing.tracing import Traced
from cloud_gateway.work import Computed
from protocol import __version__
from protocol.oip.service import (
    BatchStatistics,
    Duration,
    InferRequest,
    InferStatistics,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    TensorMetadata,
)
from protocol.oip.tensors import NAMES
from protocol.tensors import TensorSpec

PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
SERVER = ServerMetadata(
    "isthmus",
    __version__,
    ("binary_tensor_data", "statistics", "model_configuration", "model_repository", "schedule_policy", "parameters"),
)
# Triton knows four states.
STATES = {
    State.NEW: "LOADING",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.AVAILABLE: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.ERROR: "UNAVAILABLE",
}


def metadata(published: Published, versions: Sequence[int]) -> ModelMetadata:
    return ModelMetadata(
        published.version.name,
        [str(version) for version in versions],
        PLATFORM,
        [TensorMetadata(spec.name, NAMES[spec.numpy_dtype], _dims(spec)) for spec in published.inputs],
        [TensorMetadata(spec.name, NAMES[spec.numpy_dtype], _dims(spec)) for spec in published.outputs],
    )


def config(published: Published) -> dict[str, Any]:
    """Triton's ModelConfig. Where every tensor's first dimension is the batch it is left out of `dims`, as there."""
    settings, whole = published.version.settings, published.whole
    lane = None if whole is None else whole.lane
    batched = (
        lane is not None
        and lane.batchable
        and all(axis == 0 for axis in lane.batch_axes.values())
        and all(axis == 0 for axis in lane.output_axes.values())
    )
    first = 1 if batched else 0
    batching: dict[str, Any] = {
        "max_queue_delay_microseconds": int((lane.rules.delay_s if lane else 0.0) * 1e6),
        "priority_levels": settings.priority_levels,
        "default_priority_level": settings.default_priority + 1,
    }
    if settings.preferred_sizes:
        batching["preferred_batch_size"] = list(settings.preferred_sizes)
    if settings.default_timeout_s is not None:
        batching["default_queue_policy"] = {
            "default_timeout_microseconds": int(settings.default_timeout_s * 1e6),
            "allow_timeout_override": True,
        }
    return {
        "name": published.version.name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "max_batch_size": lane.max_rows if lane is not None and batched else 0,
        "input": [_tensor(spec, first) for spec in published.inputs],
        "output": [_tensor(spec, first) for spec in published.outputs],
        "instance_group": [{"count": lane.rules.instances if lane else 1, "kind": "KIND_CPU"}],
        "dynamic_batching": batching,
        "default_model_filename": settings.model_filename,
        "response_cache": {"enable": whole is not None and whole.may_cache},
        "parameters": {
            "bundle": {"string_value": published.version.digest},
            "format": {"string_value": published.version.format},
            "ageing_s": {"string_value": f"{lane.rules.ageing_s if lane else AGEING_S:g}"},
        },
    }


def _dims(spec: TensorSpec) -> list[int]:
    return [d if isinstance(d, int) else -1 for d in spec.shape]


def _tensor(spec: TensorSpec, first: int) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{NAMES[spec.numpy_dtype]}", "dims": _dims(spec)[first:]}


def statistics(name: str, version: str, scopes: Iterable[Figures]) -> ModelStatistics:
    """All placements of one version together."""
    counters = Counters()
    for figures in scopes:
        if (figures.scope.model, figures.scope.version) == (name, version):
            counters.absorb(figures.counters)
    return ModelStatistics(
        name,
        version,
        inference_count=counters.rows,
        execution_count=counters.executions,
        inference_stats=InferStatistics(
            success=_duration(counters.answered, counters.residence_s),
            fail=Duration(counters.refusals, 0),
            queue=_duration(counters.answered, counters.queue_s),
            compute_input=_duration(counters.executed, counters.decode_s),
            compute_infer=_duration(counters.executed, counters.compute_s),
            compute_output=_duration(counters.executed, counters.encode_s),
        ),
        # How long the runs of each size took is not kept, only how many there were.
        batch_stats=[
            BatchStatistics(size, compute_infer=Duration(runs)) for size, runs in sorted(counters.batch_sizes.items())
        ],
    )


def traced(request: InferRequest, done: Computed, *, now: float) -> Traced | None:
    """A finished request as a trace has it; None unless its caller sampled it."""
    trace = from_traceparent(request.trace)
    if trace is None:
        return None
    scope = done.item.segment.scope
    return Traced(
        trace, done.item.arrived, now, done.queue_s, done.decode_s, done.compute_s,
        attributes={"request": request.id, "model": scope.model, "placement": scope.placement,
                    "batch_size": done.batch_size, "engine": done.engine},
    )  # fmt: skip


def _duration(count: int, seconds: float) -> Duration:
    return Duration(count, int(seconds * 1e9))
