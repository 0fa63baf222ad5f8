"""Who was invited, and whether a token that is shown is good. One document, changed by pure functions.

    the token                        the key that shows it       answer
    unknown, or its secret wrong     any                         refused, and the name is not told
    withdrawn                        any                         refused
    used                             the one that has used it    welcome, as before: its answer may have been lost
                                     any other                   refused
    expired                          any                         refused
    open                             known under another name    refused: two devices must not share one identity
                                     unknown                     welcome

Times are UTC seconds since 1970. Only digests of tokens are kept.
"""

from __future__ import annotations

import hmac
from typing import Annotated

import msgspec

from cloud_gateway.access.roster import Hex32, Name, Roster, is_valid, require_free
from protocol.documents import decode_document
from protocol.errors import InputError
from protocol.invitation import digest_of

SCHEMA_VERSION = 1
MOST_OPEN = 1000


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: Name  # under which the device will be known
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
    digest: Hex32  # of the token's secret
    made: int
    expires: int
    used: int | None = None
    by: Hex32 | None = None  # the public key that has used it
    withdrawn: int | None = None

    def is_open(self, *, utc: float) -> bool:
        return self.used is None and self.withdrawn is None and utc < self.expires


class Invitations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema_version: int = SCHEMA_VERSION
    known: tuple[Invitation, ...] = ()


class Welcome(msgspec.Struct, frozen=True):
    """The key is to be known under `name`; `again`: it is already, and only the answer is repeated."""

    name: str
    again: bool


class Refused(msgspec.Struct, frozen=True):
    reason: str


def guests_until(invitations: Invitations, *, utc: float) -> float:
    """Until when somebody who is not known may come in to show a token; 0 while nobody may."""
    return max((i.expires for i in invitations.known if i.is_open(utc=utc)), default=0.0)


def invite(invitations: Invitations, roster: Roster, invitation: Invitation) -> Invitations:
    """Raises InputError if somebody bears that name, or was invited under it already."""
    require_free(roster, invitation.name, utc=invitation.made)
    still = [i for i in invitations.known if i.is_open(utc=invitation.made)]
    if any(i.name == invitation.name for i in still):
        raise InputError(
            f"{invitation.name} was invited already",
            f"withdraw that with `cloud-gateway keys revoke {invitation.name}`",
        )
    if len(still) >= MOST_OPEN:
        raise InputError(f"{len(still)} invitations are open already", "withdraw some with `cloud-gateway keys revoke`")
    ended = [i for i in invitations.known if not i.is_open(utc=invitation.made)][-MOST_OPEN:]
    return msgspec.structs.replace(invitations, known=(*ended, *still, invitation))


def withdraw(invitations: Invitations, name: str, *, utc: int) -> Invitations:
    """Close the open invitations of `name`, if there are any."""
    known = (
        msgspec.structs.replace(i, withdrawn=utc) if i.name == name and i.is_open(utc=utc) else i
        for i in invitations.known
    )
    return msgspec.structs.replace(invitations, known=tuple(known))


def judge(
    invitations: Invitations, roster: Roster, *, id_: bytes, secret: bytes, key: bytes, utc: float
) -> Welcome | Refused:
    """What becomes of the token that `key` (32 bytes, proven by its connection) has shown."""
    found = next((i for i in invitations.known if i.id == id_.hex()), None)
    kept = found.digest if found is not None else "0" * 64
    if not hmac.compare_digest(kept, digest_of(id_, secret)) or found is None:
        return Refused("this token is not known here")
    if found.withdrawn is not None:
        return Refused(f"the invitation of {found.name} was withdrawn")
    holder = next((a for a in roster.agents if a.key == key.hex()), None)
    if found.used is not None:
        if found.by == key.hex() and holder is not None and is_valid(holder, utc=utc):
            return Welcome(found.name, again=True)
        return Refused(
            f"the token of {found.name} was used already; if not by this device, revoke {found.name} at once"
        )
    if utc >= found.expires:
        return Refused(f"the invitation of {found.name} has expired")
    if holder is not None and holder.name != found.name:
        return Refused(
            f"this device's key is known as {holder.name} already: two devices must not share one, so remove the "
            "copied agent.key"
        )
    return Welcome(found.name, again=False)


def use(invitations: Invitations, id_: bytes, *, key: bytes, utc: int) -> Invitations:
    """The invitation was used by `key`, and is not good for any other from now on."""
    known = (msgspec.structs.replace(i, used=utc, by=key.hex()) if i.id == id_.hex() else i for i in invitations.known)
    return msgspec.structs.replace(invitations, known=tuple(known))


def encode(invitations: Invitations) -> bytes:
    return msgspec.json.format(msgspec.json.encode(invitations), indent=1) + b"\n"


def decode(data: bytes, *, name: str) -> Invitations:
    """Raises InputError for what is no such document of this version."""
    remedy = "restore it, or remove it and invite anew"
    return decode_document(data, Invitations, version=SCHEMA_VERSION, name=name, error=InputError, remedy=remedy)
