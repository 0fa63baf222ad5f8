"""What Prometheus reads, judged by prometheus-client's own parser: on a scene with everything, on one with nothing."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cloud_gateway.seeing.ledger import Ledger, Scope
from cloud_gateway.seeing.metrics import FAMILIES, OURS, TRITONS, Scene, metrics_text
from cloud_gateway.seeing.page import page_html
from cloud_gateway.seeing.standing import EngineAccount, EngineState, LaneState, ModelState, Standing
from cloud_gateway.seeing.status import status_json
from protocol.seeing.exposition import buckets, labels
from protocol.seeing.machine import MachineState
from protocol.seeing.nvml import Gpu
from protocol.seeing.views import FRESH_S, Views

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "operations.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "isthmus-gateway.json"
NAME = re.compile(r"\b(?:nv|isthmus|process)_[a-z_]+\b")
CUT = Scope("digits", "3", "cut-1")
ENGINES = (
    EngineState("tensorrt", "resting", False, "device lost", 2),
    EngineState("onnxruntime-cuda", "ready", True, precision="float16"),
    EngineState("onnxruntime-cpu", "ready", False),
)
ACCOUNT = EngineAccount(
    {("tensorrt", "device-lost"): 2}, {("tensorrt", "ok"): 1, ("onnxruntime-cuda", "ok"): 1}, {("tensorrt",): 61.5},
    {("tensorrt", "onnxruntime-cuda"): 1}, {("onnxruntime-cuda",): 3}, 600, 1000,
)  # fmt: skip
NASTY = Scope('a"b\\c\nd{}', "1", "full-cloud")


def scene(*, full: bool = True) -> Scene:
    ledger = Ledger(now=0.0)
    if not full:
        nothing = MachineState(None, None, None, None, None, None, None, None, ())
        return Scene(ledger.snapshot(now=1.0), Standing(ready=False), nothing, "isthmus 1")
    for scope in (CUT, NASTY):
        for i in range(8):
            ledger.offered(scope)
            ledger.answered(scope, queue_s=0.001, residence_s=0.010, budget_s=0.05, late=i == 0, now=float(i))
        for rows, compute_s in ((1, 0.002), (3, 0.004), (4, 0.006)):
            ledger.executed(scope, rows=rows, requests=rows, decode_s=0.001, compute_s=compute_s, predicted_s=0.006,
                            engine="onnxruntime-1/CPU", now=7.0)  # fmt: skip
    for code, slack_s in (("BUSY", 0.03), ("DEADLINE", 0.04), ("INTERNAL", 0.0), ("BAD_REQUEST", 0.05)):
        ledger.refused(CUT, code, slack_s=slack_s, budget_s=0.05)
    ledger.counted("wire_errors", 2)
    machine = MachineState(
        10**8, 12.5, 0.3, 9, 30, 0.25, 8 * 10**9, 10**9, (Gpu("GPU-1", 0.5, 10, 4), Gpu("GPU-2", None, None, None))
    )
    lane = LaneState("1f2e", "cut-1/tail", (CUT,), "onnxruntime-1/CPU", 2, 1, 8, {1: 0.002}, 0.01, 3, 999,
                     engines=ENGINES)  # fmt: skip
    states = (ModelState("digits", "3", "AVAILABLE"), ModelState("digits", "2", "ERROR", reason="no graph"))
    standing = Standing(ready=True, models=states, lanes=(lane,), pending={CUT: 3}, agents=2, credit_requests=32,
                        engines=ACCOUNT)  # fmt: skip
    return Scene(ledger.snapshot(now=8.0), standing, machine, "isthmus 1")


def families(full: bool = True) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics_text(scene(full=full)).decode())}


def value(name: str, **wanted: str) -> float:
    every = [s for f in families().values() for s in f.samples if s.name in (name, f"{name}_total")]
    (found,) = [s.value for s in every if all(s.labels.get(k) == v for k, v in wanted.items())]
    return float(found)


def test_an_independent_parser_reads_every_family_of_the_table() -> None:
    read = families()
    for family in FAMILIES:
        # The parser strips _total from a counter's name, as OpenMetrics has it.
        seen = read[family.name.removesuffix("_total") if family.kind == "counter" else family.name]
        assert seen.type == family.kind, family.name
        assert seen.documentation == family.help
        assert {name for sample in seen.samples for name in sample.labels} == set(family.labels), family.name


def test_engines_of_an_order_of_preference_are_shown_as_they_stand_and_with_what_failed() -> None:
    series = [s.labels for s in families()["isthmus_lane_engine_state"].samples]
    assert {(one["engine"], one["state"]) for one in series} == {
        ("tensorrt", "resting"),
        ("onnxruntime-cuda", "serving"),
        ("onnxruntime-cpu", "ready"),
    }
    assert value("isthmus_engine_failures_total", engine="tensorrt", cause="device-lost") == 2
    assert value("isthmus_engine_load_seconds_total", engine="tensorrt") == 61.5
    assert value("isthmus_engine_moves_total", **{"from": "tensorrt", "to": "onnxruntime-cuda"}) == 1
    assert value("isthmus_engine_reruns_total", engine="onnxruntime-cuda") == 3
    assert (value("isthmus_gpu_reserved_bytes"), value("isthmus_gpu_reservable_bytes")) == (600, 1000)


def test_tritons_counters_bear_tritons_names_with_nothing_behind_them() -> None:
    page = metrics_text(scene()).decode()
    assert "# TYPE nv_inference_request_success counter\nnv_inference_request_success{" in page
    assert all(re.fullmatch(r"nv_[a-z_]+", family.name) for family in TRITONS)
    assert all(re.fullmatch(r"(isthmus|process)_[a-z_]+", family.name) for family in OURS)
    assert not [f.name for f in TRITONS if f.name.endswith("_total")]


def test_the_numbers_are_those_that_were_counted() -> None:
    assert value("nv_inference_request_success", model="digits") == 8
    assert value("nv_inference_count", model="digits") == 8
    assert value("nv_inference_exec_count", model="digits") == 3
    assert value("nv_inference_request_duration_us", model="digits") == pytest.approx(80_000)
    assert value("nv_inference_compute_infer_duration_us", model="digits") == pytest.approx(2000 + 12000 + 24000)
    assert value("isthmus_engine_busy_seconds_total", model="digits") == pytest.approx(0.012)
    assert value("isthmus_predicted_over_actual_ratio", model="digits") == pytest.approx(1.5)
    assert value("nv_inference_pending_request_count", model="digits") == 3
    assert value("isthmus_latency_seconds", model="digits", stage="compute", quantile="0.9") == 0.006
    assert value("isthmus_goodput_per_second", model="digits") == pytest.approx(7 / 8)
    assert value("isthmus_events_total", event="wire_errors") == 2


def test_refusals_are_told_by_tritons_reasons_and_by_ours() -> None:
    for reason, count in {"REJECTED": 2, "CANCELED": 0, "BACKEND": 1, "OTHER": 1}.items():
        assert value("nv_inference_request_failure", model="digits", reason=reason) == count
    assert value("isthmus_refused_requests_total", model="digits", code="DEADLINE") == 1


def test_histograms_are_cumulative_and_end_with_everything() -> None:
    assert value("isthmus_batch_rows_bucket", model="digits", le="1.0") == 1
    assert value("isthmus_batch_rows_bucket", model="digits", le="4.0") == 3
    assert value("isthmus_batch_rows_bucket", model="digits", le="+Inf") == 3
    assert value("isthmus_batch_rows_sum", model="digits") == 8
    assert value("isthmus_refusal_slack_seconds_bucket", model="digits", le="0.02") == 1
    assert value("isthmus_refusal_slack_seconds_count", model="digits") == 4
    assert value("isthmus_refusal_slack_ratio_sum", model="digits") == pytest.approx(0.6 + 0.8 + 0.0 + 1.0)


def test_a_models_name_stays_within_its_quotes() -> None:
    assert value("isthmus_offered_requests_total", model=NASTY.model) == 8


def test_what_is_unknown_is_absent_and_not_zero() -> None:
    read = families(full=False)
    for name in (
        "nv_cpu_utilization",
        "nv_gpu_utilization",
        "process_resident_memory_bytes",
        "isthmus_latency_seconds",
    ):
        assert name not in read
    (told,) = families()["nv_gpu_utilization"].samples
    assert told.labels == {"gpu_uuid": "GPU-1"}, "the other GPU does not tell its load"


def test_a_histogram_with_as_many_counts_as_bounds_is_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(buckets((1.0, 2.0), (1,), 1, 1.0, ""))
    assert labels(a=1, b="x") == 'a="1",b="x"'


def test_operations_md_shows_every_metric_as_the_code_has_it() -> None:
    lines = DOCS.read_text("utf-8").splitlines()
    shown = [line for line in lines if re.match(r"\| `(nv|isthmus|process)_", line)]
    assert shown == [f"| `{f.name}` | {f.kind} | {', '.join(f.labels)} | {f.help} |" for f in FAMILIES], (
        "the table of metrics in docs/operations.md is not the code's"
    )


def test_dashboard_and_documented_expressions_ask_only_for_metrics_that_exist() -> None:
    behind = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    known = {f.name + suffix for f in FAMILIES for suffix in behind.get(f.kind, ("",))}
    panels = msgspec.json.decode(DASHBOARD.read_bytes())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(asked) > 15
    asked += re.findall(r"^\|[^|]+\| `([^`]*(?:nv|isthmus)_[^`]*)`", DOCS.read_text("utf-8"), flags=re.MULTILINE)
    for expression in asked:
        names = set(NAME.findall(re.sub(r"\b(?:by|on) \([^)]*\)", "", expression)))
        assert names, expression
        assert names <= known, expression


def test_the_status_document_is_json_with_everything_a_person_asks_for() -> None:
    read = msgspec.json.decode(status_json(scene()))
    assert (read["schema"], read["ready"], read["agents"]) == (1, True, 2)
    (digits,) = (s for s in read["scopes"] if s["model"] == "digits")
    assert digits["counters"]["refused"] == {"BUSY": 1, "DEADLINE": 1, "INTERNAL": 1, "BAD_REQUEST": 1}
    assert digits["counters"]["batch_sizes"] == {"1": 1, "3": 1, "4": 1}
    assert digits["residence"]["p99_s"] == 0.010
    assert digits["pending"] == 3
    assert read["lanes"][0]["scopes"] == [{"model": "digits", "version": "3", "placement": "cut-1"}]
    assert read["lanes"][0]["predicted_s"] == {"1": 0.002}
    assert read["models"][1]["reason"] == "no graph"
    assert read["total"]["counters"]["answered"] == 16
    assert read["machine"]["gpus"][1]["utilisation"] is None


def test_many_who_look_at_once_cost_one_look() -> None:
    looks, now = [], [0.0]

    def look() -> Scene:
        looks.append(now[0])
        return scene()

    views = Views(look, metrics=metrics_text, status=status_json, page=page_html, clock=lambda: now[0])
    kind, page = views.metrics_text()
    assert (kind, page) == ("text/plain; version=0.0.4; charset=utf-8", metrics_text(scene()))
    assert views.status_json() == status_json(scene())
    now[0] = FRESH_S
    views.metrics_text()
    assert looks == [0.0, FRESH_S]
    assert views.page()[0].startswith(b"<!doctype html>")


def test_the_status_document_of_a_gateway_that_has_done_nothing_is_whole_too() -> None:
    read = msgspec.json.decode(status_json(scene(full=False)))
    assert read["total"]["residence"] is None
    assert read["models"] == []
