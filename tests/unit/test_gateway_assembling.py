"""Payloads in chunks, put together while others send badly, twice, on other connections or not at all."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloud_gateway.doors.assembling import MOST_PATIENCE_S, PATIENCE_S, Assembling, Assembly
from cloud_gateway.scheduling.admission import Limits
from protocol import messages as m
from protocol import wire
from protocol.errors import WireError
from protocol.tensors import TensorHeader

CHUNK = wire.MIN_CHUNK_NBYTES
BOOTS = (b"bootboot", b"bb--bb--")
LIMITS = Limits(pending_requests=6, pending_nbytes=40 * CHUNK, credit_requests=3, credit_nbytes=20 * CHUNK)


def infer_of(
    sequence: int, sizes: list[int], *, attempt: int = 1, boot: bytes = BOOTS[0], chunk: int = CHUNK
) -> m.Infer:
    headers = tuple(TensorHeader(f"t{i}", "uint8", (n,), "raw", n) for i, n in enumerate(sizes))
    return m.Infer(m.RequestId(boot, sequence), bytes(32), attempt, 1_000_000, 4, headers, 0, chunk_nbytes=chunk)


def payload_of(infer: m.Infer) -> list[bytes]:
    """Bytes that tell the request, its attempt and the place in it apart."""
    seed = infer.request.sequence * 31 + infer.attempt * 7 + infer.request.boot[1]
    return [bytes((seed + i + at // 64) % 256 for at in range(h.nbytes)) for i, h in enumerate(infer.tensors)]


def pieces_of(infer: m.Infer) -> list[Any]:
    return wire.split(payload_of(infer), infer.chunk_nbytes)


class One:
    """A room with one announced payload of 2.5 chunks."""

    def __init__(self) -> None:
        self.room = Assembling()
        self.infer = infer_of(1, [2 * CHUNK + 100])
        self.pieces = pieces_of(self.infer)
        assert self.room.announce("a", b"route", self.infer, LIMITS, now=0.0) is None

    def chunk(self, number: int, *, attempt: int = 1, budget_us: int = 500_000) -> m.Chunk:
        return m.Chunk(self.infer.request, attempt, number, budget_us)

    def take(self, number: int, part: Any = None, *, now: float = 0.0) -> bool:
        chunk = self.chunk(number)
        assembly = self.room.find("a", b"route", chunk)
        assert assembly is not None
        return self.room.take(assembly, chunk, self.pieces[number] if part is None else part, now=now)


@pytest.fixture
def one() -> Any:
    made = One()
    yield made
    made.room.validate()


def test_the_last_chunk_in_order_makes_it_whole_and_nothing_stays(one: One) -> None:
    assembly = one.room.find("a", b"route", one.chunk(0))
    assert assembly is not None
    assert [one.take(number) for number in range(3)] == [False, False, True]
    assert b"".join(assembly.parts) == payload_of(one.infer)[0]
    assert len(one.room) == 0


@pytest.mark.parametrize(
    ("number", "nbytes"), [(1, CHUNK), (2, 100), (10**9, 1), (0, CHUNK - 1), (0, CHUNK + 1), (0, 0)]
)
def test_a_chunk_out_of_order_or_of_another_size_ends_that_upload_in_words(one: One, number: int, nbytes: int) -> None:
    with pytest.raises(WireError, match="chunk"):
        one.take(number, bytes(nbytes))
    assert one.room.find("a", b"route", one.chunk(0)) is None


def test_the_same_chunk_twice_ends_that_upload(one: One) -> None:
    one.take(0)
    with pytest.raises(WireError, match="1 was due"):
        one.take(0)


def test_a_chunk_from_elsewhere_or_of_another_attempt_belongs_to_nothing_here(one: One) -> None:
    assert one.room.find("a", b"another", one.chunk(0)) is None
    assert one.room.find("b", b"route", one.chunk(0)) is None
    assert one.room.find("a", b"route", one.chunk(0, attempt=2)) is None
    assert one.room.find("a", b"route", m.Chunk(m.RequestId(BOOTS[0], 2), 1, 0, 0)) is None
    assert not one.take(0), "and does no harm to what is"


def test_it_is_given_up_when_nothing_comes_for_longer_than_its_budget_and_a_while(one: One) -> None:
    one.take(0, now=3.0)
    due = 3.0 + 0.5 + PATIENCE_S
    assert one.room.abandoned(now=due - 0.6) == []
    assert [a.infer for a in one.room.abandoned(now=due)] == [one.infer]
    assert len(one.room) == 0


def test_nobody_keeps_room_for_ever_by_claiming_a_large_budget(one: One) -> None:
    assembly = one.room.find("a", b"route", one.chunk(0))
    assert assembly is not None
    one.room.take(assembly, one.chunk(0, budget_us=2**53), one.pieces[0], now=0.0)
    assert len(one.room.abandoned(now=MOST_PATIENCE_S)) == 1


def test_a_device_that_greets_anew_begins_anew(one: One) -> None:
    assert one.room.moved("a", (BOOTS[1],), b"new") == 0, "that is another device's life"
    assert one.room.moved("a", BOOTS, b"route") == 0, "it only greets again where it is"
    assert one.room.moved("a", BOOTS, b"new") == 1
    assert len(one.room) == 0


def test_without_keys_a_device_that_greets_anew_is_known_by_its_boot_id() -> None:
    room, infer = Assembling(), infer_of(1, [CHUNK])
    assert room.announce(BOOTS[0].hex(), b"route", infer, LIMITS, now=0.0) is None
    assert room.moved("", (BOOTS[0],), b"new") == 1


@pytest.mark.parametrize("size", [1, CHUNK - 1, wire.PART_NBYTES + 1])
def test_chunks_of_an_unreasonable_size_are_refused(size: int) -> None:
    with pytest.raises(WireError, match="chunks of"):
        Assembling().announce("a", b"route", infer_of(1, [CHUNK], chunk=size), LIMITS, now=0.0)


@pytest.mark.parametrize("sizes", [[], [0], [0, 0]])
def test_nothing_cannot_be_announced(sizes: list[int]) -> None:
    with pytest.raises(WireError, match="empty"):
        Assembling().announce("a", b"route", infer_of(1, sizes), LIMITS, now=0.0)


def test_more_than_the_wire_carries_cannot_be_announced() -> None:
    with pytest.raises(WireError, match="payload of"):
        Assembling().announce("a", b"route", infer_of(1, [wire.MAX_PAYLOAD_NBYTES + 1]), LIMITS, now=0.0)


def test_what_is_announced_is_bounded_by_credit_and_by_what_all_may_hold() -> None:
    room = Assembling()

    def announce(tenant: str, sequence: int, chunks: int) -> m.RejectCode | None:
        verdict = room.announce(tenant, b"r", infer_of(sequence, [chunks * CHUNK]), LIMITS, now=0.0)
        return verdict.code if verdict else None

    assert announce("a", 1, 15) is None
    assert announce("a", 2, 6) is m.RejectCode.BUSY, "21 of 20 by credit"
    assert announce("a", 2, 5) is None
    assert announce("b", 1, 21) is m.RejectCode.BUSY, "41 of 40 in all"
    assert announce("b", 1, 41) is m.RejectCode.TOO_LARGE
    assert announce("b", 1, 1) is None
    assert announce("a", 3, 1) is m.RejectCode.BUSY
    assert room.drop("a", m.RequestId(BOOTS[0], 1)) is not None
    assert announce("a", 3, 1) is None
    assert announce("a", 4, 1) is None
    assert announce("a", 5, 1) is m.RejectCode.BUSY, "three requests"
    assert announce("b", 2, 1) is None
    assert announce("b", 3, 1) is None
    assert announce("c", 1, 1) is m.RejectCode.BUSY, "six in all"
    assert len(room.drop_all()) == 6
    room.validate()


class Sender(RuleBasedStateMachine):
    """Devices that send in any interleaving, break off and repeat, beside one who sends anything at all."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Assembling()
        self.now = 0.0
        self.routes = dict.fromkeys(BOOTS, 0)
        self.sending: dict[m.RequestId, tuple[m.Infer, list[Any], Assembly]] = {}  # what is left of each
        self.attempts: dict[m.RequestId, int] = {}

    def route(self, boot: bytes) -> bytes:
        return boot + bytes((self.routes[boot],))

    def tenant(self, boot: bytes) -> str:
        return boot.hex()

    @initialize()
    def begins(self) -> None:
        assert len(self.room) == 0

    @rule(
        boot=st.sampled_from(BOOTS),
        sequence=st.integers(1, 3),
        sizes=st.lists(st.sampled_from([0, 1, CHUNK, CHUNK + 1, 3 * CHUNK]), min_size=1, max_size=3),
    )
    def announces(self, boot: bytes, sequence: int, sizes: list[int]) -> None:
        request = m.RequestId(boot, sequence)
        attempt = self.attempts[request] = self.attempts.get(request, 0) + 1
        infer = infer_of(sequence, sizes, attempt=attempt, boot=boot)
        dropped = self.room.drop(self.tenant(boot), request)
        assert (dropped is not None) == (request in self.sending)
        self.sending.pop(request, None)
        if not sum(sizes):
            return
        verdict = self.room.announce(self.tenant(boot), self.route(boot), infer, LIMITS, now=self.now)
        if verdict is None:
            assembly = self.room.find(self.tenant(boot), self.route(boot), m.Chunk(request, attempt, 0, 0))
            assert assembly is not None
            self.sending[request] = infer, pieces_of(infer), assembly

    @precondition(lambda self: self.sending)
    @rule(pick=st.integers(0, 100))
    def sends_the_next(self, pick: int) -> None:
        request = sorted(self.sending, key=str)[pick % len(self.sending)]
        infer, pieces, assembly = self.sending[request]
        number = len(pieces_of(infer)) - len(pieces)
        chunk = m.Chunk(request, infer.attempt, number, 1_000_000)
        assert self.room.find(self.tenant(request.boot), self.route(request.boot), chunk) is assembly
        whole = self.room.take(assembly, chunk, pieces.pop(0), now=self.now)
        assert whole == (not pieces), "whole exactly with the last"
        if whole:
            del self.sending[request]
            assert b"".join(assembly.parts) == b"".join(payload_of(infer)), "byte for byte"

    @precondition(lambda self: self.sending)
    @rule(pick=st.integers(0, 100), number=st.integers(0, 9), nbytes=st.sampled_from([0, 1, CHUNK, CHUNK + 1]))
    def sends_anything(self, pick: int, number: int, nbytes: int) -> None:
        request = sorted(self.sending, key=str)[pick % len(self.sending)]
        infer, pieces, assembly = self.sending[request]
        due = len(pieces_of(infer)) - len(pieces)
        if (number, nbytes) == (due, len(pieces[0])):
            return
        with pytest.raises(WireError):
            self.room.take(assembly, m.Chunk(request, infer.attempt, number, 0), bytes(nbytes), now=self.now)
        del self.sending[request]  # and of the others none: `sends_the_next` finds them as they were

    @rule(boot=st.sampled_from(BOOTS))
    def connects_anew(self, boot: bytes) -> None:
        self.routes[boot] += 1
        mine = [request for request in self.sending if request.boot == boot]
        assert self.room.moved("", (boot,), self.route(boot)) == len(mine)
        for request in mine:
            del self.sending[request]

    @rule(passing_s=st.sampled_from([0.1, 1.0, 4.0, 7.0]))
    def time_passes(self, passing_s: float) -> None:
        self.now += passing_s
        late = {request for request, (_, _, assembly) in self.sending.items() if self.now >= assembly.give_up_at}
        gone = {assembly.infer.request for assembly in self.room.abandoned(now=self.now)}
        assert gone <= late
        for request in gone:
            del self.sending[request]

    @invariant()
    def the_account_is_right(self) -> None:
        self.room.validate()
        assert len(self.room) == len(self.sending)


Sender.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestAnyInterleaving = Sender.TestCase


@given(st.lists(st.integers(0, 5 * CHUNK), min_size=1, max_size=5).filter(any), st.integers(CHUNK, 2 * CHUNK))
def test_pieces_make_the_parts_that_the_announcement_promised(sizes: list[int], chunk_nbytes: int) -> None:
    infer = infer_of(1, sizes, chunk=chunk_nbytes)
    pieces = wire.split([bytes(n) for n in sizes], chunk_nbytes)
    assembly = Assembly("a", b"", infer, 0.0, 0)
    assert [assembly.take(number, piece) for number, piece in enumerate(pieces)] == [False] * (len(pieces) - 1) + [True]
    assert sum(wire.check_parts(infer.tensors, [len(p) for p in assembly.parts], chunk_nbytes)) == len(pieces)
