"""The socket factory: every option on every socket, endpoints parsed strictly, refusals with a remedy."""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils.monitor import recv_monitor_message

from protocol import descriptors, sockets
from protocol.errors import InputError, NetworkError
from protocol.sockets import Endpoint, parse_endpoint, require_loopback, resolve
from protocol.wire import MAX_HEADER_NBYTES, PART_NBYTES

ANY_PORT = Endpoint("127.0.0.1", 0)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = sockets.make_context()
    yield context
    context.destroy(linger=0)


# ---- options --------------------------------------------------------------------------------------------------------

ON_EVERY_SOCKET = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 1024,
    zmq.RCVHWM: 0,  # never as flow control together with heartbeats
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 5000,
    zmq.TCP_MAXRT: 6000,
    zmq.HANDSHAKE_IVL: 4000,
    zmq.IPV6: 1,
}


@pytest.mark.parametrize("option", ON_EVERY_SOCKET, ids=lambda option: option.name)
def test_every_socket_carries_the_documented_option(
    context: zmq.Context[zmq.Socket[bytes]], option: zmq.SocketOption
) -> None:
    router, bound = sockets.router(context, ANY_PORT)
    dealer = sockets.dealer(context, bound)
    assert [s.getsockopt(option) for s in (router, dealer)] == [ON_EVERY_SOCKET[option]] * 2


