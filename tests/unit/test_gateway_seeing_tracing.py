"""Spans: only for who asked, made from measured times, and no library loaded before somebody does."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_gateway.seeing.trace_context import Trace, from_traceparent, from_wire

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (f"00-{TRACE}-{SPAN}-01", Trace(int(TRACE, 16), int(SPAN, 16))),
        (f" 00-{TRACE}-{SPAN}-03 ", Trace(int(TRACE, 16), int(SPAN, 16))),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", Trace(int(TRACE, 16), int(SPAN, 16))),
        (f"00-{TRACE}-{SPAN}-00", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
        (None, None),
    ],
)
def test_a_traceparent_is_read_as_the_standard_says(text: str | None, seen: Trace | None) -> None:
    assert from_traceparent(text) == seen


@settings(max_examples=30)
@given(st.text("0123456789abcdef-f\u0660 ", max_size=70))
def test_no_text_breaks_the_reading_of_a_traceparent(text: str) -> None:
    from_traceparent(text)


def test_the_wires_sampled_bit_decides() -> None:
    assert from_wire(b"\x01" * 16, sampled=False) is None
    assert from_wire(b"\x01\x02", sampled=True) == Trace(0x0102)
    assert from_wire(b"", sampled=True) is None, "there is no trace to belong to"


def test_nobody_loads_opentelemetry_before_tracing_is_switched_on() -> None:
    code = (
        "import cloud_gateway.seeing.tracing, cloud_gateway.seeing.trace_context, protocol.seeing.views, sys\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


sdk = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="needs isthmus[tracing]")


def make(most_per_s: float = 100.0):  # type: ignore[no-untyped-def]
    from cloud_gateway.seeing.tracing import Tracing

    exporter = sdk.InMemorySpanExporter()
    return Tracing(endpoint="", exporter=exporter, most_per_s=most_per_s), exporter


def test_a_sampled_request_becomes_spans_with_the_times_that_were_measured() -> None:
    from cloud_gateway.seeing.tracing import Traced

    tracing, exporter = make()
    arrived = time.monotonic()
    tracing.record(
        Traced(Trace(0xABC, 0xDEF), arrived, arrived + 0.010, 0.004, 0.001, 0.003, attributes={"model": "digits"})
    )
    tracing.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"isthmus.request", "isthmus.queue", "isthmus.decode", "isthmus.compute"}
    root = spans["isthmus.request"]
    assert (root.context.trace_id, root.parent.span_id) == (0xABC, 0xDEF)
    assert root.attributes["model"] == "digits"
    for name, start_ms, took_ms in (("request", 0, 10), ("queue", 0, 4), ("decode", 4, 1), ("compute", 5, 3)):
        span = spans[f"isthmus.{name}"]
        assert (span.start_time - root.start_time) / 1e6 == pytest.approx(start_ms, abs=0.01)
        assert (span.end_time - span.start_time) / 1e6 == pytest.approx(took_ms, abs=0.01)
    assert all(s.parent.span_id == root.context.span_id for n, s in spans.items() if n != "isthmus.request")
    assert abs(root.start_time / 1e9 - time.time()) < 60, "dates are today's"


def test_the_first_span_of_a_trace_bears_the_callers_trace_id() -> None:
    from cloud_gateway.seeing.tracing import Traced

    tracing, exporter = make()
    tracing.record(Traced(Trace(0x42), 1.0, 2.0, reason="BUSY: 3 requests are pending"))
    tracing.close()
    (span,) = exporter.get_finished_spans()
    assert (span.context.trace_id, span.parent) == (0x42, None)
    assert span.status.description == "BUSY: 3 requests are pending"
    assert not span.status.is_ok


def test_callers_who_sample_everything_are_bounded_and_counted() -> None:
    from cloud_gateway.seeing.tracing import Traced

    tracing, exporter = make(most_per_s=5.0)
    for i in range(40):
        tracing.record(Traced(Trace(1), 100.0, 100.0 + i * 0.1))
    tracing.close()
    assert len(exporter.get_finished_spans()) == 40 - tracing.left_out
    assert 5 + 19 - 1 <= 40 - tracing.left_out <= 5 + 20
