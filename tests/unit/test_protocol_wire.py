"""The wire format against an independent MessagePack implementation, against damage, and against docs/wire.md."""

from __future__ import annotations

import contextlib
import re
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import codecs, drift, images, levels, sockets, wire
from protocol import messages as m
from protocol.errors import WireError
from protocol.tensors import DTYPES, MAX_RANK, MAX_TENSORS, TensorHeader

WIRE_PAGE = Path(__file__).parents[2] / "docs" / "wire.md"

counts = st.integers(0, 2**53)
microseconds = st.integers(0, 2**53)
checksums = st.integers(0, 2**32 - 1)
eight_bytes = st.binary(min_size=8, max_size=8)
digests = st.binary(min_size=32, max_size=32)
utf8 = st.characters(codec="utf-8")
short_texts = st.text(utf8, max_size=200)
request_ids = st.builds(m.RequestId, boot=eight_bytes, sequence=counts)
tensor_headers = st.builds(
    TensorHeader,
    name=st.text(utf8, max_size=40),
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 2**31), max_size=MAX_RANK).map(tuple),
    codec=st.sampled_from(["raw", "zstd"]),
    nbytes=st.integers(0, 2**40),
)
header_tuples = st.lists(tensor_headers, max_size=4).map(tuple)
timings = st.builds(
    m.Timings,
    residence_us=microseconds,
    queue_us=microseconds,
    decode_us=microseconds,
    compute_us=microseconds,
    batch_size=counts,
)
offers = st.builds(
    m.Offer,
    model=short_texts,
    model_digest=digests,
    bundle=digests,
    manifest_nbytes=counts,
    nbytes=counts,
    files=counts,
    signature=st.none() | digests,
    signature_nbytes=counts,
    counter=counts,
)

BY_TYPE: dict[type[Any], st.SearchStrategy[Any]] = {
    m.VersionMismatch: st.builds(m.VersionMismatch, oldest=st.integers(0, 255), newest=st.integers(0, 255)),
    m.Hello: st.builds(
        m.Hello,
        boot=eight_bytes,
        agent=short_texts,
        software=short_texts,
        model_digest=digests,
        also=st.lists(eight_bytes, max_size=m.MOST_BOOTS).map(tuple),
    ),
    m.Welcome: st.builds(
        m.Welcome,
        epoch=eight_bytes,
        software=short_texts,
        credit_requests=counts,
        credit_nbytes=counts,
        segments=st.lists(digests, max_size=3).map(tuple),
        models=st.lists(digests, max_size=3).map(tuple),
        chunk_nbytes=counts,
    ),
    m.NeedHello: st.builds(m.NeedHello, epoch=eight_bytes, request=st.none() | request_ids),
    m.Infer: st.builds(
        m.Infer,
        request=request_ids,
        segment=digests,
        attempt=counts,
        budget_us=microseconds,
        priority=st.integers(0, 9),
        tensors=header_tuples,
        checksum=checksums,
        trace=st.binary(max_size=16),
        sampled=st.booleans(),
        outer_ppm=st.none() | st.integers(0, 10**6),
        keep=st.booleans(),
        chunk_nbytes=st.integers(0, wire.PART_NBYTES),
    ),
    m.Result: st.builds(
        m.Result,
        request=request_ids,
        attempt=counts,
        tensors=header_tuples,
        checksum=checksums,
        timings=timings,
        engine=short_texts,
        precision=short_texts,
        bundle=short_texts,
    ),
    m.Reject: st.builds(
        m.Reject,
        request=request_ids,
        attempt=counts,
        code=st.sampled_from(m.RejectCode),
        reason=st.text(utf8, max_size=1000),
        slack_us=microseconds,
        retry_after_us=microseconds,
        residence_us=microseconds,
    ),
    m.Cancel: st.builds(m.Cancel, request=request_ids),
    m.Ping: st.builds(m.Ping, number=counts, padding=st.binary(max_size=300)),
    m.Pong: st.builds(m.Pong, number=counts, queue_us=microseconds),
    m.Drain: st.builds(m.Drain, reason=short_texts),
    m.AskOffers: st.builds(m.AskOffers, model=short_texts),
    m.Offers: st.builds(
        m.Offers,
        offers=st.lists(offers, max_size=3).map(tuple),
        reason=st.text(utf8, max_size=1000),
        revocations=st.none() | digests,
        revocations_nbytes=counts,
    ),
    m.FetchPart: st.builds(m.FetchPart, file=digests, offset=counts, nbytes=st.integers(1, wire.PART_NBYTES)),
    m.FilePart: st.builds(
        m.FilePart,
        file=digests,
        offset=counts,
        nbytes=st.integers(0, wire.PART_NBYTES),
        total_nbytes=counts,
        checksum=checksums,
    ),
    m.NoPart: st.builds(
        m.NoPart,
        file=digests,
        offset=counts,
        code=st.sampled_from(m.NoPartCode),
        reason=st.text(utf8, max_size=1000),
        retry_after_us=microseconds,
    ),
    m.Enroll: st.builds(
        m.Enroll,
        invitation=st.binary(min_size=8, max_size=8),
        secret=digests,
        software=short_texts,
    ),
    m.Enrolled: st.builds(
        m.Enrolled,
        name=short_texts,
        server=st.lists(st.builds(m.ServerKey, digests, st.none() | st.integers(1, 65535)), max_size=2).map(tuple),
        refusal=st.text(utf8, max_size=1000),
    ),
    m.Chunk: st.builds(m.Chunk, request=request_ids, attempt=counts, number=counts, budget_us=microseconds),
    m.Credit: st.builds(m.Credit, request=request_ids, attempt=counts, chunks=counts),
}
messages = st.one_of(*BY_TYPE.values())

