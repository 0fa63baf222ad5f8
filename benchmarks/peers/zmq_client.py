"""Closed-loop ZeroMQ clients: one DEALER per client, as many devices would be, each with one request in flight."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import zmq

from benchmarks.peers.questions import Array
from protocol import codecs, sockets, wire
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.messages import PlacementKind
from protocol.tensors import TensorHeader

CONNECT_WAIT_MS = 5000
BUDGET_US = 10_000_000
Buffer = bytes | bytearray | memoryview


class ZmqClient:
    """`slots` DEALERs on one poller; subclasses say what a request and an answer look like."""

    def __init__(self, endpoint: str, slots: int) -> None:
        self._context = sockets.make_context()
        self._poller = zmq.Poller()
        self.sockets = [sockets.dealer(self._context, sockets.parse_endpoint(endpoint)) for _ in range(slots)]
        self._slots = {one: slot for slot, one in enumerate(self.sockets)}
        for one in self.sockets:
            if not one.poll(CONNECT_WAIT_MS, zmq.POLLOUT):
                raise ConnectionError(f"nobody answers at {endpoint}")
            self._poller.register(one, zmq.POLLIN)

    def ready(self, timeout_s: float) -> list[int]:
        """Slots whose socket has something to read. ZeroMQ counts in milliseconds: parts of one are rounded up."""
        return [self._slots[one] for one, _ in self._poller.poll(math.ceil(max(timeout_s, 0.0) * 1e3))]

    def close(self) -> None:
        for one in self.sockets:
            one.close(0)
        self._context.term()


class BareClient(ZmqClient):
    """The reference's client: `[number, payload parts...]` up, `[number, answer]` down."""

    def __init__(self, endpoint: str, tensors: Sequence[Array], slots: int) -> None:
        super().__init__(endpoint, slots)
        self._parts = [_parts(memoryview(tensor.tobytes())) for tensor in tensors]

    def send(self, slot: int, which: int) -> None:
        self.sockets[slot].send_multipart([b"%d" % slot, *self._parts[which]], copy=False)

    def arrived(self, timeout_s: float) -> list[tuple[int, bytes]]:
        return [(slot, self.sockets[slot].recv_multipart()[1]) for slot in self.ready(timeout_s)]


class AgentClient(ZmqClient):
    """Isthmus' own protocol: every slot is an agent that has greeted the gateway, and asks full-cloud in fp32."""

    def __init__(self, endpoint: str, bundle: Bundle, tensors: Sequence[Array], slots: int) -> None:
        super().__init__(endpoint, slots)
        self._segment = full_cloud_segment(bundle)
        self._encoded = [_encoded(tensor) for tensor in tensors]
        self._sequence = 0
        self._boots = [os.urandom(8) for _ in self.sockets]
        for boot, one in zip(self._boots, self.sockets, strict=True):
            one.send_multipart(wire.pack(m.Hello(boot, "benchmark", "benchmark", bytes(32))))
        for one in self.sockets:
            if not one.poll(CONNECT_WAIT_MS):
                raise ConnectionError(f"the gateway at {endpoint} does not welcome us")
            one.recv_multipart()

    def send(self, slot: int, which: int) -> None:
        self.ask(slot, which, BUDGET_US)

    def ask(self, slot: int, which: int, budget_us: int) -> int:
        """Send one request with this budget; returns its sequence number."""
        self._sequence += 1
        header, payload, checksum = self._encoded[which]
        request = m.RequestId(self._boots[slot], self._sequence)
        infer = m.Infer(request, self._segment, 1, budget_us, 4, (header,), checksum)
        self.sockets[slot].send_multipart(wire.pack(infer, (payload,)), copy=False)
        return self._sequence

    def answer(self, slot: int) -> tuple[m.Message, bytes]:
        """One message that is there: its header, and its payload."""
        frames = self.sockets[slot].recv_multipart()
        return wire.unpack_header(frames[0]), frames[1] if len(frames) == 2 else b"".join(frames[1:])

    def arrived(self, timeout_s: float) -> list[tuple[int, bytes]]:
        """Raises RuntimeError if the gateway answers anything but a result."""
        done = []
        for slot in self.ready(timeout_s):
            message, payload = self.answer(slot)
            if not isinstance(message, m.Result):
                raise RuntimeError(f"the gateway answered {message}")
            done.append((slot, payload))
        return done


def full_cloud_segment(bundle: Bundle) -> bytes:
    """The digest by which a request names the whole model. Raises RuntimeError if the bundle cannot serve it."""
    entry = bundle.manifest.placement(PlacementKind.FULL_CLOUD)
    if entry is None or entry.segment is None:
        raise RuntimeError("the benchmark's bundle has no full-cloud placement")
    return bytes.fromhex(entry.segment)


def _encoded(tensor: Array) -> tuple[TensorHeader, Buffer, int]:
    header, payload = codecs.encode("x", tensor, "raw")
    return header, payload, wire.checksum([payload])


def _parts(raw: memoryview) -> list[memoryview]:
    return [raw[at : at + wire.PART_NBYTES] for at in range(0, raw.nbytes, wire.PART_NBYTES)]
