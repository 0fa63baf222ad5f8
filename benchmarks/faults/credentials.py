"""Keys on both sides, and what can be wrong with them."""

from __future__ import annotations

import itertools
from pathlib import Path

from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import AgentEntry, add_agent, revoke
from protocol import keys


class Credentials:
    """A gateway's folder of keys and a device's, which know each other."""

    def __init__(self, folder: Path) -> None:
        self.device = folder / "device"
        self.device.mkdir(parents=True)
        self.gateway = KeyFolder(folder / "gateway")
        self.gateway.make()
        self._names = (f"device-{number}" for number in itertools.count())
        with self.gateway.locked():
            self.gateway.create("gateway")
        self.know_the_gateway()
        self.let_in()

    def let_in(self) -> None:
        """Give the device a new key, and tell the gateway."""
        self._name = next(self._names)
        pair = keys.make_pair(self._name)
        entry = AgentEntry(name=self._name, key=pair.public.data.hex(), added=1)
        with self.gateway.locked():
            self.gateway.change(lambda roster: add_agent(roster, entry))
        keys.write_pair(self.device / "agent.key", pair, overwrite=True)

    def throw_out(self) -> None:
        """Revoke the device's key."""
        with self.gateway.locked():
            self.gateway.change(lambda roster: revoke(roster, self._name, utc=1))

    def exchange_the_gateways(self) -> None:
        """A new key for the gateway, of which the device knows nothing. It takes effect when the gateway starts."""
        with self.gateway.locked():
            self.gateway.begin_rotation(1)  # where it would answer beside the old one; nobody asks
            self.gateway.finish_rotation()

    def know_the_gateway(self) -> None:
        """Let the device know the gateway by the key that it has."""
        keys.write_public(self.device / "server.pub", self.gateway.public_keys())
