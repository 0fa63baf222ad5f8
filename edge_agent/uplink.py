"""The thread that owns the agent's socket. It carries out what the ladder decides, and nothing else decides anything.

    submit, compute thread --mailbox--> [ Uplink: session, estimator, ladder ] <--DEALER--> gateway

One plain thread: asyncio would add 200 us and double the processor time of a round trip. A DEALER can give up for good,
silently (after garbage, an HTTP answer, a failed authentication), so the socket is made anew when no Welcome comes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from edge_agent.compute import Crashed, Done, Failed, Job
from edge_agent.flights import CancelRemote, Finish, Instruction, Prepare, Send
from edge_agent.heads import Prepared
from edge_agent.ladder import Ladder
from protocol import codecs, sockets, wire
from protocol import messages as m
from protocol.control.link import LinkEstimator
from protocol.control.session import Event, Role, Session, State
from protocol.errors import InvariantViolation, WireError
from protocol.mailbox import Mailbox
from protocol.tensors import Array, Tensors

PING_IVL_S = 1.0
CONFIRM_IVL_S = 0.05  # between probes while they contradict the estimate
SILENCE_S = 4.0  # no message at all for this long, with pings out: the gateway is hung or the link half-open
WELCOME_S = 3.0  # from transport handshake to Welcome
RECREATE_S = 8.0  # without a handshake for this long, libzmq may have given up for good
IDLE_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Submit:
    seq: int
    inputs: Tensors
    deadline: float


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Post = Submit | Done | Failed | Crashed | Stop


@dataclass(frozen=True, slots=True)
class Remote:
    """What the gateway's answer adds to a request's outcome."""

    outputs: dict[str, Array]
    result: m.Result
    round_trip_s: float
    up_nbytes: int
    down_nbytes: int


@dataclass(frozen=True, slots=True)
class Ending:
    """One request's end, handed to the agent."""

    finish: Finish
    prepared: Prepared | None
    remote: Remote | None


@dataclass(slots=True)
class _Work:
    inputs: Tensors
    prepared: Prepared | None = None


@dataclass(frozen=True, slots=True)
class _Out:
    """A message whose answer will say something about the link."""

    at: float
    nbytes: int
    alone: bool


