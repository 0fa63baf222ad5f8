"""TCP connections that libzmq owns, by their file descriptors: what they have brought, who is there, and ending them.

libzmq tells a descriptor with every message and with the news of a connection, but closes connections only by itself. A
number may be used again as soon as it is closed: whoever keeps one compares `peer_of` before acting on it.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import struct
from collections.abc import Callable
from typing import TypeVar

from protocol.latency import TcpView

# Where fields stand in the kernel's struct tcp_info (linux/tcp.h), which only ever grows at its end.
_BYTES_RECEIVED = struct.Struct("=Q"), 128  # since Linux 4.1
_MIN_RTT_US = struct.Struct("=I"), 148  # since Linux 4.6
_DELIVERY_RATE = struct.Struct("=Q"), 160  # since Linux 4.9
_LIMITED_BY_SENDER = 7, 0x01  # byte and bit
_NO_RTT = 2**32 - 1  # before the first acknowledgement
ASK = -1  # the kernel, for the family
T = TypeVar("T")


def received_nbytes(descriptor: int) -> int | None:
    """Bytes that a TCP connection has brought since it was made, as the kernel counts; None if it is none."""
    return _field(_tcp_info(descriptor), *_BYTES_RECEIVED)


def tcp_view(descriptor: int) -> TcpView | None:
    """How the kernel finds a TCP connection; None if it is none, is not established, or the kernel does not say."""
    info = _tcp_info(descriptor)
    rtt_us, rate = _field(info, *_MIN_RTT_US), _field(info, *_DELIVERY_RATE)
    if rtt_us in (None, 0, _NO_RTT) or rate is None:
        return None
    byte, bit = _LIMITED_BY_SENDER
    return TcpView((rtt_us or 0) / 1e6, float(rate) or None, bool(info[byte] & bit))


def peer_of(descriptor: int) -> str:
    """Who is at the other end of a TCP connection that libzmq owns; empty when it has ended."""
    try:
        return str(_borrowed(descriptor, lambda s: s.getpeername(), family=ASK))
    except (OSError, ValueError):
        return ""


def hang_up(descriptor: int) -> None:
    """End a TCP connection that libzmq owns: it sees the end of the stream and closes it, which resets the peer.

    Without a reset a peer that only sends would wait for minutes before it notices.
    """

    def reset(sock: stdlib_socket.socket) -> None:
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(stdlib_socket.SHUT_RDWR)

    with contextlib.suppress(OSError, ValueError):  # gone by itself
        _borrowed(descriptor, reset)


def _tcp_info(descriptor: int) -> bytes:
    """Empty where there is no TCP connection."""
    try:
        return _borrowed(descriptor, lambda s: s.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, 256))
    except (OSError, ValueError):
        return b""


def _field(info: bytes, form: struct.Struct, offset: int) -> int | None:
    return int(form.unpack_from(info, offset)[0]) if len(info) >= offset + form.size else None


def _borrowed(descriptor: int, do: Callable[[stdlib_socket.socket], T], *, family: int = stdlib_socket.AF_INET) -> T:
    """The kernel is only asked for the `family` where it plays a part: how long an address is goes by it."""
    sock = stdlib_socket.socket(family, stdlib_socket.SOCK_STREAM, fileno=descriptor)
    try:
        return do(sock)
    finally:
        sock.detach()
