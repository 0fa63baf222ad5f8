"""One gateway as the socket thread has it: connection, what its link is like, and what is out there unanswered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from edge_agent.connection import Connection, Shared
from edge_agent.errands import Outstanding
from edge_agent.upload import Upload, Uploads
from edge_agent.ways import Ways
from protocol import messages as m
from protocol.control.causes import Why
from protocol.control.link import LinkEstimator
from protocol.control.pulse import Pulse, patience_s
from protocol.control.session import Event, State
from protocol.errors import WireError
from protocol.latency import LinkState
from protocol.sockets import Endpoint
from protocol.wire import Buffer

STANDBY_PROBE_IVL_S = 5.0  # a gateway that is not in use is probed so seldom: its bytes are taken from the one that is
LEAVING_S = 30.0  # a gateway that is no longer named may answer what it holds for so long
# Messages of one gateway before the others, those who ask and the timers have their turn: some 2 ms. A gateway that
# never stops talking would else keep the device from answering by itself.
MOST_AT_ONCE = 64
GREET_IVL_S = 0.25  # between two greetings for which a gateway asks


class GatewayLink:
    """Times are monotonic seconds, `now` always given."""

    def __init__(self, name: str, ways: Ways, shared: Shared) -> None:
        self.name = name
        self.connection = Connection(ways, shared)
        self.estimator = LinkEstimator()
        self.pulse = Pulse()
        self.out: dict[tuple[int, int], Outstanding] = {}  # (seq, attempt); pings under (-number, 0)
        self.uploads = Uploads()
        self.epoch = b""
        self.measured = False  # on this connection
        self.leaves_at: float | None = None  # it is no longer named
        self._greeted_at = -math.inf
        self._ways = ways
        self._pings = 0
        self._probe_at = 0.0
        self._handed_nbytes = 0  # to the socket, in all

    @property
    def state(self) -> State:
        return self.connection.state

    @property
    def endpoint(self) -> Endpoint | None:
        """The address in use, or tried next."""
        return self._ways.current.endpoint if self._ways.count else None

    @property
    def encrypted(self) -> bool:
        return self._ways.count > 0 and self._ways.current.curve is not None

    @property
    def ahead_nbytes(self) -> int:
        """Sent and not yet answered."""
        return sum(out.nbytes for out in self.out.values()) + self.uploads.out_nbytes

    @property
    def has_left(self) -> bool:
        """Whether a gateway that is no longer named has answered everything."""
        return self.leaves_at is not None and not any(seq > 0 for seq, _ in self.out)

    def move(self, endpoints: Sequence[Endpoint], *, now: float) -> None:
        """Its addresses, as they are known now. A connection that stands is left alone."""
        self._ways.move(endpoints)
        if not self.connection.is_open:
            self.connection.open(now=now)

    def begin_leaving(self, *, now: float) -> None:
        self.leaves_at = now + LEAVING_S

    def received(self) -> Iterator[list[memoryview]]:
        """What waits, message by message, but no more than is fair."""
        for _ in range(MOST_AT_ONCE):
            if (frames := self.connection.receive()) is None:
                return
            yield frames

    def send(self, message: m.Message, payload: Sequence[Buffer] = ()) -> int:
        """Bytes handed to the socket; 0 when there is no connection that would take them."""
        nbytes = self.connection.send(message, payload)
        self._handed_nbytes += nbytes
        return nbytes

    def send_infer(self, seq: int, infer: m.Infer, payload: Sequence[Buffer], ahead_nbytes: int, *, now: float) -> bool:
        """Send it whole, or announce it and let `send_chunks` follow. False: no connection would take it now."""
        if not infer.chunk_nbytes:
            nbytes = self.send(infer, payload)
            if nbytes:
                self.track((seq, infer.attempt), nbytes, ahead_nbytes, now=now)
            return nbytes > 0
        if not self.send(infer):
            return False
        upload = Upload.of(seq, infer, payload, now=now)
        self.uploads.begin(upload)
        self.out[(seq, infer.attempt)] = Outstanding(now, 0, 0, upload)
        return True

    def send_chunks(self, budget_s: Callable[[int, int], float], *, now: float) -> int:
        """Send the pieces for which there is room; how many. `budget_s` tells what is left for the gateway of a
        request (by its number here) once so many bytes have crossed."""
        estimate, count = self.estimate(now), 0
        while (upload := self.uploads.next(estimate)) is not None:
            left_s = budget_s(upload.seq, self.uploads.out_nbytes + upload.rest_nbytes)
            chunk = m.Chunk(upload.request, upload.attempt, upload.sent, int(left_s * 1e6))
            if not self.send(chunk, (upload.pieces[upload.sent],)):
                break
            self.uploads.sent(upload, position=self._handed_nbytes, now=now)
            count += 1
        return count

    def credited(self, credit: m.Credit, *, now: float) -> Upload | None:
        """More of a payload has arrived; None where that is no news."""
        news = self.uploads.credited(credit.request, credit.attempt, credit.chunks, now=now)
        if news is None:
            return None
        if news.nbytes:
            self.estimator.observe_chunk(nbytes=news.nbytes, round_trip_s=news.round_trip_s, now=now)
        return news.upload

    def track(self, key: tuple[int, int], nbytes: int, ahead_nbytes: int, *, now: float) -> None:
        """A message is out whose answer will say something about the link."""
        self.out[key] = Outstanding(now, nbytes, ahead_nbytes)

    def landed(self, seq: int, attempt: int) -> Outstanding | None:
        """An answer. Earlier attempts are not answered any more: the gateway attached them to this one."""
        for key in [k for k in self.out if k[0] == seq and k[1] < attempt]:
            del self.out[key]
        return self.out.pop((seq, attempt), None)

    def estimate(self, now: float) -> LinkState | None:
        """The link as measured, or slower where an answer is overdue. Pings say nothing here: they may be overtaken."""
        waiting = [
            (out.at, out.nbytes + out.ahead_nbytes) for (seq, _), out in self.out.items() if seq > 0 and out.nbytes
        ]
        if (piece := self.uploads.oldest) is not None:
            waiting.append((piece.at, self.uploads.out_nbytes))
        sent = min(waiting, default=None)
        return self.estimator.estimate(now, sent=sent)

    def observe(self, out: Outstanding, *, residence_s: float, queue_s: float, down_nbytes: int, now: float) -> None:
        # Of a payload in chunks every one has spoken for the link: its answer tells of the gateway alone.
        chunked = out.upload is not None
        self.estimator.observe(
            nbytes=0 if chunked else out.nbytes + down_nbytes,
            round_trip_s=now - (out.upload.last_at if out.upload is not None else out.at),
            residence_s=residence_s,
            queue_s=queue_s,
            ahead_nbytes=1 if chunked else out.ahead_nbytes,
            now=now,
        )
        self.measured = self.measured or self.estimator.estimate(now) is not None

    # ---- pings ------------------------------------------------------------------------------------------------------

    @property
    def next_ping(self) -> float | None:
        return self.pulse.next_at if self.state in (State.READY, State.DRAINING) else None

    def ping(self, *, idle: bool, in_use: bool, now: float) -> None:
        """`idle`: nothing is unanswered at any gateway. A gateway that is not in use is probed now and then."""
        probes = idle and (in_use or not self.measured or now >= self._probe_at)
        ahead_nbytes = self.ahead_nbytes
        for padding in self.pulse.paddings(self.estimator, idle=probes, measured=self.measured, now=now):
            if padding:
                self._probe_at = now + STANDBY_PROBE_IVL_S
            self._pings += 1
            if nbytes := self.send(m.Ping(self._pings, bytes(padding))):
                self.track((-self._pings, 0), nbytes, ahead_nbytes, now=now)

    def ponged(self, pong: m.Pong, *, in_use: bool, now: float) -> None:
        if (out := self.out.pop((-pong.number, 0), None)) is not None:
            self.observe(out, residence_s=0.0, queue_s=pong.queue_us / 1e6, down_nbytes=0, now=now)
            if in_use or not self.measured:
                self.pulse.answered(self.estimator, measured=self.measured, now=now)

    # ---- the session ------------------------------------------------------------------------------------------------

    def greet(self, hello: m.Hello, *, now: float) -> None:
        """Whatever was in flight on an earlier connection is not answered on this one."""
        self.connection.heard_at = self._greeted_at = now
        self.out.clear()
        self.uploads.clear()
        self.measured = False
        self.send(hello)

    def require_patience(self, *, now: float) -> None:
        """Raises WireError if the gateway has only just been greeted: one that asks and asks would keep us busy."""
        if now - self._greeted_at < GREET_IVL_S:
            raise WireError("it wants to be greeted again and again", "see docs/wire.md")

    def lost(self, *, now: float) -> bool:
        """Whether there was anything to lose."""
        was_there = self.state is not State.DISCONNECTED
        if was_there:
            self.connection.handle(Event.DISCONNECT, now=now)
        self.measured = False
        self.out.clear()
        self.uploads.clear()
        self.estimator.lost()
        return was_there

    def overdue(self, *, now: float) -> Why | None:
        """Why the socket should be made anew now, if it should."""
        return self.connection.overdue(now=now, patience_s=patience_s(self.ahead_nbytes, self.estimator.estimate(now)))
