"""JSON documents that say their schema's version: one of another version is named as such, not as damaged. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from protocol.errors import IsthmusError

T = TypeVar("T")


class _AnyVersion(msgspec.Struct):
    schema_version: int


def decode_document(
    data: bytes, kind: type[T], *, version: int, name: str, error: type[IsthmusError], remedy: str
) -> T:
    """Parse a document of this `version`; `name` is what `error`, raised for anything else, calls it."""
    try:
        found = msgspec.json.decode(data, type=_AnyVersion).schema_version
        if found == version:
            return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as trouble:
        raise error(f"{name} does not parse: {trouble}", remedy) from trouble
    fact = f"{name} has schema version {found} but this version reads {version}"
    raise error(fact, f"use the version that wrote it, or {remedy}")
