"""Who is known here: agents by their CURVE keys, programs by their API keys. One document, changed by pure functions.

Names are unique among all that are not revoked: what a name did is said by one word in logs, limits and the audit log.
Whoever is revoked stays listed, so that a key that was given up is never let in again. Times are UTC seconds since
1970.

    roster = add_agent(roster, AgentEntry(name="camera-7", key=..., added=now))     # InputError if that cannot be
    Table.of(roster, utc=now)                                                       # what the doors look things up in
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from protocol.documents import decode_document
from protocol.errors import InputError

SCHEMA_VERSION = 1
ANONYMOUS = "anonymous"  # whoever has shown no key
ApiRole = Literal["infer", "metrics", "admin"]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Hex32 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Several = Annotated[int, msgspec.Meta(ge=1)]


class Allowance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one API key may use up; None is no limit."""

    requests_per_s: Positive | None = None
    bytes_per_s: Positive | None = None  # of request bodies
    concurrent: Several | None = None  # requests that are being answered at one time
    body_nbytes: Several | None = None  # of one request


class AgentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: Name
    key: Hex32  # the agent's public key
    added: int
    expires: int | None = None
    revoked: int | None = None

    @property
    def user_id(self) -> str:
        """What every message of a connection bears: the name, and a part of the key that has proven it.

        Without the key, a connection of a revoked key would be let in again when its name gets a new one.
        """
        return f"{self.name}/{self.key[:16]}"


class ApiKeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: Name
    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]  # the public half, by which it is looked up
    digest: Hex32  # of the secret half
    roles: tuple[ApiRole, ...]
    added: int
    expires: int | None = None
    revoked: int | None = None
    allowance: Allowance = Allowance()


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema_version: int = SCHEMA_VERSION
    agents: tuple[AgentEntry, ...] = ()
    api_keys: tuple[ApiKeyEntry, ...] = ()


Entry = AgentEntry | ApiKeyEntry


def is_valid(entry: Entry, *, utc: float) -> bool:
    return entry.revoked is None and (entry.expires is None or utc < entry.expires)


class Table(msgspec.Struct, frozen=True):
    """The roster at one moment, for look-ups that cost the same however long it is."""

    agents: dict[bytes, AgentEntry]  # by public key; revoked and expired ones too, so that the reason can be told
    user_ids: frozenset[str]  # of those that may send
    api_keys: dict[str, ApiKeyEntry]  # by id; revoked and expired ones too
    stands_until: float  # when the next entry expires; inf if none will
    guests_until: float = 0.0  # so long an unknown key may come in to show an invitation, and do nothing else

    @classmethod
    def of(cls, roster: Roster, *, utc: float, guests_until: float = 0.0) -> Table:
        entries: tuple[Entry, ...] = roster.agents + roster.api_keys
        valid = [entry for entry in entries if is_valid(entry, utc=utc)]
        return cls(
            agents={bytes.fromhex(agent.key): agent for agent in roster.agents},
            user_ids=frozenset(entry.user_id for entry in valid if isinstance(entry, AgentEntry)),
            api_keys={key.id: key for key in roster.api_keys},
            stands_until=min((entry.expires for entry in valid if entry.expires is not None), default=float("inf")),
            guests_until=guests_until,
        )


def add_agent(roster: Roster, agent: AgentEntry) -> Roster:
    """Raises InputError if the name is taken or the key is known already."""
    for known in roster.agents:
        if known.key == agent.key:
            if known.revoked is not None:
                raise InputError(f"the key of {agent.name} was revoked before (as {known.name})", "make a new key")
            raise InputError(f"the key of {agent.name} is already that of {known.name}", "make a new key")
    require_free(roster, agent.name, utc=agent.added)
    return msgspec.structs.replace(roster, agents=(*roster.agents, agent))


def add_api_key(roster: Roster, key: ApiKeyEntry) -> Roster:
    """Raises InputError if the name is taken, or if the key has no role."""
    if not key.roles:
        raise InputError(f"the API key {key.name} has no role", "give it one with --role infer, metrics or admin")
    require_free(roster, key.name, utc=key.added)
    return msgspec.structs.replace(roster, api_keys=(*roster.api_keys, key))


def revoke(roster: Roster, name: str, *, utc: int) -> Roster:
    """Revoke whoever bears `name` (or the API key of that id). Raises InputError if nobody does."""

    def is_meant(entry: Entry) -> bool:
        by_id = isinstance(entry, ApiKeyEntry) and entry.id == name
        return entry.revoked is None and (entry.name == name or by_id)

    entries: tuple[Entry, ...] = roster.agents + roster.api_keys
    if not any(is_meant(entry) for entry in entries):
        raise InputError(f"nobody is called {name[:80]!r}, or not any more", "see `cloud-gateway keys list`")
    agents = (msgspec.structs.replace(e, revoked=utc) if is_meant(e) else e for e in roster.agents)
    api_keys = (msgspec.structs.replace(e, revoked=utc) if is_meant(e) else e for e in roster.api_keys)
    return msgspec.structs.replace(roster, agents=tuple(agents), api_keys=tuple(api_keys))


def encode(roster: Roster) -> bytes:
    return msgspec.json.format(msgspec.json.encode(roster), indent=1) + b"\n"


def decode(data: bytes, *, name: str) -> Roster:
    """Raises InputError for what is no roster of this version."""
    remedy = "restore it from a copy; nobody is let in until then"
    return decode_document(data, Roster, version=SCHEMA_VERSION, name=name, error=InputError, remedy=remedy)


def require_free(roster: Roster, name: str, *, utc: int) -> None:
    """Raises InputError if somebody who is not revoked bears `name`."""
    if name == ANONYMOUS:
        raise InputError(f"{ANONYMOUS} is what those without a key are called", "choose another name")
    entries: tuple[Entry, ...] = roster.agents + roster.api_keys
    if any(entry.name == name and is_valid(entry, utc=utc) for entry in entries):
        raise InputError(f"the name {name} is taken", f"choose another, or first `cloud-gateway keys revoke {name}`")
