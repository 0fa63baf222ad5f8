"""`edge-agent status`: what a running daemon says of itself, over its Unix socket or HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.config import load_settings
from edge_agent.local_client import LocalClient
from protocol.errors import InputError
from protocol.terminal import print_json

Socket = Annotated[
    str | None,
    typer.Option(
        help="The daemon's Unix socket, or http://HOST:PORT; else the settings say it.", envvar="ISTHMUS_AGENT_SOCKET"
    ),
]
Config = Annotated[Path | None, typer.Option(help="The daemon's TOML file, for where its socket is.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def status(socket: Socket = None, config: Config = None, json: Json = False) -> None:
    """How the daemon stands: what it serves, with which gateway, and whether it is well."""
    document = asked(socket, config, "/v2/isthmus/status")
    if json:
        print_json(document)
        return
    from edge_agent.serving.standing import SCHEMA, lines, read  # it brings numpy along

    if document.get("schema") != SCHEMA:
        raise InputError("the daemon's status is none that this command reads", "use its own version of edge-agent")
    for line in lines(read(document)):
        print(line)


def asked(socket: str | None, config: Path | None, path: str) -> dict[str, Any]:
    """A document of the running daemon. Raises NetworkError if none runs."""
    with LocalClient(where(socket, config)) as client:
        return client.document(path)


def where(socket: str | None, config: Path | None) -> str:
    """The socket that was named, or that of the settings."""
    if socket is not None:
        return socket
    settings = load_settings(file=config, env=os.environ).settings
    return str(settings.http.unix_socket or settings.state_dir / "run" / "agent.sock")
