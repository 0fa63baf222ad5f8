"""`config check | show | schema` of a daemon: settings seen by people before the daemon sees them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer

from protocol.errors import InputError
from protocol.settings import Loaded, Secret, Section, SettingsError, documented, parse_set, schema, toml_value
from protocol.settings_layers import flat, plain
from protocol.terminal import print_json

T = TypeVar("T", bound=Section)

File = Annotated[
    Path | None, typer.Argument(help="A TOML file; else the variable ISTHMUS_..._CONFIG names it.", show_default=False)
]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over all others; may be repeated.")]
SecretsDir = Annotated[Path | None, typer.Option(help="Folder with a file per secret, named by its key.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


class Load(Protocol[T]):
    """How a daemon loads its settings. Raises InputError."""

    def __call__(
        self,
        *,
        file: Path | None = None,
        env: Mapping[str, str],
        secrets_dir: Path | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Loaded[T]: ...


def config_app(
    kind: type[T], load: Load[T], *, daemon: str, remarks: Callable[[T], Iterable[str]] = lambda settings: ()
) -> typer.Typer:
    """The three commands over settings of `kind`; `daemon` is what sentences call whoever would use them. `remarks`
    are what `check` says of settings that would be taken and may be a mistake all the same."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, help="Check, show and describe settings.")

    def read(file: Path | None, sets: list[str] | None, secrets_dir: Path | None) -> Loaded[T]:
        return load(file=file, env=os.environ, secrets_dir=secrets_dir, overrides=parse_set(sets or ()))

    @app.command(help=f"Exit with 0 if the {daemon} would take these settings, else name everything that is wrong and "
                      "exit with 3.")  # fmt: skip
    def check(
        file: File = None,
        set_: Set = None,
        secrets_dir: SecretsDir = None,
        json: Json = False,
    ) -> None:
        try:
            loaded = read(file, set_, secrets_dir)
        except InputError as error:
            problems = error.problems if isinstance(error, SettingsError) else ()
            if json:
                listed = [problem._asdict() for problem in problems]
                print_json(
                    {"ok": False, "problems": listed or [{"key": "", "fact": error.fact, "remedy": error.remedy}]}
                )
            else:
                for line in problems or [error]:
                    print(f"error: {line}", file=sys.stderr)
            raise typer.Exit(InputError.exit_code) from None
        given = sum(origin.layer != "default" for origin in loaded.origins.values())
        said = list(remarks(loaded.settings))
        if json:
            print_json({"ok": True, "given": given, "problems": [], "remarks": said})
            return
        print(f"ok: {given} of {len(loaded.origins)} values are given, the rest is default")
        for remark in said:
            print(f"note: {remark}")

    @app.command(help=f"Print the settings that the {daemon} would use, as TOML; secrets stay hidden.")
    def show(
        file: File = None,
        set_: Set = None,
        secrets_dir: SecretsDir = None,
        origin: Annotated[bool, typer.Option("--origin", help="Say where every value comes from.")] = False,
        given: Annotated[bool, typer.Option("--given", help="Leave out what is default.")] = False,
        json: Json = False,
    ) -> None:
        loaded = read(file, set_, secrets_dir)
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
            print(as_markdown(kind))
        else:
            print_json(schema(kind))

    return app


def as_toml(values: dict[str, object], origins_of: Loaded[Any] | None) -> str:
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
    """All settings as tables, in the order of declaration; `*` marks what a reload applies."""
    lines: list[str] = []
    at = None
    for key, leaf in documented(kind):
        section, _, name = key.rpartition(".")
        if section != at:
            title = f"### [{section}]" if section else "### outside of every section"
            lines += ["", title, "", "| field | default | value | meaning |", "|---|---|---|---|"]
            at = section
        default = "" if leaf.default is None else f"`{toml_value(leaf.default)}`"
        lines.append(f"| `{name}`{' *' if leaf.reloadable else ''} | {default} | {leaf.wanted} | {leaf.text} |")
    return "\n".join(lines).strip()
