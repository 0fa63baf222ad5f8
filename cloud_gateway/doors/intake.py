"""Requests of the ZeroMQ wire on their way to the desk: known already, fit to be done, whole, admitted; or refused.

    Infer --------------------> known? -> fit? -> desk.submit
    Infer (announcing) -> known? -> fit? -> assembling <- Chunk ... last Chunk -> known? -> fit? -> desk.submit

What the header alone can be refused for is refused before the payload is sent. A request is offered to the ledger when
it is whole or refused: what never became whole and was not refused was never here. Used by the socket's thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from cloud_gateway.desk import Desk
from cloud_gateway.doors.answers import infer_of, reference_of
from cloud_gateway.doors.assembling import Assembling, Assembly
from cloud_gateway.doors.peers import Peer
from cloud_gateway.doors.replies import Replies
from cloud_gateway.models.catalogue import Catalogue
from cloud_gateway.models.lanes import Segment
from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.work import Door, Item, nbytes_of
from protocol import messages as m
from protocol import wire
from protocol.errors import WireError
from protocol.wire import Buffer


class Fit(NamedTuple):
    """What a request is for this gateway."""

    segment: Segment
    rows: int
    layout: tuple[tuple[int, ...], ...]
    nbytes: int


class Intake:
    """Times are monotonic seconds. `turn_s` is what the loop takes for one turn: it is taken off every budget."""

    def __init__(
        self,
        door: Door,
        catalogue: Catalogue,
        desk: Desk,
        submit: Callable[[Item], Verdict | None],
        ledger: Ledger,
        replies: Replies,
        stats: Counter[str],
    ) -> None:
        self.turn_s = 0.0
        self._door = door
        self._catalogue = catalogue
        self._desk = desk
        self._submit = submit
        self._ledger = ledger
        self._replies = replies
        self._stats = stats
        self._assembling = Assembling()

    def __len__(self) -> int:
        """How many requests are on their way in."""
        return len(self._assembling)

    def infer(self, route: bytes, peer: Peer, infer: m.Infer, parts: list[Buffer], *, now: float) -> None:
        tenant = peer.tenant_of(infer.request.boot)
        if self._is_known(route, tenant, infer):
            peer.settled.append((infer.request, infer.attempt))
            return
        if self._assembling.drop(tenant, infer.request) is not None:
            self._stats["uploads_anew"] += 1
        if infer.chunk_nbytes:
            if not self._announce(route, tenant, infer, parts, now=now):
                peer.settled.append((infer.request, infer.attempt))
        else:
            self._admit(route, tenant, infer, parts, now=now)

    def chunk(self, route: bytes, peer: Peer, chunk: m.Chunk, parts: list[Buffer], *, now: float) -> None:
        """Raises WireError for a message that does not hold exactly one part."""
        if len(parts) != 1:
            raise WireError(f"a chunk of {len(parts)} parts", "send one part with each")
        tenant = peer.tenant_of(chunk.request.boot)
        assembly = self._assembling.find(tenant, route, chunk)
        if assembly is None:
            self._stats["chunks_not_wanted"] += 1
            if (chunk.request, chunk.attempt) in peer.settled:
                return  # they were on their way already when that was said
            peer.settled.append((chunk.request, chunk.attempt))
            reason = f"attempt {chunk.attempt} of request {chunk.request} is not announced here; begin it anew"
            self._replies.send(route, m.Reject(chunk.request, chunk.attempt, m.RejectCode.BAD_REQUEST, reason, 0, 0))
            return
        self._stats["chunks"] += 1
        try:
            whole = self._assembling.take(assembly, chunk, parts[0], now=now)
        except WireError as error:
            peer.settled.append((chunk.request, chunk.attempt))
            self._give_up(assembly, m.RejectCode.BAD_REQUEST, str(error), now=now)
            return
        self._replies.send(route, m.Credit(chunk.request, chunk.attempt, len(assembly.parts)))
        if whole:
            infer = assembly.infer.within(chunk.budget_us)
            if not self._is_known(route, tenant, infer):
                self._stats["uploads"] += 1
                self._admit(route, tenant, infer, assembly.parts, now=now)

    def cancel(self, peer: Peer, request: m.RequestId, *, now: float) -> None:
        """Remove work that nobody waits for. What already runs is finished and its answer kept."""
        tenant = peer.tenant_of(request.boot)
        if (assembly := self._assembling.drop(tenant, request)) is not None:
            self._stats["cancelled"] += 1
            peer.settled.append((request, assembly.infer.attempt))
            self._give_up(assembly, m.RejectCode.CANCELLED, "cancelled by the agent", now=now)

        def is_meant(item: Item) -> bool:
            return item.door is self._door and item.tenant == tenant and infer_of(item).request == request

        for item in self._desk.withdraw(is_meant):
            self._stats["cancelled"] += 1
            self._replies.give_up(item, m.RejectCode.CANCELLED, "cancelled by the agent")

    def greeted(self, route: bytes, peer: Peer) -> None:
        """What it had begun to send on another connection comes anew on this one."""
        self._stats["uploads_broken"] += self._assembling.moved(peer.tenant, peer.boots, route)

    def look(self, *, now: float) -> None:
        """Give up what nothing comes of any more."""
        for assembly in self._assembling.abandoned(now=now):
            self._stats["uploads_abandoned"] += 1
            reason = f"{now - assembly.heard_at:.1f} s without a chunk: no time is left for the work"
            self._give_up(assembly, m.RejectCode.DEADLINE, reason, now=now)

    def refuse_all(self, code: m.RejectCode, reason: str, *, now: float) -> None:
        """Nothing that is on its way in will be done any more."""
        for assembly in self._assembling.drop_all():
            self._give_up(assembly, code, reason, now=now)

    # ---- the way in -------------------------------------------------------------------------------------------------

    def _is_known(self, route: bytes, tenant: str, infer: m.Infer) -> bool:
        """Whether it is in progress or done already: then this attempt is attached or answered."""
        key = (tenant, infer.request, infer.segment)  # nobody is given what another asked for
        if self._replies.dedup.attach(key, route, infer.attempt):
            self._stats["duplicates_attached"] += 1
            if infer.chunk_nbytes >= wire.MIN_CHUNK_NBYTES:
                count = sum(wire.part_count(header, infer.chunk_nbytes) for header in infer.tensors)
                self._replies.send(route, m.Credit(infer.request, infer.attempt, count))
            return True
        if (answer := self._replies.dedup.finished(key)) is not None:
            self._stats["duplicates_answered"] += 1
            self._replies.send_answer(route, infer.attempt, answer)
            return True
        return False

    def _announce(self, route: bytes, tenant: str, infer: m.Infer, parts: list[Buffer], *, now: float) -> bool:
        """Whether its chunks may come; otherwise it was refused."""
        fit = self._fit(route, infer, now=now)
        if fit is None:
            return False
        try:
            if parts:
                raise WireError(f"{len(parts)} parts come with an Infer that announces chunks", "send one or the other")
            if self._desk.is_draining:
                verdict: Verdict | None = Verdict(m.RejectCode.DRAINING, "the gateway is shutting down", 1.0)
            else:
                verdict = self._assembling.announce(tenant, route, infer, self._desk.limits, now=now)
        except WireError as error:
            self._refuse(route, infer, m.RejectCode.BAD_REQUEST, str(error), scope=fit.segment.scope, now=now)
            return False
        if verdict is None:
            return True
        self._refuse(
            route, infer, verdict.code, verdict.reason, verdict.retry_after_s, scope=fit.segment.scope, now=now
        )
        return False

    def _admit(self, route: bytes, tenant: str, infer: m.Infer, parts: list[Buffer], *, now: float) -> None:
        """It is whole."""
        fit = self._fit(route, infer, now=now)
        if fit is None:
            return
        segment = fit.segment
        try:
            sizes = [len(part) for part in parts]
            counts = wire.check_parts(infer.tensors, sizes, infer.chunk_nbytes or wire.PART_NBYTES)
        except WireError as error:
            self._refuse(route, infer, m.RejectCode.BAD_REQUEST, str(error), scope=segment.scope, now=now)
            return
        self._ledger.offered(segment.scope)
        if segment.has_drifted(infer.outer_ppm):
            self._stats["drifted"] += 1
        item = Item(
            segment, infer.tensors, parts, counts, infer.checksum, fit.rows, fit.layout, fit.nbytes,
            now, now + infer.budget_us / 1e6 - self.turn_s,
            infer.priority, tenant, self._door, infer, reference_of(infer),
        )  # fmt: skip
        verdict = self._submit(item)
        if verdict is None:
            self._replies.dedup.start((tenant, infer.request, infer.segment), route, infer.attempt)
        else:
            self._replies.reject(
                route, infer, verdict.code, verdict.reason, verdict.retry_after_s, now=now, scope=segment.scope,
                credit=verdict.credit,
            )  # fmt: skip

    def _fit(self, route: bytes, infer: m.Infer, *, now: float) -> Fit | None:
        """What can be said from the header alone; None where it was refused."""
        segment = self._catalogue.segments.get(infer.segment)
        if segment is None:
            reason = "this gateway does not hold that head/tail pair"
            self._refuse(route, infer, m.RejectCode.UNKNOWN_SEGMENT, reason, now=now)
            return None
        try:
            rows, layout = segment.fit(infer.tensors)
            return Fit(segment, rows, layout, nbytes_of(infer.tensors))
        except (WireError, ValueError) as error:
            self._refuse(route, infer, m.RejectCode.BAD_REQUEST, str(error), scope=segment.scope, now=now)
            return None

    def _give_up(self, assembly: Assembly, code: m.RejectCode, reason: str, *, now: float) -> None:
        segment = self._catalogue.segments.get(assembly.infer.segment)
        self._refuse(assembly.route, assembly.infer, code, reason, scope=segment.scope if segment else None, now=now)

    def _refuse(
        self,
        route: bytes,
        infer: m.Infer,
        code: m.RejectCode,
        reason: str,
        retry_after_s: float = 0.0,
        *,
        scope: Scope | None = None,
        now: float,
    ) -> None:
        self._ledger.offered(scope)
        self._replies.reject(route, infer, code, reason[:900], retry_after_s, now=now, scope=scope)
