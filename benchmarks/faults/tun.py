"""A network of two machines inside one: namespaces joined by TUN devices, with the kernel's own TCP at both ends.

    device's namespace [10.77.0.1] <-- packets, half a round trip late, some lost --> [10.77.0.2] the gateway's

Only here are loss, retransmission and silence what they are on a real link. It needs root, or the right to make network
namespaces, and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

DEVICE, GATEWAY = "10.77.0.1", "10.77.0.2"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFDSTADDR = 0x8913, 0x8914, 0x8916, 0x8918
_IFF_UP = 0x1
_PACKET_NBYTES = 2048
_BURST = 64  # packets before the other side gets its turn
_libc = ctypes.CDLL(None, use_errno=True)


class _End(NamedTuple):
    """One side: the namespace that programs enter, and the device whose packets we carry. Both are descriptors."""

    namespace: int
    tun: int


class TunLink:
    """Between `__enter__` and `__exit__` packets pass; `loss` of them do not."""

    def __init__(self, *, loss: float, rtt_ms: float, seed: int = 1) -> None:
        self._loss, self._delay_s = loss, rtt_ms / 2e3
        self._chance = random.Random(seed)
        self._dark = False
        self.lost = 0

    def __enter__(self) -> Self:
        """Raises OSError where the kernel or our rights do not allow it."""
        self._device = _end(DEVICE, GATEWAY)
        self._gateway = _end(GATEWAY, DEVICE)
        self._bell, self._ring = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="tun-link", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._ring, b"!")
        self._thread.join()
        for descriptor in (*self._device, *self._gateway, self._bell, self._ring):
            os.close(descriptor)

    @property
    def device(self) -> int:
        """The namespace of the device, to be entered."""
        return self._device.namespace

    @property
    def gateway(self) -> int:
        """The namespace of the gateway, to be entered."""
        return self._gateway.namespace

    def blackhole(self, on: bool = True) -> None:
        """Drop every packet. From any thread."""
        self._dark = on

    def _carry(self) -> None:
        opposite = {self._device.tun: self._gateway.tun, self._gateway.tun: self._device.tun}
        under_way: deque[tuple[float, int, bytes]] = deque()
        while True:
            wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([self._bell, *opposite], (), (), wait_s)
            if self._bell in ready:
                return
            for source in ready:
                for packet in _packets(source):
                    if self._dark or self._chance.random() < self._loss:
                        self.lost += 1
                    else:
                        under_way.append((time.monotonic() + self._delay_s, opposite[source], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, sink, packet = under_way.popleft()
                try:
                    os.write(sink, packet)
                except OSError:  # its queue is full
                    self.lost += 1


def enter_namespace(descriptor: int) -> None:
    """Let this thread, and what it starts, live in a network namespace. Raises OSError."""
    _called(_libc.setns(descriptor, _CLONE_NEWNET), "entering a network namespace")


def _packets(tun: int) -> list[bytes]:
    packets = []
    for _ in range(_BURST):
        try:
            packets.append(os.read(tun, _PACKET_NBYTES))
        except BlockingIOError:
            break
    return packets


def _end(address: str, peer: str) -> _End:
    """A namespace with loopback and one device in it. A namespace belongs to a thread: one is started for it."""
    made: list[_End | OSError] = []

    def make() -> None:
        try:
            _called(_libc.unshare(_CLONE_NEWNET), "making a network namespace")
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"isthmus", _IFF_TUN | _IFF_NO_PI))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFADDR, _request(b"isthmus", address))
                fcntl.ioctl(control, _SIOCSIFDSTADDR, _request(b"isthmus", peer))
                for name in (b"isthmus", b"lo"):
                    flags = struct.unpack("16sH22x", fcntl.ioctl(control, _SIOCGIFFLAGS, name.ljust(40, b"\0")))[1]
                    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP))
            made.append(_End(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC), tun))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _request(name: bytes, address: str) -> bytes:
    return struct.pack("16sHH4s8x8x", name, socket.AF_INET, 0, socket.inet_aton(address))


def _called(code: int, doing: str) -> None:
    if code:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} while {doing}")