NUMBERS = {
    m.VersionMismatch: 0,
    m.Hello: 1,
    m.Welcome: 2,
    m.NeedHello: 3,
    m.Infer: 4,
    m.Result: 5,
    m.Reject: 6,
    m.Cancel: 7,
    m.Ping: 8,
    m.Pong: 9,
    m.Drain: 10,
    m.AskOffers: 11,
    m.Offers: 12,
    m.FetchPart: 13,
    m.FilePart: 14,
    m.NoPart: 15,
    m.Enroll: 16,
    m.Enrolled: 17,
    m.Chunk: 18,
    m.Credit: 19,
}

REQUEST = m.RequestId(b"bootboot", 7)


def plain(value: Any) -> Any:
    """What a program that knows nothing of our structs would hold: lists, numbers, bytes and text."""
    if isinstance(value, msgspec.Struct):
        return [plain(getattr(value, field)) for field in value.__struct_fields__]
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, m.RejectCode | m.NoPartCode) else value


def version_of(message: m.Message) -> int:
    return 0 if isinstance(message, m.VersionMismatch) else wire.VERSION


def frame(number: int, body: bytes) -> bytes:
    return bytes((wire.VERSION, number)) + body


def header(name: str, nbytes: int) -> TensorHeader:
    return TensorHeader(name, "uint8", (nbytes,), "raw", nbytes)


# ---- every message there and back -----------------------------------------------------------------------------------


def test_every_message_type_has_its_documented_number_and_a_strategy_here() -> None:
    assert {struct: number for number, struct in wire.TYPES.items()} == NUMBERS
    assert set(BY_TYPE) == set(NUMBERS)


@given(messages)
def test_every_message_comes_back_as_it_was_sent(message: m.Message) -> None:
    packed = wire.pack_header(message)
    assert packed[0] == version_of(message)
    assert packed[1] == NUMBERS[type(message)]
    assert wire.unpack_header(packed) == message


@given(messages)
def test_an_independent_decoder_reads_the_fields_of_every_message(message: m.Message) -> None:
    assert msgpack.unpackb(wire.pack_header(message)[2:]) == plain(message)


@given(messages)
def test_what_an_independent_encoder_wrote_decodes_to_the_same_message(message: m.Message) -> None:
    written = bytes((version_of(message), NUMBERS[type(message)])) + msgpack.packb(plain(message))
    assert wire.unpack_header(written) == message


@given(messages)
def test_fields_appended_by_a_later_minor_version_are_skipped(message: m.Message) -> None:
    later = msgpack.packb([*plain(message), "a later field", {"nested": [1, None, 2.5]}])
    assert wire.unpack_header(bytes((version_of(message), NUMBERS[type(message)])) + later) == message


