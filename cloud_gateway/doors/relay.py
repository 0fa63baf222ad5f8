"""The front as a process of its own: it may crash, hang or run out of memory, and the gateway goes on.

    agents =TCP=> ROUTER [ Relay ] DEALER =Unix socket=> DEALER Frontend, in the gateway's process

It opens no message: it names where each came from (`routes`) and hands it on, never blocking and never holding more
than it should. What the gateway has not yet read is bounded (`Window`; the mark is an ordinary Ping of its own), what
peers pile up in libzmq likewise (`Holdings`); who goes beyond is hung up on, and finds its requests again by their ids.

    stdin    one line: the Order as JSON; then nothing, until its end: farewell
    stdout   `ready ENDPOINT`, then counters as one JSON object a second (the sign of life); what an operator should
             know is an object with `told` and `text`

It ends when stdin does, so it never outlives its gateway, and ignores SIGTERM and SIGINT, which are the gateway's: it
must outlive the gateway's last answers.  `python -m cloud_gateway.doors.relay`
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import zmq
from zmq.utils.monitor import recv_monitor_message

from cloud_gateway.access.authority import Authority
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.zap import guest_key
from cloud_gateway.doors.holdings import MOVING_NBYTES, Holdings, Window
from cloud_gateway.doors.newcomers import Newcomers
from cloud_gateway.doors.routes import peer_of, to_route
from protocol import descriptors, sockets, wire
from protocol import messages as m
from protocol.errors import InputError, IsthmusError, NetworkError, WireError
from protocol.sockets import Endpoint
from protocol.tensors import MAX_TENSORS

_ENROLL = bytes((wire.VERSION, 16))  # how the one message begins that a guest may send
MOST_PARTS = wire.MAX_PAYLOAD_NBYTES // wire.PART_NBYTES + MAX_TENSORS + 1
MOST_NBYTES = wire.MAX_PAYLOAD_NBYTES + wire.MAX_HEADER_NBYTES
WINDOW_NBYTES = 64 << 20
WINDOW_MESSAGES = 4096
LEAST_HEADROOM_NBYTES = 64 << 20
BURST = 64  # messages in one direction before the other gets its turn
LOOK_S = 0.05  # at what connections hold, while some bring much
REST_S = 0.25  # and while none does: an idle front must cost nothing
QUICK_S = 1.0
TELL_S = 1.0
CONNECT_S = 5.0
LISTEN_AGAIN_S = 1.0  # where a port was taken
QUIET_S = 0.2  # at the end: no answer for so long and there will be none
FAREWELL_S = 2.0
FLUSH_MS = 1000
STDIN, STDOUT = 0, 1
PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Order:
    """What a front is told when it is started. One line of documentation per field."""

    listening: int  # descriptor of the listening TCP socket, which the gateway keeps
    host: str  # where that listens: a literal address
    port: int
    hub: str  # path of the Unix socket to the gateway, alone in a folder of its own
    life: int  # how many fronts this gateway has had, with this one
    memory_nbytes: int  # bound of the process's data
    connections: int  # at once
    keys: str | None  # folder of keys; None takes plain text
    insecure: bool  # plain text from other machines too

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, line: str) -> Order:
        """Raises InputError for what is no order."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise InputError(f"no order on stdin ({error})", "a gateway starts this process by itself") from error


