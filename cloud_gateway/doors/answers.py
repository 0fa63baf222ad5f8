"""Outcomes as messages of the ZeroMQ wire, and requests of that wire as the desk wants them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_gateway.seeing.trace_context import from_wire
from cloud_gateway.seeing.tracing import Traced
from cloud_gateway.work import Computed, Item, Reference
from protocol import messages as m
from protocol.delta import DeltaCodec
from protocol.errors import InvariantViolation
from protocol.wire import Buffer


@dataclass(frozen=True, slots=True)
class Answer:
    """A result without the attempt it answers: that is only known when it is sent."""

    result: m.Result
    buffers: tuple[Buffer, ...]

    @property
    def nbytes(self) -> int:
        return sum(h.nbytes for h in self.result.tensors) + 512


def answer_of(done: Computed, infer: m.Infer, *, now: float) -> Answer:
    segment = done.item.segment
    timings = m.Timings(
        residence_us=int((now - done.item.arrived) * 1e6),
        queue_us=int(done.queue_s * 1e6),
        decode_us=int(done.decode_s * 1e6),
        compute_us=int(done.compute_s * 1e6),
        batch_size=done.batch_size,
    )
    result = m.Result(
        request=infer.request,
        attempt=infer.attempt,
        tensors=done.headers,
        checksum=done.checksum,
        timings=timings,
        engine=done.engine,
        precision=segment.precision,
        bundle=segment.bundle,
    )
    return Answer(result, done.buffers)


def traced_of(done: Computed, infer: m.Infer, *, now: float) -> Traced | None:
    """The request's place in its caller's trace; None where the caller gave none."""
    trace = from_wire(infer.trace, infer.sampled)
    if trace is None:
        return None
    scope = done.item.segment.scope
    return Traced(
        trace, done.item.arrived, now, done.queue_s, done.decode_s, done.compute_s,
        attributes={"request": str(infer.request), "model": scope.model, "placement": scope.placement,
                    "batch_size": done.batch_size, "engine": done.engine},
    )  # fmt: skip


def infer_of(item: Item) -> m.Infer:
    """The message that the ZeroMQ door put into the item."""
    if not isinstance(item.ticket, m.Infer):
        raise InvariantViolation("an item of another door was handed to this one")
    return item.ticket


def reference_of(infer: m.Infer) -> Reference | None:
    """Whose frames may refer to each other: one device's under one segment. Nobody can use another's boot id."""
    if not infer.keep and all(header.codec != DeltaCodec.name for header in infer.tensors):
        return None
    return Reference((infer.request.boot, infer.segment), infer.request.sequence, infer.keep)
