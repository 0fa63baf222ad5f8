"""Whether a web page asks: browsers send requests to this machine for pages of anybody, in the user's name. Pure.

    header   what it says                                     refused
    Origin   the site of the page that asks                   another site than the one that is asked
    Host     the name under which the browser looks for us    a name that is not this machine's

A page of another site may not read our answers, but what its request does would be done. A page whose name was made to
mean 127.0.0.1 after it was loaded (DNS rebinding) is of the same site, and might read them too: only the name in `Host`
gives it away. A credential is proof enough: no page can add one without our leave, and we give none.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from protocol.oip.service import OipError, Refusal


def refuse_pages(headers: Mapping[bytes, bytes], *, machine: str, checks_name: bool) -> None:
    """Raises OipError if a page of another site asks. `headers` have names in lower case, `machine` is what this one is
    called, `checks_name` says that only this machine's own programs may ask."""
    asked = headers.get(b"host", b"").decode("latin-1").strip().lower()
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1").strip().lower().partition("://")[2] != asked:
        site = origin[:100].decode("latin-1")
        raise OipError(Refusal.FORBIDDEN, f"a page of {site!r} asks, and pages of other sites are not answered")
    if checks_name and asked and not _is_here(_name_in(asked), machine.lower()):
        raise OipError(
            Refusal.FORBIDDEN,
            f"{asked[:100]!r} is not a name of this machine; ask 127.0.0.1, localhost or {machine}",
        )


def _is_here(name: str, machine: str) -> bool:
    if name in ("localhost", machine, f"{machine}.local") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        # A name without a dot cannot be had in the DNS by strangers; containers have such ones.
        return "." not in name and ":" not in name
    return True


def _name_in(authority: str) -> str:
    """Without its port."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.rsplit(":", 1)[0].rstrip(".")
