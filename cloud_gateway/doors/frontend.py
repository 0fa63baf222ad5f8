"""The thread that owns the gateway's socket: header decode, session, admission, queueing; nothing heavy, never blocked.

    ROUTER -> unpack header -> session -> intake -> desk.submit
    engine thread --mailbox--> finish -> pack -> ROUTER

The front always drains the socket and answers what it cannot take (flow control is by credit and refusals, never by
back-pressure). Garbage is counted and dropped; a foreign version is told ours. Every request ends in one Result or
Reject.
"""

from __future__ import annotations

import functools
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import zmq

from cloud_gateway.access.authority import Authority
from cloud_gateway.access.enrolment import Enrolment
from cloud_gateway.access.zap import guest_key
from cloud_gateway.cached_desk import CachedDesk
from cloud_gateway.desk import GUEST, Desk
from cloud_gateway.doors.intake import Intake
from cloud_gateway.doors.newcomers import Newcomers
from cloud_gateway.doors.peers import Peer, Peers
from cloud_gateway.doors.replies import Replies
from cloud_gateway.doors.routes import is_front, user_id_of
from cloud_gateway.models.catalogue import Catalogue
from cloud_gateway.models.worker import Runner, post
from cloud_gateway.offers.offering import Brought, Offering
from cloud_gateway.scheduling.admission import Verdict
from cloud_gateway.seeing.ledger import Ledger
from cloud_gateway.seeing.tracing import Tracing
from cloud_gateway.work import Computed, Crashed, Item, NotComputed
from protocol import __version__, descriptors, sockets, wire
from protocol import messages as m
from protocol.errors import NetworkError, WireError
from protocol.mailbox import Mailbox
from protocol.seeing.health import Beats
from protocol.sockets import Endpoint
from protocol.wire import Buffer

SMALL_FRAME_NBYTES = 10_000  # below this libzmq keeps frames in a shared, unaligned buffer: copy them out
FLUSH_MS = 1000
WATCH_S = 1.0  # connections are looked at this often
LISTEN_AGAIN_S = 1.0  # where a port was taken
# A DEALER drops what it has not yet read when its connection closes: give the agents time to read their last answers.
SETTLE_S = 0.2
# While all engine threads are busy nothing that comes in is urgent: take it in one burst instead of one by one.
MODERATION_S = 0.001
RECEIVE_BURST = 32  # messages before results get their turn
# What a turn of the loop takes is what a request may have waited before it is read, and its answer before it is sent:
# the longest of late, slowly forgotten, is taken off every budget.
TURN_KEPT = 0.95
MOST_TURN_S = 0.01


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Refuse new work, finish what is held, then end; at the latest after `grace_s`."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class Moved:
    """The server's keys have changed."""


Post = Computed | NotComputed | Crashed | Shutdown | Moved | Brought


