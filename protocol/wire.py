"""Messages to frames and back: `[header][payload part]...`, checked before anything is allocated.

Header: byte 0 is the major version, byte 1 the message type, both outside MessagePack so that any version can refuse
any other politely; the rest is one MessagePack array. Payload: each tensor's encoded bytes, one after the other, each
tensor beginning a part of its own and split into parts of at most PART_NBYTES. Nobody guesses: the number and size of
all parts follow from the header, and a message whose parts differ is refused whole.

Why parts: ZeroMQ's heartbeat is cancelled only by a complete frame, so one 1.6 MB frame on a 1 Mbit/s link is cut off
after 5 s and lost without an error, while frames of 64-128 KB pass.

On a slow link even parts of one message hold up everything behind them for seconds. There an Infer announces its
payload (`chunk_nbytes`), and the parts, cut as small, follow as messages of their own: see `control.chunking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from isal import isal_zlib

from protocol import messages as m
from protocol.errors import WireError
from protocol.tensors import TensorHeader

VERSION = 1
PART_NBYTES = 128 * 1024
MIN_CHUNK_NBYTES = 4 * 1024  # smaller ones would cost more in headers, and in objects here, than they are worth
MAX_HEADER_NBYTES = 128 * 1024
MAX_PAYLOAD_NBYTES = 256 * 1024 * 1024

Buffer = bytes | bytearray | memoryview

# Number 0 and its format never change.
TYPES: dict[int, type[Any]] = {
    0: m.VersionMismatch,
    1: m.Hello,
    2: m.Welcome,
    3: m.NeedHello,
    4: m.Infer,
    5: m.Result,
    6: m.Reject,
    7: m.Cancel,
    8: m.Ping,
    9: m.Pong,
    10: m.Drain,
    11: m.AskOffers,
    12: m.Offers,
    13: m.FetchPart,
    14: m.FilePart,
    15: m.NoPart,
    16: m.Enroll,
    17: m.Enrolled,
    18: m.Chunk,
    19: m.Credit,
}
_NUMBERS = {struct: number for number, struct in TYPES.items()}
_DECODERS = {number: msgspec.msgpack.Decoder(struct) for number, struct in TYPES.items()}
_ENCODER = msgspec.msgpack.Encoder()


class VersionError(WireError):
    """The peer speaks another major version; answer it with `m.VersionMismatch`, which every version understands."""


def pack_header(message: m.Message) -> bytes:
    """The first frame of `message`."""
    number = _NUMBERS[type(message)]
    # A mismatch notice is the one message that a foreign version must be able to read: it always travels as version 0.
    version = 0 if number == 0 else VERSION
    return bytes((version, number)) + _ENCODER.encode(message)


def pack(message: m.Message, payload: Sequence[Buffer] = ()) -> list[Buffer]:
    """Frames of `message`; `payload` holds one encoded buffer per tensor, in header order. Nothing is copied."""
    return [pack_header(message), *split(payload)]


def split(payload: Sequence[Buffer], part_nbytes: int = PART_NBYTES) -> list[Buffer]:
    """The parts of a payload, each tensor's beginning one of its own. Nothing is copied."""
    parts: list[Buffer] = []
    for buffer in payload:
        view = memoryview(buffer).cast("B")
        if view.nbytes <= part_nbytes:
            if view.nbytes:
                parts.append(view)
            continue
        parts.extend(view[at : at + part_nbytes] for at in range(0, view.nbytes, part_nbytes))
    return parts


def unpack_header(frame: Buffer) -> m.Message:
    """Decode the first frame.

    Raises VersionError for a foreign major version and WireError for anything else that is not a message of ours.
    """
    view = memoryview(frame)
    if view.nbytes < 2:
        raise WireError(f"header of {view.nbytes} bytes", "a header starts with version and type")
    if view.nbytes > MAX_HEADER_NBYTES:
        raise WireError(f"header of {view.nbytes} bytes", f"headers hold at most {MAX_HEADER_NBYTES}")
    version, number = view[0], view[1]
    if version != VERSION and not (version == 0 and number == 0):
        raise VersionError(f"major version {version}", f"this side speaks {VERSION}")
    decoder = _DECODERS.get(number)
    if decoder is None:
        raise WireError(f"message type {number}", f"known are 0..{max(TYPES)}")
    try:
        message: m.Message = decoder.decode(view[2:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{TYPES[number].__name__} does not decode: {error}", "see docs/wire.md") from error
    return message


def printable(text: str) -> str:
    """What a peer says, fit for logs, terminals and people: one line, with nothing in it that a terminal obeys."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def part_count(header: TensorHeader, part_nbytes: int = PART_NBYTES) -> int:
    """How many payload parts follow for this tensor."""
    return -(-header.nbytes // part_nbytes)


def require_payload_bounded(headers: Sequence[TensorHeader]) -> None:
    """Raises WireError."""
    announced = sum([h.nbytes for h in headers])
    if announced > MAX_PAYLOAD_NBYTES:
        raise WireError(f"payload of {announced} bytes", f"at most {MAX_PAYLOAD_NBYTES} may cross")


def check_parts(
    headers: Sequence[TensorHeader], part_sizes: Sequence[int], part_nbytes: int = PART_NBYTES
) -> list[int]:
    """Check the sizes of the payload parts against what the header announced; returns how many parts each tensor has.

    Raises WireError.
    """
    require_payload_bounded(headers)
    at = 0
    counts = []
    for header in headers:
        count = part_count(header, part_nbytes)
        counts.append(count)
        sizes = part_sizes[at : at + count]
        if len(sizes) != count or sum(sizes) != header.nbytes or sizes[:-1] != [part_nbytes] * (count - 1):
            raise WireError(
                f"tensor {header.name!r} announced {header.nbytes} bytes but its parts hold {sum(sizes)}",
                f"send it in parts of {part_nbytes} bytes",
            )
        at += count
    if at != len(part_sizes):
        raise WireError(f"{len(part_sizes) - at} payload parts too many", "send exactly the announced tensors")
    return counts


def join_parts(headers: Sequence[TensorHeader], parts: Sequence[Buffer]) -> list[Buffer]:
    """One buffer per tensor; a tensor that came in a single part is not copied. Parts must have been checked."""
    buffers: list[Buffer] = []
    at = 0
    for header in headers:
        count = part_count(header)
        mine = parts[at : at + count]
        at += count
        buffers.append(mine[0] if count == 1 else b"".join(mine))
    return buffers


def checksum(parts: Sequence[Buffer]) -> int:
    """crc32 over all payload bytes in order: it catches a torn or reused buffer, not an attacker (CURVE does)."""
    value = 0
    for part in parts:
        value = isal_zlib.crc32(part, value)
    return value
