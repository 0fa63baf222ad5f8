"""`cloud-gateway serve BUNDLE...`: prints `ready ENDPOINT` when it serves, drains on SIGTERM and SIGINT.

SIGHUP reads the settings again; what may change is applied, a wrong file changes nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_gateway.access.cli import audit_app
from cloud_gateway.access.invite_cli import keys_app
from cloud_gateway.config import GatewaySettings, from_flags, load_settings, sources
from cloud_gateway.config_cli import app as config_app
from cloud_gateway.operate_cli import dry_run, models_app, status
from cloud_gateway.tuning.cli import tune
from protocol.settings import Loaded, parse_set
from protocol.terminal import print_json
from protocol.until_told import end_with, run_until_told, tell_stopped

if TYPE_CHECKING:
    from cloud_gateway.gateway import Gateway

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.command()(status)
app.command("dry-run")(dry_run)
app.command()(tune)


@app.callback()
def _root() -> None:
    """The cloud side: finishes the tail of split requests, or the whole model, with dynamic batching."""


@app.command()
def serve(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles written by `partitioner split`.", show_default=False)
    ] = None,
    models: Annotated[Path | None, typer.Option(help="Folder with NAME/VERSION/ for every model.")] = None,
    bind: Annotated[str | None, typer.Option(help="Where agents connect [tcp://127.0.0.1:7447]; port 0 picks.")] = None,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of the standard API [127.0.0.1:7480], or off.")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT of the standard API over gRPC, or off [off].")] = None,
    keys: Annotated[Path | None, typer.Option(help="Folder of `cloud-gateway keys`: agents need keys then.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Intra-op threads of each engine [1].")] = None,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Bound of a batch; the knee may be lower.")] = None,
    drain_s: Annotated[float | None, typer.Option(min=0, help="How long shutdown waits for work [10].")] = None,
    insecure: Annotated[bool, typer.Option(help="Allow listening off this machine in plain text.")] = False,
    config: Annotated[Path | None, typer.Option(help="TOML file; see `cloud-gateway config`.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the file; may be repeated.")] = None,
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with a file per secret, named by its key.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")] = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain: nothing that was accepted is lost."""
    overrides = parse_set(set_ or ()) | from_flags(
        bundles=bundles or (), repository=models, bind=bind, http=http, grpc=grpc, insecure=insecure or None,
        keys=keys, threads=threads, max_batch_size=max_batch_size, drain_s=drain_s,
    )  # fmt: skip

    def read() -> Loaded[GatewaySettings]:
        return load_settings(file=config, env=os.environ, secrets_dir=secrets_dir, overrides=overrides)

    settings = read().settings
    from cloud_gateway.gateway import Gateway  # the engine library is slow to import
    from cloud_gateway.steering import Steering
    from protocol.seeing.logs import Logs

    logs = Logs(
        level=settings.logs.level, style=settings.logs.format, repeat_interval_s=settings.logs.repeat_interval_s
    )

    def make() -> tuple[Gateway, Steering]:
        gateway = Gateway(settings, logs=logs)
        watched = sources(file=config, env=os.environ, secrets_dir=secrets_dir).paths
        return gateway, Steering(gateway, read, watched=watched)

    def ready(gateway: Gateway) -> bool:
        _tell_ready(gateway, json=json)
        return True

    def stopped(gateway: Gateway) -> None:
        tell_stopped(gateway.stats(), name="stats", json=json)

    from cloud_gateway.models.keeper import THREAD

    end_with(lambda: run_until_told(make, logs=logs, ready=ready, stopped=stopped), held=(THREAD,))


def _tell_ready(gateway: Gateway, *, json: bool) -> None:
    lanes = [
        {"tail": lane.key[:12], "label": lane.engine.label, "engine": lane.engine.description,
         "batchable": lane.batchable, "max_batch_size": lane.max_rows,
         "batch_1_ms": round(lane.curve.predict(1) * 1e3, 3)}
        for lane in gateway.catalogue.lanes.values()
    ]  # fmt: skip
    standard = gateway.standard
    doors = {"http": str(standard.endpoint)[6:] if standard and standard.endpoint else None,
             "grpc": str(standard.grpc_endpoint)[6:] if standard and standard.grpc_endpoint else None}  # fmt: skip
    if json:
        print_json({"event": "ready", "endpoint": str(gateway.endpoint), **doors, "lanes": lanes})
        return
    for lane in lanes:
        print(
            f"lane {lane['tail']} ({lane['label']}): {lane['engine']}, batch up to {lane['max_batch_size']}, "
            f"{lane['batch_1_ms']} ms at batch 1",
            file=sys.stderr,
        )
    if doors["http"]:
        print(f"http://{doors['http']}/status", file=sys.stderr)
    if doors["grpc"]:
        print(f"grpc://{doors['grpc']}", file=sys.stderr)
    print(f"ready {gateway.endpoint}", flush=True)
