"""The gateway's numbers for Prometheus: a table of families, each with how it is read from one scene.

Names are Triton's (`nv_...`) where the meaning is the same, so that its dashboards go on working; ours begin with
`isthmus_`. What is unknown is absent: a missing series is not a zero. `docs/operations.md` shows the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from cloud_gateway.seeing.engine_metrics import ENGINES
from cloud_gateway.seeing.figures import Counters, Figures, Scope
from cloud_gateway.seeing.ledger import LedgerSnapshot
from cloud_gateway.seeing.standing import LaneState, Standing
from protocol.seeing.exposition import Family, Series, Value, buckets, joined, labels, summary, text
from protocol.seeing.machine import MachineState
from protocol.seeing.nvml import Gpu
from protocol.seeing.sums import SLACK_BOUNDS_S
from protocol.seeing.windows import Quantiles

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)
SCOPE = ("model", "version", "placement")
# Triton tells four reasons apart; our own codes are finer and stand in isthmus_refused_requests_total.
TRITON_REASONS = {
    "BUSY": "REJECTED",
    "DEADLINE": "REJECTED",
    "DRAINING": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that one scrape shows."""

    snapshot: LedgerSnapshot
    standing: Standing
    machine: MachineState
    software: str


def metrics_text(scene: Scene) -> bytes:
    """The page that Prometheus reads."""
    return text(FAMILIES, scene)


# ---- how a family is read -------------------------------------------------------------------------------------------


def _each(read: Callable[[Figures, str], Iterable[Series]]) -> Callable[[Scene], Iterator[Series]]:
    """The series of every scope."""

    def series(scene: Scene) -> Iterator[Series]:
        for figures, scope in scene.snapshot.labelled:
            yield from read(figures, scope)

    return series