class Uplink:
    """Runs the loop in a thread of its own. `post` is the only method for other threads."""

    def __init__(
        self,
        *,
        endpoint: sockets.Endpoint | None,
        hello: m.Hello,
        ladder: Ladder,
        segments: dict[str, bytes],
        submit_job: Callable[[Job], None],
        ended: Callable[[Ending], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self.mailbox: Mailbox[Post] = Mailbox()
        self.estimator = LinkEstimator()
        self.stats: Counter[str] = Counter()
        self.ready = threading.Event()
        self.gateway_software = ""
        self._endpoint = endpoint
        self._hello = hello
        self._ladder = ladder
        self._segments = segments
        self._submit_job = submit_job
        self._ended = ended
        self._crashed = crashed
        self._session = Session(Role.AGENT)
        self._work: dict[int, _Work] = {}
        self._out: dict[tuple[int, int], _Out] = {}  # (seq, attempt); pings under (-number, 0)
        self._pings = 0
        self._next_ping = 0.0
        self._heard_at = 0.0
        self._since = 0.0  # when the session entered its state
        self._epoch = b""
        self._stopping = False
        self._poller = zmq.Poller()
        self._poller.register(self.mailbox.fileno(), zmq.POLLIN)
        self._context = sockets.make_context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._main, name="isthmus-uplink", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, item: Post) -> None:
        self.mailbox.post(item)

    def join(self) -> None:
        self._thread.join(timeout=10)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the top of the thread: nothing pending may vanish
            self._carry_out(self._ladder.close())
            self._crashed(error)
        finally:
            self._close_socket()
            self.mailbox.close()
            self._context.term()

    def _loop(self) -> None:
        if self._endpoint is not None:
            self._open_socket(now=time.monotonic())
        while not self._stopping:
            for source, _ in self._poller.poll(self._wait_ms(time.monotonic())):
                if source is self._monitor:
                    self._drain_monitor()
                elif source is self._socket:
                    self._drain_socket()
            for item in self.mailbox.drain():
                self._handle_post(item)
            self._timers(time.monotonic())
        self._carry_out(self._ladder.close())

    def _wait_ms(self, now: float) -> int:
        wake = min(self._ladder.next_deadline() or now + IDLE_WAIT_S, now + IDLE_WAIT_S)
        if self._session.state is State.READY:
            wake = min(wake, self._next_ping)
        if self._ladder.flights:
            wake = min(wake, now + 0.05)  # breakers and credits have no alarm of their own
        return max(0, int((wake - now) * 1000 + 0.999))  # the poller truncates: round up

    def _handle_post(self, item: Post) -> None:
        now = time.monotonic()
        match item:
            case Submit(seq, inputs, deadline):
                self._work[seq] = _Work(inputs)
                self._ladder.link_measured(self.estimator.estimate(now))
                self._carry_out(self._ladder.submitted(seq, deadline, now=now))
            case Done(seq, generation, prepared):
                if (work := self._work.get(seq)) is not None:
                    work.prepared = prepared
                busy_s = prepared.edge_s + prepared.encode_s
                self._carry_out(self._ladder.prepared(seq, generation, prepared.nbytes, busy_s, now=now))
            case Failed(seq, generation, reason):
                self.stats["head_failures"] += 1
                self._carry_out(self._ladder.preparation_failed(seq, generation, reason, now=now))
            case Crashed(error):
                raise InvariantViolation("the compute thread crashed") from error
            case Stop():
                self._stopping = True

    def _timers(self, now: float) -> None:
        self._carry_out(self._ladder.tick(now=now))
        if self._endpoint is None:
            return
        state = self._session.state
        if state in (State.READY, State.DRAINING):
            if now - self._heard_at > SILENCE_S:
                self._lose_link("the gateway has fallen silent", now=now, recreate=True)
            elif now >= self._next_ping:
                self._ping(now)
        elif state is State.GREETING and now - self._since > WELCOME_S:
            self._lose_link("the gateway did not welcome us", now=now, recreate=True)
        elif state is State.DISCONNECTED and now - self._since > RECREATE_S:
            self._recreate_socket(now=now)

    # ---- carrying out -----------------------------------------------------------------------------------------------

    def _carry_out(self, instructions: list[Instruction], remote: Remote | None = None) -> None:
        """`remote` belongs to the one request that it lets finish."""
        for instruction in instructions:
            match instruction:
                case Prepare(seq, placement):
                    generation = self._ladder.flights[seq].generation
                    self._submit_job(Job(seq, generation, placement, self._work[seq].inputs))
                case Send():
                    self._send_infer(instruction)
                case CancelRemote(seq):
                    self._send(m.Cancel(m.RequestId(self._hello.boot, seq)))
                case Finish(seq):
                    work = self._work.pop(seq)
                    self._ended(Ending(instruction, work.prepared, remote))

    def _send_infer(self, send: Send) -> None:
        prepared = self._work[send.seq].prepared
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
        )
        now = time.monotonic()
        alone = not self._out
        nbytes = self._send(message, prepared.buffers)
        if nbytes == 0:
            self.stats["unsent"] += 1
            self._ladder.unsent(send.seq, now=now)
            return
        self.stats["sent"] += 1
        self._out[send.seq, send.attempt] = _Out(now, nbytes, alone)

    def _send(self, message: m.Message, payload: tuple[wire.Buffer, ...] = ()) -> int:
        """Bytes handed to the socket; 0 when there is no connection that would take them."""
        if self._socket is None:
            return 0
        frames = wire.pack(message, payload)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return 0
        return sum(memoryview(f).nbytes for f in frames)

    def _ping(self, now: float) -> None:
        self._next_ping = now + PING_IVL_S
        self._pings += 1
        padding = 0 if self._out else self.estimator.probe_nbytes(now)
        alone = not self._out
        nbytes = self._send(m.Ping(self._pings, bytes(padding)))
        if nbytes:
            self._out[-self._pings, 0] = _Out(now, nbytes, alone)

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _drain_socket(self) -> None:
        if self._socket is None:
            return
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._receive([frame.buffer for frame in frames], time.monotonic())
            except wire.VersionError as error:
                self.stats["wire_errors"] += 1
                self._lose_link(f"the gateway speaks another version ({error.fact})", now=time.monotonic())
            except WireError:
                self.stats["wire_errors"] += 1

    def _receive(self, frames: list[memoryview], now: float) -> None:
        message = wire.unpack_header(frames[0])
        self._heard_at = now
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
                    if self.estimator.wants_confirmation:
                        self._next_ping = min(self._next_ping, now + CONFIRM_IVL_S)
            case m.NeedHello():
                self._session.handle(Event.NEED_HELLO)
                self._enter_greeting("the gateway does not know us (it was restarted)", now)
            case m.Drain(reason):
                self._session.handle(Event.DRAIN)
                self._carry_out(self._ladder.draining(f"the gateway is draining: {reason}", now=now))
            case m.VersionMismatch(oldest, newest):
                self._session.handle(Event.VERSION_MISMATCH)
                self.ready.clear()
                why = f"the gateway speaks versions {oldest}..{newest}, this agent {wire.VERSION}"
                self._carry_out(self._ladder.link_lost(why, now=now))
            case _:
                raise WireError(f"{type(message).__name__} is not for an agent", "see docs/wire.md")

    def _welcomed(self, welcome: m.Welcome, now: float) -> None:
        self._session.handle(Event.WELCOME)
        self._since = now
        if self._session.state is not State.READY:
            return
        self._epoch = welcome.epoch
        self.gateway_software = welcome.software
        self._next_ping = now
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
        out = self._out.pop((seq, result.attempt), None)
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
        except WireError as error:
            self.stats["wire_errors"] += 1
            self._carry_out(self._ladder.rejected(seq, result.attempt, m.RejectCode.INTERNAL, str(error), 0.0, now=now))
            return
        round_trip_s = now - out.at if out else 0.0
        remote = Remote(outputs, result, round_trip_s, out.nbytes if out else 0, sum(sizes))
        compute_s = result.timings.compute_us / 1e6
        self._carry_out(self._ladder.answered(seq, result.attempt, compute_s, now=now), remote)

    def _reject(self, reject: m.Reject, now: float) -> None:
        seq = self._own(reject.request)
        self.stats[f"rejected_{reject.code}"] += 1
        if (out := self._out.pop((seq, reject.attempt), None)) is not None:
            self._observe(out, now, reject.residence_us / 1e6, 0.0, 0)
        self._carry_out(
            self._ladder.rejected(seq, reject.attempt, reject.code, reject.reason, reject.retry_after_us / 1e6, now=now)
        )

    def _own(self, request: m.RequestId) -> int:
        if request.boot != self._hello.boot:
            raise WireError(f"answer for request {request}, which is not ours", "")
        return request.sequence

    def _observe(self, out: _Out, now: float, residence_s: float, queue_s: float, down_nbytes: int) -> None:
        self.estimator.observe(
            nbytes=out.nbytes + down_nbytes,
            round_trip_s=now - out.at,
            residence_s=residence_s,
            queue_s=queue_s,
            alone=out.alone,
            now=now,
        )
        if not self.ready.is_set() and self._session.state is State.READY and self.estimator.estimate(now) is not None:
            self.ready.set()  # welcomed, and the first placement will not be a guess

    # ---- the connection ---------------------------------------------------------------------------------------------

    def _drain_monitor(self) -> None:
        while self._monitor is not None and self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            now = time.monotonic()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._session.handle(Event.HANDSHAKE)
                self._enter_greeting("the connection was made anew", now)
            elif event == zmq.EVENT_DISCONNECTED:
                self._lose_link("the link to the gateway is lost", now=now)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                self.stats["handshakes_failed"] += 1
                self._lose_link("what answers at the gateway's address is no gateway", now=now)
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self.stats["handshakes_failed"] += 1  # hung up on: nobody listens behind a proxy, for example

    def _enter_greeting(self, why: str, now: float) -> None:
        """Whatever was in flight on the old connection will not be answered there: send it again once welcomed."""
        self._since = now
        self._heard_at = now
        self._out.clear()
        self.ready.clear()
        self._carry_out(self._ladder.link_lost(why, now=now))
        self._send(self._hello)

    def _lose_link(self, why: str, *, now: float, recreate: bool = False) -> None:
        if self._session.state is not State.DISCONNECTED:
            self.stats["links_lost"] += 1
            self._session.handle(Event.DISCONNECT)
            self._since = now
        self.ready.clear()
        self._out.clear()
        self.estimator.lost()
        self._carry_out(self._ladder.link_lost(why, now=now))
        if recreate:
            self._recreate_socket(now=now)

    def _recreate_socket(self, *, now: float) -> None:
        self.stats["sockets_recreated"] += 1
        self._close_socket()
        self._open_socket(now=now)

    def _open_socket(self, *, now: float) -> None:
        if self._endpoint is None:
            raise InvariantViolation("an uplink without an endpoint has no socket")
        self._socket = sockets.dealer(self._context, self._endpoint)
        self._monitor = self._socket.get_monitor_socket()
        self._since = now
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(self.mailbox.fileno(), zmq.POLLIN)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(0)
            self._socket = None
        if self._monitor is not None:
            self._monitor.close(0)
            self._monitor = None
