"""A network of two machines inside one: namespaces joined by TUN devices, with the kernel's own TCP at both ends.

    device namespace [tun 10.77.0.1] <-- packets, some lost, some late --> [tun 10.77.0.2] gateway namespace

Only here are loss, retransmission and silence what they are on a real link. It needs root, or the right to make network
namespaces.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace(descriptor: int) -> None:
    """Let this thread, and what it starts, live in a network namespace. Raises OSError."""
    _called(_libc.setns(descriptor, CLONE_NEWNET), "entering a network namespace")


def _called(code: int, doing: str) -> None:
    if code:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} while {doing}")
