"""An access link on loopback, in user space and without privilege: a TCP proxy that obeys `shaping.Shaper`.

Law: the link, not the kernel, decides when a byte arrives. Sockets are read only while the link's queue has room, their
kernel buffers are kept small, and every connection shares the same two lanes, as the devices in one house do.

    client ==> [listener]  up:   read -> Shaper -> write  ==> target
    client <== [listener]  down: write <- Shaper <- read  <== target

Not emulated: packet loss, slow start, and the round trip that a TCP handshake costs.

    with LinkEmulator(("127.0.0.1", 5555), uplink_mbit_per_s=20, downlink_mbit_per_s=100, rtt_ms=10) as link:
        connect(link.endpoint)
        link.set_rate(2)

`python -m benchmarks.link` is the same in a process of its own, which is the better place while the measuring process
is busy: a pure-Python loop there keeps the interpreter lock, and so this link, for 5 ms at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import math
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, Self, TypeVar

from benchmarks.link_flows import Connection, Flow, Lane
from benchmarks.shaping import bytes_per_s

Address = tuple[str, int]
Side = Literal["up", "down", "both"]
T = TypeVar("T")

SOCKET_BUFFER_NBYTES = 32 << 10  # the kernel doubles it
CONTROL_TIMEOUT_S = 5.0
TIMER_SLACK_NS = 1000  # Linux otherwise wakes a thread up to 50 us late, at every wait
PR_SET_TIMERSLACK = 29
# Linux lets select be late by 0.1 % of its timeout, 0.5 % in a niced process: 0.25 ms in 50. A long wait is therefore
# cut in two, so that only a short one decides the moment. Measured round trip error at 100 ms: 0.8 -> 0.5 ms, of which
# the link is 0.16 ms late; the rest are the wake-ups of idle peers.
LONG_WAIT_S = 0.002
LONG_WAIT_SHARE = 0.98


class LinkEmulator:
    """A link in front of `target`, running in a daemon thread between `__enter__` and `__exit__`.

    The controls may be called from any thread and have taken effect when they return.

    Args:
        target: loopback address (host, port) of the server; it need not listen yet.
        listen: loopback address to accept clients on; port 0 takes a free one.
        uplink_mbit_per_s: rate from client to target in Mbit/s; None is unlimited.
        downlink_mbit_per_s: rate from target to client in Mbit/s; None is unlimited.
        rtt_ms: round-trip time in ms, half of it in each direction.

    Raises:
        ValueError: if an address is not on loopback, a rate not positive, or the round trip negative.
    """

    def __init__(
        self,
        target: Address,
        *,
        listen: Address = ("127.0.0.1", 0),
        uplink_mbit_per_s: float | None = None,
        downlink_mbit_per_s: float | None = None,
        rtt_ms: float = 0.0,
    ) -> None:
        self._target, self._listen = _loopback(target), _loopback(listen)
        self._lanes = {
            "up": Lane(uplink_mbit_per_s, rtt_ms / 2e3),
            "down": Lane(downlink_mbit_per_s, rtt_ms / 2e3),
        }
        self._connections: list[Connection] = []
        self._listener: socket.socket | None = None
        self._controls: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._blackholed = self._stopping = False
        self._unreachable = 0

    def __enter__(self) -> Self:
        self._open()
        self._stopping = False
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="link-emulator", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._stopping = True
        self._ring.send(b"!")
        self._thread.join(CONTROL_TIMEOUT_S)
        self._thread = None
        self._bell.close()
        self._ring.close()

    @property
    def address(self) -> Address:
        """The (host, port) to connect to; the port is known once the link has been entered."""
        return self._listen

    @property
    def endpoint(self) -> str:
        """The address as a ZeroMQ endpoint, `tcp://HOST:PORT`."""
        host, port = self._listen
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def set_rate(self, mbit_per_s: float | None, *, side: Side = "both") -> None:
        """Change the rate in Mbit/s (None: unlimited); what is queued is served at the new rate.

        Raises:
            ValueError: if the rate is not positive and finite.
        """
        self._control(lambda: self._set_rate(bytes_per_s(mbit_per_s), side))

    def set_delay_ms(self, one_way_ms: float, *, side: Side = "both") -> None:
        """Change the one-way delay in ms; the round trip is the sum over both sides.

        Raises:
            ValueError: if the delay is negative or not finite.
        """
        self._control(lambda: self._set_delay(one_way_ms / 1e3, side))

    def blackhole(self, on: bool = True, *, side: Side = "both") -> None:
        """Hold everything back and read nothing, with connections open; off again, the link goes on where it was.

        Of one side only the link is half open: the other way everything still arrives.
        """
        self._control(lambda: self._blackhole(on, side))

    def reset_all(self) -> None:
        """Close every connection with RST, at both ends; new ones are welcome."""
        self._control(self._reset_all)

    def refuse(self, on: bool = True) -> None:
        """Stop listening, or listen again on the same port; open connections go on.

        Raises:
            OSError: if the port was taken by somebody else in the meantime.
        """
        self._control(self._close_listener if on else self._open)

    def stats(self) -> dict[str, object]:
        """Return counters: per lane, connections, clients reset for want of a target, CPU seconds of the thread."""
        return self._control(self._stats)

    # What follows runs in the link's thread.

    def _run(self) -> None:
        _sharpen_timers()
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._reset_all()
            self._close_listener()

    def _turn(self) -> None:
        """One turn of the loop: wait, take in, let arrive."""
        now = time.monotonic()
        flows = [] if self._blackholed else [flow for c in self._connections for flow in c.flows]
        sources = {flow.source: flow for flow in flows if flow.wants_read and flow.lane.shaper.room_at(now) <= now}
        sinks = {flow.sink: flow for flow in flows if flow.wants_write}
        doors = [self._bell] if self._blackholed or self._listener is None else [self._bell, self._listener]
        # select, unlike epoll, takes a timeout in microseconds; its 1,024 descriptors are plenty for a benchmark.
        readable, writable, _ = select.select([*doors, *sources], list(sinks), (), self._wait_s(now))
        if self._bell in readable:
            self._obey()
            return  # a control may have closed what select found
        for sink in writable:
            self._guarded(sinks[sink], self._write)
        for flow in sorted((sources[s] for s in readable if s in sources), key=lambda flow: flow.served):
            self._guarded(flow, self._read)
        for lane in self._lanes.values():
            for flow in lane.arrivals(time.monotonic()):
                self._guarded(flow, self._write)
        if self._listener in readable:
            self._accept()
        self._connections = [c for c in self._connections if not c.closed]

    def _wait_s(self, now: float) -> float | None:
        """Return how long to wait for a socket before the clock may have something to do; None is for ever."""
        wakes = [lane.shaper.room_at(now) for lane in self._lanes.values()]
        wakes = [wake_s for wake_s in wakes if wake_s > now]
        wakes += [due_s for lane in self._lanes.values() if (due_s := lane.shaper.next_release()) is not None]
        wake_s = min(wakes, default=math.inf)
        if wake_s == math.inf:
            return None
        wait_s = max(0.0, wake_s - now)
        return wait_s if wait_s < LONG_WAIT_S else wait_s * LONG_WAIT_SHARE

    def _guarded(self, flow: Flow, move: Callable[[Flow], None]) -> None:
        """Let one flow move; if its connection turns out to be broken, both ends learn it at once."""
        if flow.connection.closed:
            return
        try:
            move(flow)
        except OSError:
            flow.connection.close(reset=True)

    def _read(self, flow: Flow) -> None:
        now = time.monotonic()
        if flow.lane.shaper.room_at(now) <= now:  # another flow of the lane may have filled it in this very turn
            flow.read(now)

    def _write(self, flow: Flow) -> None:
        if not flow.connection.connected:
            self._connected(flow.connection)
        flow.write()

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # the client may have gone already
            client, _ = self._listener.accept()
            connection = Connection(
                _tuned(client), _tuned(socket.socket(_family(self._target[0]))), self._lanes["up"], self._lanes["down"]
            )
            self._connections.append(connection)
            # Loopback often answers at once; otherwise the outcome arrives as "writable", a refusal too.
            self._guarded(connection.flows[0], lambda flow: self._connect(flow.connection))

    def _connect(self, connection: Connection) -> None:
        self._raise_unless_connecting(connection.server.connect_ex(self._target))

    def _connected(self, connection: Connection) -> None:
        self._raise_unless_connecting(connection.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        connection.connected = True

    def _raise_unless_connecting(self, code: int) -> None:
        if code not in (0, errno.EINPROGRESS):
            self._unreachable += 1
            raise ConnectionError(code, "the target does not accept connections")

    def _open(self) -> None:
        if self._listener is not None:
            return
        listener = _tuned(socket.socket(_family(self._listen[0])))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self._listen)
            listener.listen()
        except OSError:
            listener.close()
            raise
        self._listener, self._listen = listener, listener.getsockname()[:2]

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _control(self, action: Callable[[], T]) -> T:
        """Have the link's thread do it, and wait until it has; without a thread, do it here."""
        if self._thread is None:
            return action()
        outcome: Future[T] = Future()
        self._controls.append(lambda: _fulfil(outcome, action))
        self._ring.send(b"!")
        return outcome.result(CONTROL_TIMEOUT_S)

    def _obey(self) -> None:
        self._bell.recv(4096)
        while self._controls:
            self._controls.popleft()()

    def _set_rate(self, rate_bytes_per_s: float | None, side: Side) -> None:
        now = time.monotonic()
        for lane in self._on(side):
            lane.shaper.set_rate(rate_bytes_per_s, now=now)

    def _set_delay(self, one_way_s: float, side: Side) -> None:
        for lane in self._on(side):
            lane.shaper.set_delay(one_way_s)

    def _blackhole(self, on: bool, side: Side) -> None:
        now = time.monotonic()
        for lane in self._on(side):
            (lane.shaper.pause if on else lane.shaper.resume)(now=now)
        self._blackholed = all(lane.shaper.is_paused for lane in self._lanes.values())

    def _reset_all(self) -> None:
        for connection in self._connections:
            connection.close(reset=True)
        self._connections = []

    def _stats(self) -> dict[str, object]:
        now = time.monotonic()
        counters: dict[str, object] = {name: lane.stats(now) for name, lane in self._lanes.items()}
        return counters | {
            "connections": len(self._connections),
            "unreachable": self._unreachable,
            "cpu_s": round(time.thread_time(), 4),
        }

    def _on(self, side: Side) -> list[Lane]:
        return list(self._lanes.values()) if side == "both" else [self._lanes[side]]


def parse_address(text: str) -> Address:
    """Parse `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        ValueError: if the text has another form.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"address is {text!r} but must be HOST:PORT, for example 127.0.0.1:5555")
    return host.strip("[]"), int(port)


def _loopback(address: Address) -> Address:
    host, port = address
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return ("127.0.0.1" if host == "localhost" else host), port
    raise ValueError(f"address {host}:{port} is not on loopback, and this link carries traffic nowhere else")


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tuned(end: socket.socket) -> socket.socket:
    """Make the kernel add as little of its own as it can: no Nagle, short buffers, no pacing."""
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_NBYTES)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_NBYTES)
    with contextlib.suppress(OSError, AttributeError):  # BBR, some kernels' default, would pace a second time
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return end


def _sharpen_timers() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the timers stay as they are
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(TIMER_SLACK_NS), 0, 0, 0)


def _fulfil(outcome: Future[T], action: Callable[[], T]) -> None:
    try:
        outcome.set_result(action())
    except Exception as error:  # it belongs to the caller's thread
        outcome.set_exception(error)


if __name__ == "__main__":
    from benchmarks.link_process import main

    sys.exit(main())
