"""What later requests may refer to: the last frames of every stream, decoded, within a bound. Pure.

A stream is one device under one segment. Only tensors that crossed under the codec "delta" are worth keeping, and only
of requests that ask for it. What was forgotten costs the device one refusal and one frame sent alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping

from protocol.tensors import Array

KEEP_FRAMES = 8  # of one stream: requests that are on their way together may refer to different ones
KEEP_NBYTES = 64 * 1024 * 1024
OVERHEAD_NBYTES = 1024  # of one frame: without it frames of next to nothing would be kept without end

Frame = Mapping[str, Array]


class References:
    """Forgets a stream's oldest frame first, and the stream that was quiet longest when all together are too much."""

    def __init__(self, *, frames: int = KEEP_FRAMES, nbytes: int = KEEP_NBYTES) -> None:
        self._most_frames = frames
        self._limit = nbytes
        self._streams: OrderedDict[Hashable, OrderedDict[int, Frame]] = OrderedDict()
        self.nbytes = 0

    def keep(self, stream: Hashable, sequence: int, frame: Frame) -> None:
        """Remember what request `sequence` of `stream` held. One larger than the whole bound is not kept."""
        nbytes = _nbytes(frame)
        if nbytes > self._limit:
            return
        frames = self._streams.setdefault(stream, OrderedDict())
        self._streams.move_to_end(stream)
        if sequence in frames:  # sent again
            self.nbytes -= _nbytes(frames.pop(sequence))
        frames[sequence] = frame
        self.nbytes += nbytes
        if len(frames) > self._most_frames:
            self._drop_oldest(frames)
        while self.nbytes > self._limit:
            quiet, oldest = next(iter(self._streams.items()))
            self._drop_oldest(oldest)
            if not oldest:
                del self._streams[quiet]

    def find(self, stream: Hashable, sequence: int, tensor: str) -> Array | None:
        """The tensor of that name in that request, if it is still held."""
        frames = self._streams.get(stream)
        frame = frames.get(sequence) if frames else None
        return frame.get(tensor) if frame else None

    def _drop_oldest(self, frames: OrderedDict[int, Frame]) -> None:
        _, frame = frames.popitem(last=False)
        self.nbytes -= _nbytes(frame)


def _nbytes(frame: Frame) -> int:
    return OVERHEAD_NBYTES + sum(array.nbytes for array in frame.values())
