"""The agent's numbers for Prometheus: a table of families, each with how it is read from one scene.

Names are Triton's (`nv_...`) where the meaning is the same, so that its dashboards go on working; ours begin with
`isthmus_agent_`. What is unknown is absent: a missing series is not a zero. `docs/agent-metrics.md` shows the table.
"""

from __future__ import annotations

from edge_agent.seeing import readings as r
from edge_agent.seeing.scene import Scene
from protocol.seeing.exposition import Family, summary, text

MODEL = ("model", "version")
SCOPE = (*MODEL, "placement", "gateway", "precision")


_C, _G, _H, _S = "counter", "gauge", "histogram", "summary"

TRITONS: tuple[Family[Scene], ...] = (
    Family("nv_inference_request_success", _C, "Requests answered.", MODEL, r.model(lambda c: c.answered)),
    Family(
        "nv_inference_request_failure",
        _C,
        "Requests not answered, by Triton's four reasons.",
        (*MODEL, "reason"),
        r.failures,
    ),
    Family("nv_inference_count", _C, "Inferences: requests answered.", MODEL, r.model(lambda c: c.answered)),
    Family(
        "nv_inference_request_duration_us",
        _C,
        "Microseconds from submission to answer, over all answers.",
        MODEL,
        r.micros(lambda c: c.total_s),
    ),
    Family(
        "nv_inference_queue_duration_us",
        _C,
        "Microseconds that answered requests waited, here and at the gateway.",
        MODEL,
        r.micros(lambda c: c.waited_s + c.queue_s),
    ),
    Family(
        "nv_inference_compute_infer_duration_us",
        _C,
        "Microseconds in engines, here and at the gateway.",
        MODEL,
        r.micros(lambda c: c.edge_s + c.compute_s),
    ),
    Family(
        "nv_inference_pending_request_count",
        _G,
        "Requests accepted and not yet ended.",
        (),
        r.agent(lambda s: s.standing.pending),
    ),
    Family(
        "nv_cpu_utilization",
        _G,
        "Share of all processors that was busy since the scrape before.",
        (),
        r.agent(lambda s: s.machine.cpu_utilisation),
    ),
    Family(
        "nv_cpu_memory_total_bytes", _G, "The machine's memory.", (), r.agent(lambda s: s.machine.memory_total_nbytes)
    ),
    Family(
        "nv_cpu_memory_used_bytes",
        _G,
        "The machine's memory that is not available.",
        (),
        r.agent(lambda s: s.machine.memory_used_nbytes),
    ),
    Family("nv_gpu_utilization", _G, "Share of time with a kernel.", ("gpu_uuid",), r.gpus(lambda g: g.utilisation)),
    Family("nv_gpu_memory_total_bytes", _G, "Its memory.", ("gpu_uuid",), r.gpus(lambda g: g.memory_total_nbytes)),
    Family(
        "nv_gpu_memory_used_bytes",
        _G,
        "The GPU's memory in use, by anyone.",
        ("gpu_uuid",),
        r.gpus(lambda g: g.memory_used_nbytes),
    ),
)

