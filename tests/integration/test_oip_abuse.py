"""What comes in wrong, slowly, in excess or never: HTTP answers with the documented code and serves the others."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from protocol.oip.app import OipApp
from protocol.oip.http_protocol import SPARE, Patience, Phase
from protocol.oip.http_server import Listen, OipServer
from protocol.oip.service import AccessDenied, OpenGuard, Role
from tests.oip import ToyService
from tests.waiting import until

IMPATIENT = Patience(
    header_s=0.3,
    body_s=0.3,
    body_nbytes_per_s=10_000_000,
    keep_alive_s=0.4,
    write_s=0.4,
    connections=24,
    connections_per_address=24,
)
SMALL = Patience(header_s=60.0, body_s=60.0, connections=12, connections_per_address=12)
BODY_NBYTES = 1 << 20


class Doorkeeper(OpenGuard):
    """Counts who is in; a key that is `wrong` is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[int] = []
        self.inside = 0

    def check(self, *, role: Role, credential: str | None, address: str, nbytes: int) -> str:
        self.checked.append(nbytes)
        if credential == "wrong":
            raise AccessDenied(401, "this API key is not known")
        self.inside += 1
        return super().check(role=role, credential=credential, address=address, nbytes=nbytes)

    def release(self, tenant: str) -> None:
        self.inside -= 1


@pytest.fixture
def service() -> ToyService:
    return ToyService()


@pytest.fixture
def guard() -> Doorkeeper:
    return Doorkeeper()


@pytest.fixture
def server(service: ToyService, guard: Doorkeeper) -> Iterator[OipServer]:
    app = OipApp(service, guard, body_nbytes=BODY_NBYTES, total_nbytes=4 * BODY_NBYTES)
    with OipServer(app, Listen(bind="127.0.0.1:0", patience=IMPATIENT)) as server:
        yield server
        until(lambda: guard.inside == 0 and app._room.free_nbytes == 4 * BODY_NBYTES)
        assert json.loads(exchange(server, b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").body)


class Reply:
    """What a server sent until it closed (or fell silent for `quiet_s`)."""

    def __init__(self, text: bytes) -> None:
        head, _, self.body = text.partition(b"\r\n\r\n")
        self.lines = head.decode("latin-1").split("\r\n")
        self.status = int(self.lines[0].split()[1]) if text else 0

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["code"])


def connect(server: OipServer) -> socket.socket:
    assert server.endpoint is not None
    return socket.create_connection((server.endpoint.host, server.endpoint.port), timeout=10)


def read_all(peer: socket.socket) -> bytes:
    found = b""
    try:
        while piece := peer.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def exchange(server: OipServer, request: bytes) -> Reply:
    with connect(server) as peer:
        peer.sendall(request)
        return Reply(read_all(peer))


@pytest.mark.parametrize("field", ["origin: https://evil.example", "origin: null", "host: evil.example:7480"])
def test_web_pages_of_others_are_refused_and_do_nothing(server: OipServer, service: ToyService, field: str) -> None:
    host = () if field.startswith("host") else ("host: 127.0.0.1",)
    lines = ["POST /v2/models/echo/infer HTTP/1.1", *host, field, "content-type: text/plain", "content-length: 2"]
    reply = exchange(server, "\r\n".join([*lines, "connection: close", "", "{}"]).encode())
    assert (reply.status, reply.code) == (403, "FORBIDDEN")


def test_a_query_of_too_many_fields_is_refused_as_such(server: OipServer) -> None:
    reply = exchange(server, b"GET /v2?%s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % (b"&a=b" * 40))
    assert (reply.status, reply.code) == (400, "BAD_REQUEST")


def infer(body: bytes, *fields: str, length: int | None = None, close: bool = True) -> bytes:
    lines = ["POST /v2/models/echo/infer HTTP/1.1", "host: x", *fields]
    lines.append(f"content-length: {len(body) if length is None else length}")
    if close:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


GOOD = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}).encode()


# ---- malformed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03 garbage\r\n\r\n",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_answered_400_and_cut_off(server: OipServer, garbage: bytes) -> None:
    reply = exchange(server, garbage)
    assert (reply.status, reply.code) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    ("body", "fields", "status"),
    [
        (b"{", [], 400),
        (b"\xff" * 100, [], 400),
        (b"[" * 60_000, [], 400),
        (GOOD, ["inference-header-content-length: 99999"], 400),
        (GOOD, ["inference-header-content-length: 5"], 400),
        (GOOD, ["content-encoding: gzip"], 400),
        (GOOD, ["content-encoding: br"], 415),
        (gzip.compress(GOOD, mtime=0)[:-9], ["content-encoding: gzip"], 400),
        (gzip.compress(GOOD, mtime=0) + b"more", ["content-encoding: gzip"], 400),
        (zlib.compress(GOOD), ["content-encoding: deflate"], 200),
        (gzip.compress(GOOD, mtime=0), ["content-encoding: gzip"], 200),
        (GOOD, ["authorization: Bearer wrong"], 401),
    ],
)
def test_bodies_are_answered_with_their_documented_code(
    server: OipServer, body: bytes, fields: list[str], status: int
) -> None:
    assert exchange(server, infer(body, *fields)).status == status


