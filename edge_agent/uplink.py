"""The thread that owns the agent's socket. It carries out what the ladder decides, and nothing else decides anything.

    submit, compute thread --mailbox--> [ Uplink: ladder, estimator, Connection ] <--DEALER--> gateway

One plain thread: asyncio would add 200 us and double the processor time of a round trip.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from edge_agent.compute import Crashed, Done, Failed, Job, Rehearsal, Rehearsed
from edge_agent.connection import Change, Connection
from edge_agent.errands import Ending, Outstanding, Post, Remote, Stop, Submit, Work
from edge_agent.references import References
from edge_agent.ways import Ways
from protocol import codecs, wire
from protocol import messages as m
from protocol.control.flights import CancelRemote, Finish, Instruction, Prepare, Send
from protocol.control.ladder import Ladder
from protocol.control.link import LinkEstimator
from protocol.control.pulse import Pulse, patience_s, wake_at
from protocol.control.session import Event, State
from protocol.errors import InvariantViolation, IsthmusError, WireError
from protocol.mailbox import Mailbox


class Uplink:
    """Runs the loop in a thread of its own. `post` is the only method for other threads."""

    def __init__(
        self,
        *,
        ways: Ways | None,
        hello: m.Hello,
        ladder: Ladder,
        segments: dict[str, bytes],
        outputs: frozenset[str],
        references: References,
        submit_job: Callable[[Job | Rehearsal], None],
        ended: Callable[[Ending], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self.mailbox: Mailbox[Post] = Mailbox()
        self.estimator = LinkEstimator()
        self.stats: Counter[str] = Counter()
        self.ready = threading.Event()
        self._outputs = outputs
        self._references = references
        self._link = Connection(ways, self.mailbox.fileno())
        self._hello = hello
        self._ladder = ladder
        self._segments = segments
        self._submit_job = submit_job
        self._ended = ended
        self._crashed = crashed
        self._work: dict[int, Work] = {}
        self._out: dict[tuple[int, int], Outstanding] = {}  # (seq, attempt); pings under (-number, 0)
        self._pings = 0
        self._pulse = Pulse()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="isthmus-uplink", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, item: Post) -> None:
        self.mailbox.post(item)

    def wanted(self, seq: int, generation: int) -> bool:
        """Whether a preparation is still of use. May be asked by any thread: it reads one dictionary entry."""
        flight = self._ladder.flights.get(seq)
        return flight is not None and flight.generation == generation

    def join(self) -> None:
        self._thread.join(timeout=10)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the top of the thread
            self._crashed(error)  # answers what is pending
        finally:
            self._link.close()
            self.mailbox.close()

    def _loop(self) -> None:
        self._link.open(now=time.monotonic())
        while not self._stopping:
            self._link.poll(self._wait_ms(time.monotonic()))
            for change in self._link.changes():
                self._handle_change(change, time.monotonic())
            self._drain_socket()
            for item in self.mailbox.drain():
                self._handle_post(item)
            self._timers(time.monotonic())
        self._carry_out(self._ladder.close())

    def _wait_ms(self, now: float) -> int:
        next_ping = self._pulse.next_at if self._link.state is State.READY else None
        wake = wake_at(self._ladder.next_deadline(), next_ping, busy=bool(self._ladder.flights), now=now)
        return max(0, int((wake - now) * 1000 + 0.999))  # the poller truncates: round up

    def _handle_post(self, item: Post) -> None:
        now = time.monotonic()
        match item:
            case Submit(seq, inputs, deadline):
                self._work[seq] = Work(inputs)
                self._pulse.requested(now=now)
                self._ladder.link_measured(self.estimator.estimate(now))
                self._carry_out(self._ladder.submitted(seq, deadline, now=now))
            case Done(seq, generation, placement, prepared):
                if (work := self._work.get(seq)) is not None:
                    work.prepared[placement] = prepared
                busy_s = prepared.edge_s + prepared.encode_s
                self._carry_out(self._ladder.prepared(seq, generation, prepared.nbytes, busy_s, now=now))
            case Failed(seq, generation, reason, sound):
                self.stats["head_failures"] += 1
                self._carry_out(self._ladder.preparation_failed(seq, generation, reason, sound=sound, now=now))
            case Rehearsal():
                self._submit_job(item)
            case Rehearsed(rehearsal, made):
                if isinstance(made, IsthmusError):
                    rehearsal.future.set_exception(made)
                else:
                    rehearsal.future.set_result(made)
            case Crashed(error):
                raise InvariantViolation("the compute thread crashed") from error
            case Stop():
                self._stopping = True

    def _timers(self, now: float) -> None:
        self._carry_out(self._ladder.tick(now=now))
        why = self._link.overdue(now=now, patience_s=patience_s(self._ahead_nbytes(), self.estimator.estimate(now)))
        if why is not None:
            self._lose_link(why, now)
            self.stats["sockets_recreated"] += 1
            self._link.recreate(now=now)
        elif self._link.state in (State.READY, State.DRAINING) and now >= self._pulse.next_at:
            self._ping(now)

    # ---- carrying out -----------------------------------------------------------------------------------------------

    def _carry_out(self, instructions: list[Instruction], remote: Remote | None = None) -> None:
        """`remote` belongs to the one request that it lets finish."""
        for instruction in instructions:
            match instruction:
                case Prepare(seq, placement):
                    flight = self._ladder.flights[seq]
                    self._submit_job(Job(seq, flight.generation, placement, self._work[seq].inputs, flight.deadline))
                case Send():
                    self._send_infer(instruction)
                case CancelRemote(seq):
                    self._link.send(m.Cancel(m.RequestId(self._hello.boot, seq)))
                case Finish(seq):
                    work = self._work.pop(seq)
                    for attempt in range(1, instruction.attempts + 1):  # those that were never answered
                        self._out.pop((seq, attempt), None)
                    self._ended(Ending(instruction, work.prepared.get(instruction.placement), remote))

    def _send_infer(self, send: Send) -> None:
        prepared = self._work[send.seq].prepared.get(send.placement)
        if prepared is None:
            raise InvariantViolation(f"request {send.seq} is sent before it is prepared")
        message = m.Infer(
            request=m.RequestId(self._hello.boot, send.seq),
            segment=self._segments[send.placement],
            attempt=send.attempt,
            budget_us=int(send.budget_s * 1e6),
            priority=4,
            tensors=prepared.headers,
            checksum=prepared.checksum,
            outer_ppm=prepared.outer_ppm,
            keep=bool(prepared.codes),
        )
        now = time.monotonic()
        ahead = self._ahead_nbytes()
        nbytes = self._link.send(message, prepared.buffers)
        if nbytes == 0:
            self.stats["unsent"] += 1
            self._ladder.unsent(send.seq, now=now)
            return
        self.stats["sent"] += 1
        self._out[send.seq, send.attempt] = Outstanding(now, nbytes, ahead)

    def _ahead_nbytes(self) -> int:
        return sum(out.nbytes for out in self._out.values())

    def _ping(self, now: float) -> None:
        ahead = self._ahead_nbytes()
        for size in self._pulse.paddings(self.estimator, idle=not self._out, measured=self.ready.is_set(), now=now):
            self._pings += 1
            nbytes = self._link.send(m.Ping(self._pings, bytes(size)))
            if nbytes:
                self._out[-self._pings, 0] = Outstanding(now, nbytes, ahead)

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _drain_socket(self) -> None:
        while (frames := self._link.receive()) is not None:
            now = time.monotonic()
            try:
                self._receive(frames, now)
            except wire.VersionError as error:
                self.stats["wire_errors"] += 1
                self._lose_link(f"the gateway speaks another version ({error.fact})", now)
            except WireError:
                self.stats["wire_errors"] += 1

    def _receive(self, frames: list[memoryview], now: float) -> None:
        message = wire.unpack_header(frames[0])
        self._link.heard_at = now
        match message:
            case m.Welcome():
                self._welcomed(message, now)
            case m.Result():
                self._result(message, frames[1:], now)
            case m.Reject():
                self._reject(message, now)
            case m.Pong(number, queue_us):
                if (out := self._out.pop((-number, 0), None)) is not None:
                    self._observe(out, now, residence_s=0.0, queue_s=queue_us / 1e6, down_nbytes=0)
                    self._pulse.answered(self.estimator, measured=self.ready.is_set(), now=now)
            case m.NeedHello():
                self._link.handle(Event.NEED_HELLO, now=now)
                self._enter_greeting("the gateway does not know us (it was restarted)", now)
            case m.Drain(reason):
                self._link.handle(Event.DRAIN, now=now)
                self._carry_out(self._ladder.draining(f"the gateway is draining: {reason}", now=now))
            case m.VersionMismatch(oldest, newest):
                self._link.handle(Event.VERSION_MISMATCH, now=now)
                self.ready.clear()
                why = f"the gateway speaks versions {oldest}..{newest}, this agent {wire.VERSION}"
                self._carry_out(self._ladder.link_lost(why, now=now))
            case _:
                raise WireError(f"{type(message).__name__} is not for an agent", "see docs/wire.md")

    def _welcomed(self, welcome: m.Welcome, now: float) -> None:
        if self._link.handle(Event.WELCOME, now=now) is not State.READY:
            return
        self._pulse.welcomed(now=now)
        self._references.forget_all()
        held = frozenset(welcome.segments) | frozenset(welcome.models)
        self._carry_out(
            self._ladder.link_up(
                held=held,
                credit_requests=welcome.credit_requests,
                credit_nbytes=welcome.credit_nbytes,
                now=now,
            )
        )
        self.stats["welcomes"] += 1

    def _result(self, result: m.Result, parts: list[memoryview], now: float) -> None:
        seq = self._own(result.request)
        out = self._landed(seq, result.attempt)
        sizes = [p.nbytes for p in parts]
        wire.check_parts(result.tensors, sizes)
        if out is not None:
            residence_s = result.timings.residence_us / 1e6
            self._observe(out, now, residence_s, result.timings.queue_us / 1e6, sum(sizes))
        if seq not in self._work:
            self.stats["late_results"] += 1
            return
        try:
            if wire.checksum(parts) != result.checksum:
                raise WireError("the result's checksum does not match", "")
            buffers = wire.join_parts(result.tensors, parts)
            outputs = {h.name: codecs.decode(h, b) for h, b in zip(result.tensors, buffers, strict=True)}
            known = outputs.keys() | self._head_outputs(seq, result.attempt)
            if missing := self._outputs - known:
                raise WireError(f"the result lacks {', '.join(sorted(missing))}", "")
        except WireError as error:
            self.stats["wire_errors"] += 1
            self._carry_out(self._ladder.rejected(seq, result.attempt, m.RejectCode.INTERNAL, str(error), 0.0, now=now))
            return
        round_trip_s = now - out.at if out else 0.0
        remote = Remote(outputs, result, round_trip_s, out.nbytes if out else 0, sum(sizes))
        sent = self._ladder.sent_as(seq, result.attempt) or ""
        if (prepared := self._work[seq].prepared.get(sent)) is not None:
            self._references.answered(sent, seq, prepared.codes)
        compute_s = result.timings.compute_us / 1e6
        self._carry_out(self._ladder.answered(seq, result.attempt, compute_s, now=now), remote)

    def _reject(self, reject: m.Reject, now: float) -> None:
        seq = self._own(reject.request)
        self.stats[f"rejected_{reject.code}"] += 1
        if (out := self._landed(seq, reject.attempt)) is not None:
            self._observe(out, now, reject.residence_us / 1e6, 0.0, 0)
        if reject.code is m.RejectCode.UNKNOWN_REFERENCE and (sent := self._ladder.sent_as(seq, reject.attempt)):
            self._references.forget(sent)
        self._carry_out(
            self._ladder.rejected(seq, reject.attempt, reject.code, reject.reason, reject.retry_after_us / 1e6, now=now)
        )

    def _head_outputs(self, seq: int, attempt: int) -> set[str]:
        prepared = self._work[seq].prepared.get(self._ladder.sent_as(seq, attempt) or "")
        return set(prepared.outputs) if prepared else set()

    def _landed(self, seq: int, attempt: int) -> Outstanding | None:
        """Earlier attempts are not answered any more: the gateway attached them to this one."""
        for key in [k for k in self._out if k[0] == seq and k[1] < attempt]:
            del self._out[key]
        return self._out.pop((seq, attempt), None)

    def _own(self, request: m.RequestId) -> int:
        if request.boot != self._hello.boot:
            raise WireError(f"answer for request {request}, which is not ours", "")
        return request.sequence

    def _observe(self, out: Outstanding, now: float, residence_s: float, queue_s: float, down_nbytes: int) -> None:
        self.estimator.observe(
            nbytes=out.nbytes + down_nbytes,
            round_trip_s=now - out.at,
            residence_s=residence_s,
            queue_s=queue_s,
            ahead_nbytes=out.ahead_nbytes,
            now=now,
        )
        if not self.ready.is_set() and self._link.state is State.READY and self.estimator.estimate(now) is not None:
            self.ready.set()  # welcomed, and the first placement will not be a guess

    # ---- the connection ---------------------------------------------------------------------------------------------

    def _handle_change(self, change: Change, now: float) -> None:
        match change:
            case Change.HANDSHAKE:
                self._link.handle(Event.HANDSHAKE, now=now)
                self._enter_greeting(str(change), now)
            case Change.LOST | Change.NO_GATEWAY:
                self._lose_link(str(change), now)
            case Change.HUNG_UP:
                self.stats["handshakes_failed"] += 1
            case Change.REFUSED:
                self.stats["keys_refused"] += 1
                self._lose_link(str(change), now)

    def _enter_greeting(self, why: str, now: float) -> None:
        """Whatever was in flight on the old connection will not be answered there: send it again once welcomed."""
        self._link.heard_at = now
        self._out.clear()
        self.ready.clear()
        self._carry_out(self._ladder.link_lost(why, now=now))
        self._link.send(self._hello)

    def _lose_link(self, why: str, now: float) -> None:
        if self._link.state is not State.DISCONNECTED:
            self.stats["links_lost"] += 1
            self._link.handle(Event.DISCONNECT, now=now)
        self.ready.clear()
        self._out.clear()
        self.estimator.lost()
        self._carry_out(self._ladder.link_lost(why, now=now))
