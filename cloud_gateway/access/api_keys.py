"""API keys: who may ask over HTTP and gRPC, and for what. Decisions only; `guard` gives them a clock and a lock.

    isthmus_ID_SECRET       16 and 64 hex digits: the id is looked up, the 256 random bits are compared by their digest

Only the digest is kept. The secret is random, not chosen by people, so one fast hash is as good as a slow one.

    credential                            role asked for      answer
    any                                   open                let in
    valid key with this role              any                 let in, within the key's allowance (else 429)
    valid key without this role           any                 403
    wrong, unknown, revoked or expired    any                 401; after too many from one address 429
    none                                  infer, metrics      let in from this machine (insecure: from everywhere)
                                                              where no API key was ever made, else 401
    none                                  admin               401

Administration besides needs `access.admin`, else it is 403 whoever asks. A role is what it says: admin does not include
infer. Wrong credentials of one address do not lock out right ones from the same address.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from typing import Literal, NamedTuple

from cloud_gateway.access.limits import Failures, Meter
from cloud_gateway.access.roster import ANONYMOUS, ApiKeyEntry, Table, is_valid

Role = Literal["open", "infer", "metrics", "admin"]
SECRET_NBYTES = 32
ID_NBYTES = 8
_KEY = re.compile(r"isthmus_([0-9a-f]{16})_([0-9a-f]{64})")


class Denial(NamedTuple):
    status: Literal[401, 403, 429]
    reason: str
    retry_after_s: float | None = None


class ApiKey(NamedTuple):
    """A new key: `text` is for its bearer, `id` and `digest` are what we keep."""

    text: str
    id: str
    digest: str


def make_key(randomness: bytes) -> ApiKey:
    """A key from ID_NBYTES + SECRET_NBYTES random bytes."""
    if len(randomness) != ID_NBYTES + SECRET_NBYTES:
        raise ValueError(f"{len(randomness)} random bytes instead of {ID_NBYTES + SECRET_NBYTES}")
    id_, secret = randomness[:ID_NBYTES].hex(), randomness[ID_NBYTES:].hex()
    return ApiKey(f"isthmus_{id_}_{secret}", id_, digest_of(id_, secret))


def digest_of(id_: str, secret: str) -> str:
    salt = bytes.fromhex(id_)
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=salt, person=b"isthmus-api-key").hexdigest()


def find(table: Table, credential: str) -> ApiKeyEntry | None:
    """Whose key this is, valid or not; None if nobody's. Takes as long for a wrong secret as for the right one."""
    match = _KEY.fullmatch(credential)
    if match is None or (entry := table.api_keys.get(match[1])) is None:
        return None
    return entry if hmac.compare_digest(entry.digest, digest_of(match[1], match[2])) else None


class Rules(NamedTuple):
    """What of the configuration decides here."""

    admin: bool = False  # administration over the network
    insecure: bool = False  # without API keys, other machines are let in as well


def decide(
    table: Table | None,
    rules: Rules,
    meter: Meter,
    failures: Failures,
    *,
    role: Role,
    credential: str | None,
    address: str,
    nbytes: int,
    now: float,
    utc: float,
) -> str | Denial:
    """The tenant that is let in (it must `leave` the meter), or why it is not. `table` None: no folder of keys.

    `address` is a literal IP address or "unix"; `now` is monotonic, `utc` seconds since 1970.
    """
    if role == "open":
        return ANONYMOUS
    if role == "admin" and not rules.admin:
        return Denial(403, "administration over the network is off; set access.admin and make a key with --role admin")
    if credential:
        return _with_key(table, meter, failures, role, credential, address, nbytes, now, utc)
    keyless = table is None or not table.api_keys
    if role == "admin" or not keyless:
        return Denial(401, f"this needs an API key with the role {role}, as `Authorization: Bearer KEY`")
    if rules.insecure or is_here(address):
        return ANONYMOUS
    return Denial(401, "other machines need an API key, and none was made yet; see `cloud-gateway keys add --api`")


def _with_key(
    table: Table | None,
    meter: Meter,
    failures: Failures,
    role: Role,
    credential: str,
    address: str,
    nbytes: int,
    now: float,
    utc: float,
) -> str | Denial:
    entry = find(table, credential) if table is not None else None
    if entry is None or not is_valid(entry, utc=utc):
        if (wait_s := failures.wait_s(_network(address), now=now)) > 0:
            return Denial(429, "too many wrong API keys from this address", wait_s)
        failures.failed(_network(address), now=now)
        if entry is None:
            return Denial(401, "this API key is not known here")
        return Denial(401, f"the API key {entry.name} {'was revoked' if entry.revoked is not None else 'has expired'}")
    if role not in entry.roles:
        return Denial(403, f"the API key {entry.name} does not have the role {role}")
    excess = meter.enter(entry.name, entry.allowance, nbytes=nbytes, now=now)
    if excess is None:
        return entry.name
    return Denial(403 if excess.retry_after_s is None else 429, excess.reason, excess.retry_after_s)


def is_here(address: str) -> bool:
    """Whether a peer is on this machine: a unix socket or a loopback address, also one that is written as IPv6."""
    if address == "unix":
        return True
    found = _parsed(address)
    return found is not None and found.is_loopback


def _network(address: str) -> str:
    """What counts as one address: whoever has one of IPv6 has a /64 of them."""
    found = _parsed(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
