"""The codec "levels": 8-bit codes on fewer levels, several levels to a byte, frequencies coded by zstd.

    payload = form u8, N - 1 u8, N codes that the levels stand for, body

    form 0  every level, packed
    form 1  the same in one zstd frame
    form 2  zero u8, others u32 (little endian), then one zstd frame of two parts:
              for every element a bit, the first element highest: is its level another than level `zero`?
              those `others` levels, packed to the base N - 1, `zero` left out of the count

Packed means: k levels are the digits of one byte, the first the least significant, so that zstd's Huffman code sees
them jointly and may spend less than a bit on each. The last byte is filled up with level 0.

    base    1..2   3..4   5..16   17..256
    k       8      4      2       1

Form 2 is for sparse tensors (ReLU outputs, decorrelated planes): 5-12 % smaller there than form 1. What levels mean
travels in front of the body, so a decoder needs the tensor header and nothing else. Lossy on purpose; a decoder trusts
no size, and every byte stands for some k levels.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np

from protocol.bundle import Levels
from protocol.errors import WireError
from protocol.frames import deflate_frequencies, inflate
from protocol.tensors import Array, TensorHeader
from protocol.wire import Buffer

MOST_LEVELS = 256
_PACKED, _ZSTD, _SPARSE = 0, 1, 2
_SPARSE_HEAD = struct.Struct("<BI")
_FEW = 9  # up to here one comparison per level is faster than a table (measured: 9 levels)
_CHUNK = 1 << 16  # packed bytes decoded at a time: bounds numpy's index array and stays in the cache
_WORD = {k: np.dtype(f"u{k}") for k in (2, 4, 8)}
_SAMPLE = 1024  # levels that are looked at to choose the form
_SPARSE_FROM = 0.3  # share of the commonest level from which bits cost less than they save (measured)


class LevelCodec:
    """uint8 only."""

    name = "levels"

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str:
        return "" if dtype == "uint8" else "the codec 'levels' takes 8-bit codes (uint8)"

    def encode(self, array: Array, levels: Levels | None) -> Buffer:
        if levels is None:
            raise WireError("the codec 'levels' without its levels", "give the `levels` of the boundary tensor")
        by_code, values = table(levels)
        flat = quantise(array, by_code, levels.thresholds)
        form, body = body_of(flat, len(values))
        return b"".join((bytes((form, len(values) - 1)), values, *body))

    def decode(self, data: Buffer, header: TensorHeader) -> Buffer:
        form, values, body = parse(data)
        return opened(form, body, values, header.decoded_nbytes())


def parse(data: Buffer) -> tuple[int, bytes, memoryview]:
    """Form, codes of the levels, body. Raises WireError for a payload that ends before its body."""
    view = memoryview(data).cast("B")
    if view.nbytes < 2 or view.nbytes < 3 + view[1]:
        raise WireError(f"payload of {view.nbytes} bytes holds no levels", "see docs/wire.md for its beginning")
    count = view[1] + 1
    return view[0], bytes(view[2 : 2 + count]), view[2 + count :]


def opened(form: int, body: memoryview, values: bytes, elements: int) -> Buffer:
    """For each of `elements` levels in `body` the byte of `values` that it stands for. Raises WireError."""
    if form == _SPARSE:
        return _unpack_sparse(body, values, elements)
    nbytes = packed_nbytes(elements, len(values))
    if form == _ZSTD:
        body = memoryview(inflate(body, nbytes))
    elif form != _PACKED or body.nbytes != nbytes:
        raise WireError(f"levels in form {form} and {body.nbytes} bytes", f"{elements} elements need {nbytes}")
    return unpack(body, values, elements)


def per_byte(base: int) -> int:
    """How many levels of `base` share a byte."""
    return 8 if base <= 2 else 4 if base <= 4 else 2 if base <= 16 else 1


def packed_nbytes(elements: int, base: int) -> int:
    return -(-elements // per_byte(base))


def quantise(array: Array, by_code: bytes, thresholds: tuple[int, ...]) -> Array:
    """Level of each uint8 code, flat in C order."""
    codes = np.ascontiguousarray(array).reshape(-1)
    if len(thresholds) >= _FEW:
        return np.frombuffer(codes.tobytes().translate(by_code), np.uint8)
    out = np.zeros(codes.size, np.uint8)
    for threshold in thresholds:
        np.add(out, (codes >= threshold).view(np.uint8), out=out)
    return out


def pack(levels: Array, base: int) -> Array:
    """k levels a byte, the first the least significant digit, filled up with zeros.

    One multiplication does it: read k levels as a word and multiply by the sum of base**i << 8 * (k - 1 - i). Its top
    byte is the packed one, for no lower byte carries while base**k <= 256.
    """
    k = per_byte(base)
    if k == 1:
        return levels
    if levels.size % k:
        levels = np.concatenate([levels, np.zeros(-levels.size % k, np.uint8)])
    word = _WORD[k]
    factor = np.array(sum(base**i << 8 * (k - 1 - i) for i in range(k)), word)
    product: Array = levels.view(word.newbyteorder("<")) * factor
    packed: Array = (product >> np.array(8 * (k - 1), word)).astype(np.uint8)
    return packed


def unpack(packed: Buffer, values: bytes, elements: int) -> Buffer:
    """The codes of `elements` levels, which stand for `values`."""
    k = per_byte(len(values))
    if k == 1:
        return bytes(packed).translate(values.ljust(256, values[-1:]))
    table = _digits(values)
    source = np.frombuffer(packed, np.uint8)
    out = np.empty(source.size, table.dtype)
    for at in range(0, source.size, _CHUNK):
        # Every uint8 is a row of the table, so "clip" only spares the check.
        np.take(table, source[at : at + _CHUNK], out=out[at : at + _CHUNK], mode="clip")
    return out.view(np.uint8)[:elements].data


# ---- sparse ---------------------------------------------------------------------------------------------------------


def body_of(flat: Array, count: int) -> tuple[int, tuple[Buffer, ...]]:
    """The form that suits these levels (flat uint8 below `count`), and its body."""
    zero = _zero(flat) if count > 2 else None
    if zero is not None:
        return _SPARSE, _pack_sparse(flat, count, zero)
    packed = pack(flat, count)
    frame = deflate_frequencies(packed.data)
    return (_ZSTD, (frame,)) if len(frame) < packed.nbytes else (_PACKED, (packed.data,))


def _zero(flat: Array) -> int | None:
    """The commonest level, where it is common enough."""
    sample = flat[:: max(flat.size // _SAMPLE, 1) | 1]  # odd, or it would meet the same columns of every row
    counts = np.bincount(sample, minlength=1)
    zero = int(np.argmax(counts))
    return zero if counts[zero] > _SPARSE_FROM * sample.size else None


def _pack_sparse(flat: Array, count: int, zero: int) -> tuple[Buffer, ...]:
    is_other = flat != zero
    others = flat.take(np.flatnonzero(is_other))  # by positions: a mask is 4 times slower
    np.subtract(others, (others > zero).view(np.uint8), out=others)
    parts = (np.packbits(is_other), pack(others, count - 1))
    return _SPARSE_HEAD.pack(zero, others.size), deflate_frequencies(*(part.data for part in parts))


def _unpack_sparse(body: memoryview, values: bytes, elements: int) -> Buffer:
    if body.nbytes < _SPARSE_HEAD.size:
        raise WireError(f"sparse levels of {body.nbytes} bytes", f"they begin with {_SPARSE_HEAD.size}")
    zero, others = _SPARSE_HEAD.unpack_from(body)
    if len(values) < 2 or zero >= len(values) or others > elements:
        raise WireError(f"level {zero} of {len(values)} and {others} others", f"there are {elements} elements")
    other_values = values[:zero] + values[zero + 1 :]
    bits_nbytes = -(-elements // 8)
    total = bits_nbytes + packed_nbytes(others, len(other_values))
    inflated = memoryview(inflate(body[_SPARSE_HEAD.size :], total))
    is_other = np.unpackbits(np.frombuffer(inflated[:bits_nbytes], np.uint8), count=elements).view(np.bool_)
    if np.count_nonzero(is_other) != others:
        raise WireError(f"sparse levels mark other than the announced {others} elements", "mark each of them")
    out = np.full(elements, values[zero], np.uint8)
    _scatter(out, is_other, np.frombuffer(unpack(inflated[bits_nbytes:], other_values, others), np.uint8))
    return out.data


def _scatter(out: Array, where: Array, codes: Array) -> None:
    """out[where] = codes, by positions (a mask is 2-5 times slower), a stretch at a time to bound their memory."""
    taken = 0
    for at in range(0, out.size, _CHUNK):
        positions = np.flatnonzero(where[at : at + _CHUNK])
        out[at : at + _CHUNK][positions] = codes[taken : taken + positions.size]
        taken += positions.size


# ---- tables ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def table(levels: Levels) -> tuple[bytes, bytes]:
    """Level by code, and code by level. Raises WireError for levels that no partitioner designs."""
    thresholds, values = levels.thresholds, levels.values
    ascending = all(a < b for a, b in pairwise((0, *thresholds, 256)))
    if not (ascending and len(values) == len(thresholds) + 1 <= MOST_LEVELS and 0 <= min(values) <= max(values) <= 255):
        raise WireError(f"{len(values)} levels behind {len(thresholds)} thresholds", "see protocol.bundle.Levels")
    by_code = np.searchsorted(thresholds, np.arange(256), side="right").astype(np.uint8)
    return by_code.tobytes(), bytes(values)


@lru_cache(maxsize=64)
def _digits(values: bytes) -> Array:
    """The k codes, as one word, that each packed byte stands for."""
    base, k = len(values), per_byte(len(values))
    digits = np.arange(256)[:, None] // base ** np.arange(k) % base if base > 1 else np.zeros((256, k), np.intp)
    codes = np.frombuffer(values, np.uint8)[digits]
    return cast(Array, np.ascontiguousarray(codes).view(_WORD[k]).reshape(-1))
