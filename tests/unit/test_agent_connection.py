"""When a connection is given up: silence counts from the last word, and a long upload is no silence."""

from __future__ import annotations

from edge_agent.connection import WELCOME_S, Connection
from protocol.control.pulse import SILENCE_S
from protocol.control.session import Event
from protocol.mailbox import Mailbox


def test_a_gateway_is_silent_only_when_it_has_had_time_to_hear_us() -> None:
    mailbox: Mailbox[object] = Mailbox()
    connection = Connection(None, mailbox.fileno())
    try:
        connection.handle(Event.HANDSHAKE, now=0.0)
        assert connection.overdue(now=WELCOME_S + 0.1) == "the gateway did not welcome us"
        connection.handle(Event.WELCOME, now=1.0)
        connection.heard_at = 1.0
        assert connection.overdue(now=1.0 + SILENCE_S - 0.1) is None
        assert connection.overdue(now=1.0 + SILENCE_S + 0.1) == "the gateway has fallen silent"
        # Pings queue behind an upload: on a slow link nothing can come back before it is through.
        assert connection.overdue(now=1.0 + SILENCE_S + 0.1, patience_s=SILENCE_S + 6.3) is None
    finally:
        connection.close()
        mailbox.close()