class Frontend:
    """Runs the loop in a thread of its own. `post` is for the workers, `shutdown` for everybody."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        endpoint: Endpoint,
        catalogue: Catalogue,
        desk: Desk,
        ledger: Ledger,
        *,
        authority: Authority,
        enrolment: Enrolment,
        cache: CachedDesk | None,
        tracing: Tracing | None,
        offering: Offering,
        beats: Beats,
        told: Callable[[str, str], None],
        crashed: Callable[[BaseException], None],
        relayed: bool = False,
    ) -> None:
        """`relayed`: the socket leads to a front that is a process, where the agents' connections end (`relay`)."""
        self.mailbox: Mailbox[Post] = Mailbox()
        self.stats: Counter[str] = Counter()
        self.epoch = os.urandom(8)
        self._socket = socket
        self._endpoint = endpoint
        self._authority = authority
        self._enrolment = enrolment
        self._relayed = relayed
        self._bound = {at: secret for at, secret in authority.secrets(endpoint).items() if at == endpoint}
        self._listen_again_at: float | None = None
        self._beats = beats
        self._offering = offering
        self._told = told
        self._catalogue = catalogue
        self._desk = desk
        self._ledger = ledger
        self._replies = Replies(socket, desk, ledger, self.stats, tracing)
        self._peers = Peers()
        self._newcomers = Newcomers()
        self._watch_at = 0.0
        self._monitor = None if relayed or not self._bound else sockets.watch(socket)
        submit = desk_submit(desk) if cache is None else cache.submit
        self._intake = Intake(self, catalogue, desk, submit, ledger, self._replies, self.stats)
        self._runner = Runner(desk, ledger, keep=None if cache is None else cache.keep)
        self._crashed = crashed
        self._draining = False
        self._end_by: float | None = None
        self._settle_by = 0.0
        self._thread = threading.Thread(target=self._main, name="isthmus-frontend", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post_all(self, items: Iterable[Post], /) -> None:
        """Hand over outcomes, or the wish to shut down. From any thread."""
        self.mailbox.post_all(items)

    def move(self) -> None:
        """The server's keys have changed: listen with those that hold now. From any thread."""
        self.mailbox.post(Moved())

    @property
    def agents(self) -> int:
        """How many have greeted and are still heard."""
        return len(self._peers.greeted())

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # the top of the thread
            self._refuse_everything(f"internal error: {error}")
            self._crashed(error)
        finally:
            self._beats.end("frontend")
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(0)
            self._socket.close(FLUSH_MS)  # answers that were handed over but not yet written still go out
            self.mailbox.close()

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self.mailbox.fileno(), zmq.POLLIN)
        self._listen_anew()  # a rotation of keys may have begun before we did
        more = False
        while not self._finished(time.monotonic()):
            patience_ms = 20 if self._end_by is not None else 100 if self._desk.pending()[0] else 1000
            ready = dict(poller.poll(0 if more else patience_ms))
            began = time.monotonic()
            if self._moderate() or self.mailbox.fileno() in ready:
                for item in self.mailbox.drain():
                    self._handle_post(item)
            if self._socket in ready:
                self._receive_burst()
            more = self._serve_small()
            now = time.monotonic()
            self._intake.turn_s = min(max(now - began, self._intake.turn_s * TURN_KEPT), MOST_TURN_S)
            self._peers.forget_silent(now=now)
            self._watch_newcomers(now)
            self._intake.look(now=now)
            post(self._desk.overdue(now=now))
            if self._listen_again_at is not None and now >= self._listen_again_at:
                self._listen_anew()
            self._beats.beat("frontend", now=now)

    def _moderate(self) -> bool:
        """Let requests gather while no engine thread could take them anyway. Outcomes end the pause: True."""
        pause_s = min(self._desk.busy_until - time.monotonic(), MODERATION_S)
        return pause_s > 0 and bool(select.select((self.mailbox.fileno(),), (), (), pause_s)[0])

    def _serve_small(self) -> bool:
        """Run a light batch here; engine threads are woken for everything else. Whether there may be another one."""
        dispatch = self._desk.take_small()
        if dispatch is None:
            return False
        others = []
        for outcome in self._runner.run(GUEST, dispatch):
            if isinstance(outcome, Computed) and outcome.item.door is self:
                self._replies.finish(outcome)
            else:
                others.append(outcome)
        post(others)
        return self._desk.waiting > 0

    def _finished(self, now: float) -> bool:
        if self._end_by is None:
            return False
        held = len(self._replies.dedup) > 0
        if held and now < self._end_by:
            self._settle_by = now + SETTLE_S
            return False
        if not held and now < self._settle_by:
            return False
        self._refuse_everything("the gateway is shutting down")
        return True

    def _handle_post(self, item: Post) -> None:
        match item:
            case Computed():
                self._replies.finish(item)
            case NotComputed(request, code, reason):
                self._replies.give_up(request, code, reason)
            case Crashed(error):
                raise error
            case Moved():
                self._listen_anew()
            case Brought(route, message, payload):
                self._replies.send(route, message, payload)
            case Shutdown(grace_s):
                self._draining = True
                self._end_by = time.monotonic() + grace_s
                self._settle_by = time.monotonic() + SETTLE_S
                for route in self._peers.greeted():
                    self._replies.send(route, m.Drain("shutting down"))
                # Once it is whole it would be refused: meanwhile another gateway could have done it.
                self._intake.refuse_all(m.RejectCode.DRAINING, "the gateway is shutting down", now=time.monotonic())

    def _listen_anew(self) -> None:
        if self._relayed:
            return
        self._listen_again_at = None
        try:
            sockets.listen(self._socket, self._bound, self._authority.secrets(self._endpoint))
        except NetworkError as error:  # what could be bound serves
            self._told("cannot_listen", str(error))
            self._listen_again_at = time.monotonic() + LISTEN_AGAIN_S

    def _refuse_everything(self, reason: str) -> None:
        """The last act: whoever still waits is told, and can read it, so that no request vanishes."""
        waiting = self._desk.withdraw(lambda item: item.door is self)
        settle_s = SETTLE_S if len(self._replies.dedup) + len(self._intake) else 0.0
        self._intake.refuse_all(m.RejectCode.INTERNAL, reason, now=time.monotonic())
        self._replies.refuse_all(waiting, self._catalogue.segments, reason[:900])
        time.sleep(settle_s)

    def _receive_burst(self) -> None:
        for number in range(RECEIVE_BURST):
            if number and not self.mailbox.is_empty:
                return  # outcomes first: they may be due
            # Asking costs 2 us, being told by an exception 12: ask after the first, of many the exception is cheaper.
            if number == 1 and not int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            route = frames[0].bytes
            user_id = user_id_of(route) if self._relayed else _user_id(frames[-1]) if self._bound else ""
            if (key := guest_key(user_id)) is not None:
                self._receive_guest(route, key, frames)
                continue
            if self._monitor is not None and self._authority.refusal(user_id) is None:
                self._newcomers.known(int(frames[-1].get(zmq.SRCFD)))
            buffers: list[Buffer] = [f.buffer if len(f) >= SMALL_FRAME_NBYTES else f.bytes for f in frames[1:]]
            try:
                self._receive(route, user_id, buffers, time.monotonic())
            except wire.VersionError:
                self.stats["foreign_versions"] += 1
                self._replies.send(route, m.VersionMismatch(wire.VERSION, wire.VERSION))
            except WireError:
                self.stats["wire_errors"] += 1

    # ---- what comes in ----------------------------------------------------------------------------------------------

    def _watch_newcomers(self, now: float) -> None:
        """Whoever has not shown to be a known agent in time holds a place that agents need."""
        if self._monitor is None or now < self._watch_at:
            return
        self._watch_at = now + WATCH_S
        for descriptor, is_new in sockets.connections_told(self._monitor):
            if is_new:
                self._newcomers.accepted(descriptor, descriptors.peer_of(descriptor), now=now)
            else:
                self._newcomers.ended(descriptor)
        for descriptor, address in self._newcomers.overdue(now=now):
            if address and descriptors.peer_of(descriptor) == address:
                self.stats["strangers_hung_up_on"] += 1
                descriptors.hang_up(descriptor)

    def _receive_guest(self, route: bytes, key: bytes, frames: list[zmq.Frame]) -> None:
        """Somebody who is not known may show an invitation; whatever else it says ends its connection."""
        self.stats["guests"] += 1
        taken = len(frames) == 2 and self._enrolment.take_frame(route, key, frames[1].bytes)
        if not taken and not self._relayed:  # behind a front its process counts the connections
            descriptors.hang_up(int(frames[-1].get(zmq.SRCFD)))

    def _receive(self, route: bytes, user_id: str, frames: list[Buffer], now: float) -> None:
        if not frames:
            raise WireError("a message without a header", "see docs/wire.md")
        message = wire.unpack_header(frames[0])
        refusal = self._authority.refusal(user_id)
        if refusal is not None and not (self._relayed and is_front(route)):
            self._forbid(route, message, refusal, now)
            return
        peer = self._peers.heard(route, now=now)
        match message:
            case m.Hello(boot=boot, also=also):
                self._peers.greet(route, peer, (boot, *also), self._authority.tenant(user_id), now=now)
                self.stats["hellos"] += 1
                self._intake.greeted(route, peer)
                self._replies.send(route, self._welcome(peer.tenant, now))
                if self._draining:
                    self._replies.send(route, m.Drain("shutting down"))
            case m.Infer():
                self.stats["requests"] += 1
                if not peer.is_greeted:
                    self._replies.send(route, m.NeedHello(self.epoch, message.request))
                else:
                    self._require_own(peer, message.request)
                    self._intake.infer(route, peer, message, frames[1:], now=now)
            case m.Chunk() if peer.is_greeted:  # otherwise its Infer was told to greet first
                self._require_own(peer, message.request)
                self._intake.chunk(route, peer, message, frames[1:], now=now)
            case m.Cancel(request):
                self._require_own(peer, request)
                self._intake.cancel(peer, request, now=now)
            case m.Enroll() if (key := self._authority.key_of(user_id)) is not None:
                self._enrolment.take(route, key, message)
            case m.AskOffers() | m.FetchPart():
                if (reply := self._offering.ask(route, message)) is not None:
                    self._replies.send(route, reply)
            case m.Ping(number):
                self._replies.send(route, m.Pong(number, int(self._desk.wait_s(now=now) * 1e6)))
                if not peer.is_greeted:
                    self._replies.send(route, m.NeedHello(self.epoch))
                elif self._peers.is_twin(peer, now=now):
                    self.stats["twins"] += 1
                    self._told("two_with_one_key", f"{peer.tenant}: two devices share its key; enrol one of them anew")
            case _:
                raise WireError(f"{type(message).__name__} is not for a gateway", "see docs/wire.md")

    def _forbid(self, route: bytes, message: m.Message, refusal: str, now: float) -> None:
        """Its connection was made with a key that holds no longer."""
        self.stats["forbidden"] += 1
        self._peers.drop(route)
        if isinstance(message, m.Infer):
            self._ledger.offered(None)
            self._replies.reject(route, message, m.RejectCode.FORBIDDEN, refusal, now=now)
        elif isinstance(message, m.Chunk):
            reject = m.Reject(message.request, message.attempt, m.RejectCode.FORBIDDEN, refusal, 0, 0)
            self._replies.send(route, reject)

    def _require_own(self, peer: Peer, request: m.RequestId) -> None:
        """Nobody may fetch or cancel another's request: its id begins with a boot id that the peer greeted with."""
        if request.boot not in peer.boots:
            raise WireError(f"request {request} is not this peer's", "greet with the boot id that your requests bear")

    def _welcome(self, tenant: str, now: float) -> m.Welcome:
        limits = self._desk.limits
        return m.Welcome(
            epoch=self.epoch,
            software=f"isthmus {__version__}",
            credit_requests=limits.credit_requests,
            credit_nbytes=limits.credit_nbytes,
            segments=tuple(self._catalogue.segments),
            models=tuple(self._catalogue.models),
            chunk_nbytes=wire.PART_NBYTES,
            shared_key=self._peers.shares_key(tenant, now=now),
        )


def _user_id(frame: zmq.Frame) -> str:
    """Whose key the connection has proven, as the ZAP reply named it; "" for plain text."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def desk_submit(desk: Desk) -> Callable[[Item], Verdict | None]:
    """The desk's own `submit`; engine threads are woken when the whole burst is in (`_serve_small`)."""
    return functools.partial(desk.submit, wake=False)