@pytest.mark.parametrize(
    ("message", "optional"),
    [
        (m.Welcome(b"epoch---", "older", 1, 1, (), ()), 2),
        (m.NeedHello(b"epoch---"), 1),
        (m.Infer(REQUEST, bytes(32), 0, 1, 4, (), 0), 5),
        (m.Reject(REQUEST, 1, m.RejectCode.BUSY, "full", 2, 3), 2),
        (m.Ping(3), 1),
        (m.Pong(3), 1),
    ],
)
def test_fields_with_a_default_may_be_left_out_at_the_end(message: m.Message, optional: int) -> None:
    fields = plain(message)
    short = frame(NUMBERS[type(message)], msgpack.packb(fields[:-optional]))
    assert wire.unpack_header(short) == message
    with pytest.raises(WireError):
        wire.unpack_header(frame(NUMBERS[type(message)], msgpack.packb(fields[: -optional - 1])))


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_a_header_is_read_from_any_kind_of_buffer(view: type[Any]) -> None:
    assert wire.unpack_header(view(wire.pack_header(m.Ping(5, b"pad")))) == m.Ping(5, b"pad")


# ---- versions -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 255).filter(lambda v: v != wire.VERSION), st.integers(0, 255), st.binary(max_size=40))
def test_a_foreign_major_version_is_told_apart_from_garbage(version: int, number: int, body: bytes) -> None:
    if (version, number) == (0, 0):
        return
    with pytest.raises(wire.VersionError):
        wire.unpack_header(bytes((version, number)) + body)


def test_a_version_mismatch_travels_as_version_zero_so_that_any_version_reads_it() -> None:
    packed = wire.pack_header(m.VersionMismatch(1, 3))
    assert packed == b"\x00\x00\x92\x01\x03"


# ---- damage and malice ----------------------------------------------------------------------------------------------


@given(
    messages,
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 10_000),
    st.binary(max_size=8),
)
def test_a_damaged_header_decodes_or_raises_wire_error_and_nothing_else(
    message: m.Message, changes: list[tuple[int, int]], cut: int, inserted: bytes
) -> None:
    damaged = bytearray(wire.pack_header(message))
    for at, value in changes:
        damaged[at % len(damaged)] = value
    at = cut % (len(damaged) + 1)
    for variant in (damaged, damaged[:at], damaged[:at] + inserted + damaged[at:]):
        with contextlib.suppress(WireError):
            wire.unpack_header(bytes(variant))


@given(st.integers(0, 15), st.binary(max_size=60))
@example(10, b"\x91\xa2\xff\xfe")  # text that is not UTF-8
def test_random_bytes_decode_or_raise_wire_error_and_nothing_else(number: int, body: bytes) -> None:
    with contextlib.suppress(WireError):
        wire.unpack_header(frame(number, body))


