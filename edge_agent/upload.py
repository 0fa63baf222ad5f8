"""Payloads on their way to one gateway in chunks: which piece goes next, and how many may be unacknowledged. Pure.

    begin -> [ next -> sent -> credited ]* -> whole
      ^  `---- drop: expired, answered elsewhere, refused, the link lost; the rest is never sent

The most urgent payload goes first, of equals the one that began first; between two pieces anything else may be sent.
What is acknowledged makes room for the next piece and measures the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from protocol import messages as m
from protocol import wire
from protocol.control import chunking
from protocol.latency import LinkState
from protocol.wire import Buffer


@dataclass(slots=True)
class Upload:
    """One attempt of one request."""

    seq: int
    attempt: int
    priority: int
    request: m.RequestId
    pieces: Sequence[Buffer]
    chunk_nbytes: int
    sent: int = 0  # pieces handed to the socket
    there: int = 0  # pieces acknowledged
    last_at: float = 0.0  # when something of it was sent last
    nbytes: int = 0  # of the whole payload
    left_nbytes: int = 0  # not known to have arrived
    rest_nbytes: int = 0  # not sent yet

    @classmethod
    def of(cls, seq: int, infer: m.Infer, payload: Sequence[Buffer], *, now: float) -> Upload:
        pieces = wire.split(payload, infer.chunk_nbytes)
        nbytes = sum(header.nbytes for header in infer.tensors)
        return cls(
            seq, infer.attempt, infer.priority, infer.request, pieces, infer.chunk_nbytes,
            last_at=now, nbytes=nbytes, left_nbytes=nbytes, rest_nbytes=nbytes,
        )  # fmt: skip


class Piece(NamedTuple):
    """One chunk that was sent. `position` is how much this link had been handed by then, with everything else."""

    upload: Upload
    nbytes: int
    position: int
    at: float


class Acknowledged(NamedTuple):
    """What the link carried up to a piece since the one before it, and how long that piece took there and back."""

    upload: Upload
    nbytes: int
    round_trip_s: float


class Uploads:
    """Times are monotonic seconds, `now` always given."""

    def __init__(self) -> None:
        self._under_way: dict[m.RequestId, Upload] = {}
        self._out: deque[Piece] = deque()
        self._out_nbytes = 0
        self._position: int | None = None  # up to where the link has carried what it was handed

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def out_nbytes(self) -> int:
        """Sent and not acknowledged."""
        return self._out_nbytes

    @property
    def oldest(self) -> Piece | None:
        """The piece that has waited longest for its acknowledgement."""
        return self._out[0] if self._out else None

    def begin(self, upload: Upload) -> None:
        """An earlier attempt of the same request ends with this."""
        self.drop(upload.request)
        self._under_way[upload.request] = upload

    def next(self, link: LinkState | None) -> Upload | None:
        """The payload of which a piece is to be sent now, if there is room for one."""
        waiting = [u for u in self._under_way.values() if u.sent < len(u.pieces)]
        if not waiting:
            return None
        first = min(waiting, key=lambda upload: upload.priority)  # of equals the first: a dict keeps its order
        window = chunking.window_nbytes(first.chunk_nbytes, link)
        return first if not self._out or self._out_nbytes + first.chunk_nbytes <= window else None

    def sent(self, upload: Upload, *, position: int, now: float) -> None:
        """Its next piece was handed to the socket."""
        nbytes = memoryview(upload.pieces[upload.sent]).nbytes
        upload.sent += 1
        upload.rest_nbytes -= nbytes
        upload.last_at = now
        self._out.append(Piece(upload, nbytes, position, now))
        self._out_nbytes += nbytes

    def credited(self, request: m.RequestId, attempt: int, chunks: int, *, now: float) -> Acknowledged | None:
        """So many pieces need not be sent (any more). None where that says nothing (new)."""
        upload = self._under_way.get(request)
        if upload is None or upload.attempt != attempt or chunks <= upload.there:
            return None
        newest: Piece | None = None
        while upload.there < chunks and upload.there < upload.sent:
            upload.there += 1
            newest = self._landed(upload)
        if chunks >= len(upload.pieces):  # all, or as many as ever will be: the gateway has it from an earlier attempt
            upload.sent = upload.there = len(upload.pieces)
            upload.left_nbytes = upload.rest_nbytes = 0
            del self._under_way[request]
        if newest is None:
            return Acknowledged(upload, 0, 0.0)
        before, self._position = self._position, newest.position if self._out else None
        nbytes = newest.nbytes if before is None else newest.position - before
        return Acknowledged(upload, nbytes, now - newest.at)

    def drop(self, request: m.RequestId) -> Upload | None:
        """Nothing more of it is sent; the payload if it was not all there."""
        upload = self._under_way.pop(request, None)
        if upload is not None:
            self._out = deque(piece for piece in self._out if piece.upload is not upload)
            self._out_nbytes = sum(piece.nbytes for piece in self._out)
        return upload

    def refused(self, request: m.RequestId, attempt: int) -> None:
        """The gateway has dropped what it had of this attempt."""
        if (upload := self._under_way.get(request)) is not None and upload.attempt == attempt:
            self.drop(request)

    def under_way(self) -> list[Upload]:
        return list(self._under_way.values())

    def clear(self) -> None:
        self._under_way.clear()
        self._out.clear()
        self._out_nbytes = 0
        self._position = None

    def _landed(self, upload: Upload) -> Piece:
        """The oldest unacknowledged piece of it: those of one payload arrive in order."""
        at = next(index for index, piece in enumerate(self._out) if piece.upload is upload)
        piece = self._out[at]
        del self._out[at]
        self._out_nbytes -= piece.nbytes
        upload.left_nbytes -= piece.nbytes
        return piece
