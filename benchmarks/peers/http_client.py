"""A closed-loop HTTP/1.1 client that costs little: plain sockets, one selector, requests written out beforehand.

Law: the client must never be what is measured. It parses a status line, the length and nothing else.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.peers.questions import Array

OK = 200
RECEIVE_NBYTES = 1 << 18
SOCKET_NBYTES = 1 << 20


class AnswerError(RuntimeError):
    """The server answered something else than 200 and a body of known length."""


class Answer(NamedTuple):
    """One HTTP answer; `body` holds the tensor's bytes alone where the status is 200."""

    status: int
    body: bytes


def raw_body(tensor: Array) -> tuple[dict[str, str], bytes]:
    """The tensor's bytes, nothing around them."""
    return {"Content-Type": "application/octet-stream"}, tensor.tobytes()


def multipart_body(tensor: Array) -> tuple[dict[str, str], bytes]:
    """The tensor as an uploaded file named x."""
    edge = "isthmus-tensor-edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\n'
    body = head.encode() + tensor.tobytes() + f"\r\n--{edge}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={edge}"}, body


def protocol_v2_body(tensor: Array) -> tuple[dict[str, str], bytes]:
    """Open Inference Protocol v2 with the binary tensor extension, both ways."""
    raw = tensor.tobytes()
    given = {"name": "x", "shape": tensor.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    wanted = {"name": "logits", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [given], "outputs": [wanted]}, separators=(",", ":")).encode()
    return {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}, head + raw


BODIES: Mapping[str, Callable[[Array], tuple[dict[str, str], bytes]]] = {
    "raw": raw_body,
    "multipart": multipart_body,
    "v2": protocol_v2_body,
}


class HttpClient:
    """`slots` kept-alive connections, each with at most one request in flight."""

    def __init__(self, port: int, path: str, form: str, tensors: Sequence[Array], slots: int) -> None:
        self._requests = [_request(port, path, *BODIES[form](tensor)) for tensor in tensors]
        self._selector = selectors.DefaultSelector()
        self._slots = [_Slot(number, port) for number in range(slots)]
        for slot in self._slots:
            self._selector.register(slot.socket, selectors.EVENT_READ, slot)

    def send(self, slot: int, which: int) -> None:
        """Ask question `which`; what the kernel does not take at once follows from `arrived`."""
        one = self._slots[slot]
        one.unsent = memoryview(self._requests[which])
        if not one.push():
            self._selector.modify(one.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, one)

    def arrived(self, timeout_s: float) -> list[tuple[int, bytes]]:
        """Slots with an answer, and its bytes. Raises AnswerError, ConnectionError."""
        done = []
        for slot, answer in self.answered(timeout_s):
            if answer.status != OK:
                raise AnswerError(f"status {answer.status}: {answer.body[:200]!r}")
            done.append((slot, answer.body))
        return done

    def answered(self, timeout_s: float) -> list[tuple[int, Answer]]:
        """The same, whatever the status. Raises ConnectionError."""
        done = []
        for key, events in self._selector.select(timeout_s):
            slot: _Slot = key.data
            if events & selectors.EVENT_WRITE and slot.push():
                self._selector.modify(slot.socket, selectors.EVENT_READ, slot)
            if events & selectors.EVENT_READ and (answer := slot.pull()) is not None:
                done.append((slot.number, answer))
        return done

    def close(self) -> None:
        for slot in self._slots:
            slot.socket.close()
        self._selector.close()


class _Slot:
    def __init__(self, number: int, port: int) -> None:
        self.number = number
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_NBYTES)
        self.socket.setblocking(False)
        self.unsent = memoryview(b"")
        self._reader = Reader()

    def push(self) -> bool:
        """Hand over what the kernel takes; whether nothing is left."""
        while self.unsent:
            try:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            except BlockingIOError:
                return False
        return True

    def pull(self) -> Answer | None:
        try:
            got = self.socket.recv(RECEIVE_NBYTES)
        except BlockingIOError:
            return None
        if not got:
            raise ConnectionError("the server closed the connection")
        return self._reader.feed(got)


class Reader:
    """Bytes of one connection in, answers out: one at a time, whatever the pieces."""

    def __init__(self) -> None:
        self._got = bytearray()
        self._head: tuple[int, int, int] | None = None  # status, where the tensor begins, where the answer ends

    def feed(self, data: bytes) -> Answer | None:
        """The answer once it is complete. Raises AnswerError if it does not say how long it is."""
        self._got += data
        if self._head is None and (edge := self._got.find(b"\r\n\r\n")) >= 0:
            self._head = _head(self._got[:edge].decode("latin-1"), edge + 4)
        if self._head is None or len(self._got) < self._head[2]:
            return None
        status, begin, end = self._head
        body = bytes(self._got[begin:end])
        del self._got[:end]
        self._head = None
        return Answer(status, body)


def _head(text: str, body_at: int) -> tuple[int, int, int]:
    first, *lines = text.split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" not in fields:
        raise AnswerError(f"an answer without a length: {first}, {sorted(fields)}")
    skipped = int(fields.get("inference-header-content-length", "0"))
    return int(first.split()[1]), body_at + skipped, body_at + int(fields["content-length"])


def _request(port: int, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
