"""What the ladder wants sent goes out: in one message, or announced and then chunk by chunk, a few at a time.

Nothing is decided here: the ladder says what is sent and whether in chunks, `upload` which piece is next. When the
ladder has moved on (expired, answered elsewhere, placed anew) the rest stays here, and the gateway is told.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from edge_agent.errands import Work
from edge_agent.gateways import Gateways
from edge_agent.link import GatewayLink
from edge_agent.upload import Upload
from protocol import messages as m
from protocol.control.flights import Instruction, Phase, Send
from protocol.control.ladder import Ladder
from protocol.errors import InvariantViolation


class Sending:
    """Used by the socket thread. Times are monotonic seconds."""

    def __init__(
        self,
        ladder: Ladder,
        gateways: Gateways,
        work: Mapping[int, Work],
        segments: Mapping[str, bytes],
        boot: bytes,
        stats: Counter[str],
    ) -> None:
        """`work` is what the socket thread keeps of requests, `boot` the id of this life."""
        self._ladder = ladder
        self._gateways = gateways
        self._work = work
        self._segments = segments
        self._boot = boot
        self._stats = stats

    def send(self, send: Send) -> None:
        work, link = self._work[send.seq], self._gateways.links[send.gateway]
        prepared = work.prepared.get(send.placement)
        if prepared is None:
            raise InvariantViolation(f"request {send.seq} is sent before it is prepared")
        message = m.Infer(
            request=work.identity,
            segment=self._segments[send.placement],
            attempt=send.attempt,
            budget_us=int(send.budget_s * 1e6),
            priority=work.priority,
            tensors=prepared.headers,
            checksum=prepared.checksum,
            outer_ppm=prepared.outer_ppm,
            keep=bool(prepared.codes) and work.identity.boot == self._boot,
            chunk_nbytes=send.chunk_nbytes,
        )
        now = time.monotonic()
        # Gateways share the device's way out: what is on its way to one is in the way of another.
        ahead = sum(other.ahead_nbytes for other in self._gateways.links.values())
        if not link.send_infer(send.seq, message, prepared.buffers, ahead, now=now):
            self._stats["unsent"] += 1
            self._ladder.unsent(send.seq, now=now)
            return
        self._stats["sent"] += 1
        self._stats["sent_in_chunks"] += send.chunk_nbytes > 0
        if work.last_gateway not in ("", send.gateway):
            self._stats["moved"] += 1
        work.last_gateway = send.gateway

    def cancel(self, seq: int, gateway: str) -> None:
        if (link := self._gateways.links.get(gateway)) is not None:
            request = self._work[seq].identity
            link.uploads.drop(request)
            link.send(m.Cancel(request))

    def credited(self, link: GatewayLink, credit: m.Credit, *, now: float) -> list[Instruction]:
        upload = link.credited(credit, now=now)
        if upload is None:
            return []
        return self._ladder.there(upload.seq, upload.attempt, upload.left_nbytes, gateway=link.name, now=now)

    def go_on(self, *, now: float) -> None:
        """Send the pieces for which there is room."""
        for link in self._gateways.links.values():
            for upload in link.uploads.under_way():
                if not self._is_wanted(upload, link):
                    self._break_off(upload, link)
            if len(link.uploads):
                self._stats["chunks"] += link.send_chunks(
                    lambda seq, rest_nbytes: self._ladder.budget_s(seq, rest_nbytes, now=now), now=now
                )

    def _is_wanted(self, upload: Upload, link: GatewayLink) -> bool:
        flight = self._ladder.flights.get(upload.seq)
        return (
            flight is not None
            and flight.phase is Phase.SENT
            and flight.gateway == link.name
            and flight.attempt == upload.attempt
        )

    def _break_off(self, upload: Upload, link: GatewayLink) -> None:
        """What the gateway has whole it may finish: perhaps it is asked for it again."""
        link.uploads.drop(upload.request)
        if upload.rest_nbytes:
            self._stats["uploads_broken_off"] += 1
            link.send(m.Cancel(upload.request))
