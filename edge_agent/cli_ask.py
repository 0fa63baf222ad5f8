"""`edge-agent status | explain`: what a running daemon says of itself, over its Unix socket or HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.config import load_settings
from protocol.errors import InputError
from protocol.terminal import print_json

STATUS_SCHEMA = 2  # of `edge_agent.seeing.status`, which is too much to load for a command
EXPLAIN_SCHEMA = 1

Socket = Annotated[
    str | None,
    typer.Option(
        help="The daemon's Unix socket, or http://HOST:PORT; else the settings say it.", envvar="ISTHMUS_AGENT_SOCKET"
    ),
]
Config = Annotated[Path | None, typer.Option(help="The daemon's TOML file, for where its socket is.")]
State = Annotated[
    Path | None, typer.Option("--state-dir", help="The daemon's folder, for where its socket is.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def status(socket: Socket = None, state_dir: State = None, config: Config = None, json: Json = False) -> None:
    """How the daemon stands: what it serves, where requests run now, and whether it is well."""
    document = asked(where(socket, config, state_dir), "/v2/isthmus/status", schema=STATUS_SCHEMA)
    if json:
        print_json(document)
        return
    for line in lines(document):
        print(line)


def explain(socket: Socket = None, state_dir: State = None, config: Config = None, json: Json = False) -> None:
    """Why requests run where they run now, why nowhere else, and what would change that."""
    document = asked(where(socket, config, state_dir), "/v2/isthmus/explain", schema=EXPLAIN_SCHEMA)
    if json:
        print_json(document)
        return
    for sentence in document["sentences"]:
        print(sentence)


def asked(at: str, path: str, *, schema: int) -> Mapping[str, Any]:
    """A document of the running daemon. Raises NetworkError if none runs, InputError for one of another version."""
    from edge_agent.local_client import LocalClient  # in here: it brings numpy, and `--help` is no question

    with LocalClient(at) as client:
        document = client.document(path)
    if document.get("schema") != schema:
        raise InputError("the daemon's answer is none that this command reads", "use its own version of edge-agent")
    return document


def where(socket: str | None, config: Path | None, state_dir: Path | None = None) -> str:
    """The socket that was named, else that of the folder that was, else that of the settings."""
    if state_dir is not None and socket is not None and "ISTHMUS_AGENT_SOCKET" not in os.environ:
        raise InputError("--socket and --state-dir both say where the daemon is", "give one of them")
    if state_dir is None and socket is not None:
        return socket
    overrides = {} if state_dir is None else {"state_dir": str(state_dir)}
    settings = load_settings(file=config, env=os.environ, overrides=overrides).settings
    return str(settings.http.unix_socket or settings.state_dir / "run" / "agent.sock")


def lines(seen: Mapping[str, Any]) -> list[str]:
    """The status for people."""
    bundle, now = seen["bundle"], seen["now"]
    health = "well" if seen["ready"] else f"unwell: {seen['reason']}"
    alone = "can answer alone" if seen["serves_alone"] else "cannot answer alone"
    said = [
        f"{bundle['model'] or 'no model'}: {health}, up {seen['uptime_s']:.0f} s, {seen['pending']} requests in flight"
    ]
    if now["placement"]:
        said.append(f"requests run as {now['placement']}. {now['why']}")
    if now["degraded"]:
        said.append(f"not where it is planned: {now['degraded']}")
    for gateway in seen["gateways"]:
        is_known = gateway["ready"] and gateway["rtt_s"] is not None  # of a lost link it is history
        rtt = f", round trip {gateway['rtt_s'] * 1e3:.1f} ms" if is_known else ""
        if is_known and (tcp_s := gateway.get("tcp_rtt_s")) is not None:
            rtt += f" (as TCP sees it {tcp_s * 1e3:.1f} ms)"
        said.append(f"gateway {gateway['name']}: {gateway['reason'] or gateway['state']}{rtt}")
    if seen["placements"]:
        said.append(f"{'' if seen['gateways'] else 'no gateway is named; '}the device {alone}")
    if bundle["digest"]:
        version = f"version {bundle['version']}, " if bundle["version"] != bundle["digest"][:12] else ""
        names = ", ".join(placement["id"] for placement in seen["placements"])
        said.append(f"bundle {bundle['digest'][:12]}, {version}placements {names}")
        said += [f"{what} {bundle[key]}" for key, what in (("state", "it is"), ("coming", "next:")) if bundle[key]]
    if seen["store"] and seen["store"]["trouble"]:
        said.append(f"requests for late answers are refused: {seen['store']['trouble']}")
    out: dict[str, list[str]] = {}  # by reason: many placements have the same
    for placement in seen["placements"]:
        if placement["unavailable"]:
            out.setdefault(placement["unavailable"], []).append(placement["id"])
    return said + [f"  {', '.join(names)} cannot be used: {why}" for why, names in out.items()]