class Relay:
    """One thread; `run` returns when stdin ends."""

    def __init__(self, order: Order) -> None:
        """Bound the memory, connect to the gateway, then listen. Raises InputError or NetworkError."""
        self._order = order
        self._stats: Counter[str] = Counter()
        headroom = _bound_memory(order.memory_nbytes)
        self._most_nbytes = min(MOST_NBYTES, headroom // 4)
        self._pressed_at = _resident_nbytes() + headroom // 2
        self._holdings = Holdings(most_nbytes=self._most_nbytes + sockets.MAX_FRAME_NBYTES)
        self._newcomers = Newcomers()
        self._window = Window(nbytes=min(WINDOW_NBYTES, headroom // 8), messages=WINDOW_MESSAGES)
        self._endpoint = Endpoint(order.host, order.port)
        self._held = {self._endpoint: order.listening}
        self._authority = Authority(
            KeyFolder(Path(order.keys)) if order.keys else None, insecure=order.insecure, told=_tell
        )
        self._bound: dict[Endpoint, bytes] = {}
        self._moved, self._moving = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # the authority wants us to listen elsewhere
        self._context = sockets.make_context()
        self._gateway = sockets.spoke(self._context, order.hub)
        if not self._gateway.poll(int(CONNECT_S * 1000), zmq.POLLOUT):
            raise NetworkError(f"the gateway does not answer at {order.hub}", "is its folder gone? restart the gateway")
        self._agents, self._monitor = sockets.watched_router(self._context, guarded=True)
        self._authority.start(self._context, self._move)
        self._listen_again_at: float | None = None
        if order.keys is None:
            sockets.adopt(self._agents, order.listening, self._endpoint)
        else:
            self._listen()
        self._waiting = zmq.Poller()  # without the agents: while the window is shut
        for source in (self._gateway, self._monitor, STDIN, self._moved):
            self._waiting.register(source, zmq.POLLIN)
        self._poller = zmq.Poller()
        for source in (self._agents, self._gateway, self._monitor, STDIN, self._moved):
            self._poller.register(source, zmq.POLLIN)
        self._look_at = self._tell_at = self._quick_until = 0.0
        self._pace_s = LOOK_S
        self._unseen_nbytes = 0  # taken since the last look

    def run(self) -> None:
        """Raises whatever goes wrong: then the process is to end at once, without farewell."""
        _say(f"ready {self._endpoint}")
        while True:
            poller = self._poller if self._window.open else self._waiting
            ready = dict(poller.poll(int(max(self._look_at - time.monotonic(), 0.0) * 1000) + 1))
            if STDIN in ready and not os.read(STDIN, 4096):
                break
            if self._moved in ready:
                os.read(self._moved, 64)
                self._listen()
            if self._monitor in ready:
                self._watch()
            if self._agents in ready:
                self._take_burst()
            if self._gateway in ready:
                self._bring_burst()
            if self._unseen_nbytes >= MOVING_NBYTES:
                self._hurry()
            self._look(time.monotonic())
        self._part()
        self._close()

    # ---- both directions --------------------------------------------------------------------------------------------

    def _take_burst(self) -> None:
        for _ in range(BURST):
            if not self._window.open or not self._take():
                return

    def _take(self) -> bool:
        """Hand one message on to the gateway; whether there was one."""
        try:
            frame = self._agents.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        peer = frame.bytes
        parts: list[zmq.Frame] = []
        count = nbytes = 0
        while frame.more:
            frame = self._agents.recv(copy=False)
            count += 1
            nbytes += len(frame)
            if count <= MOST_PARTS and nbytes <= self._most_nbytes:
                parts.append(frame)
        self._unseen_nbytes += nbytes
        descriptor = int(frame.get(zmq.SRCFD)) if count else -1
        self._holdings.delivered(descriptor)
        self._stats["taken"] += 1
        if count > len(parts):
            self._stats["too_large"] += 1
            descriptors.hang_up(descriptor)
            return True
        # Whether that key still holds is for the gateway to say, with a reason, for every message.
        user_id = "" if self._authority.table is None else _user_id(frame)
        if guest_key(user_id) is not None and (count != 1 or parts[0].bytes[:2] != _ENROLL):
            self._stats["guests_refused"] += 1
            descriptors.hang_up(descriptor)
            return True
        if guest_key(user_id) is None:
            self._newcomers.known(descriptor)
        try:
            self._gateway.send_multipart([to_route(self._order.life, peer, user_id), *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:  # the gateway is going: its agents shall know
            self._stats["undelivered"] += 1
            descriptors.hang_up(descriptor)
            return True
        mark = self._window.sent(nbytes)
        if mark is not None:
            self._gateway.send_multipart([to_route(self._order.life, b""), *wire.pack(m.Ping(mark))], copy=False)
        return True

    def _bring_burst(self) -> int:
        """Hand answers on to the agents; how many there were."""
        for done in range(BURST):
            try:
                frames = self._gateway.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return done
            peer = peer_of(frames[0].bytes, life=self._order.life)
            if peer is None:
                self._stats["stale_answers"] += 1
            elif not peer:
                self._read(frames)
            else:
                try:
                    self._agents.send_multipart([peer, *frames[1:]], zmq.NOBLOCK, copy=False)
                    self._stats["brought"] += 1
                except zmq.ZMQError:
                    # The peer is gone or does not read. The gateway keeps its answer: it may ask again.
                    self._stats["peers_gone"] += 1
        return BURST

    def _read(self, frames: list[zmq.Frame]) -> None:
        """The gateway's answer to our own Ping. It also tells us to greet it, which a front never does."""
        try:
            message = wire.unpack_header(frames[1].bytes) if len(frames) > 1 else None
        except WireError:
            message = None
        if isinstance(message, m.Pong):
            self._window.read_up_to(message.number)

    # ---- connections ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """What the monitor tells of connections."""
        while self._monitor.poll(0):
            told = recv_monitor_message(self._monitor)
            descriptor = int(told["value"])
            if told["event"] == zmq.EVENT_DISCONNECTED:
                self._holdings.ended(descriptor)
                self._newcomers.ended(descriptor)
            elif len(self._holdings) >= self._order.connections:
                self._stats["connections_refused"] += 1
                descriptors.hang_up(descriptor)
            else:
                self._stats["connections_accepted"] += 1
                self._holdings.accepted(descriptor)
                if self._authority.table is not None:
                    self._newcomers.accepted(descriptor, descriptors.peer_of(descriptor), now=time.monotonic())
                self._hurry()

    def _look(self, now: float) -> None:
        """Now and then: who holds too much, where to listen, and a sign of life."""
        if now >= self._look_at:
            for descriptor in self._holdings.inspect(descriptors.received_nbytes, pressed=self._is_pressed()):
                self._stats["hoarders"] += 1
                descriptors.hang_up(descriptor)
            for descriptor, address in self._newcomers.overdue(now=now):
                if address and descriptors.peer_of(descriptor) == address:
                    self._stats["strangers_hung_up_on"] += 1
                    descriptors.hang_up(descriptor)
            self._unseen_nbytes = 0
            # At most 2 % of a processor, however many there are.
            self._pace_s = max(LOOK_S, 50 * (time.monotonic() - now))
            self._look_at = now + max(self._pace_s, 0.0 if now < self._quick_until else REST_S)
            if self._holdings.moving:
                self._hurry()
        if self._listen_again_at is not None and now >= self._listen_again_at:
            self._listen()
        if now >= self._tell_at:
            self._tell_at = now + TELL_S
            _say(json.dumps({
                **self._stats, **self._authority.stats, "connections": len(self._holdings),
                "resident_nbytes": _resident_nbytes(), "under_way_nbytes": self._window.under_way_nbytes,
            }))  # fmt: skip

    def _hurry(self) -> None:
        """Something moves: look more often for a while."""
        now = time.monotonic()
        self._quick_until = now + QUICK_S
        self._look_at = min(self._look_at, now + self._pace_s)
        self._unseen_nbytes = 0

    def _is_pressed(self) -> bool:
        if _resident_nbytes() < self._pressed_at:
            return False
        _give_back_memory()  # what was freed may still be ours
        return _resident_nbytes() >= self._pressed_at

    def _move(self) -> None:
        """On the authority's thread: wake our own, which owns the socket."""
        with contextlib.suppress(BlockingIOError):  # it has been told often enough
            os.write(self._moving, b"\0")

    def _listen(self) -> None:
        """Listen where, and with which keys, the folder of keys says."""
        self._listen_again_at = None
        try:
            wanted = self._authority.secrets(self._endpoint)
            self._bound = sockets.listen(self._agents, self._bound, wanted, self._held)
        except NetworkError as error:  # a second port, for a key that is to come; what could be bound serves
            _tell("cannot_listen", str(error))
            self._listen_again_at = time.monotonic() + LISTEN_AGAIN_S

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _part(self) -> None:
        """Bring the last answers, until there are no more."""
        give_up_at = time.monotonic() + FAREWELL_S
        while self._gateway.poll(int(QUIET_S * 1000)) and time.monotonic() < give_up_at:
            self._bring_burst()
        hub = Path(self._order.hub)
        with contextlib.suppress(OSError):  # the gateway has done this, unless it was killed
            hub.unlink(missing_ok=True)
            hub.parent.rmdir()

    def _close(self) -> None:
        self._agents.disable_monitor()
        self._monitor.close(0)
        self._agents.close(FLUSH_MS)
        self._gateway.close(0)
        self._authority.stop()
        self._context.term()


def _user_id(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _bound_memory(nbytes: int) -> int:
    """Bound this process's data; what is left of it. Raises InputError if that is too little to work with."""
    taken = int(_statm()[5]) * PAGE_NBYTES
    if nbytes < taken + LEAST_HEADROOM_NBYTES:
        least = -(-(taken + LEAST_HEADROOM_NBYTES) >> 20)
        raise InputError(f"a front cannot live in {nbytes >> 20} MiB of memory", f"give it at least {least} MiB")
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
    return nbytes - taken


def _statm() -> list[str]:
    return Path("/proc/self/statm").read_text("ascii").split()


def _resident_nbytes() -> int:
    return int(_statm()[1]) * PAGE_NBYTES


def _give_back_memory() -> None:
    ctypes.CDLL(None).malloc_trim(0)


def _tell(event: str, text: str) -> None:
    _say(json.dumps({"told": event, "text": text[:1000]}))


def _say(line: str) -> None:
    """A line that nobody reads is dropped: stdout must never hold us up."""
    try:
        os.write(STDOUT, line.encode() + b"\n")
    except OSError:
        return


def main() -> int:
    """Take one order and carry it out. Exit codes as everywhere (protocol.errors)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.set_blocking(STDOUT, False)
    try:
        Relay(Order.of(sys.stdin.readline())).run()
    except IsthmusError as error:
        _tell("front_failed", str(error))
        return error.exit_code
    except MemoryError:
        _tell("front_failed", "out of memory")
        os._exit(1)  # with what is left, closing in good order could hang
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
