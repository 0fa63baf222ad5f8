"""gzip and deflate, in and out. What comes in is inflated to a bound that is known before, or refused: never to memory.

An answer is compressed only for who asks for one coding by name, as tritonclient's `response_compression_algorithm`
does: HTTP libraries send `gzip, deflate, br` by themselves, and activations hardly shrink.
"""

from __future__ import annotations

import zlib

from protocol.oip.service import Refusal
from protocol.oip.tensors import refuse

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LEVEL = 1  # at level 6 floats take three times as long for 2 % fewer bytes
SMALLEST_NBYTES = 1024  # below, the coding's own frame eats the gain


def is_identity(coding: str) -> bool:
    return coding in ("", "identity")


def inflate(data: bytes | memoryview, coding: str, *, limit_nbytes: int) -> bytes:
    """The bytes behind a Content-Encoding. Raises OipError: unknown, damaged, or larger than the limit."""
    window = _WINDOWS.get(coding)
    if window is None:
        raise refuse(
            f"Content-Encoding {coding[:40]!r} is not spoken here; use gzip, deflate or none", Refusal.UNSUPPORTED
        )
    inflater = zlib.decompressobj(window)
    try:
        plain = inflater.decompress(data, limit_nbytes + 1)
    except zlib.error as error:
        raise refuse(f"the body is no {coding}: {error}") from None
    if len(plain) > limit_nbytes:
        raise refuse(f"the body inflates to more than {limit_nbytes:,} bytes", Refusal.TOO_LARGE)
    if not inflater.eof:
        raise refuse(f"the {coding} body ends too early")
    if inflater.unused_data:
        raise refuse(f"bytes behind the end of the {coding} body")
    return plain


def wished(accept_encoding: str) -> str:
    """The coding that the caller asks for by name: "gzip", "deflate" or ""."""
    coding, semicolon, _ = accept_encoding.partition(";")
    coding = coding.strip().lower()
    return coding if not semicolon and coding in ("gzip", "deflate") else ""


def deflate(data: bytes, coding: str) -> bytes:
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[coding])
    return deflater.compress(data) + deflater.flush()
