"""Payloads that come in chunks, until they are whole. Pure: announcements and chunks in, whole requests out.

    announce -> [ the next chunk, in order, of the announced size ]* -> whole
                  anything else, Cancel, a later attempt, silence     -> dropped, as if it had never been announced

Number and size of all chunks follow from the announcement, so nobody guesses and nothing overlaps. What is announced is
bounded before a byte of it comes: for each tenant by its credit, for all together by what the gateway may hold. One's
broken upload costs nobody else anything. Executed is only what is whole, and only after its checksum (see `worker`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloud_gateway.scheduling.admission import Limits, Verdict
from protocol import messages as m
from protocol import wire
from protocol.errors import InvariantViolation, WireError
from protocol.wire import Buffer

PATIENCE_S = 5.0  # beyond the budget: a link that stands still for so long has lost the connection as well
MOST_PATIENCE_S = 60.0  # whatever budget somebody claims
LOOK_S = 0.5  # how often abandoned ones are looked for
RETRY_S = 0.1


@dataclass(slots=True)
class Assembly:
    """One announced payload. `parts` hold what has come; those who know nothing of chunks take them as parts."""

    tenant: str
    route: bytes
    infer: m.Infer
    heard_at: float
    budget_us: int
    parts: list[Buffer] = field(default_factory=list)
    _tensor: int = 0  # of which the next chunk is a piece
    _at: int = 0  # where in it that begins

    @property
    def nbytes(self) -> int:
        return sum(header.nbytes for header in self.infer.tensors)

    @property
    def count(self) -> int:
        """How many chunks there will be."""
        return sum(wire.part_count(header, self.infer.chunk_nbytes) for header in self.infer.tensors)

    @property
    def give_up_at(self) -> float:
        return self.heard_at + min(self.budget_us / 1e6 + PATIENCE_S, MOST_PATIENCE_S)

    def take(self, number: int, part: Buffer) -> bool:
        """One more chunk; whether it was the last. Raises WireError for any but the next, or of another size."""
        tensors = self.infer.tensors
        if number != len(self.parts):
            raise WireError(f"chunk {number} came where {len(self.parts)} was due", "send them in order, each once")
        while tensors[self._tensor].nbytes == self._at:
            self._tensor, self._at = self._tensor + 1, 0
        due = min(self.infer.chunk_nbytes, tensors[self._tensor].nbytes - self._at)
        if len(part) != due:
            raise WireError(f"chunk {number} holds {len(part)} bytes where {due} were announced", "see docs/wire.md")
        self.parts.append(part)
        self._at += due
        return len(self.parts) == self.count


class Assembling:
    """All payloads that are on their way in. Times are monotonic seconds, `now` always given."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, m.RequestId], Assembly] = {}
        self._nbytes = 0  # announced, of all
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def announce(self, tenant: str, route: bytes, infer: m.Infer, limits: Limits, *, now: float) -> Verdict | None:
        """None: its chunks may come. Raises WireError for an announcement that cannot be one."""
        size = infer.chunk_nbytes
        if not wire.MIN_CHUNK_NBYTES <= size <= wire.PART_NBYTES:
            raise WireError(f"chunks of {size} bytes", f"{wire.MIN_CHUNK_NBYTES} to {wire.PART_NBYTES} are taken")
        wire.require_payload_bounded(infer.tensors)
        key, assembly = (tenant, infer.request), Assembly(tenant, route, infer, now, infer.budget_us)
        if assembly.count == 0:
            raise WireError("an empty payload is announced", "leave chunk_nbytes 0 where nothing is to follow")
        if key in self._open:
            raise InvariantViolation(f"request {infer.request} is announced while it is being assembled")
        mine = [other.nbytes for (owner, _), other in self._open.items() if owner == tenant]
        if assembly.nbytes > limits.pending_nbytes:
            fact = f"{assembly.nbytes} bytes exceed the gateway's bound of {limits.pending_nbytes}"
            return Verdict(m.RejectCode.TOO_LARGE, fact, 0.0)
        if len(mine) >= limits.credit_requests or (mine and sum(mine) + assembly.nbytes > limits.credit_nbytes):
            fact = f"{len(mine)} of your requests with {sum(mine)} bytes are still on their way: your credit is used up"
            return Verdict(m.RejectCode.BUSY, fact, RETRY_S)
        full = self._nbytes + assembly.nbytes > limits.pending_nbytes
        if len(self._open) >= limits.pending_requests or full:
            return Verdict(m.RejectCode.BUSY, f"{self._nbytes} bytes are on their way here", RETRY_S)
        self._open[key] = assembly
        self._nbytes += assembly.nbytes
        return None

    def find(self, tenant: str, route: bytes, chunk: m.Chunk) -> Assembly | None:
        """What this chunk is a piece of; None where it was not announced on this connection and for this attempt."""
        assembly = self._open.get((tenant, chunk.request))
        if assembly is None or assembly.route != route or assembly.infer.attempt != chunk.attempt:
            return None
        return assembly

    def take(self, assembly: Assembly, chunk: m.Chunk, part: Buffer, *, now: float) -> bool:
        """Whether it is whole now; then it is no longer here. Raises WireError, and then it is gone as well."""
        try:
            whole = assembly.take(chunk.number, part)
        except WireError:
            self.drop(assembly.tenant, chunk.request)
            raise
        assembly.heard_at, assembly.budget_us = now, chunk.budget_us
        if whole:
            self.drop(assembly.tenant, chunk.request)
        return whole

    def drop(self, tenant: str, request: m.RequestId) -> Assembly | None:
        """Nobody waits for it, or it begins anew."""
        assembly = self._open.pop((tenant, request), None)
        if assembly is not None:
            self._nbytes -= assembly.nbytes
        return assembly

    def moved(self, tenant: str, boots: Iterable[bytes], route: bytes) -> int:
        """A device has greeted on `route`: what it sent on other connections will not go on. How many there were."""
        lives = frozenset(boots)
        gone = [
            (owner, request)
            for (owner, request), assembly in self._open.items()
            if owner == (tenant or request.boot.hex()) and request.boot in lives and assembly.route != route
        ]
        for key in gone:
            self.drop(*key)
        return len(gone)

    def abandoned(self, *, now: float) -> list[Assembly]:
        """Those of which nothing came for too long; they are dropped."""
        if now < self._look_at:
            return []
        self._look_at = now + LOOK_S
        late = [assembly for assembly in self._open.values() if now >= assembly.give_up_at]
        for assembly in late:
            self.drop(assembly.tenant, assembly.infer.request)
        return late

    def drop_all(self) -> list[Assembly]:
        left = list(self._open.values())
        self._open.clear()
        self._nbytes = 0
        return left

    def validate(self) -> None:
        """Raise InvariantViolation if the account is wrong (called after every test)."""
        if self._nbytes != sum(assembly.nbytes for assembly in self._open.values()):
            raise InvariantViolation(f"{self._nbytes} bytes are said to be announced")
        for (tenant, request), assembly in self._open.items():
            if (assembly.tenant, assembly.infer.request) != (tenant, request) or len(assembly.parts) >= assembly.count:
                raise InvariantViolation(f"request {request} is kept as {assembly}")
