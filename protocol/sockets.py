"""The one place where sockets are made. Every option below closes a hole that was reproduced, not imagined.

No other module may call `Context.socket` (a test walks the tree). Endpoints are literal addresses: libzmq resolves
names in its I/O thread and freezes every other socket meanwhile, so `resolve` does it in the caller's thread.

A connection is either CURVE (both sides know the other's public key; everything is encrypted) or plain text. Who may
connect is decided by the ZAP reply of whoever has bound `gatekeeper`; a ROUTER that is `guarded` refuses everybody
while nobody has (libzmq's own default is to accept everybody then).

A gateway whose front is a process of its own keeps the listening TCP socket (`listener`) and talks to that process over
a Unix socket (`hub`, `spoke`); the process takes connections from what it was given (`watched_router`, `adopt`).
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import random
import socket as stdlib_socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import zmq
from zmq.utils import z85

from protocol.errors import InputError, NetworkError
from protocol.wire import MAX_HEADER_NBYTES, PART_NBYTES

Socket: TypeAlias = "zmq.Socket[bytes]"
Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"

# A frame is a header or one payload part; libzmq's default is unlimited, also before a peer has authenticated itself.
MAX_FRAME_NBYTES = max(PART_NBYTES, MAX_HEADER_NBYTES) + 1024

HEARTBEAT_IVL_MS = 1000
HEARTBEAT_TIMEOUT_MS = 3000
HEARTBEAT_TTL_MS = 5000
# Keep-alive alone never notices a half-open link with data in flight.
TCP_MAXRT_MS = 6000
HANDSHAKE_IVL_MS = 4000
CONNECT_TIMEOUT_MS = 3000
RECONNECT_IVL_MS = (80, 150)  # drawn per socket: libzmq has no jitter of its own, and a fleet must not knock in step
RECONNECT_IVL_MAX_MS = (800, 1500)
SEND_HWM = 1024
BACKLOG = 512
ZAP_DOMAIN = b"isthmus"
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_EVENT_AND_VALUE = struct.Struct("=Hi")  # see zmq_socket_monitor(3)
REBIND_S = 0.5  # libzmq closes a listener in its I/O thread, so that its port is free only a little later


class CurveClient(NamedTuple):
    """How an agent connects: its own secret and the public key of its gateway, 32 bytes each."""

    secret: bytes
    server: bytes


class Endpoint(NamedTuple):
    """A TCP endpoint with a literal address."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return self.host != "*" and ipaddress.ip_address(self.host).is_loopback


def parse_endpoint(text: str) -> Endpoint:
    """`tcp://HOST:PORT` or `HOST:PORT`; HOST may be a name, `*`, or an IPv6 address in brackets. Raises InputError."""
    remedy = "write tcp://HOST:PORT, for example tcp://127.0.0.1:7447"
    rest = text.removeprefix("tcp://")
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if "://" in rest or not colon or not host:
        raise InputError(f"{text!r} is not an endpoint", remedy)
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise InputError(f"{text!r} has no valid port", remedy)
    return Endpoint(host, int(port))


def resolve(endpoint: Endpoint) -> Endpoint:
    """The same endpoint with a literal address. Blocks for as long as the resolver does. Raises NetworkError."""
    if endpoint.host == "*":
        return endpoint
    try:
        found = stdlib_socket.getaddrinfo(endpoint.host, endpoint.port, type=stdlib_socket.SOCK_STREAM)
    except OSError as error:
        fact = f"the name {endpoint.host!r} does not resolve ({error})"
        raise NetworkError(fact, "check the name or use an address") from error
    return Endpoint(str(found[0][4][0]), endpoint.port)


def require_loopback(endpoint: Endpoint, *, insecure: bool, doing: str) -> None:
    """Refuse plaintext off this machine unless it was asked for by name. Raises InputError."""
    if not endpoint.is_loopback and not insecure:
        raise InputError(
            f"{doing} {endpoint} would send activations in plain text over a network",
            "give it keys (`cloud-gateway keys init`, then --keys), use a loopback address (a tunnel ends there), "
            "or say --insecure",
        )


def make_context() -> Context:
    # libzmq draws anonymous routing ids from C rand(), unseeded: two gateways would hand out the same ids.
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
    return zmq.Context(io_threads=2)


def curve_pair() -> tuple[bytes, bytes]:
    """A new public and secret key of 32 bytes each."""
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


def curve_public(secret: bytes) -> bytes:
    """The public key (32 bytes) that belongs to a secret one."""
    return z85.decode(zmq.curve_public(z85.encode(secret)))


def from_z85(text: str) -> bytes | None:
    """The 32 bytes behind 40 characters of Z85 (ZeroMQ RFC 32), or None if these are none."""
    try:
        data = z85.decode(text)
    except (KeyError, ValueError, OverflowError, struct.error):
        return None
    return data if z85.encode(data) == text.encode() else None


def dealer(context: Context, endpoint: Endpoint, curve: CurveClient | None = None) -> Socket:
    """A connected DEALER for one gateway (never one DEALER for several: it would spread requests blindly)."""
    sock = _dealer(context, curve)
    sock.connect(str(endpoint))
    return sock


