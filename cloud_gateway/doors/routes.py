"""How a front that is a process names the connection that a message came from, or an answer is for. Pure.

    route = life (4 bytes) + length of the routing id (1 byte) + routing id + user id

libzmq's routing ids are numbers that a new process draws anew: without the life in front, an answer for a connection
of a front that has died could reach somebody else's. The user id (whose key the connection has proven) goes with the
message, since libzmq attaches it only where the TCP connection ends. Without a routing id it is the front itself.
"""

from __future__ import annotations

_LIFE = 4


def to_route(life: int, peer: bytes, user_id: str = "") -> bytes:
    """`life` counts the front's processes, `peer` is libzmq's routing id (at most 255 bytes)."""
    return life.to_bytes(_LIFE) + bytes((len(peer),)) + peer + user_id.encode()


def peer_of(route: bytes, *, life: int) -> bytes | None:
    """The routing id; None for a route of another life, and for what is no route."""
    length = route[_LIFE] if len(route) > _LIFE else 0
    if route[:_LIFE] != life.to_bytes(_LIFE) or len(route) < _LIFE + 1 + length:
        return None
    return route[_LIFE + 1 : _LIFE + 1 + length]


def user_id_of(route: bytes) -> str:
    """Whose key the connection has proven; empty for plain text, and for what is no route."""
    if len(route) <= _LIFE:
        return ""
    return route[_LIFE + 1 + route[_LIFE] :].decode("utf-8", "replace")


def is_front(route: bytes) -> bool:
    """Whether it is the front itself that asks, not one of its peers."""
    return len(route) == _LIFE + 1 and route[_LIFE] == 0
