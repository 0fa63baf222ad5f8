"""Activation codecs: an array to bytes and back, by name, losslessly. Quantisation happens in the graph, not here.

The eight bits come from the head itself (its last operator emits uint8 codes), so "raw" on such a boundary is one byte
an element and "zstd" is what the measured default rung is: zstd level 1 over the codes in CHW order (0.2-0.5
byte/element on ReLU outputs). Decoders treat their input as hostile: the decoded size is known from the header and
checked before allocation.
"""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np

from protocol.errors import WireError
from protocol.tensors import DTYPES, Array, TensorHeader, dtype_name
from protocol.wire import MAX_PAYLOAD_NBYTES, Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_LEVEL = 1  # higher levels gain < 5 % on activations and cost 2-4x the time (measured)


class Codec(Protocol):
    """Turns an array into bytes and back; `decode` returns exactly `nbytes` bytes or raises WireError."""

    name: str

    def encode(self, array: Array) -> Buffer: ...
    def decode(self, data: Buffer, nbytes: int) -> Buffer: ...


def _bytes_of(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Raw:
    name = "raw"

    def encode(self, array: Array) -> Buffer:
        return _bytes_of(array)

    def decode(self, data: Buffer, nbytes: int) -> Buffer:
        if memoryview(data).nbytes != nbytes:
            raise WireError(f"raw tensor of {memoryview(data).nbytes} bytes", f"its shape needs {nbytes}")
        return data


class Zstd:
    name = "zstd"

    def encode(self, array: Array) -> Buffer:
        return zstd.compress(_bytes_of(array), level=ZSTD_LEVEL)

    def decode(self, data: Buffer, nbytes: int) -> Buffer:
        # A frame may claim any size, or none: ours always states it, so compare before a byte is allocated, and stop
        # the decompressor at the size even if the frame lied.
        try:
            claimed = zstd.get_frame_info(data).decompressed_size
            if claimed != nbytes:
                raise WireError(f"zstd frame of {claimed} decoded bytes", f"the tensor's shape needs {nbytes}")
            decompressor = zstd.ZstdDecompressor()
            out = decompressor.decompress(data, max_length=nbytes)
        except zstd.ZstdError as error:
            raise WireError(f"zstd frame does not decode ({error})", "encode it as one zstd frame") from error
        # An exact-size limit can leave the decoder one step short of noticing that the frame has ended.
        if not decompressor.eof and len(out) == nbytes:
            try:
                extra = decompressor.decompress(b"", max_length=1)
            except zstd.ZstdError as error:
                raise WireError(f"zstd frame does not decode ({error})", "encode it as one zstd frame") from error
            if extra:
                raise WireError("zstd frame is longer than it claims", "encode it as one zstd frame")
        if len(out) != nbytes or not decompressor.eof or decompressor.unused_data:
            raise WireError("zstd frame is truncated or followed by other bytes", "encode it as one zstd frame")
        return out


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Raw(), Zstd())}


def encode(name: str, array: Array, codec: str) -> tuple[TensorHeader, Buffer]:
    """Encode one tensor. Returns its wire header and its bytes.

    Raises WireError for a codec or an element type that may not cross.
    """
    if codec not in CODECS:
        raise WireError(f"codec {codec!r}", f"known are {', '.join(CODECS)}")
    dtype = dtype_name(name, array)
    data = CODECS[codec].encode(array)
    header = TensorHeader(name, dtype, array.shape, codec, memoryview(data).nbytes)
    return header, data


def decode(header: TensorHeader, data: Buffer) -> Array:
    """Decode one tensor to a read-only array of `header.shape`; raw data is viewed, not copied.

    Raises WireError when header and data do not belong together, before anything of the claimed size is allocated.
    """
    nbytes = header.decoded_nbytes()
    if nbytes > MAX_PAYLOAD_NBYTES:
        raise WireError(f"tensor {header.name!r} would decode to {nbytes} bytes", f"at most {MAX_PAYLOAD_NBYTES}")
    codec = CODECS.get(header.codec)
    if codec is None:
        raise WireError(f"codec {header.codec!r}", f"known are {', '.join(CODECS)}")
    raw = codec.decode(data, nbytes)
    try:
        array: Array = np.frombuffer(raw, dtype=DTYPES[header.dtype]).reshape(header.shape)
    except ValueError as error:  # an empty tensor with dimensions beyond numpy's
        raise WireError(f"tensor {header.name!r} has shape {list(header.shape)}", "send one that can exist") from error
    if not array.flags.aligned:  # small ZeroMQ frames lie unaligned in a shared buffer
        array = array.copy()
    array.flags.writeable = False
    return array


def _self_check() -> None:
    """A registry that cannot bring back what it was given must not be importable."""
    probe = np.arange(48, dtype=np.int16).reshape(2, 3, 8)
    for name in CODECS:
        header, data = encode("probe", probe, name)
        if not np.array_equal(decode(header, data), probe):
            raise AssertionError(f"codec {name} is not lossless")


_self_check()
