"""The thread that owns the agent's sockets. It carries out what the ladder decides, and nothing else decides anything.

    submit, compute thread --mailbox--> [ Uplink: ladder, one GatewayLink per gateway ] <--DEALER--> gateway
    resolver ------------------^                                                        <--DEALER--> gateway

One plain thread for all gateways: asyncio would add 200 us and double the processor time of a round trip.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from edge_agent import looking
from edge_agent.compute import Crashed, Done, Failed, Job, Rehearsal, Rehearsed
from edge_agent.connection import Change, Shared
from edge_agent.errands import Ending, Found, Look, Post, Remote, Resolved, Stop, Submit, Withdraw, Work
from edge_agent.gateways import Gateways
from edge_agent.link import GatewayLink
from edge_agent.references import References
from edge_agent.results import outputs_of
from edge_agent.sending import Sending
from edge_agent.view import AgentView
from edge_agent.ways import Ways
from protocol import messages as m
from protocol import wire
from protocol.control.causes import Cause, Why
from protocol.control.flights import CancelRemote, Finish, Instruction, Prepare, Send
from protocol.control.ladder import Ladder
from protocol.control.pulse import wake_at
from protocol.control.session import Event, State
from protocol.errors import InvariantViolation, IsthmusError, WireError
from protocol.mailbox import Mailbox
from protocol.sockets import Endpoint


class Uplink:
    """Runs the loop in a thread of its own. `post` is the only method for other threads."""

    def __init__(
        self,
        *,
        gateways: Sequence[Found],
        ways_of: Callable[[Sequence[Endpoint]], Ways],
        hello: m.Hello,
        ladder: Ladder,
        segments: dict[str, bytes],
        outputs: frozenset[str],
        references: References,
        submit_job: Callable[[Job | Rehearsal], None],
        ended: Callable[[Ending], None],
        crashed: Callable[[BaseException], None],
        readied: Callable[[], None] = lambda: None,
    ) -> None:
        """`gateways` are known from the start; others, and their addresses, come from the resolver. `readied` hears,
        on this thread, that there is a gateway where there was none."""
        self.mailbox: Mailbox[Post] = Mailbox()
        self.stats: Counter[str] = Counter()
        self.ready = threading.Event()
        self._shared = Shared(self.mailbox.fileno())
        self.gateways = Gateways(
            gateways, ladder, lambda found: GatewayLink(found.name, ways_of(found.endpoints), self._shared)
        )
        self._outputs = outputs
        self._references = references
        self._hello = hello
        self._ladder = ladder
        self._submit_job = submit_job
        self._ended = ended
        self._crashed = crashed
        self._readied = readied
        self._work: dict[int, Work] = {}
        self._seqs: dict[m.RequestId, int] = {}  # of what is pending
        self._sending = Sending(ladder, self.gateways, self._work, segments, hello.boot, self.stats)
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

    def runs(self) -> bool:
        """Whether the thread is there to answer."""
        return self._thread.is_alive()

    def view(self, *, explain: bool = False) -> AgentView:
        """How things stand. Only for this thread, and while it does not run."""
        return looking.view_of(self._ladder, self.gateways.links, self.stats, explain=explain, now=time.monotonic())

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the top of the thread
            self._crashed(error)  # answers what is pending
        finally:
            for link in self.gateways.links.values():
                link.connection.close()
            self._shared.close()
            self.mailbox.close()

    def _loop(self) -> None:
        for link in self.gateways.links.values():
            link.connection.open(now=time.monotonic())
        while not self._stopping:
            self._shared.poll(self._wait_ms(time.monotonic()))
            for link in self.gateways.links.values():
                for change in link.connection.changes():
                    self._handle_change(link, change, time.monotonic())
                self._drain_socket(link)
            for item in self.mailbox.drain():
                self._handle_post(item)
            self._timers(time.monotonic())
            self._sending.go_on(now=time.monotonic())
        self._carry_out(self._ladder.close())

    def _wait_ms(self, now: float) -> int:
        next_ping = min(
            (at for link in self.gateways.links.values() if (at := link.next_ping) is not None), default=None
        )
        wake = wake_at(self._ladder.next_deadline(), next_ping, busy=bool(self._ladder.flights), now=now)
        return max(0, int((wake - now) * 1000 + 0.999))  # the poller truncates: round up

    def _handle_post(self, item: Post) -> None:
        now = time.monotonic()
        match item:
            case Submit():
                self._submit(item, now)
            case Withdraw(seq):
                self.stats["withdrawn"] += seq in self._work
                self._carry_out(self._ladder.cancelled(seq, now=now))
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
            case Resolved(found=found):
                self.stats["names_unresolved"] += not found
                self._carry_out(self.gateways.resolved(item, hello=self._hello, now=now))
                self._note_readiness()
            case Look(future, explain):
                future.set_result(self.view(explain=explain))
            case Crashed(error):
                raise InvariantViolation("the compute thread crashed") from error
            case Stop():
                self._stopping = True

    def _submit(self, item: Submit, now: float) -> None:
        self._work[item.seq] = Work(item.inputs, item.identity, item.priority)
        self._seqs[item.identity] = item.seq
        if item.identity.boot not in (self._hello.boot, *self._hello.also):
            self._greet_for(item.identity.boot)
        for link in self.gateways.links.values():
            link.pulse.requested(now=now)
            self._ladder.link_measured(link.estimate(now), gateway=link.name)
        self._carry_out(
            self._ladder.submitted(item.seq, item.deadline, priority=item.priority, rows=item.rows, now=now)
        )

    def _greet_for(self, boot: bytes) -> None:
        """Requests of an earlier life follow: gateways take only such as begin with what they were greeted with."""
        also = (*self._hello.also, boot)[-m.MOST_BOOTS :]
        self._hello = m.Hello(self._hello.boot, self._hello.agent, self._hello.software, self._hello.model_digest, also)
        for link in self.gateways.links.values():
            if link.state in (State.GREETING, State.READY):  # a Hello that is under way does not name it
                link.send(self._hello)

    def _timers(self, now: float) -> None:
        self._carry_out(self._ladder.tick(now=now))
        for link in list(self.gateways.links.values()):
            if (why := link.overdue(now=now)) is not None:
                self._lose_link(link, why, now)
                self.stats["sockets_recreated"] += 1
                link.connection.recreate(now=now)
            elif (at := link.next_ping) is not None and now >= at:
                idle = not any(other.out for other in self.gateways.links.values())
                link.ping(idle=idle, in_use=self._is_in_use(link), now=now)
            if link.leaves_at is not None and (link.has_left or now >= link.leaves_at):
                self._carry_out(self.gateways.remove(link, now=now))
                self._references.forget_all(link.name)
                self._note_readiness()

    # ---- the links --------------------------------------------------------------------------------------------------

    def _is_in_use(self, link: GatewayLink) -> bool:
        return self._ladder.fleet.current.name == link.name

    def _note_readiness(self) -> None:
        """Ready: somebody has welcomed us, and the first placement will not be a guess."""
        if any(link.measured and link.state is State.READY for link in self.gateways.links.values()):
            if not self.ready.is_set():
                self.ready.set()
                self._readied()
        else:
            self.ready.clear()

    # ---- carrying out -----------------------------------------------------------------------------------------------

    def _carry_out(self, instructions: list[Instruction], remote: Remote | None = None) -> None:
        """`remote` belongs to the one request that it lets finish."""
        for instruction in instructions:
            match instruction:
                case Prepare(seq, placement, gateway):
                    flight, work = self._ladder.flights[seq], self._work[seq]
                    # Frames are known by the boot id of their request: those of an earlier life go alone.
                    known_at = gateway if work.identity.boot == self._hello.boot else None
                    self._submit_job(
                        Job(seq, flight.generation, placement, work.inputs, flight.deadline, work.priority, known_at)
                    )
                case Send():
                    self._sending.send(instruction)
                case CancelRemote(seq, gateway):
                    self._sending.cancel(seq, gateway)
                case Finish(seq):
                    work = self._work.pop(seq)
                    del self._seqs[work.identity]
                    for link in self.gateways.links.values():
                        for attempt in range(1, instruction.attempts + 1):  # those that were never answered
                            link.out.pop((seq, attempt), None)
                    self._count(instruction)
                    self._ended(Ending(instruction, work.prepared.get(instruction.placement), remote))

    def _count(self, finish: Finish) -> None:
        if finish.hedged:
            self.stats["hedges"] += 1
            if finish.code is None:
                self.stats["hedges_won_remotely" if finish.gateway else "hedges_won_locally"] += 1

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _drain_socket(self, link: GatewayLink) -> None:
        for frames in link.received():
            now = time.monotonic()
            try:
                self._receive(link, frames, now)
            except wire.VersionError as error:
                self.stats["wire_errors"] += 1
                self._lose_link(link, Why.lost(f"the gateway speaks another version ({error.fact})"), now)
            except WireError:
                self.stats["wire_errors"] += 1

    def _receive(self, link: GatewayLink, frames: list[memoryview], now: float) -> None:
        message = wire.unpack_header(frames[0])
        link.connection.heard_at = now
        self._ladder.fleet.of(link.name).heard(now=now)
        match message:
            case m.Welcome():
                self._welcomed(link, message, now)
            case m.Result():
                self._result(link, message, frames[1:], now)
            case m.Reject():
                self._reject(link, message, now)
            case m.Pong():
                link.ponged(message, in_use=self._is_in_use(link), now=now)
                self._note_readiness()
            case m.Credit():
                self._carry_out(self._sending.credited(link, message, now=now))
            case m.NeedHello():
                link.require_patience(now=now)
                link.connection.handle(Event.NEED_HELLO, now=now)
                self._enter_greeting(link, Why.lost("the gateway does not know us (it was restarted)"), now)
            case m.Drain(reason):
                reason = wire.printable(reason)
                link.connection.handle(Event.DRAIN, now=now)
                why = Why(Cause.GATEWAY_DRAINING, f"the gateway is draining: {reason}")
                self._carry_out(self._ladder.draining(why, gateway=link.name, now=now))
            case m.VersionMismatch(oldest, newest):
                link.connection.handle(Event.VERSION_MISMATCH, now=now)
                self._note_readiness()
                why = Why.lost(f"the gateway speaks versions {oldest}..{newest}, this agent {wire.VERSION}")
                self._carry_out(self._ladder.link_lost(why, gateway=link.name, now=now))
            case _:
                raise WireError(f"{type(message).__name__} is not for an agent", "see docs/wire.md")

    def _welcomed(self, link: GatewayLink, welcome: m.Welcome, now: float) -> None:
        anew = link.state is not State.READY
        if link.connection.handle(Event.WELCOME, now=now) is not State.READY or link.leaves_at is not None:
            return
        link.epoch = welcome.epoch
        if anew:
            link.pulse.welcomed(now=now)
            self._references.forget_all(link.name)
            self.stats["welcomes"] += 1
        self._ladder.link_measured(link.estimate(now), gateway=link.name)
        self._carry_out(self._ladder.link_up(
            held=frozenset(welcome.segments) | frozenset(welcome.models),
            credit_requests=welcome.credit_requests, credit_nbytes=welcome.credit_nbytes,
            chunk_nbytes=welcome.chunk_nbytes, gateway=link.name, anew=anew, now=now,
        ))  # fmt: skip

    def _result(self, link: GatewayLink, result: m.Result, parts: list[memoryview], now: float) -> None:
        seq = self._own(result.request)
        out = link.landed(seq, result.attempt)
        sizes = [p.nbytes for p in parts]
        wire.check_parts(result.tensors, sizes)
        if out is not None:
            residence_s, queue_s = result.timings.residence_us / 1e6, result.timings.queue_us / 1e6
            link.observe(out, residence_s=residence_s, queue_s=queue_s, down_nbytes=sum(sizes), now=now)
            self._note_readiness()
        if seq not in self._work:
            self.stats["late_results"] += 1
            return
        try:
            outputs = outputs_of(result, parts)
            if missing := self._outputs - (outputs.keys() | self._head_outputs(seq, result.attempt)):
                raise WireError(f"the result lacks {', '.join(sorted(missing))}", "")
        except WireError as error:
            self.stats["wire_errors"] += 1
            self._carry_out(
                self._ladder.rejected(
                    seq, result.attempt, m.RejectCode.INTERNAL, str(error), 0.0, gateway=link.name, now=now
                )
            )
            return
        round_trip_s = now - out.at if out else 0.0
        remote = Remote(outputs, result, round_trip_s, out.up_nbytes if out else 0, sum(sizes))
        sent = self._ladder.sent_as(seq, result.attempt) or ""
        work = self._work[seq]
        if work.identity.boot == self._hello.boot and (prepared := work.prepared.get(sent)) is not None:
            self._references.answered(link.name, sent, work.identity.sequence, prepared.codes)
        compute_s = result.timings.compute_us / 1e6
        self._carry_out(self._ladder.answered(seq, result.attempt, compute_s, gateway=link.name, now=now), remote)

    def _reject(self, link: GatewayLink, reject: m.Reject, now: float) -> None:
        seq = self._own(reject.request)
        link.uploads.refused(reject.request, reject.attempt)
        self.stats[f"rejected_{reject.code}"] += 1
        if (out := link.landed(seq, reject.attempt)) is not None:
            link.observe(out, residence_s=reject.residence_us / 1e6, queue_s=0.0, down_nbytes=0, now=now)
            self._note_readiness()
        if reject.code is m.RejectCode.UNKNOWN_REFERENCE and (sent := self._ladder.sent_as(seq, reject.attempt)):
            self._references.forget(link.name, sent)
        self._carry_out(self._ladder.rejected(
            seq, reject.attempt, reject.code, wire.printable(reject.reason), reject.retry_after_us / 1e6,
            credit=reject.credit, gateway=link.name, now=now,
        ))  # fmt: skip
        if reject.code is m.RejectCode.FORBIDDEN:  # as long as this connection stands, no newer key of ours is tried
            self._lose_link(link, Why.lost(str(Change.REFUSED)), now)
            link.connection.forbidden(now=now)

    def _head_outputs(self, seq: int, attempt: int) -> set[str]:
        prepared = self._work[seq].prepared.get(self._ladder.sent_as(seq, attempt) or "")
        return set(prepared.outputs) if prepared else set()

    def _own(self, request: m.RequestId) -> int:
        """Our number of a request; 0 if it has ended already. Raises WireError for one that was never ours."""
        if request.boot not in (self._hello.boot, *self._hello.also):
            raise WireError(f"answer for request {request}, which is not ours", "")
        return self._seqs.get(request, 0)

    # ---- connections ------------------------------------------------------------------------------------------------

    def _handle_change(self, link: GatewayLink, change: Change, now: float) -> None:
        match change:
            case Change.HANDSHAKE:
                link.connection.handle(Event.HANDSHAKE, now=now)
                self._enter_greeting(link, Why.lost(str(change)), now)
            case Change.LOST | Change.NO_GATEWAY:
                self._lose_link(link, Why.lost(str(change)), now)
            case Change.HUNG_UP:
                self.stats["handshakes_failed"] += 1
            case Change.REFUSED:
                self.stats["keys_refused"] += 1
                self._lose_link(link, Why.lost(str(change)), now)

    def _enter_greeting(self, link: GatewayLink, why: Why, now: float) -> None:
        """Whatever was in flight on the old connection will not be answered there: send it again once welcomed."""
        self._carry_out(self._ladder.link_lost(why, gateway=link.name, now=now))
        link.greet(self._hello, now=now)
        self._note_readiness()

    def _lose_link(self, link: GatewayLink, why: Why, now: float) -> None:
        if link.lost(now=now):
            self.stats["links_lost"] += 1
        self._note_readiness()
        self._carry_out(self._ladder.link_lost(why, gateway=link.name, now=now))
