"""Who is connected, in the order in which they were last heard; whoever is silent is forgotten, and so are too many."""

from __future__ import annotations

from cloud_gateway.doors.peers import MOST_PEERS, SILENT_PEER_S, TWIN_ALIVE_S, TWIN_S, TWIN_TOLD_S, Peers
from protocol.control.session import Event


def greet(peers: Peers, route: bytes, now: float) -> None:
    peers.heard(route, now=now).session.handle(Event.HELLO)


def test_a_peer_is_known_from_its_first_message_and_greeted_from_its_hello() -> None:
    peers = Peers()
    first = peers.heard(b"a", now=0.0)
    assert not first.is_greeted
    assert peers.greeted() == []
    first.session.handle(Event.HELLO)
    assert peers.heard(b"a", now=1.0) is first
    assert peers.greeted() == [b"a"]


def test_a_silent_peer_is_forgotten_and_one_that_is_heard_is_not() -> None:
    peers = Peers()
    for route in (b"a", b"b"):
        greet(peers, route, 0.0)
    silent = peers.heard(b"b", now=0.0)
    peers.heard(b"a", now=20.0)
    peers.forget_silent(now=SILENT_PEER_S - 0.1)
    assert sorted(peers.greeted()) == [b"a", b"b"]
    peers.forget_silent(now=SILENT_PEER_S)
    assert peers.greeted() == [b"a"]
    assert not silent.is_greeted
    assert not peers.heard(b"b", now=SILENT_PEER_S).is_greeted, "it has to greet again"


def test_a_dropped_peer_has_to_greet_again_and_dropping_a_stranger_is_nothing() -> None:
    peers = Peers()
    greet(peers, b"a", 0.0)
    peers.drop(b"a")
    peers.drop(b"stranger")
    assert peers.greeted() == []


def test_of_too_many_peers_those_heard_longest_ago_go_first() -> None:
    peers = Peers()
    for number in range(MOST_PEERS + 2):
        peers.heard(number.to_bytes(4, "big"), now=0.0)
    peers.heard((0).to_bytes(4, "big"), now=1.0)
    kept = peers.heard((0).to_bytes(4, "big"), now=1.0)
    peers.forget_silent(now=1.0)
    assert peers.heard((0).to_bytes(4, "big"), now=1.0) is kept
    assert len(peers) == MOST_PEERS


def _keyed(peers: Peers, route: bytes, boot: bytes, now: float) -> None:
    peers.greet(route, peers.heard(route, now=now), (boot,), "camera-7", now=now)


def _pings(peers: Peers, route: bytes, now: float) -> bool:
    return peers.is_twin(peers.heard(route, now=now), now=now)


def test_two_devices_that_speak_with_one_key_are_noticed_once() -> None:
    peers = Peers()
    _keyed(peers, b"a", b"boot-one", 0.0)
    _keyed(peers, b"b", b"boot-two", 5.0)
    seen = [_pings(peers, route, 5.0 + second) for second in range(int(TWIN_S) + 5) for route in (b"b", b"a")]
    assert sum(seen) == 1
    last = 5.0 + TWIN_S + 4
    assert peers.shares_key("camera-7", now=last)
    assert not peers.shares_key("camera-7", now=last + TWIN_TOLD_S), "it may have been mended"
    assert not peers.shares_key("camera-8", now=last)
    assert not any(seen[: 2 * int(TWIN_S)])


def test_a_device_that_was_restarted_or_asked_by_its_doctor_is_no_twin() -> None:
    peers = Peers()
    _keyed(peers, b"a", b"boot-one", 0.0)
    _keyed(peers, b"b", b"boot-two", 5.0)  # a doctor's question, or the process after it: one of both falls silent
    for second in range(200):
        assert not _pings(peers, b"a", 5.0 + TWIN_ALIVE_S + 1 + second)


def test_connections_of_one_process_and_those_without_keys_are_no_twins() -> None:
    peers = Peers()
    _keyed(peers, b"a", b"boot-one", 0.0)
    _keyed(peers, b"b", b"boot-one", 1.0)
    for route in (b"c", b"d"):
        peers.greet(route, peers.heard(route, now=0.0), (route * 8,), "", now=0.0)
    for second in range(200):
        assert not any(_pings(peers, route, 2.0 + second) for route in (b"a", b"b", b"c", b"d"))