def watched_dealer(context: Context, endpoint: Endpoint, curve: CurveClient | None = None) -> tuple[Socket, Socket]:
    """The same and its monitor, which watches before the socket connects.

    A monitor that is attached later misses the handshake if the thread is held up in between (1 of 100 connections on
    a busy machine), and the connection then seems never to have been made.
    """
    sock = _dealer(context, curve)
    monitor = sock.get_monitor_socket()
    sock.connect(str(endpoint))
    return sock, monitor


def monitor_event(monitor: Socket) -> tuple[int, int]:
    """The next event that a monitor tells, one of `zmq.EVENT_*`, and its value: of a connection that was made or lost
    the file descriptor. Blocks until there is one.

    pyzmq's own reader of these messages brings asyncio and ssl along: 5 MB and 50 ms on a device that needs neither.
    """
    event, value = _EVENT_AND_VALUE.unpack_from(monitor.recv_multipart()[0])
    return int(event), int(value)


def _dealer(context: Context, curve: CurveClient | None) -> Socket:
    sock = context.socket(zmq.DEALER)
    _harden(sock)
    sock.setsockopt(zmq.IMMEDIATE, 1)  # queue nothing for a connection that does not exist
    sock.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
    sock.setsockopt(zmq.RECONNECT_IVL, random.randint(*RECONNECT_IVL_MS))
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, random.randint(*RECONNECT_IVL_MAX_MS))
    if curve is not None:
        sock.setsockopt(zmq.CURVE_SERVERKEY, curve.server)
        sock.setsockopt(zmq.CURVE_PUBLICKEY, curve_public(curve.secret))
        sock.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
    return sock


def router(
    context: Context,
    endpoint: Endpoint,
    *,
    secret: bytes | None = None,
    guarded: bool = False,
) -> tuple[Socket, Endpoint]:
    """A bound ROUTER and the endpoint it really has (port 0 picks one). Raises NetworkError if it cannot be bound.

    With a CURVE `secret` (32 bytes) it answers only those who know the public key that belongs to it, and is guarded.
    """
    sock = _router(context, guarded=guarded or secret is not None)
    try:
        return sock, bind(sock, endpoint, secret)
    except NetworkError:
        sock.close(0)
        raise


def watched_router(context: Context, *, guarded: bool = False) -> tuple[Socket, Socket]:
    """A ROUTER that listens nowhere yet, and its monitor, which tells of every connection and of its end."""
    sock = _router(context, guarded=guarded)
    return sock, watch(sock)


def watch(sock: Socket) -> Socket:
    """A monitor that tells of every connection that is accepted from now on, and of its end."""
    return sock.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)


def connections_told(monitor: Socket) -> Iterator[tuple[int, bool]]:
    """What `watch` has told by now: descriptors, and whether they were accepted or have ended."""
    while monitor.poll(0):
        event, descriptor = _EVENT_AND_VALUE.unpack_from(monitor.recv_multipart()[0])
        yield descriptor, event == zmq.EVENT_ACCEPTED


def _router(context: Context, *, guarded: bool) -> Socket:
    sock = context.socket(zmq.ROUTER)
    _harden(sock)
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a peer that is gone must fail, not vanish
    sock.setsockopt(zmq.ROUTER_HANDOVER, 0)  # a peer-chosen id must not take over another's connection
    sock.setsockopt(zmq.BACKLOG, BACKLOG)
    if guarded:
        # A domain makes libzmq ask; enforced, it takes silence for a no. (Enforced without a domain nobody is asked.)
        sock.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        sock.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return sock


def bind(sock: Socket, endpoint: Endpoint, secret: bytes | None = None) -> Endpoint:
    """Listen at one more endpoint, with a server key of its own; the endpoint it really has. Raises NetworkError.

    Options are read when a socket is bound: connections of earlier binds keep the key that they were made with.
    """
    if secret is not None:
        sock.setsockopt(zmq.CURVE_SERVER, 1)
        sock.setsockopt(zmq.CURVE_SECRETKEY, secret)
    try:
        sock.bind(str(endpoint))
    except zmq.ZMQError as error:
        raise _cannot_listen(endpoint, error) from error
    bound = sock.getsockopt_string(zmq.LAST_ENDPOINT)
    return Endpoint(endpoint.host, int(bound.rpartition(":")[2]))


def _cannot_listen(endpoint: Endpoint, error: OSError | zmq.ZMQError) -> NetworkError:
    reason = "it is already in use" if error.errno == errno.EADDRINUSE else str(error)
    remedy = "stop the other process or choose another port with --bind"
    return NetworkError(f"cannot listen on {endpoint}: {reason}", remedy)


