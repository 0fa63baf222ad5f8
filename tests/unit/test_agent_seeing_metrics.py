"""What Prometheus reads of an agent, judged by prometheus-client's own parser, and the status document beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.seeing.ledger import Ledger
from edge_agent.seeing.metrics import FAMILIES, OURS, TRITONS, metrics_text
from edge_agent.seeing.scene import Scene
from edge_agent.seeing.status import status_json
from tests.agent_scenes import DIGEST, HOSTILE, answer, machine, new_scene, refusal, scene, standing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "agent-metrics.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "isthmus-agent.json"
NAME = re.compile(r"\b(?:nv|isthmus|process)_[a-z_]+\b")


def families(of: Scene) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics_text(of).decode())}


def value(of: Scene, name: str, **wanted: str) -> float:
    every = [s for f in families(of).values() for s in f.samples if s.name in (name, f"{name}_total")]
    (found,) = [s.value for s in every if all(s.labels.get(k) == v for k, v in wanted.items())]
    return float(found)


@pytest.fixture(scope="module")
def busy() -> Scene:
    return scene()


def test_an_independent_parser_reads_every_family_of_the_table(busy: Scene) -> None:
    full = replace(busy, machine=replace(machine(), gpus=tuple(replace(g, memory_total_nbytes=8, memory_used_nbytes=1)
                                                              for g in machine().gpus)))  # fmt: skip
    read = families(full)
    for family in FAMILIES:
        seen = read[family.name.removesuffix("_total") if family.kind == "counter" else family.name]
        assert seen.type == family.kind, family.name
        assert seen.documentation == family.help
        assert {name for sample in seen.samples for name in sample.labels} == set(family.labels), family.name


def test_names_are_tritons_or_begin_with_the_agents() -> None:
    assert all(re.fullmatch(r"nv_[a-z_]+", family.name) for family in TRITONS)
    assert all(re.fullmatch(r"(isthmus_agent|process)_[a-z_]+", family.name) for family in OURS)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_no_series_stands_twice(busy: Scene) -> None:
    lines = [line.rpartition(" ")[0] for line in metrics_text(busy).decode().splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


def test_the_numbers_are_those_that_were_counted(busy: Scene) -> None:
    assert value(busy, "nv_inference_request_success", model="digits", version="3") == 3000
    assert value(busy, "nv_inference_request_failure", model="digits", reason="REJECTED") == 12
    assert value(busy, "nv_inference_request_duration_us") == 2700 * 20_000 + 300 * 45_000
    assert value(busy, "nv_inference_compute_infer_duration_us") == 2700 * 9_000 + 300 * 44_000
    assert value(busy, "isthmus_agent_answers_total", placement="cut-1") == 2700
    assert value(busy, "isthmus_agent_degraded_causes_total", placement="edge-only", cause="link") == 300
    assert value(busy, "isthmus_agent_refused_requests_total", code="DEADLINE") == 12
    assert value(busy, "isthmus_agent_latency_seconds", placement="cut-1", stage="total", quantile="0.99") == 0.02
    assert value(busy, "isthmus_agent_predicted_over_actual_ratio", placement="cut-1") == pytest.approx(0.9)
    assert value(busy, "isthmus_agent_sent_bytes_total", placement="cut-1") == 2700 * 12_000
    assert value(busy, "isthmus_agent_placement_current", placement="cut-1") == 1
    assert value(busy, "isthmus_agent_placement_available", placement="cut-2") == 0
    assert value(busy, "isthmus_agent_gateway_ready", gateway="tcp://10.0.0.7:7447") == 1
    assert value(busy, "isthmus_agent_gateway_ready", gateway=HOSTILE) == 0
    assert value(busy, "isthmus_agent_board_temperature_celsius", zone="cpu-thermal") == 71.5
    assert value(busy, "isthmus_agent_events_total", event="sockets_recreated") == 2


def test_refusals_of_every_code_add_up_to_tritons_four_reasons() -> None:
    ledger = Ledger(now=0.0)
    ledger.introduce(DIGEST, "digits", "3")
    for code in type(refusal().code):
        ledger.observe(refusal(code=code), budget_s=0.1, predicted_s=None, now=0.0)
    ledger.observe(answer(), budget_s=0.1, predicted_s=None, now=0.0)
    of = Scene(ledger.snapshot(now=1.0), standing(), machine(), "isthmus 9")
    (failures,) = [f for f in families(of).values() if f.name == "nv_inference_request_failure"]
    assert sum(s.value for s in failures.samples) == len(type(refusal().code))


def test_what_is_unknown_is_absent_and_not_zero() -> None:
    read = families(new_scene())
    for name in ("nv_cpu_utilization", "process_resident_memory_bytes", "isthmus_agent_latency_seconds",
                 "isthmus_agent_board_temperature_celsius", "isthmus_agent_board_throttled",
                 "isthmus_agent_stored_requests", "isthmus_agent_link_round_trip_seconds"):  # fmt: skip
        assert name not in read
    assert value(new_scene(), "isthmus_agent_ready") == 0


def test_the_table_in_the_documentation_is_the_table_in_the_code() -> None:
    lines = DOCS.read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith(("| `nv_", "| `isthmus_", "| `process_"))]
    told = [tuple(cell.strip().strip("`") for cell in row.strip("|").split("|")) for row in rows]
    assert told == [(f.name, f.kind, ", ".join(f.labels), f.help) for f in FAMILIES]


def test_dashboard_and_documentation_ask_only_for_what_is_told() -> None:
    known = {family.name for family in FAMILIES} | {
        family.name + suffix for family in FAMILIES if family.kind in ("histogram", "summary")
        for suffix in ("_sum", "_count", "_bucket")
    }  # fmt: skip
    panels = msgspec.json.decode(DASHBOARD.read_bytes())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(asked) > 15
    asked += re.findall(r"^\|[^|]+\| `([^`]*isthmus_[^`]*)`", DOCS.read_text("utf-8"), flags=re.MULTILINE)
    for expression in asked:
        names = set(NAME.findall(re.sub(r"\bby \([^)]*\)", "", expression)))
        assert names, expression
        assert names <= known, expression


def test_the_status_document_holds_what_the_page_draws(busy: Scene) -> None:
    read = msgspec.json.decode(status_json(busy))
    assert read["schema"] == 2
    assert read["now"]["placement"] == "cut-1"
    assert read["now"]["why"] == standing().why
    assert read["now"]["flips"] == list(standing().flips)
    assert [p["id"] for p in read["placements"]] == ["full-cloud", "cut-1", "cut-2", "edge-only"]
    assert read["gateways"][1]["reason"] == "no gateway answers"
    assert read["total"]["counters"]["refused"] == {"DEADLINE": 12}
    assert read["scopes"][0]["placement"] == "edge-only"
    assert read["bundle"]["signed_by"] == "factory"
    assert read["events"] == {"placement_switches": 4, "sockets_recreated": 2}
    assert msgspec.json.decode(status_json(new_scene()))["board"] is None
