"""What the ZeroMQ door says: results, refusals with the slack they leave, and the same answer again to who asks again.

Used by the thread that owns the socket. Every request that was offered to the ledger ends here, in one result or one
refusal; a peer that is gone or does not read costs nobody else anything.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

import zmq

from cloud_gateway.desk import Desk
from cloud_gateway.doors.answers import Answer, answer_of, infer_of, traced_of
from cloud_gateway.doors.dedup import DedupTable
from cloud_gateway.models.lanes import Segment
from cloud_gateway.seeing.figures import Scope
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.tracing import Tracing
from cloud_gateway.work import Computed, Item
from protocol import messages as m
from protocol import wire
from protocol.wire import Buffer


class Replies:
    """`dedup` knows what is in progress and what was answered; `stats` are the door's own counters."""

    def __init__(
        self, socket: zmq.Socket[bytes], desk: Desk, ledger: Ledger, stats: Counter[str], tracing: Tracing | None
    ) -> None:
        self.dedup: DedupTable[tuple[str, m.RequestId, bytes], Answer] = DedupTable()
        self._socket = socket
        self._desk = desk
        self._ledger = ledger
        self._stats = stats
        self._tracing = tracing

    def finish(self, done: Computed) -> None:
        """An engine has done it: keep the answer for duplicates, send it to whoever asked last."""
        item, now = done.item, time.monotonic()
        infer, segment = infer_of(item), item.segment
        answer = answer_of(done, infer, now=now)
        route, attempt = self.dedup.finish((item.tenant, infer.request, infer.segment), answer, answer.nbytes)
        self._stats["results"] += 1
        if done.batch_size > item.rows:
            self._stats["batched_rows"] += item.rows
        self._ledger.answered(
            segment.scope, queue_s=done.queue_s, residence_s=now - item.arrived, budget_s=infer.budget_us / 1e6,
            late=now - item.arrived > infer.budget_us / 1e6, now=now,
        )  # fmt: skip
        self.send_answer(route, attempt, answer)
        if infer.sampled and self._tracing is not None and (traced := traced_of(done, infer, now=now)) is not None:
            self._tracing.record(traced)

    def send_answer(self, route: bytes, attempt: int, answer: Answer) -> None:
        """An answer that may have been sent before, to another attempt."""
        result = answer.result
        if result.attempt != attempt:
            result = result.for_attempt(attempt)
        self.send(route, result, answer.buffers)

    def give_up(self, item: Item, code: m.RejectCode, reason: str) -> None:
        """It was admitted and will not be done."""
        infer = infer_of(item)
        destination = self.dedup.abandon((item.tenant, infer.request, infer.segment))
        if destination is not None:
            route, attempt = destination
            self.reject(
                route, infer, code, reason, attempt=attempt, arrived=item.arrived, scope=item.segment.scope,
                credit=self._desk.credit(item.tenant),
            )  # fmt: skip

    def reject(
        self,
        route: bytes,
        infer: m.Infer,
        code: m.RejectCode,
        reason: str,
        retry_after_s: float = 0.0,
        *,
        attempt: int | None = None,
        arrived: float | None = None,
        now: float | None = None,
        scope: Scope | None = None,
        credit: int | None = None,
    ) -> None:
        """Not done: why, and how much of its budget is left to whoever asked. Counted in any case."""
        at = time.monotonic() if now is None else now
        spent_us = int((at - arrived) * 1e6) if arrived is not None else 0
        slack_us = max(infer.budget_us - spent_us, 0)
        self._stats[f"rejected_{code}"] += 1
        self._ledger.refused(scope, code, slack_s=slack_us / 1e6, budget_s=infer.budget_us / 1e6)
        self.send(
            route,
            m.Reject(
                request=infer.request,
                attempt=infer.attempt if attempt is None else attempt,
                code=code,
                reason=reason,
                slack_us=slack_us,
                retry_after_us=int(retry_after_s * 1e6),
                residence_us=spent_us,
                credit=credit,
            ),
        )

    def refuse_all(self, waiting: Iterable[Item], segments: Mapping[bytes, Segment], reason: str) -> None:
        """Everything that `waiting` holds, and everything that an engine has and will not answer any more.

        It is counted under the scopes of `segments`, by digest.
        """
        for item in waiting:
            self.give_up(item, m.RejectCode.INTERNAL, reason)
        for (_, request, digest), route, attempt in self.dedup.abandon_all():
            segment = segments.get(digest)
            self._stats[f"rejected_{m.RejectCode.INTERNAL}"] += 1
            scope = segment.scope if segment else None
            self._ledger.refused(scope, m.RejectCode.INTERNAL, slack_s=0.0, budget_s=0.0)
            self.send(route, m.Reject(request, attempt, m.RejectCode.INTERNAL, reason, 0, 0))

    def send(self, route: bytes, message: m.Message, payload: tuple[Buffer, ...] = ()) -> None:
        try:
            self._socket.send_multipart([route, *wire.pack(message, payload)], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError:
            # The peer is gone or does not read. Its answer is kept: it may ask again under the same id.
            self._stats["peers_gone"] += 1
