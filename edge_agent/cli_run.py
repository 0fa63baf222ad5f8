"""`edge-agent run`: the daemon. Prints `ready ...` when it answers applications, finishes what it holds on SIGTERM.

SIGHUP reads the settings again; what may change is applied, a wrong file changes nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_agent.config import AgentSettings, from_flags, load_settings, sources
from protocol.settings import Loaded, parse_set
from protocol.terminal import print_json
from protocol.until_told import end_with, run_until_told, tell_stopped

if TYPE_CHECKING:
    from edge_agent.daemon import Daemon


def run(
    bundle: Annotated[
        Path | None, typer.Option(help="A bundle's folder; else the current one of state_dir.", show_default=False)
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="tcp://HOST:PORT, may be repeated; without one the device works alone.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; see `edge-agent config`.")] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="All that is written lies here; else /var/lib/isthmus.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(help="HOST:PORT of the local API [127.0.0.1:7490]; off: the Unix socket alone.")
    ] = None,
    socket: Annotated[Path | None, typer.Option(help="The Unix socket [STATE_DIR/run/agent.sock].")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT of the local API over gRPC [none].")] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(min=1, help="Budget of requests that name none, in milliseconds [1000].")
    ] = None,
    keys_dir: Annotated[
        Path | None, typer.Option("--keys", help="Folder with agent.key and server.pub: encrypts.")
    ] = None,
    server_key: Annotated[str | None, typer.Option(help="The gateway's public key, instead of server.pub.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads of the heads [1].")] = None,
    edge_slowdown: Annotated[
        float | None, typer.Option(min=1, help="Act as a device that is this many times slower [1].")
    ] = None,
    placements: Annotated[str | None, typer.Option(help="Use only these placement ids, separated by commas.")] = None,
    fault_file: Annotated[
        Path | None, typer.Option(help="Drill: while this file exists, the head of every cut fails.")
    ] = None,
    wait_s: Annotated[float | None, typer.Option(min=0, help="Wait this long for a gateway at the start [3].")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a gateway off this machine in plain text.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the file; may be repeated.")] = None,
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with a file per secret, named by its key.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")] = False,
) -> None:
    """Answer applications on this device until SIGTERM or SIGINT: on 127.0.0.1 and a Unix socket, as a Triton would."""
    overrides = parse_set(set_ or ()) | from_flags(
        bundle=bundle, gateways=gateway or (), state_dir=state_dir, http=http, socket=socket, grpc=grpc,
        deadline_ms=deadline_ms, threads=threads, slowdown=edge_slowdown, placements=placements,
        fault_file=fault_file, keys=keys_dir, server_key=server_key, insecure=insecure or None, wait_s=wait_s,
    )  # fmt: skip

    def read() -> Loaded[AgentSettings]:
        return load_settings(file=config, env=os.environ, secrets_dir=secrets_dir, overrides=overrides)

    settings = read().settings
    from edge_agent.daemon import Daemon  # the engine library is slow to import
    from edge_agent.device.notify import Notifier
    from edge_agent.steering import Steering
    from protocol.seeing.logs import Logs

    logs = Logs(
        level=settings.logs.level, style=settings.logs.format, repeat_interval_s=settings.logs.repeat_interval_s
    )

    def make() -> tuple[Daemon, Steering]:
        daemon = Daemon(settings, notifier=Notifier(os.environ), logs=logs)
        watched = sources(file=config, env=os.environ, secrets_dir=secrets_dir).paths
        return daemon, Steering(daemon, read, watched=watched)

    told = _Told(json=json)
    end_with(lambda: run_until_told(make, logs=logs, ready=told.ready, stopped=told.stopped))


class _Told:
    """What is said on the way; of a daemon that waits for its first bundle, once that it waits and once who serves."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._waits = False

    def ready(self, daemon: Daemon) -> bool:
        if self._waits and daemon.stage.agent is None:
            return False
        self._waits = not _tell_doors(daemon, json=self._json)
        return not self._waits

    def stopped(self, daemon: Daemon) -> None:
        tell_stopped(daemon.counts(), name="counts", json=self._json)


def _tell_doors(daemon: Daemon, *, json: bool) -> bool:
    """Say where applications are answered, and by whom; or what is waited for. Whether anybody serves."""
    http, grpc, socket = daemon.door.endpoint, daemon.door.grpc_endpoint, daemon.door.unix_socket
    doors = {
        "http": str(http)[6:] if http else None,
        "socket": str(socket) if socket else None,
        "grpc": str(grpc)[6:] if grpc else None,
    }
    tenant = daemon.stage.agent
    if not json:
        for name, where in doors.items():
            if where:
                print(f"{name} {where}", file=sys.stderr)
    if tenant is None:
        if json:
            print_json({"event": "waiting", "reason": daemon.unwell(), **doors})
        else:
            print(daemon.unwell(), file=sys.stderr)
        return False
    agent = tenant.agent
    connected, named = agent.wait_ready(0), ", ".join(daemon.settings.gateways.endpoints)
    gateway, info = agent.gateway if connected else "edge-only", agent.bundle.manifest.model
    if json:
        print_json({"event": "ready", "endpoint": gateway, **doors, "model": info.name, "bundle": agent.bundle.digest})
        return True
    if named and not connected:
        print(f"no gateway answers at {named} yet; answering on the device until one does", file=sys.stderr)
    print(f"ready {gateway}", flush=True)
    return True