def listen(
    sock: Socket,
    bound: dict[Endpoint, bytes],
    wanted: Mapping[Endpoint, bytes],
    held: Mapping[Endpoint, int] | None = None,
) -> dict[Endpoint, bytes]:
    """Bind and unbind until exactly `wanted` (endpoint -> server secret) is bound. `bound` is kept true, and returned.

    `held` are the endpoints for which somebody keeps a listening socket: they are adopted.

    Only the owner of the socket may call this. Connections of an endpoint that is unbound, or gets another key, end:
    their agents connect anew and ask again under the same ids. Raises NetworkError when something cannot be bound; all
    that could be is, and the call may be repeated.
    """
    leaving = [endpoint for endpoint, secret in bound.items() if wanted.get(endpoint) != secret]
    for endpoint in leaving:
        sock.unbind(str(endpoint))
        del bound[endpoint]
    trouble: NetworkError | None = None
    give_up_at = time.monotonic() + REBIND_S
    for endpoint in [e for e in wanted if e not in bound]:
        while endpoint not in bound:
            try:
                if held and endpoint in held:
                    adopt(sock, held[endpoint], endpoint, wanted[endpoint])
                else:
                    bind(sock, endpoint, wanted[endpoint])
                bound[endpoint] = wanted[endpoint]
            except NetworkError as error:
                if endpoint not in leaving or time.monotonic() > give_up_at:
                    trouble = error
                    break
                time.sleep(0.002)
    if trouble is not None:
        raise trouble
    return bound


def listener(endpoint: Endpoint) -> tuple[stdlib_socket.socket, Endpoint]:
    """A listening TCP socket for whoever `adopt`s it, and the endpoint it really has. Raises NetworkError.

    Who keeps it keeps the port: connections that come while nobody accepts wait, at most as many as BACKLOG.
    """
    everywhere = endpoint.host == "*" and stdlib_socket.has_dualstack_ipv6()
    family = stdlib_socket.AF_INET6 if everywhere or ":" in endpoint.host else stdlib_socket.AF_INET
    host = "" if endpoint.host == "*" else endpoint.host
    try:
        sock = stdlib_socket.create_server(
            (host, endpoint.port), family=family, backlog=BACKLOG, dualstack_ipv6=everywhere
        )
    except OSError as error:
        raise _cannot_listen(endpoint, error) from error
    sock.setblocking(False)  # libzmq must not wait in accept() for a connection that was taken back
    return sock, Endpoint(endpoint.host, sock.getsockname()[1])


def reserve(endpoint: Endpoint) -> stdlib_socket.socket:
    """A TCP socket that is bound and does not listen: it has the port, and connections are refused. Raises OSError."""
    sock = stdlib_socket.socket(stdlib_socket.AF_INET6 if ":" in endpoint.host else stdlib_socket.AF_INET)
    try:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_REUSEADDR, 1)
        if sock.family is stdlib_socket.AF_INET6:
            sock.setsockopt(stdlib_socket.IPPROTO_IPV6, stdlib_socket.IPV6_V6ONLY, 1)
        sock.bind(("" if endpoint.host == "*" else endpoint.host, endpoint.port))
    except OSError:
        sock.close()
        raise
    return sock


def adopt(sock: Socket, listening: int, endpoint: Endpoint, secret: bytes | None = None) -> None:
    """Like `bind`, with a listening socket that is there already; its descriptor is not used up."""
    sock.setsockopt(zmq.USE_FD, os.dup(listening))
    try:
        bind(sock, endpoint, secret)
    finally:
        sock.setsockopt(zmq.USE_FD, -1)  # or the next bind would listen there too


def hub(context: Context, path: str) -> Socket:
    """The gateway's end of the Unix socket to its front: a DEALER, since whoever made the message stands in it.

    Who may connect is who may enter the folder. Both ends live on one machine: no heartbeats.
    """
    sock = _local(context)
    sock.bind(f"ipc://{path}")
    return sock


def spoke(context: Context, path: str) -> Socket:
    """The front's end of the Unix socket to its gateway."""
    sock = _local(context)
    sock.setsockopt(zmq.IMMEDIATE, 1)
    sock.setsockopt(zmq.RECONNECT_IVL, 20)
    sock.connect(f"ipc://{path}")
    return sock


def _local(context: Context) -> Socket:
    sock = context.socket(zmq.DEALER)
    _harden(sock)
    sock.setsockopt(zmq.HEARTBEAT_IVL, 0)
    sock.setsockopt(zmq.SNDHWM, 0)  # what is under way is bounded in bytes, by whoever sends
    return sock


def gatekeeper(context: Context) -> Socket:
    """The REP socket to which libzmq sends every connection's credentials (ZAP, RFC 27). One per context."""
    sock = context.socket(zmq.REP)
    sock.setsockopt(zmq.LINGER, 0)
    try:
        sock.bind(ZAP_ENDPOINT)
    except zmq.ZMQError as error:
        sock.close(0)
        raise NetworkError(
            f"connections cannot be authenticated: {error}", "start one gatekeeper per context"
        ) from error
    return sock


def _harden(sock: Socket) -> None:
    sock.setsockopt(zmq.LINGER, 0)  # drain ourselves; never hang in close()
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_NBYTES)
    sock.setsockopt(zmq.SNDHWM, SEND_HWM)
    # Never use RCVHWM as flow control together with heartbeats (34 of 100 requests lost): credits do that.
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_IVL_MS)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    sock.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS)
    sock.setsockopt(zmq.TCP_MAXRT, TCP_MAXRT_MS)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_IVL_MS)
    sock.setsockopt(zmq.IPV6, 1)
