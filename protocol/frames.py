"""zstd frames for activations: written without a search for matches, opened only up to the size that was announced.

Repeated strings hardly occur in activations, but unequal frequencies do: with the match finder all but switched off
(a minimum of 7 bytes, 64 hash entries) codes of two elements a byte become 3-12 % smaller than at level 1 and are coded
2-4 times as fast (measured on MobileNetV2 and ResNet-8 boundaries). Frames stay ordinary zstd.
"""

from __future__ import annotations

import sys

from protocol.errors import WireError
from protocol.wire import Buffer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_LEVEL = 1  # higher levels gain < 5 % on activations and cost 2-4x the time (measured)
_FREQUENCIES_ONLY: dict[int, int] = {
    zstd.CompressionParameter.strategy: int(zstd.Strategy.fast),
    zstd.CompressionParameter.min_match: 7,
    zstd.CompressionParameter.hash_log: 6,
}


def deflate(data: Buffer) -> bytes:
    """One zstd frame at the default level, which states its decoded size."""
    return zstd.compress(data, level=ZSTD_LEVEL)


def deflate_frequencies(*parts: Buffer) -> bytes:
    """One zstd frame of all parts with (almost) no match search, which states its decoded size.

    Every part begins a new block, so that each may have a Huffman code of its own.
    """
    compressor = zstd.ZstdCompressor(options=_FREQUENCIES_ONLY)
    compressor.set_pledged_input_size(sum(memoryview(part).nbytes for part in parts))
    blocks = [compressor.compress(part, mode=compressor.FLUSH_BLOCK) for part in parts[:-1] if memoryview(part).nbytes]
    return b"".join((*blocks, compressor.compress(parts[-1], mode=compressor.FLUSH_FRAME)))


def inflate(data: Buffer, nbytes: int) -> bytes:
    """Open one zstd frame that must hold exactly `nbytes` bytes. Raises WireError otherwise.

    A frame may claim any size, or none: ours always states it, so it is compared before a byte is allocated, and the
    decompressor stops at the size even if the frame lied.
    """
    try:
        claimed = zstd.get_frame_info(data).decompressed_size
        if claimed != nbytes:
            raise WireError(f"zstd frame of {claimed} decoded bytes", f"the tensor's shape needs {nbytes}")
        decompressor = zstd.ZstdDecompressor()
        out = decompressor.decompress(data, max_length=nbytes)
        # An exact-size limit can leave the decoder one step short of noticing that the frame has ended.
        extra = b"" if decompressor.eof or len(out) != nbytes else decompressor.decompress(b"", max_length=1)
    except zstd.ZstdError as error:
        raise WireError(f"zstd frame does not decode ({error})", "encode it as one zstd frame") from error
    if extra:
        raise WireError("zstd frame is longer than it claims", "encode it as one zstd frame")
    if len(out) != nbytes or not decompressor.eof or decompressor.unused_data:
        raise WireError("zstd frame is truncated or followed by other bytes", "encode it as one zstd frame")
    return out
