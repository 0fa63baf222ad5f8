"""`edge-agent enroll` and `keys`: who this device is, by what it knows its gateway, whose bundles it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.terminal import print_json

if TYPE_CHECKING:
    from edge_agent.trust.store import TrustStore

STATE_DIR = Path("/var/lib/isthmus")

keys_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The device's own key, and the keys that it believes."
)
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        envvar="ISTHMUS_AGENT__KEYS__DIR",
        help="Folder of keys, made if it is not there; else keys/ of the state directory.",
        show_default=False,
    ),
]
State = Annotated[
    Path,
    typer.Option("--state-dir", envvar="ISTHMUS_AGENT__STATE_DIR", help="The daemon's folder; its keys/ is meant."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def enroll(
    gateway: Annotated[str, typer.Option(help="tcp://HOST:PORT", show_default=False)],
    token: Annotated[
        str,
        typer.Option(
            envvar="ISTHMUS_AGENT_TOKEN", help="What `cloud-gateway keys invite` has printed.", show_default=False
        ),
    ],
    keys_dir: Keys = None,
    state_dir: State = STATE_DIR,
    replace: Annotated[bool, typer.Option("--replace", help="Forget the gateway that server.pub names.")] = False,
    json: Json = False,
) -> None:
    """Make this device known at a gateway: its key is made here, and the gateway's keys are kept."""
    from edge_agent.trust.enrol import enrol

    keys_dir = keys_dir or state_dir / "keys"
    made = enrol(gateway, token, keys_dir, replace=replace)
    if json:
        server = [{"key": k.data.hex(), "fingerprint": k.fingerprint, "port": k.port} for k in made.server]
        print_json({"name": made.name, "fingerprint": made.fingerprint, "server": server, "keys": str(keys_dir)})
    else:
        print(f"known as {made.name} with key {made.fingerprint}; start with --gateway {gateway} --keys {keys_dir}")


@keys_app.command()
def show(
    keys_dir: Keys = None,
    state_dir: State = STATE_DIR,
    name: Annotated[str, typer.Option(help="What this device calls itself, where its key is made now.")] = "edge-agent",
    json: Json = False,
) -> None:
    """Print this device's public key (made if there is none), for `cloud-gateway keys add NAME --key`."""
    from edge_agent.trust.identity import identity

    public = identity(keys_dir or state_dir / "keys", name).public
    if json:
        print_json({"name": public.name, "key": public.data.hex(), "fingerprint": public.fingerprint})
    else:
        print(public.line())


@keys_app.command()
def trust(
    known: Annotated[
        list[str], typer.Argument(metavar="FILE.pub...", help="Who signs bundles: current key, next key.")
    ],
    keys_dir: Keys = None,
    state_dir: State = STATE_DIR,
    json: Json = False,
) -> None:
    """Take bundles only if one of these keys has signed them. Keys that are not named are believed no longer."""
    from edge_agent.trust.store import TrustStore
    from protocol import signers

    store = TrustStore(keys_dir or state_dir / "keys")
    store.believe(tuple(key for text in known for key in signers.given_verify_keys(text)))
    _show(store, json=json)


@keys_app.command()
def trusted(keys_dir: Keys = None, state_dir: State = STATE_DIR, json: Json = False) -> None:
    """Say whose bundles are taken here, how new they must be, and what was revoked."""
    from edge_agent.trust.store import TrustStore

    _show(TrustStore(keys_dir or state_dir / "keys"), json=json)


@keys_app.command()
def revocations(
    file: Annotated[Path, typer.Argument(help="A list of `partitioner revoke`.", show_default=False)],
    keys_dir: Keys = None,
    state_dir: State = STATE_DIR,
    json: Json = False,
) -> None:
    """Take a signed list of bundles and keys that hold no longer. The daemon also gets it over the air."""
    from edge_agent.trust.store import TrustStore
    from protocol.errors import InputError

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})", "name the list") from error
    store = TrustStore(keys_dir or state_dir / "keys")
    store.take_revocations(data)
    _show(store, json=json)


def _show(store: TrustStore, *, json: bool) -> None:
    remembered = store.remembered()
    if json:
        signed_by = [{"name": key.name, "key_id": key.key_id} for key in store.known()]
        print_json({"keys": signed_by, "floors": remembered.floors, "revocations": remembered.revocations})
        return
    print(store.describe())
    for model, counter in sorted(remembered.floors.items()):
        print(f"{model}: number {counter} or higher")
    if remembered.revocations is not None:
        listed = remembered.revocations
        print(f"revocations: list {listed.number}, {len(listed.bundles)} bundles and {len(listed.keys)} keys")
