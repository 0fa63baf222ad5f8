"""Which piece of which payload goes next, how many may be out, and what comes back."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_agent.upload import Acknowledged, Upload, Uploads
from protocol import messages as m
from protocol import wire
from protocol.control import chunking
from protocol.latency import LinkState
from protocol.tensors import TensorHeader

CHUNK = wire.MIN_CHUNK_NBYTES
LINK = LinkState(uplink_bytes_per_s=125_000, rtt_s=0.0)  # a window of three chunks


def upload_of(sequence: int, sizes: list[int], *, attempt: int = 1, priority: int = 4) -> Upload:
    headers = tuple(TensorHeader(f"t{i}", "uint8", (n,), "raw", n) for i, n in enumerate(sizes))
    request = m.RequestId(b"bootboot", sequence)
    infer = m.Infer(request, bytes(32), attempt, 1, priority, headers, 0, chunk_nbytes=CHUNK)
    return Upload.of(sequence, infer, [bytes(n) for n in sizes], now=0.0)


def send_all(uploads: Uploads, *, now: float = 0.0, at: int = 0) -> list[tuple[int, int]]:
    """(sequence, number) of the pieces that go now."""
    went = []
    while (upload := uploads.next(LINK)) is not None:
        went.append((upload.seq, upload.sent))
        at += memoryview(upload.pieces[upload.sent]).nbytes
        uploads.sent(upload, position=at, now=now)
    return went


def test_three_pieces_go_and_another_one_for_each_that_has_arrived() -> None:
    uploads, upload = Uploads(), upload_of(1, [6 * CHUNK])
    uploads.begin(upload)
    assert send_all(uploads) == [(1, 0), (1, 1), (1, 2)]
    assert uploads.out_nbytes == 3 * CHUNK
    assert uploads.credited(upload.request, 1, 1, now=0.1) is not None
    assert (upload.left_nbytes, upload.rest_nbytes) == (5 * CHUNK, 3 * CHUNK)
    assert send_all(uploads) == [(1, 3)]
    uploads.credited(upload.request, 1, 4, now=0.2)
    assert send_all(uploads) == [(1, 4), (1, 5)]
    uploads.credited(upload.request, 1, 6, now=0.3)
    assert (len(uploads), uploads.out_nbytes) == (0, 0)


def test_the_more_urgent_payload_passes_and_equals_keep_their_order() -> None:
    uploads, usual, equal, urgent = (
        Uploads(),
        upload_of(1, [9 * CHUNK]),
        upload_of(2, [CHUNK]),
        upload_of(3, [2 * CHUNK]),
    )
    urgent.priority = 0
    uploads.begin(usual)
    uploads.begin(equal)
    assert send_all(uploads) == [(1, 0), (1, 1), (1, 2)]
    uploads.begin(urgent)
    uploads.credited(usual.request, 1, 3, now=0.1)
    assert send_all(uploads) == [(3, 0), (3, 1), (1, 3)]


def test_a_payload_that_the_gateway_has_already_is_not_sent_on() -> None:
    uploads, upload = Uploads(), upload_of(1, [6 * CHUNK])
    uploads.begin(upload)
    send_all(uploads)
    told = uploads.credited(upload.request, 1, 6, now=0.1)
    assert told is not None
    assert (upload.left_nbytes, upload.rest_nbytes) == (0, 0)
    assert (len(uploads), uploads.out_nbytes, uploads.next(LINK)) == (0, 0, None)


def test_credit_for_nothing_new_or_for_another_attempt_changes_nothing() -> None:
    uploads, upload = Uploads(), upload_of(1, [6 * CHUNK], attempt=2)
    uploads.begin(upload)
    send_all(uploads)
    assert uploads.credited(upload.request, 1, 3, now=0.1) is None
    assert uploads.credited(upload.request, 2, 0, now=0.1) is None
    assert uploads.credited(m.RequestId(b"bootboot", 9), 2, 3, now=0.1) is None
    assert uploads.out_nbytes == 3 * CHUNK


def test_credit_for_pieces_that_were_never_sent_says_nothing_of_the_link() -> None:
    uploads, upload = Uploads(), upload_of(1, [6 * CHUNK])
    uploads.begin(upload)
    assert uploads.credited(upload.request, 1, 5, now=0.1) == Acknowledged(upload, 0, 0.0)
    assert (upload.there, upload.sent) == (0, 0), "a gateway cannot have part of what was not sent"


def test_a_later_attempt_begins_anew_and_what_is_dropped_makes_room() -> None:
    uploads, first = Uploads(), upload_of(1, [6 * CHUNK])
    uploads.begin(first)
    send_all(uploads)
    uploads.begin(upload_of(1, [6 * CHUNK], attempt=2))
    assert send_all(uploads) == [(1, 0), (1, 1), (1, 2)]
    assert uploads.drop(first.request) is not None
    assert (len(uploads), uploads.out_nbytes, uploads.oldest) == (0, 0, None)
    assert uploads.drop(first.request) is None


def test_a_refusal_of_an_earlier_attempt_does_not_end_this_one() -> None:
    uploads, upload = Uploads(), upload_of(1, [6 * CHUNK], attempt=2)
    uploads.begin(upload)
    uploads.refused(upload.request, 1)
    assert len(uploads) == 1
    uploads.refused(upload.request, 2)
    assert len(uploads) == 0


def test_an_acknowledgement_counts_what_else_was_sent_since_the_one_before_it() -> None:
    uploads, upload = Uploads(), upload_of(1, [6 * CHUNK])
    uploads.begin(upload)
    for position in (5_000, 9_200, 16_400):  # the third follows 3,000 bytes of something else
        assert uploads.next(LINK) is upload
        uploads.sent(upload, position=position, now=1.0)
    told = [uploads.credited(upload.request, 1, n, now=1.0 + n / 10) for n in (1, 2, 3)]
    assert [t.nbytes for t in told if t] == [CHUNK, 4_200, 7_200]
    assert [t.round_trip_s for t in told if t] == pytest.approx([0.1, 0.2, 0.3])


class Link(RuleBasedStateMachine):
    """Any number of payloads over a link that keeps its order; whatever happens, pieces are sent in order and once."""

    def __init__(self) -> None:
        super().__init__()
        self.uploads = Uploads()
        self.now = 0.0
        self.live: dict[m.RequestId, Upload] = {}
        self.attempts: dict[int, int] = {}
        self.wire: list[tuple[m.RequestId, int, int]] = []  # what the gateway will read: request, attempt, number
        self.arrived: dict[tuple[m.RequestId, int], int] = {}

    @rule(sequence=st.integers(1, 4), chunks=st.integers(1, 7), priority=st.integers(0, 2))
    def begins(self, sequence: int, chunks: int, priority: int) -> None:
        attempt = self.attempts[sequence] = self.attempts.get(sequence, 0) + 1
        upload = upload_of(sequence, [chunks * CHUNK - 1], attempt=attempt, priority=priority)
        self.uploads.begin(upload)
        self.live[upload.request] = upload

    @rule()
    def sends(self) -> None:
        while (upload := self.uploads.next(LINK)) is not None:
            waiting = [u for u in self.live.values() if u.sent < len(u.pieces)]
            assert upload.priority == min(u.priority for u in waiting), "the most urgent first"
            self.wire.append((upload.request, upload.attempt, upload.sent))
            self.uploads.sent(upload, position=len(self.wire), now=self.now)
        assert self.uploads.out_nbytes <= chunking.window_nbytes(CHUNK, LINK)

    @precondition(lambda self: self.wire)
    @rule()
    def one_arrives(self) -> None:
        request, attempt, number = self.wire.pop(0)
        self.now += 0.03
        assert self.arrived.setdefault((request, attempt), 0) == number, "in order, each once"
        self.arrived[(request, attempt)] += 1
        told = self.uploads.credited(request, attempt, number + 1, now=self.now)
        upload = self.live.get(request)
        if upload is not None and upload.attempt == attempt:
            assert told is not None
            assert upload.there == number + 1
            if upload.there == len(upload.pieces):
                del self.live[request]

    @precondition(lambda self: self.live)
    @rule(pick=st.integers(0, 9))
    def is_dropped(self, pick: int) -> None:
        request = sorted(self.live, key=str)[pick % len(self.live)]
        assert self.uploads.drop(request) is self.live.pop(request)

    @rule()
    def the_link_breaks(self) -> None:
        self.uploads.clear()
        self.live.clear()
        self.wire.clear()

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert {u.request for u in self.uploads.under_way()} == set(self.live)
        out = sum(u.sent - u.there for u in self.live.values())
        assert (self.uploads.oldest is None) == (out == 0)
        assert (self.uploads.out_nbytes == 0) == (out == 0)
        if out == 0 and any(u.sent < len(u.pieces) for u in self.live.values()):
            assert self.uploads.next(LINK) is not None, "what waits goes on"


Link.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyOrder: Any = Link.TestCase
