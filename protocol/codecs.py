"""Activation codecs by name: an array to bytes and back.

    raw      the array's own bytes
    zstd     one zstd frame, level 1, over the codes in CHW order (0.2-0.5 byte/element on ReLU outputs)
    png, jpeg1 ... jpeg100   pictures (protocol/images.py); JPEG is lossy, its quality is the encoder's alone
    levels   8-bit codes on few levels, several to a byte, entropy-coded (protocol/levels.py); lossy by design
    delta    the same as the difference to an earlier frame, where one is known to both sides (protocol/delta.py)

The eight bits come from the head itself (its last operator emits uint8 codes), so "raw" on such a boundary is one byte
an element. Decoders treat their input as hostile: the decoded size is known from the header and checked before
allocation. What else a decoder needs is in the payload. A codec that cannot take every tensor says why (`refusal`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from protocol import images
from protocol.bundle import Levels
from protocol.delta import DeltaCodec, Recall, Reference
from protocol.errors import WireError
from protocol.frames import deflate, inflate
from protocol.levels import LevelCodec
from protocol.tensors import DTYPES, Array, TensorHeader, dtype_name
from protocol.wire import MAX_PAYLOAD_NBYTES, Buffer


class Codec(Protocol):
    """Turns an array into bytes and back. `decode` returns exactly `header.decoded_nbytes()` bytes or raises WireError.

    `refusal` says why tensors of this element type and shape cannot take the codec, or "" if they can; both `encode`
    and `decode` are called only for those that can.
    """

    name: str

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str: ...
    def encode(self, array: Array, levels: Levels | None) -> Buffer: ...
    def decode(self, data: Buffer, header: TensorHeader) -> Buffer: ...


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Raw:
    name = "raw"

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str:
        return ""

    def encode(self, array: Array, levels: Levels | None) -> Buffer:
        return _bytes_of(array)

    def decode(self, data: Buffer, header: TensorHeader) -> Buffer:
        nbytes = header.decoded_nbytes()
        if memoryview(data).nbytes != nbytes:
            raise WireError(f"raw tensor of {memoryview(data).nbytes} bytes", f"its shape needs {nbytes}")
        return data


class Zstd:
    name = "zstd"

    def refusal(self, dtype: str, shape: tuple[int, ...]) -> str:
        return ""

    def encode(self, array: Array, levels: Levels | None) -> Buffer:
        return deflate(_bytes_of(array))

    def decode(self, data: Buffer, header: TensorHeader) -> Buffer:
        return inflate(data, header.decoded_nbytes())


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Raw(), Zstd(), LevelCodec(), DeltaCodec())}


def encode(
    name: str, array: Array, codec: str, levels: Levels | None = None, before: Reference | None = None
) -> tuple[TensorHeader, Buffer]:
    """Encode one tensor. Returns its wire header and its bytes.

    `levels` are for the codecs "levels" and "delta", `before` (the same tensor of an answered request) for "delta".
    Raises WireError for a codec or an element type that may not cross, and for a codec that cannot take this tensor.
    """
    dtype = dtype_name(name, array)
    coder = _codec(codec, name, dtype, array.shape)
    if before is not None and isinstance(coder, DeltaCodec):
        data = coder.encode_after(array, levels, before)
    else:
        data = coder.encode(array, levels)
    return TensorHeader(name, dtype, array.shape, codec, memoryview(data).nbytes), data


def decode(header: TensorHeader, data: Buffer, recall: Recall | None = None) -> Array:
    """Decode one tensor to a read-only array of `header.shape`; raw data is viewed, not copied.

    `recall` brings back the tensor of an earlier request, for the codec "delta"; without it, or where it brings back
    nothing, a difference raises UnknownReferenceError.
    Raises WireError when header and data do not belong together, before anything of the claimed size is allocated.
    """
    nbytes = header.decoded_nbytes()
    if nbytes > MAX_PAYLOAD_NBYTES:
        raise WireError(f"tensor {header.name!r} would decode to {nbytes} bytes", f"at most {MAX_PAYLOAD_NBYTES}")
    coder = _codec(header.codec, header.name, header.dtype, header.shape)
    if recall is not None and isinstance(coder, DeltaCodec):
        raw = coder.decode_after(data, header, recall)
    else:
        raw = coder.decode(data, header)
    try:
        array: Array = np.frombuffer(raw, dtype=DTYPES[header.dtype]).reshape(header.shape)
    except ValueError as error:  # an empty tensor with dimensions beyond numpy's
        raise WireError(f"tensor {header.name!r} has shape {list(header.shape)}", "send one that can exist") from error
    if not array.flags.aligned:  # small ZeroMQ frames lie unaligned in a shared buffer
        array = array.copy()
    array.flags.writeable = False
    return array


def _codec(codec: str, tensor: str, dtype: str, shape: tuple[int, ...]) -> Codec:
    found = CODECS.get(codec) or images.named(codec)
    if found is None:
        raise WireError(f"codec {codec!r}", f"known are {', '.join(CODECS)}, png, jpeg1 ... jpeg100")
    refusal = found.refusal(dtype, shape)
    if refusal:
        raise WireError(f"tensor {tensor!r} is {dtype} {list(shape)}", refusal)
    return found


def _self_check() -> None:
    """A registry that cannot bring back what it was given must not be importable."""
    probe = np.arange(48, dtype=np.uint8).reshape(2, 3, 8)
    exact = Levels(tuple(range(1, 48)), tuple(range(48)))
    for name, codec in CODECS.items():
        if codec.refusal("uint8", probe.shape):
            continue
        header, data = encode("probe", probe, name, exact)
        if not np.array_equal(decode(header, data), probe):
            raise AssertionError(f"codec {name} does not bring back its probe")


_self_check()
