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

_BYTES_RECEIVED = struct.Struct("=Q")  # tcpi_bytes_received, in the kernel's struct tcp_info
T = TypeVar("T")


def received_nbytes(descriptor: int) -> int | None:
    """Bytes that a TCP connection has brought since it was made, as the kernel counts; None if it is none."""
    try:
        info = _borrowed(descriptor, lambda s: s.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_INFO, 136))
    except OSError:
        return None
    return int(_BYTES_RECEIVED.unpack_from(info, 128)[0]) if len(info) == 136 else None  # since Linux 4.1


def peer_of(descriptor: int) -> str:
    """Who is at the other end of a TCP connection that libzmq owns; empty when it has ended."""
    try:
        return str(_borrowed(descriptor, lambda s: s.getpeername()))
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


def _borrowed(descriptor: int, do: Callable[[stdlib_socket.socket], T]) -> T:
    """Family and type are given so that nothing is asked of the kernel; they play no part in what is done here."""
    sock = stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM, fileno=descriptor)
    try:
        return do(sock)
    finally:
        sock.detach()
