"""Answers kept for equal requests: the key, and a shelf bounded in bytes with a time to live. Pure.

The key is a digest of everything that the answer depends on: which graph (by digest, so a new version never meets an
old one's answers), the placement, every tensor's name, element type, shape and coding, and the payload's bytes as they
came. Two requests with the same key are the same work; nothing about who asked is in it. Whoever may ask may thus learn
by timing that somebody asked the same before: leave the cache off where that matters.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import InvariantViolation
from protocol.tensors import TensorHeader
from protocol.wire import Buffer

ENTRY_NBYTES = 512  # what an entry takes besides its tensors
LARGEST_SHARE = 8  # an answer may take this part of the shelf at most: one must not sweep all others out


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer: encoded outputs, one buffer a tensor, the engine that made them and the seconds that it took."""

    headers: tuple[TensorHeader, ...]
    buffers: tuple[bytes, ...]
    engine: str
    compute_s: float

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.buffers)) + ENTRY_NBYTES


def key_of(work: Iterable[str], headers: Sequence[TensorHeader], parts: Iterable[Buffer]) -> bytes:
    """32 bytes that stand for this work on this payload. `work` names graph, bundle, precision and placement.

    0.2 ms for 200 KB; the interpreter's lock is not held meanwhile.
    """
    digest = hashlib.blake2b(digest_size=32, person=b"isthmus-cache-1")
    for text in (
        *work,
        *(field for h in headers for field in (h.name, h.dtype, h.codec, repr(h.shape), str(h.nbytes))),
    ):
        data = text.encode()
        digest.update(len(data).to_bytes(4, "little"))
        digest.update(data)
    digest.update(b"payload")
    for part in parts:
        digest.update(part)
    return digest.digest()


@dataclass(slots=True)
class _Entry:
    kept: Kept
    until: float


class Shelf:
    """The answers used last, up to `size_nbytes`. Times are monotonic seconds. Not thread-safe."""

    def __init__(self, size_nbytes: int, ttl_s: float) -> None:
        self.size_nbytes = size_nbytes
        self.ttl_s = ttl_s
        self.nbytes = 0
        self.counts: Counter[str] = Counter()  # hits, misses, expired, evicted, too_large
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: bytes, *, now: float) -> Kept | None:
        """What was kept under `key`, if its time is not over."""
        entry = self._entries.get(key)
        if entry is not None and now >= entry.until:
            self._drop(key)
            self.counts["expired"] += 1
            entry = None
        if entry is None:
            self.counts["misses"] += 1
            return None
        self._entries.move_to_end(key)
        self.counts["hits"] += 1
        return entry.kept

    def keep(self, key: bytes, kept: Kept, *, now: float, ttl_s: float | None = None) -> None:
        """Keep an answer for `ttl_s`, or as long as the shelf keeps all; what was used longest ago makes room."""
        if kept.nbytes > self.size_nbytes // LARGEST_SHARE:
            self.counts["too_large"] += 1
            return
        if key in self._entries:
            self._drop(key)
        self._entries[key] = _Entry(kept, now + min(self.ttl_s if ttl_s is None else ttl_s, self.ttl_s))
        self.nbytes += kept.nbytes
        self._make_room()

    def resize(self, size_nbytes: int, ttl_s: float) -> None:
        """New bounds; entries keep the time that they were given."""
        self.size_nbytes, self.ttl_s = size_nbytes, ttl_s
        self._make_room()

    def validate(self) -> None:
        held = sum(entry.kept.nbytes for entry in self._entries.values())
        if held != self.nbytes or held > self.size_nbytes:
            raise InvariantViolation(
                f"the shelf says {self.nbytes} bytes, holds {held} and may hold {self.size_nbytes}"
            )

    def _make_room(self) -> None:
        while self.nbytes > self.size_nbytes:
            self._drop(next(iter(self._entries)))
            self.counts["evicted"] += 1

    def _drop(self, key: bytes) -> None:
        self.nbytes -= self._entries.pop(key).kept.nbytes
