"""The folder of keys of one gateway. Commands change it while the gateway runs; of itself the gateway only lets in
whom a command has invited.

    server.key        secret of the gateway's CURVE key           0600
    server.next.key   the key that will replace it                0600, only while it is being rotated
    server.pub        what devices need to know of the gateway: one public key, two while it is being rotated
    roster.json       who is known: agents and API keys           0600
    invitations.json  who may become known, once                  0600, only if somebody was invited
    audit.log         what was done to all this                   see `audit`

Every file is replaced whole. Commands exclude each other by a lock, so that none undoes what another has done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cloud_gateway.access import invitations as inviting
from cloud_gateway.access import roster as rosters
from cloud_gateway.access.invitations import Invitations
from cloud_gateway.access.roster import Roster
from protocol import keys
from protocol.errors import InputError
from protocol.keys import KeyPair, PublicKey


class ServerKeys(NamedTuple):
    """The key that the gateway answers to and, while it is being rotated, the next one with the port it answers at."""

    current: KeyPair
    next: KeyPair | None = None
    next_port: int | None = None


class KeyFolder:
    """Constructing reads nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = path / "server.key"
        self._next = path / "server.next.key"
        self._public = path / "server.pub"
        self._roster = path / "roster.json"
        self._invitations = path / "invitations.json"

    @property
    def audit_log(self) -> Path:
        return self.path / "audit.log"

    def server_keys(self) -> ServerKeys:
        """Raises InputError if there are none, or if others may read them."""
        if not self._server.exists():
            raise InputError(
                f"{self.path} holds no key of a gateway", f"run `cloud-gateway keys init --keys {self.path}`"
            )
        current = keys.read_pair(self._server)
        if not self._next.exists():
            return ServerKeys(current)
        following = keys.read_pair(self._next)
        ports = [key.port for key in keys.read_public(self._public) if key.data == following.public.data]
        return ServerKeys(current, following, ports[0] if ports else None)

    def public_keys(self) -> tuple[PublicKey, ...]:
        """What devices are given. Raises InputError."""
        return keys.read_public(self._public)

    def roster(self) -> Roster:
        """Raises InputError if it cannot be read."""
        if not self._roster.exists():
            self.server_keys()  # a folder that was never made is another trouble
        return rosters.decode(keys.read_private(self._roster), name=str(self._roster))

    def invitations(self) -> Invitations:
        """Raises InputError if they cannot be read."""
        if not self._invitations.exists():
            return Invitations()
        return inviting.decode(keys.read_private(self._invitations), name=str(self._invitations))

    def stamp(self) -> tuple[object, ...]:
        """Changes whenever a file was replaced, or opened to others. Costs five system calls."""
        files = (self._server, self._next, self._public, self._roster, self._invitations)
        return tuple(_stamp(path) for path in files)

    # ---- changes, each under the lock -------------------------------------------------------------------------------

    def make(self) -> None:
        """Make the folder itself, for its owner alone (0700), if it is not there. Raises InputError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path} cannot be made ({error.strerror})", "choose another folder") from error

    def create(self, name: str) -> KeyPair:
        """A new server key and an empty roster. The caller holds the lock. Raises InputError if there is a key."""
        pair = keys.make_pair(name)
        keys.write_pair(self._server, pair)
        if not self._roster.exists():
            keys.write_private(self._roster, rosters.encode(Roster()), overwrite=False)
        keys.write_public(self._public, (pair.public,))
        return pair

    def change(self, change: Callable[[Roster], Roster]) -> Roster:
        """Replace the roster by what `change` makes of it. The caller holds the lock."""
        after = change(self.roster())
        keys.write_private(self._roster, rosters.encode(after), overwrite=True)
        return after

    def change_invitations(self, change: Callable[[Invitations], Invitations]) -> None:
        """Replace the invitations by what `change` makes of them. The caller holds the lock."""
        keys.write_private(self._invitations, inviting.encode(change(self.invitations())), overwrite=True)

    def begin_rotation(self, port: int) -> KeyPair:
        """Make the next server key, which answers at `port`. The caller holds the lock. Raises InputError."""
        current = self.server_keys()
        if current.next is not None:
            raise InputError(
                "the server key is being rotated already", "end that with `keys rotate --finish`, or --undo"
            )
        pair = keys.make_pair(current.current.name)
        named = PublicKey(pair.public.data, pair.name, port)
        # The public file first: a secret whose port nobody knows could not be served.
        keys.write_public(self._public, (current.current.public, named))
        keys.write_pair(self._next, pair)
        return pair

    def finish_rotation(self) -> KeyPair:
        """The next key becomes the only one. The caller holds the lock. Raises InputError if there is no next one."""
        following = self._require_next()
        keys.write_pair(self._server, following, overwrite=True)
        keys.write_public(self._public, (following.public,))
        self._next.unlink()
        return following

    def undo_rotation(self) -> KeyPair:
        """The next key is given up. The caller holds the lock. Raises InputError if there is none."""
        following = self._require_next()
        self._next.unlink()
        keys.write_public(self._public, (self.server_keys().current.public,))
        return following

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one command at a time. Raises InputError if the folder is missing or may not be written."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            remedy = f"run `cloud-gateway keys init --keys {self.path}` as its owner"
            raise InputError(f"{self.path} cannot be changed ({error.strerror})", remedy) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _require_next(self) -> KeyPair:
        following = self.server_keys().next
        if following is None:
            raise InputError("the server key is not being rotated", "begin with `cloud-gateway keys rotate`")
        return following


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode
    return None
