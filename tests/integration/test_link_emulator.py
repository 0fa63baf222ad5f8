"""The emulated link in front of a real server on loopback: what a client sees when the link is slow, cut, or mended.

Every wait is bounded by `PATIENCE_S`; bounds on time are wide, as the machine may be shared. `benchmarks link` measures
the same things properly.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import link_process
from benchmarks.link import SOCKET_BUFFER_NBYTES, LinkEmulator, parse_address
from benchmarks.link_process import LinkProcess
from benchmarks.shaping import CHUNK_MIN_NBYTES, QUEUE_MIN_NBYTES

PATIENCE_S = 20.0
SILENCE_S = 0.15
FULL_S = 0.5  # nothing was taken for so long: not because a busy machine had other things to do
SENDER_BUFFER_NBYTES = 16_384
ENDLESS_NBYTES = 64 << 20
LOOPBACK = "127.0.0.1"


class EchoServer:
    """Echoes every connection in a thread of its own; `address` may be taken over by nobody until `close`."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close alone does not
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._listener.accept()
                threading.Thread(target=self._echo, args=(end,), daemon=True).start()

    @staticmethod
    def _echo(end: socket.socket) -> None:
        with contextlib.suppress(OSError), end:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while part := end.recv(1 << 16):
                end.sendall(part)


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


def connect(link: LinkEmulator | LinkProcess) -> socket.socket:
    client = socket.create_connection(link.address, PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def receive(client: socket.socket, nbytes: int) -> bytes:
    received = bytearray()
    while len(received) < nbytes:
        part = client.recv(nbytes - len(received))
        assert part, f"the stream ended after {len(received)} of {nbytes} bytes"
        received += part
    return bytes(received)


def ping_s(client: socket.socket) -> float:
    began_s = time.monotonic()
    client.sendall(b"ping")
    assert receive(client, 4) == b"ping"
    return time.monotonic() - began_s


def least_ping_s(client: socket.socket) -> float:
    """The least of many: a busy machine delays most of them."""
    return min(ping_s(client) for _ in range(20))


def round_trip(client: socket.socket, payload: bytes) -> bytes:
    """Send everything, say so, and return all that comes back until the other side has said so too."""

    def send() -> None:
        client.sendall(payload)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    received = bytearray()
    while part := client.recv(1 << 16):
        received += part
    sender.join(PATIENCE_S)
    return bytes(received)


def fill(client: socket.socket) -> int:
    """Send until nobody takes anything any more; return the bytes that were taken."""
    client.settimeout(FULL_S)
    taken_nbytes = 0
    with contextlib.suppress(TimeoutError):
        while taken_nbytes < ENDLESS_NBYTES:
            taken_nbytes += client.send(bytes(8192))
    assert taken_nbytes < ENDLESS_NBYTES, "the sender was never held back"
    return taken_nbytes


def assert_reset(client: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def assert_silent(client: socket.socket) -> None:
    client.settimeout(SILENCE_S)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(PATIENCE_S)


def test_bytes_come_through_whole_and_in_order_both_ways(echo: EchoServer) -> None:
    payload = random.Random(1).randbytes(1_000_003)
    with LinkEmulator(echo.address, uplink_mbit_per_s=200, downlink_mbit_per_s=100, rtt_ms=4) as link:
        clients = [connect(link) for _ in range(3)]
        answers: dict[int, bytes] = {}

        def work(index: int) -> None:
            answers[index] = round_trip(clients[index], payload[index:])

        workers = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(clients))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE_S)
        for client in clients:
            client.close()
    assert answers == {index: payload[index:] for index in range(3)}


def test_a_link_without_limits_is_a_plain_proxy(echo: EchoServer) -> None:
    payload = random.Random(2).randbytes(8_000_000)
    with LinkEmulator(echo.address) as link, connect(link) as client:
        assert round_trip(client, payload) == payload


def test_a_message_takes_the_round_trip_time_and_its_change_takes_effect(echo: EchoServer) -> None:
    with (
        LinkEmulator(echo.address, uplink_mbit_per_s=100, downlink_mbit_per_s=100, rtt_ms=40) as link,
        connect(link) as client,
    ):
        assert least_ping_s(client) == pytest.approx(0.040, abs=0.005)
        link.set_delay_ms(5)
        assert least_ping_s(client) == pytest.approx(0.010, abs=0.005)