def test_a_connection_lives_on_after_a_refusal(server: OipServer) -> None:
    with connect(server) as peer:
        for body, status in ((b"{", 400), (GOOD, 200), (b"{}", 400), (GOOD, 200)):
            peer.sendall(infer(body, close=False))
            assert peer.recv(1 << 16).startswith(b"HTTP/1.1 %d " % status)


def test_pipelined_requests_are_answered_in_order(server: OipServer) -> None:
    reply = exchange(server, infer(GOOD, close=False) * 3 + infer(b"{"))
    text = b"HTTP/1.1 200" + reply.body
    assert [piece[:3] for piece in text.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"200", b"400"]


# ---- too much -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [BODY_NBYTES + 1, 8 * BODY_NBYTES])
def test_a_body_over_the_limit_is_refused_before_it_is_read_and_the_client_hears_why(
    server: OipServer, size: int
) -> None:
    reply = exchange(server, infer(bytes(size)))
    assert (reply.status, reply.code) == (413, "TOO_LARGE")


def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(server: OipServer, guard: Doorkeeper) -> None:
    piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    reply = exchange(server, head + piece * 20 + b"0\r\n\r\n")
    assert (reply.status, reply.code) == (413, "TOO_LARGE")


def test_a_chunked_body_is_charged_to_its_sender_when_its_size_is_known(server: OipServer, guard: Doorkeeper) -> None:
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert exchange(server, head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)).status == 200
    assert guard.checked == [0, len(GOOD)]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_refused_at_the_limit(server: OipServer, coding: str) -> None:
    bomb = bytes(50 * BODY_NBYTES)
    packed = gzip.compress(bomb, 9) if coding == "gzip" else zlib.compress(bomb, 9)
    assert len(packed) < BODY_NBYTES
    reply = exchange(server, infer(packed, f"content-encoding: {coding}"))
    assert (reply.status, reply.code) == (413, "TOO_LARGE")


def test_an_endless_head_is_cut_off(server: OipServer) -> None:
    for filling in (b"x-a: " + b"a" * 200_000, b"".join(b"x-%d: a\r\n" % i for i in range(5000))):
        assert exchange(server, b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + filling).status == 431


def test_an_endless_trailer_is_cut_off(server: OipServer) -> None:
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    assert exchange(server, head + b"".join(b"x-%d: a\r\n" % i for i in range(5000))).status == 431


HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def small() -> Iterator[OipServer]:
    """Room for a few; time enough for any machine."""
    with OipServer(OipApp(ToyService(), OpenGuard()), Listen(bind="127.0.0.1:0", patience=SMALL)) as server:
        yield server


def _fill(server: OipServer) -> list[socket.socket]:
    """As many connections as there is room for, each with a request that is never whole."""
    peers = [connect(server) for _ in range(SMALL.connections)]
    for peer in peers:
        peer.sendall(infer(GOOD[:-1], length=len(GOOD), close=False))
    until(lambda: sum(c.phase is Phase.BODY for c in server.connections.connections) == len(peers))  # type: ignore[union-attr]
    return peers


def _close_all(server: OipServer, peers: list[socket.socket]) -> None:
    for peer in peers:
        peer.close()
    until(lambda: not server.connections.connections)


