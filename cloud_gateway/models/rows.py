"""Payloads into batches: one copy, from receive buffers into the rows of an array that is kept for the next batch.

A fresh array of a few MB costs more in page faults than in copying. The price of keeping it: nothing may hold on to a
batch after its run, so outputs that share its memory are copied (`detached`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from protocol.tensors import DTYPES, Array, TensorHeader
from protocol.wire import Buffer

KEPT_NBYTES = 64 * 1024 * 1024  # of one engine thread; a larger batch is made anew each time

# One request's part of a tensor: decoded, or raw as it was received.
Source = Array | Sequence[Buffer]
MakeRoom = Callable[[int], Array]


class BatchRows:
    """One engine thread's arrays. Not thread-safe."""

    def __init__(self, kept_nbytes: int = KEPT_NBYTES) -> None:
        self._limit = kept_nbytes
        self._arrays: OrderedDict[Hashable, Array] = OrderedDict()
        self._lent: list[Array] = []
        self.nbytes = 0

    def join(
        self,
        owner: Hashable,
        header: TensorHeader,
        sources: Sequence[Source],
        axis: int | None,
        make: MakeRoom = lambda nbytes: np.empty(nbytes, np.uint8),
    ) -> Array:
        """The batch of `sources` along `axis`; `header` is the first one's, and says what all have in common.

        `owner` is kept with the memory: a name, not what it names. `make` gives memory of that many bytes, uint8: an
        engine may have some that it reads faster.

        The array is read-only to nobody and valid until the next `join` of the same owner and tensor.
        """
        dtype = DTYPES[header.dtype]
        if len(sources) == 1 and isinstance(sources[0], np.ndarray):
            return sources[0]
        if axis is not None and axis > 0 and len(sources) > 1:
            return np.concatenate([_array(source, header, axis) for source in sources], axis)
        layout = header.shape[1:] if axis == 0 else header.shape
        row_nbytes = dtype.itemsize
        for dim in layout:
            row_nbytes *= dim
        sizes = [_nbytes(source) for source in sources]
        total = sum(sizes)
        rows = total // row_nbytes if row_nbytes else sum(_rows(source, header) for source in sources)
        if axis != 0:
            rows = 1
        flat = self._room((owner, header.name, header.dtype, layout), total, make)
        view = flat.data
        at = 0
        for source, size in zip(sources, sizes, strict=True):
            if isinstance(source, np.ndarray):
                target: Array = flat[at : at + size].view(dtype).reshape(source.shape)
                np.copyto(target, source)
                at += size
                continue
            for part in source:
                end = at + memoryview(part).nbytes
                view[at:end] = part
                at = end
        shape = (rows, *layout) if axis == 0 else header.shape
        joined: Array = flat[:total].view(dtype).reshape(shape)
        return joined

    def detached(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """The same outputs; those that lie in the memory of a batch are copied, since the next one overwrites it."""
        lent, self._lent = self._lent, []
        return {
            name: array.copy() if any(np.may_share_memory(array, batch) for batch in lent) else array
            for name, array in outputs.items()
        }

    def forget(self) -> None:
        """The batch that was joined last has failed: nothing was made of it."""
        self._lent.clear()

    def _room(self, key: Hashable, nbytes: int, make: MakeRoom) -> Array:
        """At least `nbytes` bytes, uint8, kept under `key`."""
        flat = self._arrays.get(key)
        if flat is None or flat.nbytes < nbytes:
            kept = flat
            flat = make(nbytes)
            if nbytes <= self._limit:
                self.nbytes += nbytes - (0 if kept is None else kept.nbytes)
                self._arrays[key] = flat
        if key in self._arrays:
            self._arrays.move_to_end(key)
        while self.nbytes > self._limit:
            self.nbytes -= self._arrays.popitem(last=False)[1].nbytes
        self._lent.append(flat)
        return flat


def _nbytes(source: Source) -> int:
    return source.nbytes if isinstance(source, np.ndarray) else sum(memoryview(part).nbytes for part in source)


def _rows(source: Source, header: TensorHeader) -> int:
    return source.shape[0] if isinstance(source, np.ndarray) else header.shape[0]


def _array(source: Source, header: TensorHeader, axis: int) -> Array:
    """A raw source as an array; its rows follow from its size."""
    if isinstance(source, np.ndarray):
        return source
    data = np.frombuffer(b"".join(source), DTYPES[header.dtype])
    return data.reshape((*header.shape[:axis], -1, *header.shape[axis + 1 :]))
