"""The codec "delta": 8-bit codes as the difference to the frame before, for streams whose pictures are alike.

    payload = kind u8 [, sequence u64, crc32 u32 (little endian)], form u8 [, N - 1 u8, N codes], body

    kind 0  alone            as under the codec "levels"
    kind 1  difference       with sequence and crc32; the body's digits are (level - level there) modulo N
    kind 2  alone, exact     without N and codes: every code is its own level, N = 256
    kind 3  difference, exact

"There" is the same tensor of the request with that sequence number: same device, same segment, same shape, and answered
before, so that the gateway surely had it. The checksum is that of the levels there, one a byte. A level is the first of
the N that stands for its code.

The decoder keeps no state itself; whoever calls it remembers what was decoded and says what a number stands for. One
that has forgotten raises UnknownReferenceError, and the sender sends the frame alone. The sender also does so by itself
where a difference would not be smaller, as when the scene changes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from protocol.bundle import Levels
from protocol.errors import WireError
from protocol.levels import body_of, opened, parse, quantise, table
from protocol.tensors import Array, TensorHeader
from protocol.wire import Buffer

_DIFFERENCE, _EXACT = 1, 2  # bits of the kind
_REFERENCE = struct.Struct("<QI")
# Where a sample says that one kind is that much smaller, only that one is made; else both, and the smaller one goes.
_SURELY = 1.3
_STRETCHES, _SAMPLE = 32, 96  # whose elements are looked at: channels are unequal, and zstd's Huffman codes follow them
_ROWS = 256 * np.arange(_STRETCHES)[:, None]  # keeps their counts apart
_EVERY_CODE = bytes(range(256))
_ALL = Levels(tuple(range(1, 256)), tuple(_EVERY_CODE))


class UnknownReferenceError(WireError):
    """The frame that a difference refers to is not held (any more): send this one alone."""


class Reference(NamedTuple):
    """A tensor of an answered request: its sequence number, and its codes before or after the codec (both do)."""

    sequence: int
    codes: Array


Recall = Callable[[int], Array | None]  # the decoded codes of the tensor in the request with this sequence number


class DeltaCodec:
    """uint8 only. `encode` and `decode` know no other frame; `encode_after` and `decode_after` do."""

    name = "delta"

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str:
        return "" if dtype == "uint8" else "the codec 'delta' takes 8-bit codes (uint8)"

    def encode(self, array: Array, levels: Levels | None) -> Buffer:
        first, values = _first_of_its_code(levels or _ALL)
        return _packed(_levels(array, levels or _ALL, first), levels, values)

    def encode_after(self, array: Array, levels: Levels | None, before: Reference) -> Buffer:
        """The smaller of both kinds. Alone as well where the shapes differ."""
        if before.codes.shape != array.shape or before.codes.dtype != array.dtype:
            return self.encode(array, levels)
        first, values = _first_of_its_code(levels or _ALL)
        now, then = (_levels(codes, levels or _ALL, first) for codes in (array, before.codes))
        difference = _modulo(now, then, len(values))
        expected = _bits(difference) / max(_bits(now), 1e-9)
        ways = []
        if expected < _SURELY:
            ways.append(_packed(difference, levels, values, _REFERENCE.pack(before.sequence, zlib.crc32(then.data))))
        if expected > 1 / _SURELY:
            ways.append(_packed(now, levels, values))
        return min(ways, key=len)

    def decode(self, data: Buffer, header: TensorHeader) -> Buffer:
        return self.decode_after(data, header, lambda _: None)

    def decode_after(self, data: Buffer, header: TensorHeader, recall: Recall) -> Buffer:
        """Raises UnknownReferenceError if `recall` does not bring back what was sent, WireError for other trouble."""
        view = memoryview(data).cast("B")
        kind = view[0] if view.nbytes else -1
        at = 1 + (_REFERENCE.size if kind & _DIFFERENCE else 0)
        if not 0 <= kind <= _DIFFERENCE | _EXACT or view.nbytes <= at:
            raise WireError(f"payload of {view.nbytes} bytes is no delta", "see docs/wire.md for its beginning")
        form, values, body = (view[at], _EVERY_CODE, view[at + 1 :]) if kind & _EXACT else parse(view[at:])
        if not kind & _DIFFERENCE:
            return opened(form, body, values, header.decoded_nbytes())
        sequence, crc = _REFERENCE.unpack_from(view, 1)
        then = _levels_there(recall(sequence), header, values, sequence, crc)
        digits = opened(form, body, _EVERY_CODE[: len(values)], then.size)
        now = _plus(then, np.frombuffer(digits, np.uint8), len(values))
        return now.data if kind & _EXACT else now.tobytes().translate(values.ljust(256, b"\0"))


def _packed(digits: Array, levels: Levels | None, values: bytes, reference: bytes = b"") -> bytes:
    """The payload of these digits, which are levels or their differences. `values` are the codes of the levels."""
    form, body = body_of(digits, len(values))
    kind = (_DIFFERENCE if reference else 0) | (_EXACT if levels is None else 0)
    names = b"" if levels is None else bytes((len(values) - 1,)) + values
    return b"".join((bytes((kind,)), reference, bytes((form,)), names, *body))


def _levels_there(codes: Array | None, header: TensorHeader, values: bytes, sequence: int, crc: int) -> Array:
    """The levels of the frame that a difference refers to, shown to be the sender's."""
    wanted = "send the frame alone"
    if codes is None:
        raise UnknownReferenceError(f"request {sequence} is not held", wanted)
    if codes.shape != header.shape:
        raise UnknownReferenceError(f"request {sequence} had shape {list(codes.shape)}", wanted)
    levels = np.frombuffer(codes.tobytes().translate(_level_by_code(values)), np.uint8)
    if zlib.crc32(levels.data) != crc:
        raise UnknownReferenceError(f"request {sequence} held other levels", wanted)
    return levels


