"""Spans of sampled requests, made after the fact from the times that were measured anyway (extra `tracing`).

    request  |---------------------------------|
    queue    |-----------|
    decode               |---|
    compute                  |-----------|

A span costs 30 us even when nobody samples it, so none is made for a request that is not sampled, and OpenTelemetry is
imported only when tracing is switched on. Callers decide what is sampled; what they ask for beyond `MOST_PER_S`
requests a second is counted, not traced. Times are monotonic seconds and become dates here, by one offset.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cloud_gateway.seeing.trace_context import Trace
from protocol.errors import EngineError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

MOST_PER_S = 100.0
Attribute = str | bool | int | float


@dataclass(frozen=True, slots=True)
class Traced:
    """One finished request: monotonic seconds; `reason` where it was refused, and then it has no stages."""

    trace: Trace
    arrived: float
    ended: float
    queue_s: float = 0.0
    decode_s: float = 0.0
    compute_s: float = 0.0
    reason: str = ""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


class Tracing:
    """Switched on by being made. Raises EngineError without the extra."""

    def __init__(
        self,
        *,
        endpoint: str,
        service_name: str = "isthmus-gateway",
        headers: Mapping[str, str] | None = None,
        exporter: SpanExporter | None = None,
        most_per_s: float = MOST_PER_S,
    ) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(endpoint, headers=dict(headers or {}))
        except ImportError as error:
            raise EngineError(
                "tracing needs OpenTelemetry, which is not installed", "install isthmus[tracing]"
            ) from error
        self._ids = _ids()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create({"service.name": service_name}), id_generator=self._ids
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("isthmus")
        self._lock = threading.Lock()
        self._most_per_s = most_per_s
        self._allowance, self._allowed_at = most_per_s, 0.0
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self.left_out = 0  # sampled requests beyond the bound

    def record(self, traced: Traced) -> None:
        """About 150 us: call it where nobody waits for the answer any more."""
        from opentelemetry import trace as api

        with self._lock:
            if not self._may(traced.ended):
                self.left_out += 1
                return
            self._ids.trace_id = traced.trace.trace_id
            root = self._tracer.start_span(
                "isthmus.request",
                context=_parent(traced.trace),
                kind=api.SpanKind.SERVER,
                start_time=self._date_ns(traced.arrived),
                attributes=dict(traced.attributes),
            )
        if traced.reason:
            root.set_status(api.Status(api.StatusCode.ERROR, traced.reason))
        inside, start = api.set_span_in_context(root), traced.arrived
        for name, took_s in (("queue", traced.queue_s), ("decode", traced.decode_s), ("compute", traced.compute_s)):
            if took_s > 0.0:
                span = self._tracer.start_span(f"isthmus.{name}", context=inside, start_time=self._date_ns(start))
                start += took_s
                span.end(self._date_ns(start))
        root.end(self._date_ns(traced.ended))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()

    def _may(self, now: float) -> bool:
        """A bucket that holds a second's worth and fills as time goes by."""
        passed, self._allowed_at = max(now - self._allowed_at, 0.0), now
        self._allowance = min(self._allowance + passed * self._most_per_s, self._most_per_s)
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _date_ns(self, at: float) -> int:
        return int(at * 1e9) + self._offset_ns


def _ids() -> Any:
    """Random span ids; the trace id is the caller's, also where the request's span is the first of its trace."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        trace_id = 0

        def generate_trace_id(self) -> int:
            return self.trace_id

    return Ids()


def _parent(trace: Trace) -> Any:
    from opentelemetry import context
    from opentelemetry import trace as api

    if not trace.parent:
        return context.Context()
    remote = api.SpanContext(trace.trace_id, trace.parent, is_remote=True, trace_flags=api.TraceFlags(1))
    return api.set_span_in_context(api.NonRecordingSpan(remote), context.Context())
