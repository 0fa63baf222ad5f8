"""`cloud-gateway keys invite`: a token with which one device may become known by itself, once."""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from cloud_gateway.access import invitations as inviting
from cloud_gateway.access.cli import KEYS, Audit, Json, Keys, acting, keys_app, moment
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.invitations import Invitation
from protocol import invitation, keys
from protocol.terminal import print_json

__all__ = ["keys_app"]


@keys_app.command()
def invite(
    name: Annotated[str, typer.Argument(help="What the device will be called here.", show_default=False)],
    keys_dir: Keys = KEYS,
    expires: Annotated[str, typer.Option(help="Until when: 12h, 7d, or a date (UTC).")] = "24h",
    audit: Audit = None,
    json: Json = False,
) -> None:
    """Print a token for one device: `edge-agent enroll --token` shows it, and its key is known as NAME from then on."""
    folder, now = KeyFolder(keys_dir), int(time.time())
    keys.require_name(name)
    until = moment(expires, now) or now
    server = folder.server_keys().current.public
    token = invitation.make_token(os.urandom(invitation.ID_NBYTES + invitation.SECRET_NBYTES), server.data)
    made = Invitation(
        name=name, id=token.id.hex(), digest=invitation.digest_of(token.id, token.secret), made=now, expires=until
    )
    with acting(folder, audit, "keys.invite", f"{name} invitation {made.id}"):
        roster = folder.roster()
        folder.change_invitations(lambda before: inviting.invite(before, roster, made))
    if json:
        print_json({"name": name, "id": made.id, "expires": until, "server": server.fingerprint, "token": token.text()})
        return
    print(token.text())
    by = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC"
    print(f"{name} may show this token once, until {by}; it is shown only now. On the device:", file=sys.stderr)
    print("edge-agent enroll --gateway tcp://HOST:PORT --token TOKEN", file=sys.stderr)
