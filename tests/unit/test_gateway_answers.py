"""Outcomes as messages: every number is in its unit, and an answer knows its attempt only when it is sent."""

from __future__ import annotations

import numpy as np
import pytest

from cloud_gateway.doors.answers import answer_of, infer_of, reference_of, traced_of
from cloud_gateway.models.lanes import Lane, LaneRules, Segment
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.work import Computed, Item
from protocol import codecs
from protocol import messages as m
from protocol.bundle import BoundaryTensor
from protocol.engines.fake import FakeEngine
from protocol.errors import InvariantViolation
from protocol.tensors import TensorHeader, TensorSpec

X = BoundaryTensor(TensorSpec("x", "float32", ("N", 3)), "raw", 0)
HEADER, DATA = codecs.encode("x", np.ones((1, 3), np.float32), "raw")


def infer(**more: object) -> m.Infer:
    given: dict[str, object] = {
        "request": m.RequestId(b"bootboot", 7), "segment": b"s" * 32, "attempt": 2, "budget_us": 1, "priority": 4,
        "tensors": (HEADER,), "checksum": 0,
    }  # fmt: skip
    return m.Infer(**{**given, **more})  # type: ignore[arg-type]


def done(ticket: object) -> Computed:
    engine = FakeEngine(lambda tensors: dict(tensors), inputs=(X.spec,))
    lane = Lane("f" * 64, engine, boundary=(X,), output_axes={"y": 0}, batchable=True, rules=LaneRules())
    segment = Segment(lane, (X,), "b" * 64, "int8", "cut-1", Scope("m", "1", "cut-1"))

    class Door:
        def post_all(self, items: object, /) -> None:
            pass

    item = Item(segment, (HEADER,), [DATA], [1], 0, 1, ((3,),), 12, 100.0, 200.0, 4, "one", Door(), ticket)
    return Computed(
        item, (HEADER,), (DATA,), 99, queue_s=0.001, decode_s=0.002, compute_s=0.003, batch_size=4, engine="fake"
    )


def test_a_result_says_where_its_time_went_in_microseconds_and_where_it_was_made() -> None:
    answer = answer_of(done(None), infer(), now=100.5)
    result = answer.result
    assert result.request == m.RequestId(b"bootboot", 7)
    assert (result.tensors, result.checksum, answer.buffers) == ((HEADER,), 99, (DATA,))
    assert (result.engine, result.precision, result.bundle) == ("fake", "int8", "b" * 64)
    assert result.timings == m.Timings(
        residence_us=500_000, queue_us=1000, decode_us=2000, compute_us=3000, batch_size=4
    )
    assert answer.nbytes >= 12
    assert result.attempt == 2
    assert result.for_attempt(5).attempt == 5


def test_an_item_of_another_door_is_a_bug() -> None:
    ticket = infer()
    assert infer_of(done(ticket).item) is ticket
    with pytest.raises(InvariantViolation, match="another door"):
        infer_of(done("a future").item)


def test_only_frames_that_are_kept_or_refer_to_others_belong_to_a_stream() -> None:
    delta = TensorHeader("x", "uint8", (1, 3), "delta", 5)
    assert reference_of(infer()) is None
    kept, referring = reference_of(infer(keep=True)), reference_of(infer(tensors=(HEADER, delta)))
    assert kept is not None
    assert (kept.stream, kept.sequence, kept.keep) == ((b"bootboot", b"s" * 32), 7, True)
    assert referring is not None
    assert not referring.keep


def test_a_sampled_request_is_placed_in_its_callers_trace_and_another_is_not() -> None:
    assert traced_of(done(None), infer(), now=101.0) is None
    assert traced_of(done(None), infer(sampled=True, trace=bytes(16)), now=101.0) is None
    traced = traced_of(done(None), infer(sampled=True, trace=b"\1" * 16), now=101.0)
    assert traced is not None
    assert (traced.arrived, traced.ended, traced.compute_s) == (100.0, 101.0, 0.003)
    assert traced.attributes["placement"] == "cut-1"