def test_who_is_idle_for_longest_makes_way_when_there_is_no_room(small: OipServer) -> None:
    peers = [connect(small) for _ in range(SMALL.connections)]
    until(lambda: len(small.connections.connections) == SMALL.connections)
    last_came = small.loop.time()
    until(lambda: small.loop.time() > last_came + 0.01)
    peers[0].sendall(infer(GOOD, close=False))
    assert peers[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
    with connect(small) as extra:
        extra.sendall(infer(GOOD))
        assert Reply(read_all(extra)).status == 200
    assert small.connections.refused == {"made way": 1}
    peers[0].sendall(infer(GOOD, close=False))
    assert peers[0].recv(1 << 16).startswith(b"HTTP/1.1 200"), "it was idle for a shorter time than others"
    _close_all(small, peers)


def test_where_nobody_is_idle_a_newcomer_may_ask_for_health_and_nothing_else(small: OipServer) -> None:
    peers = _fill(small)
    with connect(small) as orchestrator:
        orchestrator.sendall(HEALTH)
        reply = Reply(read_all(orchestrator))
    assert (reply.status, "connection: close" in reply.lines) == (200, True), "one question, then it is the next one's"
    with connect(small) as extra:
        extra.sendall(infer(GOOD))
        reply = Reply(read_all(extra))
    assert (reply.status, reply.code) == (503, "BUSY")
    peers[0].sendall(GOOD[-1:])
    assert peers[0].recv(1 << 16).startswith(b"HTTP/1.1 200"), "who was in goes on"
    _close_all(small, peers)


def test_nobody_can_hold_the_places_that_are_kept_for_health(small: OipServer) -> None:
    peers = _fill(small)
    held = [connect(small) for _ in range(SPARE)]
    until(lambda: len(small.connections.connections) == len(peers) + SPARE)
    with connect(small) as orchestrator:
        orchestrator.sendall(HEALTH)
        assert Reply(read_all(orchestrator)).status == 200
    assert small.connections.refused == {"made way": 1}, "one of those that asked nothing"
    _close_all(small, peers + held)


def test_a_place_that_was_given_up_is_given_away_once(small: OipServer) -> None:
    for made_way in (1, 2, 3):
        peers = [connect(small) for _ in range(2 * SMALL.connections)]
        until(lambda so_far=made_way * SMALL.connections: small.connections.refused["made way"] == so_far)  # type: ignore[misc]
        _close_all(small, peers)
    assert set(small.connections.refused) == {"made way"}
    assert not small.connections._by_address


def test_all_bodies_together_are_bounded(server: OipServer) -> None:
    """Announcing is free; what is announced counts from when the body begins to come."""
    peers = [connect(server) for _ in range(8)]
    for peer in peers:
        peer.sendall(infer(b"", length=BODY_NBYTES))
    told = [Reply(read_all(peer)) for peer in peers]
    assert sorted(reply.code for reply in told) == ["BUSY"] * 4 + ["TIMED_OUT"] * 4


# ---- too slow -------------------------------------------------------------------------------------------------------


def test_a_head_that_never_ends_is_cut_off_in_time(server: OipServer) -> None:
    with connect(server) as peer:
        peer.sendall(b"GET /v2 HTTP/1.1\r\n")

        def is_cut_off() -> bool:
            try:
                peer.sendall(b"x")
            except OSError:
                return True
            return False

        until(is_cut_off, "it was let go on", within_s=20.0)
        reply = Reply(read_all(peer))
    assert reply.status in (0, 408)  # a reset may overtake the answer
    assert server.connections.refused["slow head"] == 1


def test_a_body_that_stops_is_answered_408(server: OipServer, service: ToyService) -> None:
    reply = exchange(server, infer(GOOD[:10], length=len(GOOD)))
    assert (reply.status, reply.code) == (408, "TIMED_OUT")
    assert not service.requests


def test_slow_clients_do_not_hold_a_fast_one(server: OipServer) -> None:
    slow = [connect(server) for _ in range(20)]
    for peer in slow:
        peer.sendall(b"POST /v2/models/echo/infer HT")
    assert exchange(server, infer(GOOD)).status == 200
    for peer in slow:
        peer.close()


def test_an_idle_connection_is_closed(server: OipServer) -> None:
    for before in (b"", b"\r\n\r\n", b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n\r\n"):
        with connect(server) as peer:
            peer.sendall(before)
            read_all(peer)  # ends


def test_a_client_that_never_reads_is_cut_off_and_holds_nobody(server: OipServer) -> None:
    values = np.zeros(250_000, np.float32)
    head = {"name": "x", "datatype": "FP32", "shape": [250_000], "parameters": {"binary_data_size": values.nbytes}}
    document = json.dumps({"inputs": [head], "parameters": {"binary_data_output": True}}).encode()
    request = infer(document + values.tobytes(), f"inference-header-content-length: {len(document)}", close=False)
    with connect(server) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(0.2)
        try:
            for _ in range(20):
                peer.sendall(request)
        except OSError:  # the server has stopped reading from who does not read
            pass
        assert exchange(server, infer(GOOD)).status == 200
        until(lambda: server.connections.refused["does not read"])


# ---- gone -----------------------------------------------------------------------------------------------------------


def test_the_work_of_a_client_that_goes_away_is_withdrawn(server: OipServer, service: ToyService) -> None:
    service.hold = asyncio.Event()
    for rudely in (False, True):
        service.requests.clear()
        service.cancelled = 0
        with connect(server) as peer:
            peer.sendall(infer(GOOD))
            until(lambda: service.requests)
            if rudely:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        until(lambda: service.cancelled)


def test_a_client_that_closes_its_half_has_gone(server: OipServer, service: ToyService) -> None:
    service.hold = asyncio.Event()
    with connect(server) as peer:
        peer.sendall(infer(GOOD))
        until(lambda: service.requests)
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b""
    until(lambda: service.cancelled)


def test_a_client_that_goes_in_the_middle_of_its_body_leaves_nothing(server: OipServer, service: ToyService) -> None:
    for _ in range(10):
        with connect(server) as peer:
            peer.sendall(infer(GOOD[:20], length=BODY_NBYTES))
    until(lambda: not server.connections.connections)
    assert not service.requests
