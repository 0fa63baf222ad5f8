"""One gateway, asked step by step: resolve, connect, shake hands, greet, measure. Each step's outcome is kept.

The socket is made as the agent's is, so what works here works there. The measurement is that of the link estimator: the
smallest round trip of small pings, then seconds per byte of padded ones.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import zmq

from edge_agent import resolver
from edge_agent.ways import Way, Ways
from protocol import __version__, sockets, wire
from protocol import messages as m
from protocol.errors import IsthmusError, WireError
from protocol.messages import MAX_TEXT_LENGTH

if TYPE_CHECKING:
    from edge_agent.config import AgentSettings
    from protocol.bundle import Bundle

CONNECT_S = 3.0
GREET_S = 4.0
MEASURE_S = 4.0
HANG_UPS = 3  # once may be a gateway that has just been restarted
_SMALL_PINGS, _LARGE_PINGS = 5, 4
_FIRST_NBYTES, _LARGE_NBYTES = 8_000, 60_000
_SLOW_S = 0.5  # a first padded ping that takes this long is measurement enough
_JITTER_S = 2e-4  # a difference of two round trips below this is the scheduler's
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, in6.h: Python's socket module does not name them
_NO_MODEL = bytes(32)


@dataclass(slots=True)
class GatewayProbe:
    """What is None was not reached; then `problem` of the step before says why. Times in seconds."""

    endpoint: str
    targets: int = 1  # gateways that an SRV record names; the first one is asked
    literal: sockets.Endpoint | None = None
    resolve_s: float | None = None
    connect_s: float | None = None
    path_mtu: int | None = None
    handshake_s: float | None = None
    encrypted: bool = False
    refused: bool = False
    welcome: m.Welcome | None = None
    rtt_s: float | None = None
    up_bytes_per_s: float | None = None  # None too where transfers take less time than the scheduler's jitter
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)  # by step: fact and remedy


def probe_all(settings: AgentSettings, endpoints: Sequence[str], bundle: Bundle | None) -> tuple[GatewayProbe, ...]:
    """All at once, each on a thread of its own; as long as the slowest takes, and that is bounded by the steps."""
    probes = [GatewayProbe(endpoint) for endpoint in endpoints]
    digest = bytes.fromhex(bundle.manifest.model.digest) if bundle is not None else _NO_MODEL
    threads = [threading.Thread(target=_probe, args=(p, settings, digest), daemon=True) for p in probes]
    for thread in threads:
        thread.start()
    until = time.monotonic() + CONNECT_S + 2 * GREET_S + MEASURE_S
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0.0))
    return tuple(probes)


def _probe(probe: GatewayProbe, settings: AgentSettings, model: bytes) -> None:
    step = "resolve"
    try:
        _resolve(probe, settings.gateways.name_servers)
        step = "connect"
        _connect(probe)
        step = "handshake"
        assert probe.literal is not None
        if settings.keys.dir is None:
            sockets.require_loopback(probe.literal, insecure=settings.gateways.insecure, doing="connecting to")
        ways = Ways(probe.literal, settings.keys.dir, settings.keys.server_key)
        _greet(probe, ways, settings.gateways.name, model)
    except IsthmusError as error:
        probe.problems.setdefault(step, (error.fact, error.remedy))
    except ConnectionRefusedError as error:
        probe.problems.setdefault(step, (error.strerror or str(error), "start the gateway there, or check the port"))
    except OSError as error:
        probe.problems.setdefault(step, (error.strerror or str(error), "check the address, the network and firewalls"))


def _resolve(probe: GatewayProbe, servers: Sequence[str]) -> None:
    """Of an SRV record the target that is to be tried first. Raises NetworkError or InputError."""
    source = resolver.parse(probe.endpoint)
    host, port, began = source.host, source.port, time.monotonic()
    if source.is_srv:
        targets, _ = resolver.ask_srv(source.host, servers=[sockets.parse_endpoint(text) for text in servers])
        host, port, probe.targets = targets[0].host, targets[0].port, len(targets)
    probe.literal = resolver.addresses(host, port)[0]
    probe.resolve_s = time.monotonic() - began


def _connect(probe: GatewayProbe) -> None:
    """A plain TCP connection, to tell a network's faults from a gateway's. Raises OSError."""
    assert probe.literal is not None
    began = time.monotonic()
    with socket.create_connection(probe.literal, timeout=CONNECT_S) as stream:
        probe.connect_s = time.monotonic() - began
        level, name = (socket.IPPROTO_IPV6, _IPV6_MTU) if ":" in probe.literal.host else (socket.IPPROTO_IP, _IP_MTU)
        try:
            probe.path_mtu = stream.getsockopt(level, name)
        except OSError:
            probe.path_mtu = None


def _greet(probe: GatewayProbe, ways: Ways, name: str, model: bytes) -> None:
    """By every way in turn, as the agent does: while a gateway rotates its key only one of two may be let in."""
    for number in range(ways.count):
        if number:
            ways.turn()
            probe.problems.clear()
            probe.refused = False
        probe.encrypted = ways.current.curve is not None
        _Greeting(probe, ways.current, name, model).run()
        if probe.welcome is not None:
            return


class _Greeting:
    """A session of its own beside the daemon's: another boot id, and a name that says whose it is."""

    def __init__(self, probe: GatewayProbe, way: Way, name: str, model: bytes) -> None:
        self._probe = probe
        text = f"{name} (doctor)"[:MAX_TEXT_LENGTH]
        self._hello = m.Hello(os.urandom(8), text, f"isthmus {__version__}", model)
        self._began = time.monotonic()
        self._pongs: dict[int, float] = {}
        self._numbers = 0
        self._hang_ups = 0
        self._context = sockets.make_context()
        self._socket, self._monitor = sockets.watched_dealer(self._context, *way)
        self._poller = zmq.Poller()
        for source in (self._socket, self._monitor):
            self._poller.register(source, zmq.POLLIN)

    def run(self) -> None:
        probe = self._probe
        try:
            self._pump(self._began + GREET_S, lambda: probe.welcome is not None or bool(probe.problems))
            if probe.welcome is not None:
                self._measure(time.monotonic() + MEASURE_S)
            elif not probe.problems:
                self._say_silence()
        finally:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(0)
            self._context.term()

    def _pump(self, until: float, done: Callable[[], bool]) -> bool:
        """Take what comes until it is `done`; False if the time was up before."""
        while not done():
            now = time.monotonic()
            if now >= until:
                return False
            self._poller.poll(int((until - now) * 1e3) + 1)
            while self._monitor.poll(0):
                self._changed(sockets.monitor_event(self._monitor)[0], time.monotonic())
            while self._socket.poll(0):
                frames = self._socket.recv_multipart(copy=False)
                self._received(frames[0].buffer, time.monotonic())
        return True

    def _changed(self, event: int, now: float) -> None:
        problems = self._probe.problems
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._probe.handshake_s = now - self._began
            self._send(self._hello)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._probe.refused = True
            problems["key"] = ("the gateway does not let us in: our key is unknown, revoked or expired", _ADD_KEY)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            fact = "what answers there is no gateway, or one that wants keys"
            problems["handshake"] = (fact, "check the port, and keys.dir")
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._hang_ups += 1
            if self._hang_ups >= HANG_UPS:
                problems.setdefault(
                    "handshake", ("whoever listens there hangs up in the handshake", self._is_it_ours())
                )
        elif event == zmq.EVENT_DISCONNECTED and self._probe.handshake_s is not None:
            problems.setdefault("welcome", ("the gateway hung up after the handshake", _LOOK))

    def _received(self, header: memoryview, now: float) -> None:
        problems = self._probe.problems
        try:
            message = wire.unpack_header(header)
        except WireError as error:
            problems.setdefault("welcome", (error.fact, "is it an Isthmus gateway of this version?"))
            return
        match message:
            case m.Welcome():
                self._probe.welcome = message
            case m.Pong(number):
                self._pongs[number] = now
            case m.VersionMismatch(oldest, newest):
                fact = f"it speaks versions {oldest}..{newest} of the protocol, this agent {wire.VERSION}"
                problems["welcome"] = (fact, "bring both to one version")
            case m.Drain(reason):
                problems["welcome"] = (f"it is draining: {reason}", "wait until it is back")
            case _:
                pass  # the daemon's matter

    def _send(self, message: m.Message) -> int:
        """Bytes handed to the socket; 0 when there is no connection that would take them."""
        frames = wire.pack(message)
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return 0
        return sum(memoryview(frame).nbytes for frame in frames)

    def _say_silence(self) -> None:
        if self._probe.handshake_s is not None:
            self._probe.problems["welcome"] = (f"no welcome within {GREET_S:g} s after the handshake", _LOOK)
            return
        fact = f"no handshake within {GREET_S:g} s, though the port is open"
        self._probe.problems["handshake"] = (fact, self._is_it_ours())

    def _is_it_ours(self) -> str:
        if self._probe.encrypted:
            return (
                "is it a gateway's port? If its key was replaced while this device was off, copy its server.pub into "
                "the folder of keys, or `edge-agent enroll --replace` with a new token"
            )
        return "is it a gateway's port? One with keys hangs up on a device without: keys.dir"

    # ---- the link ---------------------------------------------------------------------------------------------------

    def _measure(self, until: float) -> None:
        small = [seconds for _ in range(_SMALL_PINGS) if (seconds := self._ping(0, until)[1]) is not None]
        if not small:
            self._probe.problems["rtt"] = ("it answers no ping", _LOOK)
            return
        self._probe.rtt_s = min(small)
        rates: list[float] = []
        for size in (_FIRST_NBYTES, *[_LARGE_NBYTES] * _LARGE_PINGS):
            nbytes, seconds = self._ping(size, until)
            if seconds is None:
                break
            transfer_s = seconds - self._probe.rtt_s
            if transfer_s > _JITTER_S:
                rates.append(nbytes / transfer_s)
            if seconds > _SLOW_S:
                break
        if rates:
            self._probe.up_bytes_per_s = statistics.median(rates[1:] or rates)  # the first warms the connection

    def _ping(self, padding: int, until: float) -> tuple[int, float | None]:
        """Bytes sent, and seconds until the pong; None if none came in time."""
        self._numbers += 1
        number, sent = self._numbers, time.monotonic()
        nbytes = self._send(m.Ping(number, bytes(padding)))
        if not nbytes or not self._pump(until, lambda: number in self._pongs):
            return nbytes, None
        return nbytes, self._pongs[number] - sent


_LOOK = "look into the gateway's log"
_ADD_KEY = "`cloud-gateway keys add NAME --key KEY` with the key that `edge-agent keys show` prints"
