"""DSSE envelopes (Dead Simple Signing Envelope, version 1): a payload, its type, and signatures over both. Pure.

What is signed is not the payload but its pre-authentication encoding, which says its type and how long either is:

    "DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload          LEN: bytes, in decimal

so that a signature for one kind of document is none for another. Here an envelope has one spelling: whatever is not, to
the byte, what `encode` writes is refused, so that no byte of the file can change unnoticed. Whoever reads a payload
verifies first and parses after that; this module never looks inside.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from protocol.errors import UntrustedError

MOST_NBYTES = 256 * 1024
MOST_SIGNATURES = 16
_REMEDY = "copy it again, or sign anew"


class Signature(msgspec.Struct, frozen=True):
    """`keyid` is a hint that says which key to try; nothing is believed because of it."""

    keyid: Annotated[str, msgspec.Meta(max_length=128)]
    sig: bytes


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    """`payload` are the bytes as they were signed."""

    payload: bytes
    payload_type: Annotated[str, msgspec.Meta(max_length=200)]
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MOST_SIGNATURES)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """What a signature is made over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def encode(envelope: Envelope) -> bytes:
    return msgspec.json.format(msgspec.json.encode(envelope), indent=1) + b"\n"


def decode(data: bytes, *, name: str) -> Envelope:
    """`name` is what the error calls it. Raises UntrustedError for what `encode` would not have written."""
    if len(data) > MOST_NBYTES:
        raise UntrustedError(f"{name} holds {len(data)} bytes, more than any signature", _REMEDY)
    try:
        envelope = msgspec.json.decode(data, type=Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as trouble:
        raise UntrustedError(f"{name} is no DSSE envelope: {trouble}", _REMEDY) from trouble
    if encode(envelope) != data:
        raise UntrustedError(f"{name} is not spelt as it was written: it was changed or damaged", _REMEDY)
    return envelope
