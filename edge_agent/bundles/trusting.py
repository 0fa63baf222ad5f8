"""Whom updates believe: what this room asks of the device's store of trust, and its stand-in where no key is known."""

from __future__ import annotations

from typing import Protocol

from protocol.errors import UntrustedError
from protocol.signing import Statement, Trust


class Trusts(Protocol):
    """Whom to believe, and what to remember of it: see `edge_agent.trust.store.TrustStore`."""

    def trust(self, *, received: bool = False, kept: bool = False) -> Trust: ...

    def accept(self, statement: Statement) -> None: ...

    def take_revocations(self, data: bytes) -> object: ...


class Trusting:
    """For devices that know no keys: nothing is taken over the air, and what is installed here needs no signature."""

    def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
        return Trust(allow_unsigned=not received)

    def accept(self, statement: Statement) -> None:
        """A bundle is proven."""

    def take_revocations(self, data: bytes) -> object:
        raise UntrustedError("no key is known here to check revocations with", "see docs/security.md")