OURS: tuple[Family[Scene], ...] = (
    Family("isthmus_agent_answers_total", _C, "Answers, by origin.", SCOPE, r.total(lambda c: c.answered)),
    Family("isthmus_agent_late_answers_total", _C, "Answers after their budget.", SCOPE, r.total(lambda c: c.late)),
    Family(
        "isthmus_agent_degraded_answers_total",
        _C,
        "Answers from another placement than the plan wanted.",
        SCOPE,
        r.total(lambda c: c.degraded),
    ),
    Family(
        "isthmus_agent_degraded_causes_total",
        _C,
        "Why; an answer may have several causes.",
        (*SCOPE, "cause"),
        r.each(r.causes),
    ),
    Family(
        "isthmus_agent_refused_requests_total",
        _C,
        "Requests not answered, by code.",
        (*MODEL, "code"),
        r.each(r.refusals),
    ),
    Family(
        "isthmus_agent_refusal_slack_seconds",
        _H,
        "Time that a refusal left to whoever asked.",
        (*MODEL, "le"),
        r.each(r.slack),
    ),
    Family(
        "isthmus_agent_stage_seconds_total",
        _C,
        "Seconds of answers in each stage; `waited` is what is in none of the others.",
        (*SCOPE, "stage"),
        r.each(r.stage_sums),
    ),
    Family(
        "isthmus_agent_budget_used_ratio",
        _S,
        "Share of its budget that an answer took.",
        SCOPE,
        r.each(lambda f, scope: summary(f.counters.budgeted, f.counters.budget_used, scope)),
    ),
    Family("isthmus_agent_sent_bytes_total", _C, "Payload sent for answers.", SCOPE, r.total(lambda c: c.up_nbytes)),
    Family("isthmus_agent_received_bytes_total", _C, "Payload of answers.", SCOPE, r.total(lambda c: c.down_nbytes)),
    Family("isthmus_agent_repeated_attempts_total", _C, "Attempts beyond one.", SCOPE, r.total(lambda c: c.repeated)),
    Family(
        "isthmus_agent_hedged_answers_total",
        _C,
        "Answers for which both sides worked at once.",
        SCOPE,
        r.total(lambda c: c.hedged),
    ),
    Family(
        "isthmus_agent_predicted_seconds_total",
        _C,
        "What the plan had said for answers of which it said something.",
        SCOPE,
        r.total(lambda c: c.predicted_s),
    ),
    Family(
        "isthmus_agent_predicted_over_actual_ratio",
        _G,
        "Predicted over measured time of the last minute's answers.",
        SCOPE,
        r.one(lambda f: f.predicted_over_actual),
    ),
    Family(
        "isthmus_agent_prediction_error_ratio",
        _G,
        "Mean distance of predicted from measured time as a share of it, over the last minute.",
        SCOPE,
        r.one(lambda f: f.prediction_error),
    ),
    Family(
        "isthmus_agent_latency_seconds",
        _G,
        "Exact quantiles of the last minute: submit to answer, work here, link, gateway.",
        (*SCOPE, "stage", "quantile"),
        r.each(r.quantiles),
    ),
    Family(
        "isthmus_agent_latency_window_seconds",
        _G,
        "Seconds that these quantiles cover: 60, or less above 546 answers a second.",
        (*SCOPE, "stage"),
        r.each(r.covered),
    ),
    Family("isthmus_agent_answers_per_second", _G, "Answers a second, last minute.", SCOPE, r.one(lambda f: f.qps)),
    Family(
        "isthmus_agent_goodput_per_second",
        _G,
        "Answers in time a second, last minute.",
        SCOPE,
        r.one(lambda f: f.goodput),
    ),
    Family("isthmus_agent_engine_info", _G, "What really ran last: 1.", (*SCOPE, "engine"), r.each(r.engine)),
    Family(
        "isthmus_agent_placement_current",
        _G,
        "1 for the placement that a request takes that comes now.",
        ("placement",),
        r.current,
    ),
    Family(
        "isthmus_agent_placement_available",
        _G,
        "1 where the placement can be used now.",
        ("placement",),
        r.placements(lambda p: int(not p.unavailable)),
    ),
    Family(
        "isthmus_agent_placement_predicted_seconds",
        _G,
        "What the plan says that a request would take.",
        ("placement",),
        r.placements(lambda p: p.predicted_s),
    ),
    Family(
        "isthmus_agent_gateway_ready",
        _G,
        "1 where the gateway takes work.",
        ("gateway",),
        r.gateways(lambda g: int(g.ready)),
    ),
    Family(
        "isthmus_agent_gateway_in_flight_requests",
        _G,
        "Requests out there.",
        ("gateway",),
        r.gateways(lambda g: g.in_flight),
    ),
    Family(
        "isthmus_agent_gateway_wait_seconds",
        _G,
        "What a request sent now is expected to wait, round trip included.",
        ("gateway",),
        r.gateways(lambda g: g.wait_s),
    ),
    Family(
        "isthmus_agent_link_uplink_bytes_per_second",
        _G,
        "The link's estimate.",
        ("gateway",),
        r.gateways(lambda g: g.uplink_bytes_per_s),
    ),
    Family(
        "isthmus_agent_link_round_trip_seconds",
        _G,
        "The link's smallest round trip of the last seconds.",
        ("gateway",),
        r.gateways(lambda g: g.rtt_s),
    ),
    Family(
        "isthmus_agent_device_slowdown_ratio",
        _G,
        "How much slower than planned the device computes.",
        (),
        r.agent(lambda s: s.standing.edge_factor),
    ),
    Family(
        "isthmus_agent_board_temperature_celsius", _G, "Of the zone that is nearest to its limit.", ("zone",), r.heat
    ),
    Family(
        "isthmus_agent_board_throttled",
        _G,
        "1 where the board says that it is.",
        (),
        r.board(lambda b: int(bool(b.throttled))),
    ),
    Family("isthmus_agent_board_gpu_load_ratio", _G, "Of the board's GPU.", (), r.board(lambda b: b.gpu_load)),
    Family("isthmus_agent_board_power_watts", _G, "What the board draws.", (), r.board(lambda b: b.watts)),
    Family("isthmus_agent_store_up", _G, "1 while requests are stored.", (), r.store(lambda s: int(not s.trouble))),
    Family("isthmus_agent_stored_requests", _G, "On the disk, not yet answered.", (), r.store(lambda s: s.waiting)),
    Family("isthmus_agent_stored_answers", _G, "On the disk, not yet fetched.", (), r.store(lambda s: s.answered)),
    Family("isthmus_agent_stored_bytes", _G, "Disk that both take.", (), r.store(lambda s: s.nbytes)),
    Family("isthmus_agent_stored_oldest_seconds", _G, "How long the oldest waits.", (), r.store(lambda s: s.oldest_s)),
    Family("isthmus_agent_bundle_info", _G, "The bundle that serves: 1.", (*MODEL, "digest"), r.bundle),
    Family(
        "isthmus_agent_refused_offers_total",
        _C,
        "Offers of bundles that were refused before, for the same reason.",
        (),
        r.agent(lambda s: s.standing.bundle.refused_offers),
    ),
    Family(
        "isthmus_agent_bundle_built_timestamp_seconds",
        _G,
        "When the bundle that serves was built, since 1970.",
        (),
        r.agent(lambda s: s.standing.bundle.built_at),
    ),
    Family(
        "isthmus_agent_offers_unheard_seconds",
        _G,
        "Since a gateway last told what it offers, or the start; where updates are asked for.",
        (),
        r.agent(lambda s: s.standing.bundle.unheard_s),
    ),
    Family(
        "isthmus_agent_events_total",
        _C,
        "What no answer has: switches, sockets made anew.",
        ("event",),
        r.events,
    ),
    Family("isthmus_agent_ready", _G, "1 when requests are welcome.", (), r.agent(lambda s: int(s.standing.ready))),
    Family("isthmus_agent_uptime_seconds", _G, "Since the start.", (), r.agent(lambda s: s.snapshot.uptime_s)),
    Family("isthmus_agent_build_info", _G, "What runs, and on what: 1.", ("software", "board", "power_mode"), r.build),
    Family(
        "process_resident_memory_bytes",
        _G,
        "This process's memory.",
        (),
        r.agent(lambda s: s.machine.process_memory_nbytes),
    ),
    Family(
        "process_cpu_seconds_total",
        _C,
        "Its processor time.",
        (),
        r.agent(lambda s: s.machine.process_cpu_s),
    ),
    Family("process_open_fds", _G, "Open files.", (), r.agent(lambda s: s.machine.process_open_files)),
)

FAMILIES = (*TRITONS, *OURS)


def metrics_text(scene: Scene) -> bytes:
    """The page that Prometheus reads."""
    return text(FAMILIES, scene)