def test_the_rate_holds_and_a_new_one_takes_effect_in_mid_stream(echo: EchoServer) -> None:
    with LinkEmulator(echo.address, uplink_mbit_per_s=20) as link, connect(link) as client:
        stop = threading.Event()
        sender = threading.Thread(target=send_until, args=(client, stop), daemon=True)
        sender.start()
        receive(client, 100_000)
        assert settles_at(20, client, 1_000_000)
        link.set_rate(5)
        receive(client, 20_000)  # what had passed the uplink before
        assert settles_at(5, client, 250_000)
        stop.set()
        link.set_rate(None)
        client.close()
        sender.join(PATIENCE_S)
        assert not sender.is_alive()


def send_until(client: socket.socket, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.is_set():
            client.sendall(bytes(8192))


def settles_at(mbit_per_s: float, client: socket.socket, nbytes: int) -> bool:
    """Whether one of ten windows shows the rate: a machine that pauses us makes one slow, and the next one fast."""
    return any(received_mbit_per_s(client, nbytes) == pytest.approx(mbit_per_s, rel=0.15) for _ in range(10))


def received_mbit_per_s(client: socket.socket, nbytes: int) -> float:
    began_s = time.monotonic()
    receive(client, nbytes)
    return nbytes * 8e-6 / (time.monotonic() - began_s)


def test_a_sender_is_held_back_once_the_queue_is_full(echo: EchoServer) -> None:
    slow_mbit_per_s = 0.01  # a chunk takes more than a second: while the test looks, nothing drains
    with LinkEmulator(echo.address, uplink_mbit_per_s=slow_mbit_per_s) as link, connect(link) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDER_BUFFER_NBYTES)
        taken_nbytes = fill(client)
        up = link.stats()["up"]
    assert isinstance(up, dict)
    assert QUEUE_MIN_NBYTES <= up["held_nbytes"] <= QUEUE_MIN_NBYTES + 2 * CHUNK_MIN_NBYTES, (
        "one beyond, one in service"
    )
    kernel_nbytes = 2 * (SENDER_BUFFER_NBYTES + SOCKET_BUFFER_NBYTES)  # Linux doubles what it is asked for
    assert taken_nbytes <= up["held_nbytes"] + 2 * kernel_nbytes


def test_a_reader_that_sleeps_holds_back_nobody_else(echo: EchoServer) -> None:
    with (
        LinkEmulator(echo.address, uplink_mbit_per_s=200, downlink_mbit_per_s=200) as link,
        connect(link) as sleeper,
        connect(link) as client,
    ):
        fill(sleeper)  # it never reads its echo: in the end every buffer on its way is full
        ping_s(client)


def test_a_blackhole_delivers_nothing_and_heals_without_loss(echo: EchoServer) -> None:
    with (
        LinkEmulator(echo.address, uplink_mbit_per_s=50, downlink_mbit_per_s=50, rtt_ms=2) as link,
        connect(link) as client,
    ):
        ping_s(client)
        link.blackhole()
        client.sendall(b"lost?")
        assert_silent(client)
        with connect(link) as late:  # the kernel says hello, the link says nothing
            late.sendall(b"hello")
            assert_silent(late)
            link.blackhole(False)
            assert receive(client, 5) == b"lost?"
            assert receive(late, 5) == b"hello"


def test_a_link_that_is_half_open_takes_what_it_is_given_and_brings_no_answer(echo: EchoServer) -> None:
    with LinkEmulator(echo.address, rtt_ms=2) as link, connect(link) as client:
        ping_s(client)
        link.blackhole(side="down")
        client.sendall(b"heard?")
        assert_silent(client)
        link.blackhole(False, side="down")
        assert receive(client, 6) == b"heard?"


def test_a_reset_closes_what_is_open_and_welcomes_what_comes(echo: EchoServer) -> None:
    with LinkEmulator(echo.address) as link, connect(link) as client:
        ping_s(client)
        link.reset_all()
        assert_reset(client)
        with connect(link) as another:
            ping_s(another)


def test_a_refusing_link_keeps_open_connections_and_later_returns_to_its_port(echo: EchoServer) -> None:
    with LinkEmulator(echo.address) as link, connect(link) as client:
        ping_s(client)
        endpoint = link.endpoint
        link.refuse()
        link.refuse()  # twice is once
        with pytest.raises(ConnectionRefusedError):
            connect(link)
        ping_s(client)
        link.refuse(False)
        assert link.endpoint == endpoint
        with connect(link) as another:
            ping_s(another)