def test_no_socket_takes_a_frame_much_larger_than_a_part_or_a_header(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    router, bound = sockets.router(context, ANY_PORT)
    for sock in (router, sockets.dealer(context, bound)):
        limit = sock.getsockopt(zmq.MAXMSGSIZE)
        assert isinstance(limit, int)
        assert max(PART_NBYTES, MAX_HEADER_NBYTES) <= limit <= 2 * PART_NBYTES


def test_a_dealer_queues_nothing_without_a_connection_and_reconnects_with_its_own_jitter(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    dealers = [sockets.dealer(context, Endpoint("127.0.0.1", 9)) for _ in range(30)]
    assert all(d.getsockopt(zmq.IMMEDIATE) == 1 for d in dealers)
    assert all(d.getsockopt(zmq.CONNECT_TIMEOUT) == 3000 for d in dealers)
    first = [d.getsockopt(zmq.RECONNECT_IVL) for d in dealers]
    most = [d.getsockopt(zmq.RECONNECT_IVL_MAX) for d in dealers]
    assert all(80 <= int(ivl) <= 150 for ivl in first)
    assert all(800 <= int(ivl) <= 1500 for ivl in most)
    assert len(set(first)) > 5, "a fleet must not knock in step"


def test_a_router_says_so_when_a_peer_is_gone(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, _ = sockets.router(context, ANY_PORT)
    with pytest.raises(zmq.ZMQError) as error:
        router.send_multipart([b"nobody", b"hello"])
    assert error.value.errno == zmq.EHOSTUNREACH
    assert router.getsockopt(zmq.BACKLOG) == 512


def test_a_peer_cannot_take_over_another_ones_routing_id(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, bound = sockets.router(context, ANY_PORT)

    def peer() -> zmq.Socket[bytes]:
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.ROUTING_ID, b"chosen")
        sock.connect(str(bound))
        sock.send(b"hello")
        return sock

    first = peer()
    assert router.poll(20_000)
    router.recv_multipart()
    second = peer()
    assert not router.poll(100), "the second peer was heard under the first one's name"
    router.send_multipart([b"chosen", b"for the first"])
    assert first.poll(20_000)
    assert not second.poll(0)


def test_contexts_use_two_io_threads(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    assert context.get(zmq.IO_THREADS) == 2


# ---- binding --------------------------------------------------------------------------------------------------------


def test_port_zero_picks_a_port_and_says_which(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router, bound = sockets.router(context, ANY_PORT)
    assert bound.host == "127.0.0.1"
    assert bound.port > 0
    dealer = sockets.dealer(context, bound)
    assert dealer.poll(20_000, zmq.POLLOUT)
    dealer.send(b"hello")
    assert router.poll(20_000)


def test_a_port_in_use_is_a_network_error_with_a_remedy(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    _, bound = sockets.router(context, ANY_PORT)
    with pytest.raises(NetworkError, match=rf"{bound}.*already in use.*--bind"):
        sockets.router(context, bound)


def test_an_address_of_another_machine_cannot_be_listened_on(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with pytest.raises(NetworkError, match=r"192\.0\.2\.1"):
        sockets.router(context, Endpoint("192.0.2.1", 7447))


def test_ipv6_loopback_is_bound_and_reached(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    try:
        with stdlib_socket.socket(stdlib_socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    _, bound = sockets.router(context, Endpoint("::1", 0))
    assert str(bound).startswith("tcp://[::1]:")
    assert sockets.dealer(context, bound).poll(20_000, zmq.POLLOUT)


# ---- endpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("tcp://127.0.0.1:7447", "127.0.0.1", 7447),
        ("127.0.0.1:7447", "127.0.0.1", 7447),
        ("gateway.example:1", "gateway.example", 1),
        ("tcp://[::1]:7447", "::1", 7447),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535),
        ("tcp://*:7447", "*", 7447),
        ("tcp://0.0.0.0:0", "0.0.0.0", 0),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert parse_endpoint(text) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp://",
        "127.0.0.1",
        "127.0.0.1:",
        ":7447",
        "tcp://:7447",
        "tcp://h:port",
        "tcp://h:-1",
        "tcp://h:65536",
        "tcp://h:\u0664\u0662",
        "tcp://h: 1",
        "ipc:///tmp/x",
        "http://h:80",
        "tcp://h:80/path",
        "tcp://[]:80",
        "h:" + "9" * 5000,
    ],
)
def test_what_is_no_endpoint_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError, match=r"tcp://127\.0\.0\.1:7447"):
        parse_endpoint(text)


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_an_input_error(text: str) -> None:
    try:
        endpoint = parse_endpoint(text)
    except InputError:
        return
    assert endpoint.host
    assert 0 <= endpoint.port <= 65535


@given(st.sampled_from(["127.0.0.1", "::1", "2001:db8::7", "10.0.0.1"]), st.integers(0, 65535))
def test_an_endpoint_reads_back_what_it_prints(host: str, port: int) -> None:
    assert parse_endpoint(str(Endpoint(host, port))) == Endpoint(host, port)


def test_names_are_resolved_to_addresses_and_addresses_left_alone() -> None:
    assert resolve(Endpoint("127.0.0.1", 5)) == Endpoint("127.0.0.1", 5)
    assert resolve(Endpoint("*", 5)) == Endpoint("*", 5)
    assert resolve(Endpoint("localhost", 5)).is_loopback


def test_a_name_that_does_not_resolve_is_a_network_error_with_a_remedy() -> None:
    with pytest.raises(NetworkError, match=r"'no such host'.*check the name"):
        resolve(Endpoint("no such host", 5))


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::", "10.0.0.1", "2001:db8::7"])
def test_plain_text_off_this_machine_is_refused_unless_asked_for(host: str) -> None:
    with pytest.raises(InputError, match=r"listening on .*--insecure"):
        require_loopback(Endpoint(host, 1), insecure=False, doing="listening on")
    require_loopback(Endpoint(host, 1), insecure=True, doing="listening on")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1"])
def test_plain_text_on_loopback_is_always_allowed(host: str) -> None:
    require_loopback(Endpoint(host, 1), insecure=False, doing="connecting to")


# ---- a front that is a process ---------------------------------------------------------------------------------------


def test_who_keeps_the_listening_socket_keeps_the_port_and_those_who_wait(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    listening, endpoint = sockets.listener(ANY_PORT)
    with listening:
        dealer = sockets.dealer(context, endpoint)  # before anybody accepts
        for _ in range(2):  # the second takes over from the first
            router, monitor = sockets.watched_router(context)
            sockets.adopt(router, listening.fileno(), endpoint)
            for _ in range(20):  # a router of this process may accept one more connection while it is being closed
                assert dealer.poll(20_000, zmq.POLLOUT)
                dealer.send(b"hello")
                if router.poll(500):
                    break
            assert router.recv_multipart(zmq.NOBLOCK)[1] == b"hello"
            router.disable_monitor()
            monitor.close(0)
            router.close(0)
            with pytest.raises(NetworkError, match="already in use"):
                sockets.listener(endpoint)
            dealer.close(0)
            dealer = sockets.dealer(context, endpoint)


def test_a_connection_is_hung_up_on_by_its_descriptor_which_messages_bear(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    router, endpoint = sockets.router(context, ANY_PORT)
    dealer, monitor = sockets.watched_dealer(context, endpoint)
    dealer.send(bytes(5000))
    message = router.recv_multipart(copy=False)[1]
    descriptor = int(message.get(zmq.SRCFD))
    assert 5000 < (descriptors.received_nbytes(descriptor) or 0) < 5200
    descriptors.hang_up(descriptor)
    events = set()
    while zmq.EVENT_DISCONNECTED not in events:
        assert monitor.poll(20_000)
        events.add(recv_monitor_message(monitor)["event"])
    dealer.disable_monitor()
    monitor.close(0)


def test_what_is_no_connection_counts_nothing_and_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert descriptors.received_nbytes(file.fileno()) is None
        descriptors.hang_up(file.fileno())
        descriptors.hang_up(-1)
        file.write(b"still open")


def test_gateway_and_front_talk_over_a_unix_socket_without_heartbeats(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    hub = sockets.hub(context, str(tmp_path / "hub"))
    spoke = sockets.spoke(context, str(tmp_path / "hub"))
    assert spoke.poll(20_000, zmq.POLLOUT)
    spoke.send_multipart([b"route", b"header"])
    assert hub.recv_multipart() == [b"route", b"header"]
    assert {s.getsockopt(zmq.HEARTBEAT_IVL) for s in (hub, spoke)} == {0}
    spoke.close(0)

    def send_for_ever() -> None:
        while True:
            hub.send(b"answer", zmq.NOBLOCK)

    with pytest.raises(zmq.Again):  # nothing is queued for nobody
        send_for_ever()


def test_a_reserved_port_is_nobody_elses_and_refuses_until_its_owner_listens() -> None:
    held = sockets.reserve(Endpoint("127.0.0.1", 0))
    address = held.getsockname()
    try:
        with pytest.raises(ConnectionRefusedError):
            stdlib_socket.create_connection(address, timeout=20)
        held.listen()
        with stdlib_socket.create_connection(address, timeout=20), pytest.raises(OSError, match="in use"):
            sockets.reserve(Endpoint("127.0.0.1", address[1]))
    finally:
        held.close()
