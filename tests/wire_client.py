"""A bare DEALER for tests that must do to a gateway what no agent of ours would do."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import zmq

from protocol import codecs, sockets, wire
from protocol import messages as m
from protocol.bundle import Bundle, PlacementEntry
from protocol.tensors import Tensors

BOOT = b"testboot"
PATIENCE_S = 60.0  # a busy machine is no failure


class WireClient:
    """Sends whatever it is told, receives whatever comes; every wait is bounded."""

    def __init__(self, endpoint: str, *, boot: bytes = BOOT, curve: sockets.CurveClient | None = None) -> None:
        self.boot = boot
        self._context = sockets.make_context()
        self._endpoint = sockets.parse_endpoint(endpoint)
        self.socket = sockets.dealer(self._context, self._endpoint, curve)
        self._surplus_welcomes = 0
        self._welcomed = False

    def send(self, message: m.Message, payload: tuple[wire.Buffer, ...] = ()) -> None:
        self.send_frames(wire.pack(message, payload))

    def send_frames(self, frames: list[wire.Buffer]) -> None:
        if not self.socket.poll(int(PATIENCE_S * 1000), zmq.POLLOUT):
            raise TimeoutError(f"no connection within {PATIENCE_S} s")
        self.socket.send_multipart(frames)

    def receive(self, timeout_s: float = PATIENCE_S) -> m.Message:
        return self.receive_all(timeout_s)[0]

    def receive_all(self, timeout_s: float = PATIENCE_S) -> tuple[m.Message, list[bytes]]:
        while True:
            if not self.socket.poll(int(timeout_s * 1000)):
                raise TimeoutError(f"nothing within {timeout_s} s")
            frames = self.socket.recv_multipart()
            message = wire.unpack_header(frames[0])
            if isinstance(message, m.Welcome) and self._welcomed and self._surplus_welcomes:
                self._surplus_welcomes -= 1  # to a repeated Hello after all
                continue
            self._welcomed = isinstance(message, m.Welcome) or self._welcomed
            return message, frames[1:]

    def silent(self, timeout_s: float = 0.2) -> bool:
        return not self.socket.poll(int(timeout_s * 1000))

    def greet(self) -> m.Welcome:
        self._welcomed = False
        for again in range(int(PATIENCE_S)):  # a Hello that goes into a connection just as its gateway dies is gone
            self.send(m.Hello(self.boot, "test", "test", bytes(32)))
            self._surplus_welcomes += again > 0
            if not self.silent(1.0):
                break
        welcome = self.receive()
        assert isinstance(welcome, m.Welcome)
        return welcome

    def infer(
        self, entry: PlacementEntry, tensors: Tensors, sequence: int, *, attempt: int = 1, budget_us: int = 60_000_000
    ) -> tuple[m.Infer, tuple[wire.Buffer, ...]]:
        """An Infer message for the placement's boundary tensors, and its payload."""
        assert entry.segment is not None
        encoded = [codecs.encode(b.spec.name, tensors[b.spec.name], b.codec) for b in entry.boundary]
        payload = tuple(data for _, data in encoded)
        message = m.Infer(
            request=m.RequestId(self.boot, sequence),
            segment=bytes.fromhex(entry.segment),
            attempt=attempt,
            budget_us=budget_us,
            priority=4,
            tensors=tuple(header for header, _ in encoded),
            checksum=wire.checksum(payload),
        )
        return message, payload

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def placement(bundle: Bundle, id_: str) -> PlacementEntry:
    return next(p for p in bundle.manifest.placements if p.id == id_)
