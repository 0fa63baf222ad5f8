"""Sockets that never leave this machine: to a daemon's Unix socket, and to the service manager. No ZeroMQ here."""

from __future__ import annotations

import socket
from pathlib import Path


def connect_unix(path: Path, timeout_s: float) -> socket.socket:
    """A connected stream. Raises OSError."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout_s)
        stream.connect(str(path))
    except BaseException:
        stream.close()
        raise
    return stream


def send_datagram(address: str, data: bytes) -> None:
    """One datagram to a path, or to a name in the abstract namespace, written `@name`. Never waits. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagrams:
        datagrams.setblocking(False)
        datagrams.sendto(data, b"\0" + address[1:].encode() if address.startswith("@") else address)
