"""`cloud-gateway status | models | dry-run`: what an operator asks of a gateway that runs, or before it runs."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud_gateway.config import from_flags, load_settings
from cloud_gateway.remote import LOAD_TIMEOUT_S, Remote, model_path
from protocol.errors import InputError
from protocol.settings import parse_set
from protocol.terminal import print_json

models_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Models of a running gateway: list, load, unload."
)

Url = Annotated[str, typer.Option(help="The gateway's HTTP address.", envvar="ISTHMUS_GATEWAY_URL")]
KeyFile = Annotated[Path | None, typer.Option(help="File with an API key.", envvar="ISTHMUS_GATEWAY_KEY_FILE")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DEFAULT_URL = "http://127.0.0.1:7480"


@models_app.command("list")
def list_(url: Url = DEFAULT_URL, key_file: KeyFile = None, json: Json = False) -> None:
    """Every version that lies in the repository or is held, its state, and why it is not ready."""
    entries = Remote(url, key_file).entries("POST", "/v2/repository/index", {})
    if json:
        print_json(entries)
        return
    for entry in entries:
        name, version, state = (str(entry.get(field, "")) for field in ("name", "version", "state"))
        print(f"{name:<24} {version:>6}  {state:<12} {entry.get('reason', '')}".rstrip())
    if not entries:
        print("no models")


@models_app.command()
def load(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[int | None, typer.Option(help="Only this version; else what its policy names.")] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Serve a model, or say why that cannot be. Needs `access.admin` and a key with the role admin."""
    _act("load", name, version, url, key_file, json=json)


@models_app.command()
def unload(
    name: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[int | None, typer.Option(help="Only this version.")] = None,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    json: Json = False,
) -> None:
    """Serve a model no longer; what it holds is finished first. Needs the role admin."""
    _act("unload", name, version, url, key_file, json=json)


def _act(what: str, name: str, version: int | None, url: str, key_file: Path | None, *, json: bool) -> None:
    parameters = {} if version is None else {"parameters": {"version": version}}
    Remote(url, key_file, timeout_s=LOAD_TIMEOUT_S).call("POST", model_path(name, what), parameters)
    if json:
        print_json({"ok": True, "model": name, "version": version, "done": what})
    else:
        print(f"{what}ed {name}" + ("" if version is None else f" version {version}"))


def status(url: Url = DEFAULT_URL, key_file: KeyFile = None, json: Json = False) -> None:
    """What a running gateway does: models, lanes, rates, latencies, refusals."""
    document = Remote(url, key_file).document("GET", "/status.json")
    from cloud_gateway.seeing.status import SCHEMA  # it brings numpy along

    if document.get("schema") != SCHEMA:
        raise InputError(f"the status of {url} is none that this command reads", "use the gateway's own version of it")
    if json:
        print_json(document)
    else:
        for line in _lines(document):
            print(line)


def dry_run(
    bundles: Annotated[list[Path] | None, typer.Argument(help="Bundles to serve.", show_default=False)] = None,
    models: Annotated[Path | None, typer.Option(help="Folder with NAME/VERSION/ for every model.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; see `cloud-gateway config`.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the file; may be repeated.")] = None,
    secrets_dir: Annotated[Path | None, typer.Option(help="Folder with a file per secret.")] = None,
    json: Json = False,
) -> None:
    """Load and warm up everything that `serve` would, and listen nowhere; 0 if all of it can be served."""
    overrides = parse_set(set_ or ()) | from_flags(bundles=bundles or (), repository=models)
    # Ports of its own, so that it can be tried beside a gateway that runs.
    overrides |= {"zmq.bind": "tcp://127.0.0.1:0", "http.enabled": False, "grpc.enabled": False}
    settings = load_settings(file=config, env=os.environ, secrets_dir=secrets_dir, overrides=overrides).settings
    from cloud_gateway.gateway import Gateway

    began = time.monotonic()
    with Gateway(settings) as gateway:
        standing = gateway.observer.standing()
    failed = [m for m in standing.models if m.state == "ERROR"]
    if json:
        print_json({"ok": not failed, "took_s": time.monotonic() - began, "models": standing.models,
                    "lanes": standing.lanes})  # fmt: skip
    else:
        for model in standing.models:
            print(f"{model.name} version {model.version}: {model.state} {model.reason}".rstrip())
        for lane in standing.lanes:
            cost_ms = lane.predicted_s.get(1, 0.0) * 1e3
            batch = f"batch up to {lane.batch_bound}" + (f" ({lane.unbatched})" if lane.unbatched else "")
            print(f"  lane {lane.key} ({lane.label}): {lane.engine}, {batch}, {cost_ms:.3f} ms at batch 1")
            for line in _passed_over((each.kind, each.state, each.serves, each.reason) for each in lane.engines):
                print(line)
        print(f"{'not everything' if failed else 'everything'} can be served", file=sys.stderr)
    if failed:
        raise InputError(f"{failed[0].name} version {failed[0].version}: {failed[0].reason}", "mend or remove it")


def _passed_over(engines: Iterable[tuple[str, str, bool, str]]) -> list[str]:
    """What is preferred to the engine that serves a lane, (kind, state, serves, reason) each, and why it does not."""
    better = itertools.takewhile(lambda engine: not engine[2], engines)
    return [f"    {kind}: {state}" + (f", {reason}" if reason else "") for kind, state, _, reason in better]


def _lines(document: Mapping[str, Any]) -> list[str]:
    total = document["total"]
    state = "draining" if document["draining"] else "ready" if document["ready"] else f"not ready: {document['reason']}"
    lines = [f"{document['software']}: {state}, up {document['uptime_s']:.0f} s, {document['agents']} agents"]
    lines += [f"  {m['name']} {m['version']}: {m['state']} {m['reason']}".rstrip() for m in document["models"]]
    for lane in document["lanes"]:
        lines.append(
            f"  lane {lane['key']} ({lane['label']}): {lane['engine']}, batch up to {lane['batch_bound']}, "
            f"{lane['pending_requests']} waiting, {lane['wait_s'] * 1e3:.1f} ms"
        )
        engines = lane.get("engines", ())
        lines += _passed_over((each["kind"], each["state"], each["serves"], each["reason"]) for each in engines)
    counters = total["counters"]
    refused = ", ".join(f"{code} {count}" for code, count in sorted(counters["refused"].items())) or "none"
    answered = f"answered {counters['answered']} ({counters['late']} late)"
    lines.append(f"requests {counters['offered']}, {answered}; refused: {refused}")
    residence = total["residence"]
    if residence:
        lines.append(
            f"last minute: {total['qps']:.1f}/s, residence p50 {residence['p50_s'] * 1e3:.1f} ms, "
            f"p90 {residence['p90_s'] * 1e3:.1f} ms, p99 {residence['p99_s'] * 1e3:.1f} ms"
        )
    return lines
