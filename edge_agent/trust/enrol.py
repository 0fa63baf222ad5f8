"""How a device becomes known at a gateway: it shows a token once, over a connection of its own.

    own key (made if need be) -> connect to the key that the token names -> Enroll -> Enrolled -> KEYS/server.pub

The token pins the gateway, so its secret is shown to nobody else. What goes into a connection just as its peer dies is
lost, and so may the answer be: the question is asked again, and the gateway answers the same key the same.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import zmq

from edge_agent.trust.identity import identity
from protocol import __version__, invitation, keys, sockets, wire
from protocol import messages as m
from protocol.errors import InputError, NetworkError, WireError
from protocol.invitation import Token
from protocol.keys import PublicKey
from protocol.sockets import CurveClient, Endpoint

PATIENCE_S = 30.0
AGAIN_S = 3.0  # the same question on a new connection
KNOWN_S = 5.0
POLL_MS = 100


class Enrolment(NamedTuple):
    """The name under which the gateway knows this device now, and by what the device knows the gateway."""

    name: str
    fingerprint: str  # of the device's own key
    server: tuple[PublicKey, ...]


def enrol(gateway: str, text: str, folder: Path, *, replace: bool = False, patience_s: float = PATIENCE_S) -> Enrolment:
    """Become known at `gateway` (tcp://HOST:PORT) with a token. `folder` gets agent.key and server.pub.

    Raises InputError for a token that is damaged or refused, or if `folder` knows another gateway and this one is not
    to `replace` it, and NetworkError if nobody answers. Nothing but agent.key is written then.
    """
    token = invitation.parse_token(text)
    _require_no_other(folder, token, replace=replace)
    endpoint = sockets.resolve(sockets.parse_endpoint(gateway))
    pair = identity(folder)
    answer = _ask(endpoint, CurveClient(pair.secret, token.server), token, patience_s)
    if answer.refusal:
        raise InputError(
            f"the gateway refuses: {wire.printable(answer.refusal)}",
            "ask for a new one: `cloud-gateway keys invite NAME`",
        )
    server = tuple(PublicKey(key.key, "gateway", key.port) for key in answer.server)
    if token.server not in {key.data for key in server}:
        raise WireError("the gateway does not name its own key", "update the gateway")
    keys.write_public(folder / "server.pub", server)
    return Enrolment(wire.printable(answer.name), pair.public.fingerprint, server)


def _require_no_other(folder: Path, token: Token, *, replace: bool) -> None:
    path = folder / "server.pub"
    if replace or not path.exists():
        return
    if token.server not in {key.data for key in keys.read_public(path)}:
        raise InputError(
            f"{path} names another gateway than the token does",
            "enrol into another folder of keys, or say --replace to forget that gateway",
        )


def _ask(endpoint: Endpoint, curve: CurveClient, token: Token, patience_s: float) -> m.Enrolled:
    """Ask on new connections until an answer comes, then wait until we are let in.

    Raises InputError if we are not even heard, NetworkError if no answer comes.
    """
    question = m.Enroll(token.id, token.secret, f"isthmus {__version__}")
    context = sockets.make_context()
    give_up_at = time.monotonic() + patience_s
    try:
        while (now := time.monotonic()) < give_up_at:
            answer = _ask_once(context, endpoint, curve, question, min(now + AGAIN_S, give_up_at))
            if isinstance(answer, m.Enrolled):
                if not answer.refusal:
                    _wait_known(context, endpoint, curve)
                return answer
    finally:
        context.term()
    raise NetworkError(
        f"no gateway with the token's key answers at {endpoint}",
        "check the address; if the gateway's key was replaced since, ask for a new token",
    )


def _wait_known(context: sockets.Context, endpoint: Endpoint, curve: CurveClient) -> None:
    """The gateway looks into its roster now and then: whoever starts next should not be turned away at first."""
    give_up_at = time.monotonic() + KNOWN_S
    while (now := time.monotonic()) < give_up_at:
        with contextlib.suppress(InputError):
            if _ask_once(context, endpoint, curve, m.Ping(0), min(now + AGAIN_S, give_up_at)) is not None:
                return
        time.sleep(POLL_MS / 1e3)


def _ask_once(
    context: sockets.Context, endpoint: Endpoint, curve: CurveClient, question: m.Enroll | m.Ping, until: float
) -> m.Enrolled | m.Pong | None:
    """The answer; None if the connection ends before one comes. Raises InputError if it is not let in."""
    sock, monitor = sockets.watched_dealer(context, endpoint, curve)
    asked = False
    try:
        poller = zmq.Poller()
        poller.register(sock, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        while time.monotonic() < until:
            ready = dict(poller.poll(POLL_MS))
            if sock in ready and (answer := _heard(sock)) is not None:
                return answer
            if monitor not in ready:
                continue
            event, _ = sockets.monitor_event(monitor)
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise InputError(
                    "the gateway does not let this device in: no invitation is open there, or its key was revoked",
                    "ask for a new token: `cloud-gateway keys invite NAME`",
                )
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED and not asked:
                sock.send_multipart(wire.pack(question), zmq.NOBLOCK)
                asked = True
            elif event == zmq.EVENT_DISCONNECTED and asked:
                return None
    except zmq.Again:  # the connection has ended again already
        return None
    finally:
        sock.disable_monitor()
        monitor.close(0)
        sock.close(0)
    return None


def _heard(sock: sockets.Socket) -> m.Enrolled | m.Pong | None:
    try:
        message = wire.unpack_header(sock.recv_multipart(zmq.NOBLOCK)[0])
    except WireError:
        return None
    return message if isinstance(message, m.Enrolled | m.Pong) else None
