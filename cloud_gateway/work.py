"""The nouns that pass between doors, scheduler and engine threads: a request as it waits, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cloud_gateway.models.lanes import Segment
from protocol.messages import RejectCode
from protocol.tensors import TensorHeader
from protocol.wire import Buffer


class Door(Protocol):
    """Where a request came in and its outcome goes out. Called on engine threads: it may only hand over."""

    def post_all(self, items: Iterable[Outcome], /) -> None: ...


@dataclass(slots=True, frozen=True)
class Reference:
    """Which stream a request belongs to, its number there, and whether later ones may refer to it (protocol.delta)."""

    stream: tuple[bytes, bytes]
    sequence: int
    keep: bool


@dataclass(slots=True, eq=False)
class Item:
    """One request, whichever door it came through.

    `parts` hold the payload: each tensor of `headers` begins a part of its own. `checksum` is None where the channel
    checks itself. Times are monotonic seconds; `tenant` is who asked, `ticket` what the door wants back.
    """

    segment: Segment
    headers: tuple[TensorHeader, ...]
    parts: Sequence[Buffer]
    counts: Sequence[int]  # how many parts each tensor has
    checksum: int | None
    rows: int
    layout: tuple[tuple[int, ...], ...]
    nbytes: int
    arrived: float
    deadline: float
    priority: int
    tenant: str
    door: Door
    ticket: object
    reference: Reference | None = None
    cache_key: bytes | None = None  # the answer is kept under it
    is_given_up: bool = False  # refused while it ran: what comes of it now is nobody's. The desk's lock guards it


class Computed(NamedTuple):
    """A finished request: encoded outputs, and where the time went (seconds)."""

    item: Item
    headers: tuple[TensorHeader, ...]
    buffers: tuple[Buffer, ...]
    checksum: int
    queue_s: float
    decode_s: float
    compute_s: float
    batch_size: int
    engine: str


class NotComputed(NamedTuple):
    item: Item
    code: RejectCode
    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """A bug at the top of some thread: answer what is pending, then go down."""

    error: BaseException


Outcome = Computed | NotComputed | Crashed


def nbytes_of(headers: tuple[TensorHeader, ...]) -> int:
    """Bytes that a request will hold while it waits: as sent, or decoded if that is more."""
    total = 0
    for header in headers:
        total += max(header.nbytes, header.decoded_nbytes())
    return total
