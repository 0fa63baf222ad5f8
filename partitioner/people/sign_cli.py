"""`partitioner sign`, `revoke` and `keys`: who vouches for a bundle, and what holds no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from partitioner.options import BundlePath, Json
from protocol.terminal import guarded, print_json

keys_app = typer.Typer(no_args_is_help=True, help="Keys that sign bundles.")

KeyFile = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="The secret key (`partitioner keys new`).", show_default=False)
]
Trusted = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="FILE.pub", help="Public key of a signer that you believe; may be repeated."),
]


def sign(
    bundle: BundlePath,
    key: KeyFile,
    counter: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="The bundle's number; devices take no lower one after it [when built]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Vouch for BUNDLE: sign its manifest, which hashes everything else. Several keys may sign one after the other."""
    with guarded():
        from partitioner.planning import sign as signatures
        from protocol import signers

        signed = signatures.sign(bundle, signers.read_key(key), counter)
        if as_json:
            print_json(signed)
        else:
            said = signed.statement
            print(f"{bundle}: signed as number {said.counter} of {said.model}, digest {said.manifest_sha256[:16]}")
            print(f"signatures of {', '.join(key_id[:16] for key_id in signed.signers)}")


def revoke(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The list: it is begun, or gets longer.", show_default=False
        ),
    ],
    key: KeyFile,
    bundles: Annotated[
        list[str] | None, typer.Argument(metavar="[BUNDLE|DIGEST]...", help="Bundles that must not be used any more.")
    ] = None,
    signer: Annotated[
        list[str] | None, typer.Option(metavar="FILE.pub", help="Public key that vouches for nothing any more.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; devices say it.")] = "",
    trusted: Trusted = None,
    as_json: Json = False,
) -> None:
    """Take back bundles or signing keys: write a signed list, with a higher number than before, for the devices."""
    with guarded():
        from partitioner.planning import sign as signatures
        from protocol import signers

        found = signatures.revoke(
            output,
            signers.read_key(key),
            bundles=bundles or (),
            signers=[each for text in signer or () for each in signers.given_verify_keys(text)],
            reason=reason,
            known=tuple(each for text in trusted or () for each in signers.given_verify_keys(text)),
        )
        if as_json:
            print_json(found)
        else:
            print(f"{output}: list number {found.number}, {len(found.bundles)} bundles and {len(found.keys)} keys")


@keys_app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Folder for NAME.key and NAME.pub.", show_default=False)],
    name: Annotated[str, typer.Option(help="What people call this key.")] = "bundles",
    as_json: Json = False,
) -> None:
    """Make a key: NAME.key signs, and stays here; NAME.pub goes to the devices."""
    with guarded():
        from protocol import signers
        from protocol.errors import InputError

        key = signers.make_key(name)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made ({error.strerror})", "choose another folder") from error
        signers.write_key(folder / f"{name}.key", key)
        signers.write_verify_keys(folder / f"{name}.pub", (key.public,))
        _show(key.public.name, key.public.key_id, key.public.line(), as_json=as_json)


@keys_app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A secret key.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Print the public half of a secret key."""
    with guarded():
        from protocol import signers

        public = signers.read_key(file).public
        _show(public.name, public.key_id, public.line(), as_json=as_json)


def _show(name: str, key_id: str, line: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key_id": key_id, "public": line})
    else:
        print(line)
