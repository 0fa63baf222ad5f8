"""The codec "levels": 8-bit codes on fewer levels, several levels to a byte, frequencies coded by zstd.

    payload = [form: 0 packed bytes as they are, 1 one zstd frame] [N: 1..64] [N codes that the levels stand for] [body]

The head's codes are mapped onto N levels (`bundle.Levels`, designed on calibration data); k levels share a byte as the
digits of a number to the base N, so that zstd's Huffman code sees them jointly and may spend less than a bit on each:

    N       1..2   3..4   5..16   17..64
    k       8      4      2       1

What levels mean travels in front of the body, so a decoder needs the tensor header and nothing else. Lossy on purpose;
a decoder trusts no size, and every byte stands for some k levels.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import cast

import numpy as np

from protocol.bundle import Levels
from protocol.errors import WireError
from protocol.frames import deflate_frequencies, inflate
from protocol.tensors import Array, TensorHeader
from protocol.wire import Buffer

MOST_LEVELS = 64
_PACKED, _ZSTD = 0, 1
_FEW = 9  # up to here one comparison per level is faster than a table (measured: 9 levels)
_CHUNK = 1 << 16  # packed bytes decoded at a time: bounds numpy's index array and stays in the cache
_WORD = {k: np.dtype(f"u{k}") for k in (2, 4, 8)}


class LevelCodec:
    """uint8 only."""

    name = "levels"

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str:
        return "" if dtype == "uint8" else "the codec 'levels' takes 8-bit codes (uint8)"

    def encode(self, array: Array, levels: Levels | None) -> Buffer:
        if levels is None:
            raise WireError("the codec 'levels' without its levels", "give the `levels` of the boundary tensor")
        values = _table(levels)[1]
        packed = pack(quantise(array, levels), len(values))
        body: Buffer = deflate_frequencies(packed.data)
        form = _ZSTD
        if memoryview(body).nbytes >= packed.nbytes:
            form, body = _PACKED, packed.data
        return b"".join((bytes((form, len(values))), values, body))

    def decode(self, data: Buffer, header: TensorHeader) -> Buffer:
        view = memoryview(data).cast("B")
        if view.nbytes < 2 or not 1 <= view[1] <= MOST_LEVELS or view.nbytes < 2 + view[1]:
            raise WireError(f"payload of {view.nbytes} bytes holds no levels", "see docs/wire.md for its beginning")
        form, count = view[0], view[1]
        body = view[2 + count :]
        elements = header.decoded_nbytes()
        nbytes = -(-elements // per_byte(count))
        if form == _ZSTD:
            body = memoryview(inflate(body, nbytes))
        elif form != _PACKED or body.nbytes != nbytes:
            raise WireError(f"levels in form {form} and {body.nbytes} bytes", f"{elements} elements need {nbytes}")
        return unpack(body, bytes(view[2 : 2 + count]), elements)


def per_byte(count: int) -> int:
    """How many levels of `count` share a byte."""
    return 8 if count <= 2 else 4 if count <= 4 else 2 if count <= 16 else 1


def quantise(array: Array, levels: Levels) -> Array:
    """Level of each uint8 code, flat in C order, followed by zeros up to a whole packed byte."""
    codes = np.ascontiguousarray(array).reshape(-1)
    k = per_byte(len(levels.values))
    out = np.zeros(-(-codes.size // k) * k, np.uint8)
    inside = out[: codes.size]
    if len(levels.values) > _FEW:
        inside[:] = np.frombuffer(codes.tobytes().translate(_table(levels)[0]), np.uint8)
        return out
    for threshold in levels.thresholds:
        np.add(inside, (codes >= threshold).view(np.uint8), out=inside)
    return out


def pack(levels: Array, count: int) -> Array:
    """k levels a byte, the first the least significant digit to the base `count`.

    One multiplication does it: read k levels as a word and multiply by the sum of count**i << 8 * (k - 1 - i). Its top
    byte is the packed one, for no lower byte carries while count**k <= 256.
    """
    k = per_byte(count)
    if k == 1:
        return levels
    word = _WORD[k]
    factor = np.array(sum(count**i << 8 * (k - 1 - i) for i in range(k)), word)
    product: Array = levels.view(word.newbyteorder("<")) * factor
    packed: Array = (product >> np.array(8 * (k - 1), word)).astype(np.uint8)
    return packed


def unpack(packed: Buffer, values: bytes, elements: int) -> Buffer:
    """The codes of `elements` levels."""
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


@lru_cache(maxsize=64)
def _table(levels: Levels) -> tuple[bytes, bytes]:
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
    count, k = len(values), per_byte(len(values))
    digits = np.arange(256)[:, None] // count ** np.arange(k) % count if count > 1 else np.zeros((256, k), np.intp)
    codes = np.frombuffer(values, np.uint8)[digits]
    return cast(Array, np.ascontiguousarray(codes).view(_WORD[k]).reshape(-1))
