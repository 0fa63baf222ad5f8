"""`edge-agent bundles`: what is on this device's shelf, and what an operator may change of it.

Where a daemon runs the shelf is the daemon's: it is told what is wanted and does it within a second or so. Where none
runs the command does it itself, and the daemon's next start goes on from there, on trial.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.errors import BundleError, InputError, IsthmusError, NetworkError
from protocol.terminal import print_json

if TYPE_CHECKING:
    from edge_agent.bundles.shelf import Shelf
    from edge_agent.bundles.updater import Updater
    from edge_agent.bundles.wishes import Wish
    from edge_agent.config import AgentSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The bundles on this device.")
State = Annotated[
    Path | None,
    typer.Option("--state-dir", help="The daemon's folder; its bundles/ is meant.", show_default=False),
]
Config = Annotated[Path | None, typer.Option("--config", help="The daemon's settings (TOML).", show_default=False)]
Gateway = Annotated[
    list[str] | None, typer.Option("--gateway", help="tcp://HOST:PORT; may be repeated.", show_default=False)
]
Keys = Annotated[Path | None, typer.Option("--keys", help="Folder with agent.key and server.pub.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Older = Annotated[
    bool, typer.Option("--older", help="Even if its number is below one that has proven itself on this device.")
]


@app.command("list")
def list_(config: Config = None, state_dir: State = None, json: Json = False) -> None:
    """What runs, what is proven, what is on its way, and what is kept."""
    shelf = _shelf(_settings(config, state_dir))
    record = shelf.load()
    held = [_held(shelf, digest) for digest in shelf.held()]
    if json:
        known = {name: getattr(record, name) for name in record.__struct_fields__ if name != "schema_version"}
        print_json({**known, "held": held, "nbytes": shelf.nbytes(), "free_nbytes": shelf.free_nbytes()})
        return
    for bundle in held:
        roles = [role for role in ("current", "proven", "previous", "candidate")
                 if getattr(record, role) == bundle["digest"]]  # fmt: skip
        text = bundle["trouble"] or f"{bundle['model']}, {bundle['nbytes'] / 1e6:.1f} MB"
        print(f"{bundle['digest'][:12]}  {text}" + (f"  ({', '.join(roles)})" if roles else ""))
    if not held:
        print("no bundle is installed; `edge-agent bundles install DIR`, or a gateway that offers one")
    print(f"{record.step}" + (f" {record.candidate[:12]}" if record.candidate else ""))
    if record.said:
        print(record.said)
    for bad in record.bad:
        print(f"{bad.bundle[:12]}  not taken again: {bad.reason}")


@app.command()
def install(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A bundle on this device.", show_default=False)],
    older: Older = False,
    config: Config = None,
    state_dir: State = None,
    json: Json = False,
) -> None:
    """Verify the bundle in DIR, try it, and let it serve on trial; what was proven stays to go back to."""
    from edge_agent.bundles.update import Offered
    from edge_agent.bundles.wishes import Wish
    from edge_agent.updating import trust_of
    from protocol.bundle import Bundle

    settings = _settings(config, state_dir)
    store = trust_of(settings)
    trust = store.trust(kept=True)
    bundle = Bundle.open(folder, replace(trust, floors={}) if older else trust)
    if older:
        store.excuse(bundle.digest)
    shelf = _shelf(settings)
    shelf.make()
    with _writable(shelf), shelf.bringing():
        if shelf.load().current == bundle.digest:
            _tell(json, {"bundle": bundle.digest, "done": True}, f"bundle {bundle.digest[:12]} runs already")
            return
        if not shelf.folder(bundle.digest).exists():
            shelf.adopt(bundle, whole=False)
        wish, event = Wish("install", bundle.digest), Offered(bundle.digest, again=True, by_hand=True)
        _do(settings, shelf, wish, event, json=json)


@app.command()
def fetch(
    bundle: Annotated[str, typer.Argument(metavar="[DIGEST]", help="Of the offers, or the newest.")] = "",
    gateway: Gateway = None,
    keys: Keys = None,
    older: Older = False,
    config: Config = None,
    state_dir: State = None,
    json: Json = False,
) -> None:
    """Take a bundle that a gateway offers, even one that was given up before."""
    from edge_agent.bundles.update import Offered
    from edge_agent.bundles.wishes import Wish
    from edge_agent.updating import trust_of

    settings = _settings(config, state_dir, gateway, keys)
    found = [offer["bundle"] for offer in _offers(settings)["offers"]]
    chosen = [digest for digest in found if digest.startswith(bundle)]
    if len(chosen) != 1 and (bundle or not chosen):
        fact = f"{len(chosen)} of {len(found)} offers begin with {bundle!r}" if bundle else "nothing is offered"
        raise InputError(fact, "see `edge-agent bundles offers`")
    if older:
        trust_of(settings).excuse(chosen[0])
    shelf = _shelf(settings)
    shelf.make()
    _do(settings, shelf, Wish("fetch", chosen[0]), Offered(chosen[0], again=True), json=json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; it is remembered with the bundle.")] = "an operator went back",
    config: Config = None,
    state_dir: State = None,
    json: Json = False,
) -> None:
    """Go back to the bundle that was proven before. What is given up is not taken again by itself."""
    from edge_agent.bundles.update import RollBack
    from edge_agent.bundles.wishes import Wish

    settings = _settings(config, state_dir)
    shelf = _shelf(settings)
    record = shelf.load()
    if not record.previous and not (record.step == "on trial" and record.proven):
        raise InputError("there is no bundle to go back to", "install one with `edge-agent bundles install DIR`")
    _do(settings, shelf, Wish("roll back", reason=reason), RollBack(reason), json=json)


@app.command()
def prune(config: Config = None, state_dir: State = None, json: Json = False) -> None:
    """Remove what is neither running, nor proven, nor to go back to, nor on its way."""
    from edge_agent.bundles.wishes import Wish, make_wish

    shelf = _shelf(_settings(config, state_dir))
    before = shelf.nbytes()
    with _writable(shelf), shelf.lock() as ours:
        if not ours:
            make_wish(shelf, Wish("prune"))
            _tell(json, {"done": False}, "the daemon was told")
            return
        gone = shelf.prune(shelf.load().wanted)
    freed = before - shelf.nbytes()
    _tell(json, {"done": True, "removed": gone, "nbytes": freed}, f"{len(gone)} bundles removed, {freed} bytes")


@app.command()
def offers(
    gateway: Gateway = None, keys: Keys = None, config: Config = None, state_dir: State = None, json: Json = False
) -> None:
    """What gateways offer now."""
    found = _offers(_settings(config, state_dir, gateway, keys))
    if json:
        print_json(found)
        return
    for offer in found["offers"]:
        signed = f"number {offer['counter']}" if offer["signed"] else "unsigned"
        print(f"{offer['bundle'][:12]}  {offer['model']}, {signed}, {offer['nbytes'] / 1e6:.1f} MB in all")
    if not found["offers"]:
        print(found["reason"])


# ---- how ------------------------------------------------------------------------------------------------------------


def _do(settings: AgentSettings, shelf: Shelf, wish: Wish, event: Any, *, json: bool) -> None:
    """Leave it to the daemon if there is one, else do it here."""
    from edge_agent.bundles.wishes import make_wish

    with _writable(shelf):
        with shelf.lock() as ours:
            if not ours:
                make_wish(shelf, wish)
                _tell(json, {"bundle": wish.bundle, "done": False}, "the daemon was told; `edge-agent bundles list`")
                return
        updater = _updater(settings)
        try:
            updater.hold()
            before = updater.look().record
            updater.handle(event)
            record = updater.look().record
        finally:
            updater.close()
    if record == before:
        raise BundleError(f"nothing was changed while an update is {record.step}", "start the daemon, or roll back")
    if wish.act != "roll back" and record.current != wish.bundle:
        raise BundleError(record.said, "see `edge-agent bundles list`")
    said = record.said if wish.act == "roll back" else f"bundle {wish.bundle[:12]} serves from the next start, on trial"
    _tell(json, {"bundle": record.current, "done": True, "step": record.step}, said)


def _updater(settings: AgentSettings) -> Updater:
    from edge_agent.updating import trust_of, updater_of

    return updater_of(
        settings, _shelf(settings), trust_of(settings), switch=lambda folder: None, base=None,
        told=lambda event, text: None, crashed=lambda error: None,
    )  # fmt: skip


def _offers(settings: AgentSettings) -> dict[str, Any]:
    from edge_agent.bundles.courier import Courier
    from edge_agent.updating import addresses_of

    troubles: list[str] = []
    addresses = addresses_of(settings, lambda event, text: troubles.append(text))
    if not addresses:
        raise InputError("no gateway is known", "name one with --gateway")
    if not (ways := addresses()):
        raise NetworkError("; ".join(troubles) or "no gateway is known", "check the names, or give an address")
    found = Courier(ways).offers()
    listed = [
        {"model": offer.model, "bundle": offer.bundle.hex(), "counter": offer.counter, "nbytes": offer.nbytes,
         "files": offer.files, "signed": offer.signature is not None}
        for offer in found.offers
    ]  # fmt: skip
    return {"offers": sorted(listed, key=lambda o: -int(o["counter"])), "reason": found.reason}


def _settings(
    config: Path | None, state_dir: Path | None, gateways: list[str] | None = None, keys: Path | None = None
) -> AgentSettings:
    from edge_agent.config import from_flags, load_settings

    overrides = from_flags(state_dir=state_dir, gateways=gateways or (), keys=keys)
    return load_settings(file=config, env=os.environ, overrides=overrides).settings


def _shelf(settings: AgentSettings) -> Shelf:
    from edge_agent.bundles.shelf import Shelf

    return Shelf(settings.state_dir / "bundles")


@contextmanager
def _writable(shelf: Shelf) -> Iterator[None]:
    """What the disk refuses is a sentence."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{shelf.root} cannot be changed ({error.strerror})", "run it as the daemon's user") from error


def _held(shelf: Shelf, digest: str) -> dict[str, Any]:
    folder = shelf.folder(digest)
    trouble, model = shelf.trouble(digest) or "", ""
    try:
        model = shelf.opened(folder, digest).manifest.model.name
    except IsthmusError as error:
        trouble = trouble or error.fact
    return {"digest": digest, "model": model, "nbytes": shelf.nbytes(folder), "trouble": trouble}


def _tell(json: bool, document: dict[str, Any], sentence: str) -> None:
    if json:
        print_json(document)
    else:
        print(sentence)
