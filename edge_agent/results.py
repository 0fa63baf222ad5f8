"""A gateway's result as arrays, checked as if the gateway were anybody."""

from __future__ import annotations

from collections.abc import Sequence

from protocol import codecs, wire
from protocol import messages as m
from protocol.errors import WireError
from protocol.tensors import Array


def outputs_of(result: m.Result, parts: Sequence[memoryview]) -> dict[str, Array]:
    """By ONNX name; views of the message where the codec allows it. Raises WireError for what does not fit."""
    if wire.checksum(parts) != result.checksum:
        raise WireError("the result's checksum does not match", "")
    buffers = wire.join_parts(result.tensors, parts)
    return {h.name: codecs.decode(h, b) for h, b in zip(result.tensors, buffers, strict=True)}
