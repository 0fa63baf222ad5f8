"""Tensors, and what is known of an answer, as bytes on disk and back: typed headers, raw bytes, a checksum."""

from __future__ import annotations

import dataclasses
import typing
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec

from edge_agent.outcomes import Answer
from protocol import codecs
from protocol.errors import WireError
from protocol.tensors import Array, TensorHeader, Tensors

_headers = msgspec.msgpack.Decoder(tuple[TensorHeader, ...])
_document = msgspec.json.Decoder(dict[str, Any])


@dataclasses.dataclass(frozen=True, slots=True)
class Payload:
    """Tensors as they lie in the file; `checksum` is the crc32 of headers and data."""

    headers: bytes
    data: bytes
    checksum: int

    @property
    def nbytes(self) -> int:
        return len(self.headers) + len(self.data)


def pack(tensors: Tensors) -> Payload:
    """Raises WireError for an element type that has no fixed size."""
    coded = [codecs.encode(name, array, "raw") for name, array in tensors.items()]
    headers = msgspec.msgpack.encode([header for header, _ in coded])
    data = b"".join(memoryview(part).cast("B") for _, part in coded)
    return Payload(headers, data, _checksum((headers, data)))


def unpack(payload: Payload) -> dict[str, Array] | None:
    """Read-only arrays that share one buffer; None if the bytes are not those that were written."""
    if _checksum((payload.headers, payload.data)) != payload.checksum:
        return None
    try:
        headers = _headers.decode(payload.headers)
        tensors: dict[str, Array] = {}
        at, view = 0, memoryview(payload.data)
        for header in headers:
            tensors[header.name] = codecs.decode(header, view[at : at + header.nbytes])
            at += header.nbytes
        return tensors
    except (msgspec.MsgspecError, WireError):
        return None


def pack_made(answer: Answer) -> bytes:
    """Everything about an answer but its outputs."""
    told = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer) if f.name != "outputs"}
    return msgspec.json.encode(told)


def unpack_made(document: bytes, outputs: dict[str, Array]) -> Answer | None:
    """The answer again. Fields that this version does not know are left out, those it lacks have their defaults."""
    hints = typing.get_type_hints(Answer)
    try:
        told = _document.decode(document)
        known = {name: msgspec.convert(told[name], kind) for name, kind in hints.items() if name in told}
        return Answer(**{**known, "outputs": outputs})
    except (msgspec.MsgspecError, TypeError):
        return None


def _checksum(parts: Iterable[bytes]) -> int:
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value