def _one(read: Callable[[Figures], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", scope, read(figures)) for figures, scope in scene.snapshot.labelled)


def _sum(read: Callable[[Counters], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", scope, read(figures.counters)) for figures, scope in scene.snapshot.labelled)


def _micros(read: Callable[[Counters], float]) -> Callable[[Scene], Iterator[Series]]:
    return _one(lambda figures: round(read(figures.counters) * 1e6))


def _gateway(read: Callable[[Scene], Value]) -> Callable[[Scene], Iterable[Series]]:
    return lambda scene: (Series("", "", read(scene)),)


def _failures(figures: Figures, scope: str) -> Iterator[Series]:
    counts = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
    for code, count in figures.counters.refused.items():
        counts[TRITON_REASONS.get(code, "OTHER")] += count
    return (Series("", joined(scope, labels(reason=reason)), count) for reason, count in counts.items())


def _refusals(figures: Figures, scope: str) -> Iterator[Series]:
    refused = figures.counters.refused
    return (Series("", joined(scope, labels(code=code)), count) for code, count in refused.items())


def _batches(figures: Figures, scope: str) -> Iterable[Series]:
    counters = figures.counters
    reached = [sum(n for size, n in counters.batch_sizes.items() if size <= bound) for bound in BATCH_BOUNDS]
    return buckets(BATCH_BOUNDS, reached, counters.executions, counters.rows, scope)


def _slack(figures: Figures, scope: str) -> Iterable[Series]:
    counters = figures.counters
    reached = accumulate(counters.slack[:-1])
    return buckets(SLACK_BOUNDS_S, reached, counters.slack_budgeted, counters.slack_s, scope)


def _stages(figures: Figures, scope: str) -> Iterator[tuple[str, Quantiles]]:
    for stage in ("residence", "queue", "compute"):
        found: Quantiles | None = getattr(figures, stage)
        if found is not None:
            yield joined(scope, labels(stage=stage)), found


def _quantiles(figures: Figures, scope: str) -> Iterator[Series]:
    for stage, found in _stages(figures, scope):
        for share, value in (("0.5", found.p50_s), ("0.9", found.p90_s), ("0.99", found.p99_s)):
            yield Series("", joined(stage, labels(quantile=share)), value)


def _covered(figures: Figures, scope: str) -> Iterator[Series]:
    return (Series("", stage, found.window_s) for stage, found in _stages(figures, scope))


def _engine(figures: Figures, scope: str) -> Iterator[Series]:
    if figures.engine:
        yield Series("", joined(scope, labels(engine=figures.engine)), 1)


def _pending(scene: Scene) -> Iterator[Series]:
    """A scope that has served before is listed with 0: a gauge that disappears cannot be drawn."""
    known: Mapping[Scope, int] = {f.scope: 0 for f in scene.snapshot.scopes} | dict(scene.standing.pending)
    return (Series("", labels(**scope._asdict()), count) for scope, count in known.items())


def _models(scene: Scene) -> Iterator[Series]:
    for model in scene.standing.models:
        yield Series("", labels(model=model.name, version=model.version, state=model.state), 1)


def _lanes(read: Callable[[LaneState], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (
        Series("", labels(lane=lane.key, label=lane.label), read(lane)) for lane in scene.standing.lanes
    )


def _gpus(read: Callable[[Gpu], Value]) -> Callable[[Scene], Iterator[Series]]:
    return lambda scene: (Series("", labels(gpu_uuid=gpu.uuid), read(gpu)) for gpu in scene.machine.gpus)


def _events(scene: Scene) -> Iterator[Series]:
    return (Series("", labels(event=what), count) for what, count in scene.snapshot.events.items())


def _build(scene: Scene) -> Iterator[Series]:
    yield Series("", labels(software=scene.software), 1)


def _of_standing(family: Family[Standing]) -> Family[Scene]:
    read = family.read
    return Family(family.name, family.kind, family.help, family.labels, lambda scene: read(scene.standing))


# ---- the table ------------------------------------------------------------------------------------------------------

_COUNTER, _GAUGE, _HISTOGRAM, _SUMMARY = "counter", "gauge", "histogram", "summary"

TRITONS: tuple[Family[Scene], ...] = (
    Family("nv_inference_request_success", _COUNTER, "Requests answered.", SCOPE, _sum(lambda c: c.answered)),
    Family(
        "nv_inference_request_failure",
        _COUNTER,
        "Requests not answered, by Triton's four reasons.",
        (*SCOPE, "reason"),
        _each(_failures),
    ),
    Family("nv_inference_count", _COUNTER, "Inferences: rows of all engine runs.", SCOPE, _sum(lambda c: c.rows)),
    Family("nv_inference_exec_count", _COUNTER, "Engine runs.", SCOPE, _sum(lambda c: c.executions)),
    Family(
        "nv_inference_request_duration_us",
        _COUNTER,
        "Microseconds from last byte in to first byte out, over all answers.",
        SCOPE,
        _micros(lambda c: c.residence_s),
    ),
    Family(
        "nv_inference_queue_duration_us",
        _COUNTER,
        "Microseconds that answered requests waited for an engine.",
        SCOPE,
        _micros(lambda c: c.queue_s),
    ),
    Family(
        "nv_inference_compute_input_duration_us",
        _COUNTER,
        "Microseconds of checking, decoding and joining inputs; a run's time counts for each request in it.",
        SCOPE,
        _micros(lambda c: c.decode_s),
    ),
    Family(
        "nv_inference_compute_infer_duration_us",
        _COUNTER,
        "Microseconds in the engine; a run's time counts for each request in it.",
        SCOPE,
        _micros(lambda c: c.compute_s),
    ),
    Family(
        "nv_inference_compute_output_duration_us",
        _COUNTER,
        "Microseconds of splitting and encoding outputs; a run's time counts for each request in it.",
        SCOPE,
        _micros(lambda c: c.encode_s),
    ),
    Family("nv_inference_pending_request_count", _GAUGE, "Requests admitted and not yet finished.", SCOPE, _pending),
    Family(
        "nv_cpu_utilization",
        _GAUGE,
        "Share of all processors that was busy since the scrape before.",
        (),
        _gateway(lambda s: s.machine.cpu_utilisation),
    ),
    Family(
        "nv_cpu_memory_total_bytes",
        _GAUGE,
        "The machine's memory.",
        (),
        _gateway(lambda s: s.machine.memory_total_nbytes),
    ),
    Family(
        "nv_cpu_memory_used_bytes",
        _GAUGE,
        "The machine's memory that is not available.",
        (),
        _gateway(lambda s: s.machine.memory_used_nbytes),
    ),
    Family("nv_gpu_utilization", _GAUGE, "Share of time with a kernel.", ("gpu_uuid",), _gpus(lambda g: g.utilisation)),
    Family(
        "nv_gpu_memory_total_bytes", _GAUGE, "The GPU's memory.", ("gpu_uuid",), _gpus(lambda g: g.memory_total_nbytes)
    ),
    Family(
        "nv_gpu_memory_used_bytes",
        _GAUGE,
        "The GPU's memory in use, by anyone.",
        ("gpu_uuid",),
        _gpus(lambda g: g.memory_used_nbytes),
    ),
)

OURS: tuple[Family[Scene], ...] = (
    Family("isthmus_offered_requests_total", _COUNTER, "Requests that came in.", SCOPE, _sum(lambda c: c.offered)),
    Family(
        "isthmus_refused_requests_total",
        _COUNTER,
        "Requests not answered, by code.",
        (*SCOPE, "code"),
        _each(_refusals),
    ),
    Family("isthmus_late_answers_total", _COUNTER, "Answers after their budget.", SCOPE, _sum(lambda c: c.late)),
    Family(
        "isthmus_refusal_slack_seconds",
        _HISTOGRAM,
        "Time that a refusal left to whoever asked.",
        (*SCOPE, "le"),
        _each(_slack),
    ),
    Family(
        "isthmus_refusal_slack_ratio",
        _SUMMARY,
        "The same as a share of the budget.",
        SCOPE,
        _each(lambda f, scope: summary(f.counters.slack_budgeted, f.counters.slack_share, scope)),
    ),
    Family(
        "isthmus_budget_used_ratio",
        _SUMMARY,
        "Share of its budget that an answer took.",
        SCOPE,
        _each(lambda f, scope: summary(f.counters.budgeted, f.counters.budget_used, scope)),
    ),
    Family("isthmus_batch_rows", _HISTOGRAM, "Rows of an engine run.", (*SCOPE, "le"), _each(_batches)),
    Family(
        "isthmus_engine_busy_seconds_total",
        _COUNTER,
        "Seconds in the engine, every run once.",
        SCOPE,
        _sum(lambda c: c.busy_s),
    ),
    Family(
        "isthmus_predicted_compute_seconds_total",
        _COUNTER,
        "What the cost curve had said for the same runs.",
        SCOPE,
        _sum(lambda c: c.predicted_s),
    ),
    Family(
        "isthmus_predicted_over_actual_ratio",
        _GAUGE,
        "Predicted over measured time of the last minute's runs; the prediction is a high quantile.",
        SCOPE,
        _one(lambda f: f.predicted_over_actual),
    ),
    Family(
        "isthmus_latency_seconds",
        _GAUGE,
        "Exact quantiles of the last minute: residence and queue of answers, compute of engine runs.",
        (*SCOPE, "stage", "quantile"),
        _each(_quantiles),
    ),
    Family(
        "isthmus_latency_window_seconds",
        _GAUGE,
        "Seconds that these quantiles cover: 60, or less above 546 answers a second.",
        (*SCOPE, "stage"),
        _each(_covered),
    ),
    Family("isthmus_answers_per_second", _GAUGE, "Answers a second in the last minute.", SCOPE, _one(lambda f: f.qps)),
    Family(
        "isthmus_goodput_per_second",
        _GAUGE,
        "Answers in time a second in the last minute.",
        SCOPE,
        _one(lambda f: f.goodput),
    ),
    Family("isthmus_engine_info", _GAUGE, "The engine that really ran last: 1.", (*SCOPE, "engine"), _each(_engine)),
    Family("isthmus_model_state", _GAUGE, "The state of each version: 1.", ("model", "version", "state"), _models),
    Family(
        "isthmus_lane_batch_bound_rows",
        _GAUGE,
        "Rows that a batch of this lane may have.",
        ("lane", "label"),
        _lanes(lambda x: x.batch_bound),
    ),
    Family(
        "isthmus_lane_wait_seconds",
        _GAUGE,
        "What a request arriving now would wait.",
        ("lane", "label"),
        _lanes(lambda x: x.wait_s),
    ),
    Family("isthmus_lane_instances", _GAUGE, "Engines of this lane.", ("lane", "label"), _lanes(lambda x: x.instances)),
    Family("isthmus_lane_busy_instances", _GAUGE, "Engines that run now.", ("lane", "label"), _lanes(lambda x: x.busy)),
    Family("isthmus_pending_bytes", _GAUGE, "Payload bytes held.", (), _gateway(lambda s: s.standing.pending_nbytes)),
    Family(
        "isthmus_pending_limit_requests",
        _GAUGE,
        "Requests that may be held.",
        (),
        _gateway(lambda s: s.standing.pending_limit_requests),
    ),
    Family(
        "isthmus_pending_limit_bytes",
        _GAUGE,
        "Payload bytes that may be held.",
        (),
        _gateway(lambda s: s.standing.pending_limit_nbytes),
    ),
    Family("isthmus_agents", _GAUGE, "Agents that have greeted.", (), _gateway(lambda s: s.standing.agents)),
    Family(
        "isthmus_credit_requests",
        _GAUGE,
        "Requests that one agent may have in flight.",
        (),
        _gateway(lambda s: s.standing.credit_requests),
    ),
    Family(
        "isthmus_credit_bytes",
        _GAUGE,
        "Payload bytes that one agent may have in flight.",
        (),
        _gateway(lambda s: s.standing.credit_nbytes),
    ),
    Family(
        "isthmus_events_total",
        _COUNTER,
        "What no model has: duplicates, wire errors, cache hits, reloads.",
        ("event",),
        _events,
    ),
    Family("isthmus_ready", _GAUGE, "1 when requests are welcome.", (), _gateway(lambda s: int(s.standing.ready))),
    Family("isthmus_uptime_seconds", _GAUGE, "Since the start.", (), _gateway(lambda s: s.snapshot.uptime_s)),
    Family("isthmus_build_info", _GAUGE, "What runs: 1.", ("software",), _build),
    Family(
        "process_resident_memory_bytes",
        _GAUGE,
        "This process's memory.",
        (),
        _gateway(lambda s: s.machine.process_memory_nbytes),
    ),
    Family(
        "process_cpu_seconds_total",
        _COUNTER,
        "This process's processor time.",
        (),
        _gateway(lambda s: s.machine.process_cpu_s),
    ),
    Family("process_open_fds", _GAUGE, "Open files.", (), _gateway(lambda s: s.machine.process_open_files)),
)

FAMILIES = (*TRITONS, *OURS, *(_of_standing(family) for family in ENGINES))
