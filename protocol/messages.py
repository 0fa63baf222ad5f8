"""Every message that crosses the isthmus, as frozen typed nouns. `wire` turns them into bytes and back.

| type | direction | says |
|---|---|---|
| VersionMismatch | gateway -> agent | "I speak these major versions"; its format never changes |
| Hello     | agent -> gateway | who I am (boot id), what I hold |
| Welcome   | gateway -> agent | who I am (epoch), your credit, the segments and models I hold |
| NeedHello | gateway -> agent | I do not know you (I was restarted): greet me first, then send again |
| Infer     | agent -> gateway | do this work within this budget |
| Result    | gateway -> agent | done, and where the time went |
| Reject    | gateway -> agent | not done, why, and how much of your budget is left to act |
| Cancel    | agent -> gateway | I no longer want that answer |
| Ping/Pong | both             | application liveness and round trip; a padded Ping is a bandwidth probe |
| Drain     | gateway -> agent | I am going away: send nothing new, answers to what I hold still come |
| AskOffers | agent -> gateway | which bundles of this model do you offer? |
| Offers    | gateway -> agent | these, or none and why |
| FetchPart | agent -> gateway | this stretch of that file, by its digest; may be sent before Hello |
| FilePart  | gateway -> agent | here it is |
| NoPart    | gateway -> agent | not that, why, and when to ask again |
| Enroll    | agent -> gateway | I was invited: let my key in from now on |
| Enrolled  | gateway -> agent | you are known under this name and these are my keys; or why not |
| Chunk     | agent -> gateway | one piece of the payload of an Infer that announced it |
| Credit    | gateway -> agent | so many pieces of it are here: send the next |

Times on the wire are integer microseconds and always *remaining* or *elapsed* time, never a date: clocks differ.
Structs are MessagePack arrays. A later minor version may append fields, which older ones skip.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from protocol.tensors import MAX_TENSORS, TensorHeader

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Microseconds = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Headers = Annotated[tuple[TensorHeader, ...], msgspec.Meta(max_length=MAX_TENSORS)]
BootId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
MOST_BOOTS = 8
MAX_TEXT_LENGTH = 200
ShortText = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_LENGTH)]
Sentence = Annotated[str, msgspec.Meta(max_length=1000)]


class PlacementKind(enum.StrEnum):
    """Where a request's work is done. Full-cloud and edge-only are the cuts at the model's two ends."""

    FULL_CLOUD = "full-cloud"
    CUT = "cut"
    EDGE_ONLY = "edge-only"


class RejectCode(enum.StrEnum):
    BUSY = "BUSY"  # the queue is full: another gateway, or edge-only; never more load
    DEADLINE = "DEADLINE"  # it cannot finish within the budget
    UNKNOWN_SEGMENT = "UNKNOWN_SEGMENT"  # no such head/tail pair here: full-cloud if the model is held
    UNKNOWN_REFERENCE = "UNKNOWN_REFERENCE"  # a difference to a frame that is not held: send this one alone
    BAD_REQUEST = "BAD_REQUEST"  # tensors or checksum do not fit: sending it again will not help
    TOO_LARGE = "TOO_LARGE"
    FORBIDDEN = "FORBIDDEN"  # your key is not, or no longer, welcome here: another gateway, or edge-only
    DRAINING = "DRAINING"  # shutting down: another gateway, or edge-only
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"  # the engine failed


class NoPartCode(enum.StrEnum):
    UNKNOWN = "UNKNOWN"  # no bundle that is offered holds such a file, or no longer
    BUSY = "BUSY"  # too much is asked for at once: the same again after `retry_after_us`
    RANGE = "RANGE"  # the file does not reach that far
    UNREADABLE = "UNREADABLE"  # the gateway cannot read its own file


class RequestId(msgspec.Struct, frozen=True, array_like=True):
    """Unique over reboots: the agent's random boot id and a sequence number. A retry keeps its id."""

    boot: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    sequence: Count

    def __str__(self) -> str:
        return f"{self.boot.hex()}-{self.sequence}"


class VersionMismatch(msgspec.Struct, frozen=True, array_like=True):
    oldest: int
    newest: int


class Hello(msgspec.Struct, frozen=True, array_like=True):
    boot: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    agent: ShortText
    software: ShortText
    model_digest: Digest
    # Boot ids of earlier lives whose requests may follow: those that were stored, and outlived their process.
    also: Annotated[tuple[BootId, ...], msgspec.Meta(max_length=MOST_BOOTS)] = ()


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    epoch: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]  # changes whenever the gateway process does
    software: ShortText
    credit_requests: Count  # how many requests this agent may have in flight
    credit_nbytes: Count  # and how many payload bytes
    segments: tuple[Digest, ...]
    models: tuple[Digest, ...]
    chunk_nbytes: Count = 0  # the largest Chunk that is taken; 0: none are
    shared_key: bool = False  # another device was heard lately that speaks with the same key


class NeedHello(msgspec.Struct, frozen=True, array_like=True):
    epoch: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    request: RequestId | None = None  # the request that was not taken


class Infer(msgspec.Struct, frozen=True, array_like=True):
    request: RequestId
    segment: Digest
    attempt: Count
    budget_us: Microseconds  # counted by the gateway from the last byte; upload and return are already subtracted
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)]  # 0 first
    tensors: Headers
    checksum: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]  # crc32 over all payload bytes in order
    trace: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    sampled: bool = False
    # Share of the crossing 8-bit codes that lie at the ends of their range, in parts per million; None where none are.
    outer_ppm: Annotated[int, msgspec.Meta(ge=0, le=10**6)] | None = None
    keep: bool = False  # what crosses may be referred to by later requests: see protocol.delta
    # The payload does not come with this message but as Chunks of this size; 0: it does, as parts.
    chunk_nbytes: Annotated[int, msgspec.Meta(ge=0, le=131_072)] = 0

    def within(self, budget_us: int) -> Infer:
        """The same work within another budget."""
        return msgspec.structs.replace(self, budget_us=budget_us)


