"""`cloud-gateway serve BUNDLE...`: prints `ready ENDPOINT` when it serves, drains on SIGTERM and SIGINT."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from protocol.terminal import print_json

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback()
def _root() -> None:
    """The cloud side: finishes the tail of split requests, or the whole model, with dynamic batching."""


@app.command()
def serve(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles written by `partitioner split`.", show_default=False)],
    bind: Annotated[str, typer.Option(help="Where to listen; port 0 picks one.")] = "tcp://127.0.0.1:7447",
    threads: Annotated[int, typer.Option(min=1, help="Intra-op threads of each engine.")] = 1,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Bound of a batch; the measured knee may be lower.")] = 16,
    drain_s: Annotated[float, typer.Option(min=0, help="How long shutdown waits for what is in flight.")] = 10.0,
    insecure: Annotated[bool, typer.Option(help="Allow listening off this machine in plain text.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")] = False,
) -> None:
    """Serve BUNDLES until SIGTERM or SIGINT, then drain: nothing that was accepted is lost."""
    from cloud_gateway.gateway import Gateway, GatewayConfig  # the engine library is slow to import

    wanted = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        wanted.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    gateway = Gateway(
        GatewayConfig(
            bundles=bundles, bind=bind, insecure=insecure, threads=threads, max_rows=max_batch_size, drain_s=drain_s
        )
    )
    gateway.start()
    lanes = [
        {"tail": lane.key[:12], "engine": lane.engine.description, "batchable": lane.batchable,
         "max_batch_size": lane.max_rows, "batch_1_ms": round(lane.curve.predict(1) * 1e3, 3)}
        for lane in gateway.catalogue.lanes.values()
    ]  # fmt: skip
    if json:
        print_json({"event": "ready", "endpoint": str(gateway.endpoint), "lanes": lanes})
    else:
        for lane in lanes:
            print(
                f"lane {lane['tail']}: {lane['engine']}, batch up to {lane['max_batch_size']}, "
                f"{lane['batch_1_ms']} ms at batch 1",
                file=sys.stderr,
            )
        print(f"ready {gateway.endpoint}", flush=True)
    while not wanted.wait(0.2) and not gateway.stopped.is_set():
        pass
    gateway.close()
    stats = gateway.stats()
    if json:
        print_json({"event": "stopped", "stats": stats})
    else:
        print("stopped: " + (", ".join(f"{k} {v}" for k, v in sorted(stats.items())) or "no requests"), file=sys.stderr)
    if gateway.fatal is not None:
        raise SystemExit(1)