@pytest.mark.parametrize("number", sorted(NUMBERS.values()))
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\x92\xa1x"])
def test_deep_nesting_is_refused_at_once_and_in_little_memory(number: int, opening: bytes) -> None:
    nested = bytes((0 if number == 0 else wire.VERSION, number)) + opening * (65_536 // len(opening))
    elapsed = []
    for _ in range(3):
        start = time.thread_time()
        with pytest.raises(WireError):
            wire.unpack_header(nested)
        elapsed.append(time.thread_time() - start)
    assert min(elapsed) < 0.02
    assert _peak_nbytes(nested) < 1_000_000


def test_deep_nesting_in_a_field_that_would_be_skipped_is_refused_too() -> None:
    nested = frame(10, b"\x92\xa1x" + b"\x91" * 65_536)
    with pytest.raises(WireError):
        wire.unpack_header(nested)
    assert _peak_nbytes(nested) < 1_000_000


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdd\x07\xff\xff\xff", b"\xdf\xff\xff\xff\xff"])
def test_a_claimed_length_beyond_the_frame_allocates_nothing(claim: bytes) -> None:
    welcome = b"\x96" + msgpack.packb(b"e" * 8) + b"\xa1x\x01\x01"
    infer = b"\x97" + msgpack.packb([b"e" * 8, 1]) + msgpack.packb(bytes(32)) + b"\x01\x01\x01"
    for lying in (
        frame(2, welcome + claim),
        frame(4, infer + claim),
        frame(10, claim),
        frame(10, b"\x92\xa1x" + claim),
    ):
        with pytest.raises(WireError):
            wire.unpack_header(lying)
        assert _peak_nbytes(lying) < 1_000_000


def _peak_nbytes(bad: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.unpack_header(bad)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("short", [b"", b"\x01"])
def test_a_header_without_version_and_type_is_refused(short: bytes) -> None:
    with pytest.raises(WireError, match="header"):
        wire.unpack_header(short)


def test_a_header_above_the_limit_is_refused_before_it_is_decoded() -> None:
    padding = bytes(wire.MAX_HEADER_NBYTES)
    with pytest.raises(WireError, match=str(wire.MAX_HEADER_NBYTES)):
        wire.unpack_header(frame(10, msgpack.packb(["x", padding])))


@pytest.mark.parametrize("number", [100, 255])
def test_unknown_message_types_are_refused(number: int) -> None:
    with pytest.raises(WireError, match=f"message type {number}"):
        wire.unpack_header(frame(number, b"\x90"))


def test_bytes_after_the_array_are_refused() -> None:
    with pytest.raises(WireError):
        wire.unpack_header(wire.pack_header(m.Drain("bye")) + b"\x00")


TENSOR = ["x", "uint8", [1], "raw", 1]


@pytest.mark.parametrize(
    ("number", "fields", "what"),
    [
        (1, [b"short", "a", "s", bytes(32)], "a boot id of five bytes"),
        (1, [b"bootboot", "a" * 201, "s", bytes(32)], "a name above 200 characters"),
        (1, [b"bootboot", "a", "s", bytes(31)], "a digest of 31 bytes"),
        (2, [b"epoch---", "s", -1, 0, [], []], "negative credit"),
        (4, [[b"bootboot", 1], bytes(32), 0, -1, 4, [], 0], "a negative budget"),
        (4, [[b"bootboot", 1], bytes(32), 0, 2**53 + 1, 4, [], 0], "a budget beyond exact doubles"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 10, [], 0], "priority 10"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [], 2**32], "a checksum of 33 bits"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [TENSOR] * (MAX_TENSORS + 1), 0], "too many tensors"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [["x", "uint8", [1] * 9, "raw", 1]], 0], "rank 9"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [["x", "uint8", [-1], "raw", 1]], 0], "a negative dimension"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [["x", "uint8", [2**31 + 1], "raw", 1]], 0], "a huge dimension"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [["x" * 513, "uint8", [1], "raw", 1]], 0], "a name above 512"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [["x", "uint8", [1], "raw", 2**40 + 1]], 0], "a huge size"),
        (4, [[b"bootboot", 1], bytes(32), 0, 1, 4, [], 0, bytes(17)], "a trace of 17 bytes"),
        (6, [[b"bootboot", 1], 0, "WHATEVER", "why", 0, 0], "an unknown reject code"),
        (6, [[b"bootboot", 1], 0, "BUSY", "w" * 1001, 0, 0], "a reason above 1000 characters"),
        (8, [1, bytes(65_537)], "padding above 64 KiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_outside_its_documented_limits_is_refused(number: int, fields: list[Any], what: str) -> None:
    with pytest.raises(WireError):
        wire.unpack_header(frame(number, msgpack.packb(fields)))


# ---- payload parts --------------------------------------------------------------------------------------------------

sizes = st.one_of(
    st.integers(0, 5),
    st.sampled_from([wire.PART_NBYTES - 1, wire.PART_NBYTES, wire.PART_NBYTES + 1, 2 * wire.PART_NBYTES, 300_000]),
)


@given(st.lists(sizes, max_size=4))
def test_payloads_split_into_parts_and_join_back_byte_for_byte(nbytes: list[int]) -> None:
    payload = [bytes([i]) * n for i, n in enumerate(nbytes)]
    headers = [header(f"t{i}", n) for i, n in enumerate(nbytes)]
    _, *parts = wire.pack(m.Ping(1), payload)
    part_sizes = [memoryview(p).nbytes for p in parts]
    assert all(0 < s <= wire.PART_NBYTES for s in part_sizes)
    assert len(parts) == sum(wire.part_count(h) for h in headers)
    wire.check_parts(headers, part_sizes)
    assert [bytes(b) for b in wire.join_parts(headers, parts)] == payload


def test_packing_copies_no_payload() -> None:
    buffer = bytearray(300_000)
    _, *parts = wire.pack(m.Ping(1), [buffer])
    buffer[150_000] = 1
    assert parts[1][150_000 - wire.PART_NBYTES] == 1


def test_a_tensor_in_a_single_part_is_not_copied_by_joining() -> None:
    part = memoryview(bytes(100))
    (joined,) = wire.join_parts([header("x", 100)], [part])
    assert joined is part


@pytest.mark.parametrize(
    ("announced", "parts", "what"),
    [
        ([100], [], "a missing part"),
        ([100], [99], "a part one byte short"),
        ([100], [101], "a part one byte long"),
        ([100], [50, 50], "one part too many for a small tensor"),
        ([100], [100, 1], "a part nobody announced"),
        ([], [1], "a part without any tensor"),
        ([0], [0], "an empty part for an empty tensor"),
        ([100, 100], [200], "two tensors in one part"),
        ([100, 60], [60, 100], "parts in the wrong order"),
        ([wire.PART_NBYTES + 1], [wire.PART_NBYTES + 1], "a part above the limit"),
        ([wire.PART_NBYTES + 100], [100, wire.PART_NBYTES], "a short part before the last"),
        ([2 * wire.PART_NBYTES], [wire.PART_NBYTES, wire.PART_NBYTES - 1, 1], "three parts where two are due"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_of_another_number_or_size_than_announced_are_refused(
    announced: list[int], parts: list[int], what: str
) -> None:
    headers = [header(f"t{i}", n) for i, n in enumerate(announced)]
    with pytest.raises(WireError):
        wire.check_parts(headers, parts)


def test_a_payload_announced_above_the_limit_is_refused() -> None:
    half = wire.MAX_PAYLOAD_NBYTES // 2
    with pytest.raises(WireError, match=str(wire.MAX_PAYLOAD_NBYTES)):
        wire.check_parts([header("a", half), header("b", half + 1)], [])


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_the_checksum_is_the_crc32_of_all_payload_bytes_in_order(parts: list[bytes]) -> None:
    assert wire.checksum(parts) == zlib.crc32(b"".join(parts))


# ---- the documentation ----------------------------------------------------------------------------------------------


def documented_hex(name: str) -> bytes:
    """The bytes of the block ```hex NAME in docs/wire.md; what follows `#` on a line is commentary."""
    found = re.search(rf"^```hex {name}\n(.*?)^```", WIRE_PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"docs/wire.md has no block ```hex {name}"
    return bytes.fromhex("".join(line.partition("#")[0] for line in found[1].splitlines()))


def test_the_ping_in_the_documentation_is_what_the_code_writes_and_reads() -> None:
    ping = m.Ping(7, b"\x00\x00\x00")
    assert documented_hex("ping") == wire.pack_header(ping)
    assert wire.unpack_header(documented_hex("ping")) == ping


def test_the_infer_in_the_documentation_is_what_the_code_writes_and_reads() -> None:
    payload = bytes((1, 2, 3, 4))
    infer = m.Infer(
        request=m.RequestId(bytes(range(0xA0, 0xA8)), 1),
        segment=bytes(range(32)),
        attempt=0,
        budget_us=50_000,
        priority=4,
        tensors=(TensorHeader("x", "uint8", (1, 4), "raw", 4),),
        checksum=zlib.crc32(payload),
    )
    assert [documented_hex("infer"), documented_hex("infer-payload")] == [bytes(f) for f in wire.pack(infer, [payload])]
    assert wire.unpack_header(documented_hex("infer")) == infer


def test_the_chunk_and_its_credit_in_the_documentation_are_what_the_code_writes_and_reads() -> None:
    request = m.RequestId(bytes(range(0xA0, 0xA8)), 1)
    for name, message in (("chunk", m.Chunk(request, 0, 0, 50_000)), ("credit", m.Credit(request, 0, 1))):
        assert documented_hex(name) == wire.pack_header(message)
        assert wire.unpack_header(documented_hex(name)) == message


@pytest.mark.parametrize("form", ["packed", "sparse"])
def test_the_levels_in_the_documentation_are_what_the_code_reads(form: str) -> None:
    payload = documented_hex(f"levels-{form}")
    read = codecs.decode(TensorHeader("x", "uint8", (1, 5), "levels", len(payload)), payload)
    assert read.tolist() == [[3, 50, 140, 140, 3]]


def test_the_difference_in_the_documentation_is_what_the_code_reads() -> None:
    payload = documented_hex("delta")
    held = {1: np.array([[3, 50, 50, 140, 3]], np.uint8)}
    read = codecs.decode(TensorHeader("x", "uint8", (1, 5), "delta", len(payload)), payload, held.get)
    assert read.tolist() == [[3, 50, 140, 140, 3]]


def test_the_documentation_packs_levels_to_each_base_as_the_code_does() -> None:
    rows = re.findall(r"^\| (\d+) to (\d+) \| (\d) \|$", WIRE_PAGE.read_text("utf-8"), re.MULTILINE)
    documented = {base: int(k) for first, last, k in rows for base in range(int(first), int(last) + 1)}
    assert documented == {base: levels.per_byte(base) for base in range(1, 257)}
    assert levels.pack(np.array([1, 0, 0], np.uint8), 5).tolist() == [1, 0], "the first is the least significant"


def test_the_documentation_names_every_codec_and_what_bounds_a_picture_and_drift() -> None:
    page = WIRE_PAGE.read_text("utf-8")
    table = page.partition("### Codecs")[2].partition("\n\n**raw**")[0]
    named = re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `")))
    assert set(codecs.CODECS) | {"png", "jpeg", "jpeg1", "jpeg100", "-420"} == set(named)
    stated = [
        f"{images.MAX_SIDE:,} a side",
        f"{images.MAX_FILE_NBYTES_OVER:,} more",
        f"at most {images.MAX_SCANS} scans",
        f"(`jpeg` is {images.JPEG_QUALITY})",
        *(f"`{chunk.decode()}`" for chunk in images._PNG_REFUSED),
        f"above {drift.FACTOR:g} times the largest of them (in ppm) and above {drift.FLOOR_PPM:,}",
    ]
    assert [text for text in stated if text not in page] == []
    grey = np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1)
    header, data = codecs.encode("x", grey, "png")
    first = int.from_bytes(data[:4], "little")
    assert bytes(data[4 : 4 + first]) == codecs.encode("x", grey[:1], "png")[1]
    jpeg, file = codecs.encode("x", grey[:1], "jpeg")
    ignored = codecs.decode(jpeg, bytes(file) + b"what a camera appends")
    assert np.array_equal(ignored, codecs.decode(jpeg, file))
    assert np.array_equal(codecs.decode(header, data), grey)


def test_the_documentation_lists_every_message_with_its_number_and_every_field_in_order() -> None:
    page = WIRE_PAGE.read_text("utf-8")
    for struct, number in NUMBERS.items():
        section = re.search(rf"^### {number} {struct.__name__}$(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
        assert section, f"docs/wire.md has no section '### {number} {struct.__name__}'"
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section[1], re.MULTILINE)
        assert rows == [(str(i), field) for i, field in enumerate(struct.__struct_fields__)]


def test_the_documentation_says_what_to_do_on_every_reject_code_and_names_every_element_type() -> None:
    page = WIRE_PAGE.read_text("utf-8")
    for word in [*m.RejectCode, *m.NoPartCode, *DTYPES]:
        assert f"`{word}`" in page, f"docs/wire.md does not mention `{word}`"


def test_the_documentation_states_the_limits_and_socket_options_that_the_code_has() -> None:
    page = WIRE_PAGE.read_text("utf-8")
    ivl = f"{sockets.HEARTBEAT_IVL_MS} / {sockets.HEARTBEAT_TIMEOUT_MS} / {sockets.HEARTBEAT_TTL_MS} ms"
    first, most = sockets.RECONNECT_IVL_MS, sockets.RECONNECT_IVL_MAX_MS
    limits = (wire.PART_NBYTES, wire.MAX_HEADER_NBYTES, wire.MAX_PAYLOAD_NBYTES, sockets.MAX_FRAME_NBYTES)
    stated = [
        *(f"{limit:,}" for limit in limits),
        f"| `HEARTBEAT_IVL` / `_TIMEOUT` / `_TTL` | {ivl} |",
        f"| `TCP_MAXRT` | {sockets.TCP_MAXRT_MS} ms |",
        f"| `HANDSHAKE_IVL` | {sockets.HANDSHAKE_IVL_MS} ms |",
        f"| `CONNECT_TIMEOUT` | {sockets.CONNECT_TIMEOUT_MS} ms |",
        f"random {first[0]}-{first[1]} / {most[0]}-{most[1]} ms",
        f"| `SNDHWM` / `RCVHWM` | {sockets.SEND_HWM} / 0 |",
        f"The\nmajor version described here is **{wire.VERSION}**",
        f"at most {MAX_TENSORS} tensors",
        f"at most {MAX_RANK} integers",
    ]
    assert [text for text in stated if text not in page] == []