class Timings(msgspec.Struct, frozen=True, array_like=True):
    """Where the gateway's time went, in microseconds; `residence_us` is last byte in to first byte out."""

    residence_us: Microseconds
    queue_us: Microseconds
    decode_us: Microseconds
    compute_us: Microseconds
    batch_size: Count


class Result(msgspec.Struct, frozen=True, array_like=True):
    request: RequestId
    attempt: Count
    tensors: Headers
    checksum: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    timings: Timings
    engine: ShortText  # what really ran, e.g. "onnxruntime-1.31.1/CPUExecutionProvider"
    precision: ShortText
    bundle: ShortText  # provenance: digest of the bundle that the segment came from

    def for_attempt(self, attempt: int) -> Result:
        """The same result as the answer to another attempt."""
        return msgspec.structs.replace(self, attempt=attempt)


class Reject(msgspec.Struct, frozen=True, array_like=True):
    """Expected trouble. `slack_us` of the budget is left to act; do not come back before `retry_after_us`."""

    request: RequestId
    attempt: Count
    code: RejectCode
    reason: Sentence
    slack_us: Microseconds
    retry_after_us: Microseconds
    residence_us: Microseconds = 0
    credit: Count | None = None  # requests that may be in flight beyond those that are; None: not known


class Cancel(msgspec.Struct, frozen=True, array_like=True):
    request: RequestId


class Ping(msgspec.Struct, frozen=True, array_like=True):
    number: Count
    padding: Annotated[bytes, msgspec.Meta(max_length=65_536)] = b""


class Pong(msgspec.Struct, frozen=True, array_like=True):
    number: Count
    queue_us: Microseconds = 0  # what a request arriving now would wait


class Drain(msgspec.Struct, frozen=True, array_like=True):
    reason: ShortText


class AskOffers(msgspec.Struct, frozen=True, array_like=True):
    model: ShortText = ""  # name of the model; empty asks for all


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """One bundle that may be fetched. What counts is what its manifest and its signature say: this is to find them."""

    model: ShortText
    model_digest: Digest
    bundle: Digest  # sha256 of manifest.json, which lists the other files by digest
    manifest_nbytes: Count
    nbytes: Count  # of all files that the manifest lists
    files: Count
    signature: Digest | None = None  # sha256 of signature.json; None for a bundle that is not signed
    signature_nbytes: Count = 0
    counter: Count = 0  # of the signature: devices that have seen a higher one refuse it


class Offers(msgspec.Struct, frozen=True, array_like=True):
    offers: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=64)]
    reason: Sentence = ""  # why there are none
    revocations: Digest | None = None  # sha256 of the signed list of bundles that nobody may run
    revocations_nbytes: Count = 0
    # by what the gateway is known: its key and, while that is replaced, the next
    server: Annotated[tuple[ServerKey, ...], msgspec.Meta(max_length=2)] = ()


class FetchPart(msgspec.Struct, frozen=True, array_like=True):
    file: Digest
    offset: Count
    nbytes: Annotated[int, msgspec.Meta(ge=1, le=131_072)]  # a part of payload


class FilePart(msgspec.Struct, frozen=True, array_like=True):
    """One payload part follows, of `nbytes`: as many as were asked for, fewer only at the end of the file."""

    file: Digest
    offset: Count
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=131_072)]
    total_nbytes: Count  # of the whole file
    checksum: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]  # crc32 of this part


class NoPart(msgspec.Struct, frozen=True, array_like=True):
    file: Digest
    offset: Count
    code: NoPartCode
    reason: Sentence
    retry_after_us: Microseconds = 0


class Enroll(msgspec.Struct, frozen=True, array_like=True):
    """The key that becomes known is the one that the connection has proven: it is not in the message."""

    invitation: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    secret: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    software: ShortText


class ServerKey(msgspec.Struct, frozen=True, array_like=True):
    """A public key of the gateway; `port` is where it answers, None for where the device has connected."""

    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


class Enrolled(msgspec.Struct, frozen=True, array_like=True):
    """`server` are the current key and, while it is being replaced, the next. With a `refusal` nothing has changed."""

    name: ShortText
    server: Annotated[tuple[ServerKey, ...], msgspec.Meta(max_length=2)]
    refusal: Sentence = ""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """One payload part follows. Where each begins and ends is known from the Infer; they come in order, from 0."""

    request: RequestId
    attempt: Count
    number: Count
    budget_us: Microseconds  # the last one's counts, from its arrival; those before it say when to give the rest up


class Credit(msgspec.Struct, frozen=True, array_like=True):
    """`chunks` of this attempt's are not to be sent (any more). All of them: even if none came, as the work is done."""

    request: RequestId
    attempt: Count
    chunks: Count


Message = (
    VersionMismatch
    | Hello
    | Welcome
    | NeedHello
    | Infer
    | Result
    | Reject
    | Cancel
    | Ping
    | Pong
    | Drain
    | AskOffers
    | Offers
    | FetchPart
    | FilePart
    | NoPart
    | Enroll
    | Enrolled
    | Chunk
    | Credit
)
