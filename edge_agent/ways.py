"""The ways to one gateway: where it listens and the keys on both sides, in the order in which they are tried.

    KEYS/agent.key     the device's own secret; nobody else has it
    KEYS/server.pub    by what it knows the gateway: one key, and while the gateway rotates it the next one as well

An agent that holds both keys of a gateway is never without one: when the first is refused it tries the second, at the
gateway's usual port and at the one where the next key answers. The files are read again for every new attempt, so a new
server.pub takes effect without a restart; one that cannot be read changes nothing. A gateway with several addresses is
tried at each of them in turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from protocol import keys
from protocol.errors import InputError
from protocol.keys import PublicKey
from protocol.sockets import CurveClient, Endpoint


class Way(NamedTuple):
    """`curve` is None for plain text."""

    endpoint: Endpoint
    curve: CurveClient | None = None


class Ways:
    """None while no address is known. Reads the keys and raises InputError if they cannot be read."""

    def __init__(
        self, endpoint: Endpoint | Sequence[Endpoint], keys_dir: Path | None = None, server_key: str = ""
    ) -> None:
        """Of several addresses the first is tried first. `server_key` is a public key, or a file of such, that is used
        instead of KEYS/server.pub."""
        if server_key and keys_dir is None:
            raise InputError("a server key without keys of our own", "give --keys DIR with the device's agent.key too")
        self._endpoints = (endpoint,) if isinstance(endpoint, Endpoint) else tuple(endpoint)
        self._keys_dir = keys_dir
        self._server_key = server_key
        self._stamp = self._stamped()
        self._ways = self._read()
        self._at = 0

    @property
    def current(self) -> Way:
        return self._ways[self._at]

    @property
    def count(self) -> int:
        return len(self._ways)

    def turn(self) -> None:
        """Take the next one, the first after the last."""
        self._look_again(1)

    def move(self, endpoints: Sequence[Endpoint]) -> None:
        """The gateway's addresses have changed. A connection that stands is left alone; the next one goes there."""
        self._endpoints = tuple(endpoints)
        self._look_again(0)

    def have_changed(self) -> bool:
        """Whether somebody has written our key files since they were read."""
        return self._stamped() != self._stamp

    def _stamped(self) -> tuple[tuple[int, ...] | None, ...]:
        if self._keys_dir is None:
            return ()
        server = Path(self._server_key) if self._server_key else self._keys_dir / "server.pub"
        return _stamp(self._keys_dir / "agent.key"), _stamp(server)

    def _look_again(self, steps: int) -> None:
        before = self._ways[self._at] if self._ways else None
        self._stamp = self._stamped()  # before they are read: what is written meanwhile is seen with the next look
        with contextlib.suppress(InputError):
            self._ways = self._read()
        at = self._ways.index(before) + steps if before in self._ways else 0
        self._at = at % len(self._ways) if self._ways else 0

    def _read(self) -> tuple[Way, ...]:
        if self._keys_dir is None:
            return tuple(Way(endpoint) for endpoint in self._endpoints)
        secret = keys.read_pair(self._keys_dir / "agent.key").secret
        return tuple(
            Way(endpoint._replace(port=port), CurveClient(secret, key.data))
            for endpoint in self._endpoints
            for key in self._server_keys(self._keys_dir)
            for port in dict.fromkeys((endpoint.port, key.port or endpoint.port))
        )

    def _server_keys(self, keys_dir: Path) -> tuple[PublicKey, ...]:
        return keys.given_public(self._server_key) if self._server_key else keys.read_public(keys_dir / "server.pub")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
