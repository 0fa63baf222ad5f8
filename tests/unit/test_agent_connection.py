"""When a connection is made, which must never be missed, and when it is given up: a long upload is no silence."""

from __future__ import annotations

import socket

import pytest
import zmq

from edge_agent.connection import GIVEN_UP_S, WELCOME_S, Change, Connection, Shared
from edge_agent.ways import Ways
from protocol import sockets
from protocol.control.causes import Cause, Why
from protocol.control.pulse import SILENCE_S
from protocol.control.session import Event
from protocol.mailbox import Mailbox


def test_a_gateway_is_silent_only_when_it_has_had_time_to_hear_us() -> None:
    mailbox: Mailbox[object] = Mailbox()
    shared = Shared(mailbox.fileno())
    connection = Connection(Ways(()), shared)
    try:
        connection.handle(Event.HANDSHAKE, now=0.0)
        assert connection.overdue(now=WELCOME_S + 0.1) == Why(Cause.LINK, "the gateway did not welcome us")
        connection.handle(Event.WELCOME, now=1.0)
        connection.heard_at = 1.0
        assert connection.overdue(now=1.0 + SILENCE_S - 0.1) is None
        assert connection.overdue(now=1.0 + SILENCE_S + 0.1) == Why(Cause.SILENCE, "the gateway has fallen silent")
        # Pings queue behind an upload: on a slow link nothing can come back before it is through.
        assert connection.overdue(now=1.0 + SILENCE_S + 0.1, patience_s=SILENCE_S + 6.3) is None
    finally:
        connection.close()
        shared.close()
        mailbox.close()


def test_the_first_handshake_is_seen_however_slow_the_thread_is(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = zmq.Socket.get_monitor_socket

    def held_up(sock: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        # As on a busy machine, where the thread goes on only when a socket that connected already is connected.
        sock.poll(300, zmq.POLLOUT)
        return prompt(sock)

    monkeypatch.setattr(zmq.Socket, "get_monitor_socket", held_up)
    context = sockets.make_context()
    router, bound = sockets.router(context, sockets.Endpoint("127.0.0.1", 0))
    mailbox: Mailbox[object] = Mailbox()
    shared = Shared(mailbox.fileno())
    connection = Connection(Ways(bound), shared)
    try:
        connection.open(now=0.0)
        seen: list[Change] = []
        for _ in range(50):  # the monitor also tells of the steps before it
            shared.poll(100)
            seen += connection.changes()
            if seen:
                break
        assert seen == [Change.HANDSHAKE]
    finally:
        connection.close()
        shared.close()
        mailbox.close()
        router.close(0)
        context.term()


@pytest.mark.parametrize("garbage", [b"\xff" * 64, bytes(64)], ids=["no-greeting", "of-an-old-version"])
def test_a_socket_that_has_given_up_after_garbage_is_made_anew_at_once(garbage: bytes) -> None:
    mailbox: Mailbox[object] = Mailbox()
    shared = Shared(mailbox.fileno())
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(Ways(sockets.Endpoint("127.0.0.1", server.getsockname()[1])), shared)
        try:
            connection.open(now=0.0)
            server.settimeout(20.0)
            stranger, _ = server.accept()
            with stranger:
                stranger.sendall(garbage)
            seen: list[Change] = []
            for _ in range(200):
                shared.poll(100)
                seen += connection.changes()
                if Change.LOST in seen:
                    break
            assert Change.LOST in seen
            assert connection.overdue(now=1.0) is None  # libzmq may be about to say that it tries again
            assert connection.overdue(now=1.1 + GIVEN_UP_S) == Why(Cause.LINK, str(Change.NO_GATEWAY))
            connection.recreate(now=2.2)
            assert connection.overdue(now=2.2 + GIVEN_UP_S) is None
            with server.accept()[0]:  # it knocks again
                pass
        finally:
            connection.close()
            shared.close()
            mailbox.close()
