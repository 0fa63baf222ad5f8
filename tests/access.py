"""Credentials of every kind, and what each may do: the one table that all tests of the doors are generated from."""

from __future__ import annotations

from cloud_gateway.access import api_keys
from cloud_gateway.access.api_keys import Role
from cloud_gateway.access.roster import Allowance, ApiKeyEntry, ApiRole, Roster, add_api_key, revoke

UTC = 1_000_000  # the moment at which all this holds
_ROLES: dict[str, tuple[ApiRole, ...]] = {
    "infer": ("infer",),
    "metrics": ("metrics",),
    "admin": ("admin",),
    "everything": ("infer", "metrics", "admin"),
    "expired": ("infer", "metrics", "admin"),
    "revoked": ("infer", "metrics", "admin"),
}
_NEW = {name: api_keys.make_key(bytes([number]) * 40) for number, name in enumerate(_ROLES, 1)}
KEYS: dict[str, str] = {name: key.text for name, key in _NEW.items()}
# What a caller may show, by what it is.
CREDENTIALS: dict[str, str | None] = {
    "none": None,
    "garbage": "hunter2",
    "unknown": api_keys.make_key(bytes([99]) * 40).text,
    "wrong": KEYS["infer"][:-1] + "0",
    **KEYS,
}


def _roster() -> Roster:
    roster = Roster()
    for name, roles in _ROLES.items():
        entry = ApiKeyEntry(
            name=name,
            id=_NEW[name].id,
            digest=_NEW[name].digest,
            roles=roles,
            added=1,
            expires=UTC if name == "expired" else None,
            allowance=Allowance(body_nbytes=10_000) if name == "infer" else Allowance(),
        )
        roster = add_api_key(roster, entry)
    return revoke(roster, "revoked", utc=UTC - 1)


ROSTER = _roster()


def expected_status(role: Role, credential: str) -> int:
    """What a route with this role answers to this credential, where keys are configured and administration is on."""
    if role == "open":
        return 200
    if credential not in _ROLES or credential in ("expired", "revoked"):
        return 401
    return 200 if role in _ROLES[credential] else 403
