"""The demo's page stands alone and believes nobody's text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from examples.demo import figures, result
from examples.demo.phases import schedule
from examples.demo.plan import colours, no_cut_sentence, plan_sentence, predicted_ms
from examples.demo.record import Record, Truth, measured
from examples.demo.report import render
from examples.demo.table import shortened
from protocol.bundle import Conditions, Manifest, ModelInfo, PlacementEntry
from protocol.latency import PlacementCost
from protocol.messages import PlacementKind
from tests.unit.test_demo_record import answered, stopped

EVIL = '<script src="http://evil.example/x.js"></script>&"\''
CONDITIONS = Conditions(
    machine="m",
    edge_slowdown=8.0,
    threads=1,
    tail_threads=1,
    rtt_s=0.005,
    precision_asked="auto",
    versions={},
    calibration_digest="0" * 64,
    calibration_samples=128,
    created_utc="now",
)
PNG = b"\x89PNG not really"


def entry(id_: str, kind: PlacementKind, edge_s: float, up_nbytes: float) -> PlacementEntry:
    cost = PlacementCost(edge_s=edge_s, up_nbytes=up_nbytes, tail_s=0.01 if up_nbytes else 0.0)
    return PlacementEntry(id_, kind, (EVIL,), None, None, None, "int8", (), (), None, cost, None)


def manifest(*, with_cut: bool = True) -> Manifest:
    places = [entry("full-cloud", PlacementKind.FULL_CLOUD, 0.0, 36000.0)]
    places += [entry("cut-1", PlacementKind.CUT, 0.004, 5000.0)] if with_cut else []
    places += [entry("edge-only", PlacementKind.EDGE_ONLY, 0.03, 0.0)]
    return Manifest(
        schema_version=1,
        model=ModelInfo(EVIL, "0" * 64, "0" * 64, 17, (), ()),
        files={},
        placements=tuple(places),
        conditions=CONDITIONS,
        plan=(("full-cloud", 200.0, 62.89), ("edge-only", 62.89, 1.0)),
        notes=("do not split: edge-only is faster",),
    )


def document(record: Record | None = None) -> dict[str, Any]:
    if record is None:
        record = Record(Truth((3,), (True,), labelled=True))
        for number, slot in enumerate(schedule(1.0)):
            record.begin(slot.phase.name, slot.from_s)
            record.add(answered(number, degraded=[EVIL]), slot.from_s)
        record.add(stopped(8), 9.0)
    bundle = manifest()
    return result.document(
        model=EVIL,
        declared=EVIL,
        story=EVIL,
        manifest=bundle,
        record=record,
        slots=schedule(1.0)[: len(record.acts)],
        costs=measured(record, {"100 Mbit/s": 100.0}),
        predicted=predicted_ms(bundle, (100.0, 2.0), 5.0),
        conditions={EVIL: EVIL},
    )


class Reader(HTMLParser):
    """Collects every tag and everything that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_loads_nothing_but_the_picture_inside_it() -> None:
    reader = Reader()
    page = render(document(), PNG)
    reader.feed(page)
    assert [load.split(",")[0] for load in reader.loads] == ["data:image/png;base64"]
    assert not reader.tags & {"script", "link", "iframe", "object", "embed", "base"}
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_page_escapes_every_text() -> None:
    page = render(document(), PNG)
    assert EVIL not in page
    assert "&lt;script" in page


def test_the_page_says_when_something_was_not_kept() -> None:
    broken = document() | {"ok": False, "verdict": "Not kept: 1 request was lost."}
    assert 'class="verdict broken">Not kept' in render(broken, PNG)


def test_a_document_holds_no_nan_because_json_has_none() -> None:
    record = Record(Truth((3,), (True,), labelled=True))
    record.begin("silence", 0.0)
    told = document(record)
    assert told["total"]["p50_ms"] != told["total"]["p50_ms"]
    assert result.written(told)["total"]["p50_ms"] is None
    assert "<td" in render(told, PNG)


def test_the_verdict_tells_the_counts() -> None:
    assert document()["verdict"].startswith("Each of 8 requests ended exactly once: 8 were answered, none was refused")


def test_a_manifest_without_a_cut_is_said_plainly_with_its_reason() -> None:
    said = no_cut_sentence(manifest(with_cut=False), {"edge-only"})
    assert "no cut wins anywhere" in said
    assert "edge-only is faster" in said


def test_a_cut_that_was_never_chosen_is_said_and_a_cut_that_was_is_not() -> None:
    assert "no cut was ever chosen" in no_cut_sentence(manifest(), {"edge-only"})
    assert no_cut_sentence(manifest(), {"cut-1"}) == ""


def test_the_plan_is_told_fastest_link_first() -> None:
    assert plan_sentence(manifest()) == "full-cloud from 200 to 62.9 Mbit/s, edge-only from 62.9 to 1 Mbit/s"


def test_every_placement_has_a_colour_of_its_own() -> None:
    assert len(set(colours(manifest()).values())) == 3


def test_reasons_are_counted_cut_and_never_dropped_silently() -> None:
    told = shortened({"a" * 80: 9, "b": 5, "c": 2, "d": 1})
    assert told.startswith("9x aaa")
    assert "…" in told
    assert told.endswith("3x other")


def test_long_events_are_wrapped_at_words() -> None:
    assert figures._wrapped("SIGKILL, nobody is told") == "SIGKILL, nobody\nis told"