def test_a_dead_target_resets_the_client_and_is_tried_again_for_the_next(echo: EchoServer) -> None:
    echo.close()
    with LinkEmulator(echo.address) as link:
        # Where the reset is quicker than connect() itself, it is connect() that says so.
        with pytest.raises(ConnectionResetError), connect(link) as client:
            client.recv(1)
        assert link.stats()["unreachable"] == 1
        with socket.create_server(echo.address) as revived, connect(link) as client:
            revived.settimeout(PATIENCE_S)
            client.sendall(b"again")
            end, _ = revived.accept()
            with end:
                assert receive(end, 5) == b"again"


def test_a_link_that_ends_leaves_neither_thread_nor_listener(echo: EchoServer) -> None:
    with LinkEmulator(echo.address) as link, connect(link) as client:
        ping_s(client)
        gone = client.dup()
    assert not [thread for thread in threading.enumerate() if thread.name == "link-emulator"]
    with pytest.raises(ConnectionRefusedError):
        connect(link)
    gone.close()


def test_an_impossible_control_is_the_callers_error_and_the_link_goes_on(echo: EchoServer) -> None:
    with LinkEmulator(echo.address) as link, connect(link) as client:
        with pytest.raises(ValueError, match="blackhole"):
            link.set_rate(0)
        with pytest.raises(ValueError, match="negative"):
            link.set_delay_ms(-1)
        ping_s(client)


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "example.org", "::"])
def test_addresses_beyond_loopback_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match="not on loopback"):
        LinkEmulator((host, 80))
    with pytest.raises(ValueError, match="not on loopback"):
        LinkEmulator((LOOPBACK, 80), listen=(host, 0))


@pytest.mark.parametrize("text", ["", "5555", ":5555", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_address_without_host_or_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        parse_address(text)


def test_an_address_may_be_in_brackets() -> None:
    assert parse_address("[::1]:80") == ("::1", 80)


def test_the_process_is_driven_by_lines(echo: EchoServer) -> None:
    with LinkProcess(echo.address, rate_mbit_per_s=100, rtt_ms=20) as link, connect(link) as client:
        assert link.endpoint == f"tcp://{LOOPBACK}:{link.address[1]}"
        assert least_ping_s(client) == pytest.approx(0.020, abs=0.005)
        link.control(rtt_ms=4, rate_mbit=50, uplink_mbit=None)
        assert link.stats()["connections"] == 1
        assert least_ping_s(client) == pytest.approx(0.004, abs=0.003)
        link.control(blackhole=True)
        client.sendall(b"held")
        assert_silent(client)
        link.control(blackhole=False)
        assert receive(client, 4) == b"held"
        link.control(reset=True, refuse=True)
        assert_reset(client)
        assert link.stats()["connections"] == 0
        with pytest.raises(ConnectionRefusedError):
            connect(link)


def test_the_process_ends_cleanly_on_sigterm(echo: EchoServer) -> None:
    with LinkProcess(echo.address) as link:
        os.kill(link.pid, signal.SIGTERM)
        with pytest.raises(ConnectionError, match="ended"):
            link.stats()


def test_the_command_line_refuses_to_leave_loopback_with_one_sentence_and_code_2() -> None:
    command = [sys.executable, "-m", "benchmarks.link", "--target", "192.0.2.1:80"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "address 192.0.2.1:80 is not on loopback, and this link carries traffic nowhere else"
    ]


def test_the_command_line_says_when_its_port_is_taken(echo: EchoServer, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"{LOOPBACK}:{echo.address[1]}"
    assert link_process.main(["--target", address, "--listen", address]) == 1
    assert "choose another --listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "Expecting value"),
        ("[1]", "not a JSON object"),
        ('{"speed": 1}', "unknown speed; the controls are rate_mbit"),
        ('{"rate_mbit": "fast"}', "not a number"),
        ('{"rate_mbit": 0}', "positive and finite"),
        ('{"blackhole": 1}', "neither true nor false"),
    ],
)
def test_a_control_line_that_makes_no_sense_is_named_and_skipped(
    echo: EchoServer,
    line: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f'{line}\n{{"stats": true}}\n'))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert link_process.main(["--target", f"{LOOPBACK}:{echo.address[1]}"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    output = capsys.readouterr()
    assert complaint in output.err
    assert len(output.out.splitlines()) == 2, "ready, and the answer to stats: the link went on"