@lru_cache(maxsize=64)
def _first_of_its_code(levels: Levels) -> tuple[bytes, bytes]:
    """For each level the first one that stands for the same code, and the code of each level."""
    _, values = table(levels)
    return bytes(values.find(code) for code in values).ljust(256, b"\0"), values


@lru_cache(maxsize=64)
def _level_by_code(values: bytes) -> bytes:
    """The first level that stands for each code; 0 for codes that no level stands for: the checksum finds those."""
    return bytes(max(values.find(code), 0) for code in range(256))


def _levels(codes: Array, levels: Levels, first: bytes) -> Array:
    quantised = quantise(codes, table(levels)[0], levels.thresholds)
    if len(set(levels.values)) == len(levels.values):
        return quantised
    return np.frombuffer(quantised.tobytes().translate(first), np.uint8)


def _modulo(now: Array, then: Array, count: int) -> Array:
    """(now - then) mod count, all uint8."""
    if count == 256:
        return now - then
    return _reduced(now.astype(np.uint16) + np.uint16(count) - then, count)


def _plus(then: Array, difference: Array, count: int) -> Array:
    if count == 256:
        return then + difference
    return _reduced(then.astype(np.uint16) + difference, count)


def _reduced(total: Array, count: int) -> Array:
    """Modulo `count` of what is below twice as much; a division is several times slower."""
    total -= (total >= count) * np.uint16(count)
    return total.astype(np.uint8)


def _bits(levels: Array) -> float:
    """Entropy within stretches of the tensor, in bits an element of their mean. Only to compare tensors of one size."""
    count = _STRETCHES if levels.size >= _STRETCHES * _SAMPLE else 1
    stretches = levels[: levels.size // count * count].reshape(count, -1)
    sample = stretches[:, :: max(stretches.shape[1] // _SAMPLE, 1)]
    seen = np.bincount((sample + _ROWS[:count]).reshape(-1), minlength=256 * count)
    seen = seen[seen > 0]
    drawn = max(sample.shape[1], 1)
    return float(np.log2(drawn) - seen @ np.log2(seen) / (count * drawn))
