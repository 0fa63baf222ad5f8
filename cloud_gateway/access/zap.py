"""What is answered when libzmq asks whether a connection may be made (ZAP, ZeroMQ RFC 27). Decisions only.

    mechanism, key, address                                     answer
    CURVE, key of an agent that may come                        200, user id NAME/KEY
    CURVE, unknown key while an invitation is open              200, user id ?KEY: a guest, who may show a token
    CURVE, unknown key while too many guests come               300   the agent tries again by itself
    CURVE, key that is unknown, revoked or expired              400   the agent gives up, and knocks anew after a while
    NULL, where plain text is allowed (this machine, or all)    200, user id ""
    NULL elsewhere; any other mechanism                         400
    the roster cannot be read just now                          300   the agent tries again by itself
    a request that breaks the protocol                          500

A DEALER gives up for good, silently, after 400 and 500: so what will pass must be answered 300.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

from cloud_gateway.access.roster import Table, is_valid

VERSION = b"1.0"
KEY_NBYTES = 32
_GUEST = re.compile(r"\?[0-9a-f]{64}")


class PlainText(enum.Enum):
    """From where connections without keys are taken."""

    NOWHERE = "nowhere"
    THIS_MACHINE = "this machine"
    ANYWHERE = "anywhere"


class Request(NamedTuple):
    sequence: bytes
    domain: bytes
    address: str
    mechanism: bytes
    credentials: tuple[bytes, ...]


class Reply(NamedTuple):
    """`text` is for our own logs: libzmq does not send it to the peer."""

    status: int
    text: str
    user_id: str = ""

    def frames(self, sequence: bytes) -> list[bytes]:
        return [VERSION, sequence, str(self.status).encode(), self.text.encode()[:255], self.user_id.encode(), b""]


def parse(frames: Sequence[bytes]) -> Request | None:
    """None for what is no request of this version of the protocol."""
    if len(frames) < 6 or frames[0] != VERSION:
        return None
    _, sequence, domain, address, _identity, mechanism, *credentials = frames
    return Request(sequence, domain, address.decode("ascii", "replace"), mechanism, tuple(credentials))


def decide(
    request: Request,
    table: Table | None,
    *,
    domain: bytes,
    plain_text: PlainText,
    utc: float,
    crowded: bool = False,
) -> Reply:
    """Whether the connection may be made. `table` is None while nobody can be looked up; `utc`: seconds since 1970.

    `crowded`: no more guests just now.
    """
    if request.domain != domain:
        return Reply(500, f"the domain {request.domain!r} is not ours")
    if request.mechanism == b"NULL":
        if plain_text is PlainText.ANYWHERE or (plain_text is PlainText.THIS_MACHINE and _is_here(request.address)):
            return Reply(200, "plain text")
        return Reply(400, "plain text is not taken here")
    if request.mechanism != b"CURVE":
        return Reply(400, f"the mechanism {request.mechanism!r} is not taken here")
    if len(request.credentials) != 1 or len(request.credentials[0]) != KEY_NBYTES:
        return Reply(500, "a CURVE connection without one key of 32 bytes")
    if table is None:
        return Reply(300, "the roster cannot be read")
    (key,) = request.credentials
    agent = table.agents.get(key)
    if agent is None and utc < table.guests_until:
        return Reply(300, "too many guests come") if crowded else Reply(200, "a guest", guest_id(key))
    if agent is None:
        return Reply(400, f"unknown key {key.hex()}")
    if not is_valid(agent, utc=utc):
        return Reply(400, f"{agent.name}'s key {'was revoked' if agent.revoked is not None else 'has expired'}")
    return Reply(200, "known", agent.user_id)


def guest_id(key: bytes) -> str:
    """What every message of a guest's connection bears. No name begins like that."""
    return f"?{key.hex()}"


def guest_key(user_id: str) -> bytes | None:
    """The key (32 bytes) that a guest's connection has proven; None for whoever is no guest."""
    return bytes.fromhex(user_id[1:]) if _GUEST.fullmatch(user_id) else None


def _is_here(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback
