"""What the kernel tells of TCP connections that somebody else owns."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from protocol.descriptors import peer_of, received_nbytes, tcp_view
from tests.waiting import until

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        with near, far:
            yield near, far


def exchange(pair: Pair, nbytes: int) -> None:
    near, far = pair
    near.sendall(bytes(nbytes))
    left = nbytes
    while left:
        left -= len(far.recv(left))
    far.sendall(b"1")
    assert near.recv(1) == b"1"


def test_round_trip_rate_and_bytes_of_a_connection_are_the_kernels_own(pair: Pair) -> None:
    near, far = pair
    exchange(pair, 300_000)
    until(lambda: (seen := tcp_view(near.fileno())) is not None and seen.bytes_per_s, "the kernel has no rate")
    seen = tcp_view(near.fileno())
    assert seen is not None
    assert 0 < seen.rtt_s < 20
    assert seen.bytes_per_s is not None
    assert seen.bytes_per_s > 1e4
    assert received_nbytes(far.fileno()) == 300_000


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_peer_of_a_connection_stays_the_same_while_it_stands(family: socket.AddressFamily) -> None:
    if family is socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    both = family is socket.AF_INET6  # as gateways listen: then IPv4 peers have addresses of IPv6, which are longer
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both) as server:
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])) as near, server.accept()[0] as far:
            assert peer_of(far.fileno()) == str(far.getpeername())
            assert near.getsockname()[1] == far.getpeername()[1]
            descriptor = far.fileno()
        assert peer_of(descriptor) == ""


def test_a_rate_that_shows_only_how_little_was_sent_is_told_as_such(pair: Pair) -> None:
    def is_limited() -> bool:
        exchange(pair, 100)
        seen = tcp_view(pair[0].fileno())
        return seen is not None and seen.is_limited_by_us

    until(is_limited, "a few bytes at a time fill no link")


def test_what_is_no_tcp_connection_has_no_view() -> None:
    read, write = os.pipe()
    try:
        assert tcp_view(read) is None
        assert received_nbytes(read) is None
        assert peer_of(read) == ""
    finally:
        os.close(read)
        os.close(write)
    assert tcp_view(read) is None, "a descriptor that was closed"
    with socket.socket() as unconnected:
        assert tcp_view(unconnected.fileno()) is None
