"""The ways to one gateway: where it listens and the keys on both sides, in the order in which they are tried.

    KEYS/agent.key     the device's own secret; nobody else has it
    KEYS/server.pub    by what it knows the gateway: one key, and while the gateway rotates it the next one as well

An agent that holds both keys of a gateway is never without one: when the first is refused it tries the second, at the
gateway's usual port and at the one where the next key answers. The files are read again for every new attempt, so a new
server.pub takes effect without a restart; one that cannot be read changes nothing.
"""

from __future__ import annotations

import contextlib
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
    """At least one way. Reads the keys and raises InputError if they cannot be read."""

    def __init__(self, endpoint: Endpoint, keys_dir: Path | None = None, server_key: str = "") -> None:
        """`server_key` is a public key, or a file of such, that is used instead of KEYS/server.pub."""
        if server_key and keys_dir is None:
            raise InputError("a server key without keys of our own", "give --keys DIR with the device's agent.key too")
        self._endpoint = endpoint
        self._keys_dir = keys_dir
        self._server_key = server_key
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
        failed = self.current
        with contextlib.suppress(InputError):
            self._ways = self._read()
        after = self._ways.index(failed) + 1 if failed in self._ways else 0
        self._at = after % len(self._ways)

    def _read(self) -> tuple[Way, ...]:
        if self._keys_dir is None:
            return (Way(self._endpoint),)
        secret = keys.read_pair(self._keys_dir / "agent.key").secret
        return tuple(
            Way(self._endpoint._replace(port=port), CurveClient(secret, key.data))
            for key in self._server_keys(self._keys_dir)
            for port in dict.fromkeys((self._endpoint.port, key.port or self._endpoint.port))
        )

    def _server_keys(self, keys_dir: Path) -> tuple[PublicKey, ...]:
        return keys.given_public(self._server_key) if self._server_key else keys.read_public(keys_dir / "server.pub")
