"""`cloud-gateway config check | show | schema`: settings seen by people before the gateway sees them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cloud_gateway.config import GatewaySettings, load_settings
from protocol.errors import InputError
from protocol.settings import Loaded, Secret, Section, SettingsError, documented, parse_set, schema, toml_value
from protocol.settings_layers import flat, plain
from protocol.terminal import print_json

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Check, show and describe settings.")

File = Annotated[
    Path | None, typer.Argument(help="A TOML file; else ISTHMUS_GATEWAY_CONFIG names it.", show_default=False)
]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over all others; may be repeated.")]
SecretsDir = Annotated[Path | None, typer.Option(help="Folder with a file per secret, named by its key.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
def check(file: File = None, set_: Set = None, secrets_dir: SecretsDir = None, json: Json = False) -> None:
    """Exit with 0 if the gateway would take these settings, else name everything that is wrong and exit with 3."""
    try:
        loaded = _load(file, set_, secrets_dir)
    except InputError as error:
        problems = error.problems if isinstance(error, SettingsError) else ()
        if json:
            listed = [problem._asdict() for problem in problems]
            print_json({"ok": False, "problems": listed or [{"key": "", "fact": error.fact, "remedy": error.remedy}]})
        else:
            for line in problems or [error]:
                print(f"error: {line}", file=sys.stderr)
        raise typer.Exit(InputError.exit_code) from None
    given = sum(origin.layer != "default" for origin in loaded.origins.values())
    if json:
        print_json({"ok": True, "given": given, "problems": []})
    else:
        print(f"ok: {given} of {len(loaded.origins)} values are given, the rest is default")


@app.command()
def show(
    file: File = None,
    set_: Set = None,
    secrets_dir: SecretsDir = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where every value comes from.")] = False,
    given: Annotated[bool, typer.Option("--given", help="Leave out what is default.")] = False,
    json: Json = False,
) -> None:
    """Print the settings that the gateway would use, as TOML; secrets stay hidden."""
    loaded = _load(file, set_, secrets_dir)
    values = {
        key: value
        for key, value in flat(loaded.settings).items()
        if not given or loaded.origins[key].layer != "default"
    }
    if json:
        print_json({
            key: {"value": plain(value), **(loaded.origins[key]._asdict() if origin else {})}
            for key, value in values.items()
        })  # fmt: skip
    else:
        print(as_toml(values, loaded if origin else None))


@app.command("schema")
def show_schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="A table for people instead.")] = False,
) -> None:
    """Print the JSON schema of all settings, with their documentation."""
    if markdown:
        print(as_markdown(GatewaySettings))
    else:
        print_json(schema(GatewaySettings))


def _load(file: Path | None, sets: list[str] | None, secrets_dir: Path | None) -> Loaded[GatewaySettings]:
    return load_settings(file=file, env=os.environ, secrets_dir=secrets_dir, overrides=parse_set(sets or ()))


def as_toml(values: dict[str, object], origins_of: Loaded[GatewaySettings] | None) -> str:
    """Values by key as a TOML document that loads again; what is not set, and secrets, are comments."""
    lines: list[str] = []
    at = ""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        if section != at:
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
            at = section
        line = f"{name} = {toml_value(value)}".rstrip()
        if value is None or isinstance(value, Secret):
            line = f"# {line}"
        lines.append(f"{line}  # {origins_of.origins[key]}" if origins_of else line)
    return "\n".join(lines)


def as_markdown(kind: type[Section]) -> str:
    """All settings as a table, in the order of declaration; `*` marks what a reload applies."""
    lines: list[str] = []
    at = ""
    for key, leaf in documented(kind):
        section, _, name = key.rpartition(".")
        if section != at:
            lines += ["", f"### [{section}]", "", "| field | default | value | meaning |", "|---|---|---|---|"]
            at = section
        default = "" if leaf.default is None else f"`{toml_value(leaf.default)}`"
        lines.append(f"| `{name}`{' *' if leaf.reloadable else ''} | {default} | {leaf.wanted} | {leaf.text} |")
    return "\n".join(lines).strip()
