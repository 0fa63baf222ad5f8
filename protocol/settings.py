"""Settings of a daemon, layer upon layer: defaults < TOML file < environment < secrets < command line.

    loaded = load(GatewaySettings, prefix="ISTHMUS_GATEWAY", file=Path("gateway.toml"), env=os.environ)
    loaded.settings.limits.pending_requests, loaded.origins["limits.pending_requests"]     # 1024, gateway.toml:12

    environment   ISTHMUS_GATEWAY__LIMITS__PENDING_REQUESTS=1024      two underscores between the parts of a key
    secrets       ISTHMUS_GATEWAY__CACHE__REDIS_URL_FILE=/run/x       a file that holds the value
                  DIRECTORY/cache.redis_url                           one file per key; other files there are not read
    command line  --set limits.pending_requests=1024

Nothing is guessed: an unknown key is refused with the nearest known one, a wrong value with its origin and what would
be right, and all of it at once. A relative path in a file is relative to that file, elsewhere to the working directory.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from protocol.errors import InputError
from protocol.settings_fields import Branch, Leaf, Secret, Section, by_default, leaves, setting, tree_of
from protocol.settings_layers import Given, Loaded, Origin, Problem, SettingsError, plain, resolve

__all__ = [
    "Loaded",
    "Origin",
    "Problem",
    "Secret",
    "Section",
    "SettingsError",
    "by_default",
    "load",
    "parse_set",
    "schema",
    "setting",
]

MOST_NBYTES = 1024 * 1024  # of a file of settings or of a secret
_MOST_LINES = 200  # of one value; longer ones have a file but no line as their origin

T = TypeVar("T", bound=Section)


def load(
    kind: type[T],
    *,
    prefix: str,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    secrets_dir: Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Loaded[T]:
    """The settings of all layers. `overrides` maps keys to values: text (see `parse_set`) or already of the right type.

    Raises InputError for what cannot be read, SettingsError (an InputError) with everything else that is wrong.
    """
    env = {} if env is None else env
    return resolve(
        kind,
        [
            [] if file is None else from_toml(file),
            from_environment(kind, prefix, env),
            [] if secrets_dir is None else from_secrets(kind, secrets_dir),
            from_secret_files(kind, prefix, env),
            from_overrides(overrides or {}),
        ],
    )


def schema(kind: type[Section]) -> dict[str, Any]:
    """The settings as JSON schema: types, bounds, defaults and the documentation of every field."""

    def hook(custom: type) -> dict[str, Any]:
        return {"type": "string", "writeOnly": True} if custom is Secret else {"type": "string"}

    found = msgspec.json.schema(kind, schema_hook=hook)
    _with_made_defaults(tree_of(kind), found["$defs"])
    return found


def _with_made_defaults(branch: Branch, definitions: dict[str, Any]) -> None:
    """Of defaults that a factory makes (`by_default`) a schema says nothing."""
    fields = definitions[branch.kind.__name__]["properties"]
    for name, child in branch.children.items():
        if isinstance(child, Branch):
            _with_made_defaults(child, definitions)
        elif isinstance(child.default, Path):
            fields[name]["default"] = str(child.default)


def parse_set(flags: Iterable[str]) -> dict[str, str]:
    """`["limits.pending_requests=10"]` as overrides. Raises InputError."""
    found = {}
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals or not key.strip():
            raise InputError(
                f"--set {flag} names no value", "write --set KEY=VALUE, for example --set http.bind=127.0.0.1:8000"
            )
        found[key.strip()] = value
    return found


def toml_value(value: object) -> str:
    """A value as TOML writes it; a secret stays hidden, and what is not set has no form in TOML."""
    return "" if value is None else msgspec.json.encode(plain(value)).decode()


# ---- the layers -----------------------------------------------------------------------------------------------------


def from_toml(file: Path) -> list[Given]:
    """Every value of a TOML file with its line. Raises InputError."""
    text = _read(file, "settings")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{file} is not TOML: {error or 'nested too deeply'}", "mend it there") from error
    lines = dict(_lines(text))
    base = str(file.absolute().parent)
    return [
        Given(path, value, Origin("file", f"{file}:{lines[path]}" if path in lines else str(file)), base=base)
        for path, value in _flat(document)
    ]


def from_environment(kind: type[Section], prefix: str, env: Mapping[str, str]) -> list[Given]:
    """Every variable that begins with `prefix__` and names no file; and what was meant to, so that it is refused.

    Others that begin with `prefix_` are not ours to judge: Kubernetes makes some of a service's name.
    """
    return [
        Given(path, value, Origin("environment", name), is_text=True)
        for name, path, value in (*_variables(prefix, env), *_misspelt(kind, prefix, env))
        if _behind(kind, path) is None
    ]


def from_secret_files(kind: type[Section], prefix: str, env: Mapping[str, str]) -> list[Given]:
    """The contents of the files that `prefix__KEY_FILE` names. Raises InputError."""
    found = []
    for name, path, value in _variables(prefix, env):
        key = _behind(kind, path)
        if key is not None:
            found.append(Given(key, _secret(Path(value)), Origin("secret", f"{name}={value}"), is_text=True))
    return found


def from_secrets(kind: type[Section], directory: Path) -> list[Given]:
    """The contents of every file that is named like a key. What belongs to no section is somebody else's: not read.

    Raises InputError.
    """
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"secrets in {directory} cannot be listed ({error.strerror})", "name a directory") from error
    sections = tree_of(kind).children
    return [
        Given(path, _secret(file), Origin("secret", str(file)), is_text=True)
        for file in files
        if len(path := tuple(file.name.split("."))) > 1 and path[0] in sections
    ]


def from_overrides(overrides: Mapping[str, object]) -> list[Given]:
    """What the command line says."""
    return [
        Given(_path_of(key), value, Origin("flag", "command line"), is_text=isinstance(value, str))
        for key, value in overrides.items()
    ]


def _path_of(key: str) -> tuple[str, ...]:
    """The parts of a key, of which some may be quoted; one that TOML does not take is split at its dots."""
    try:
        ((path, _),) = _flat(tomllib.loads(f"{key} = 0"))
    except (tomllib.TOMLDecodeError, ValueError):
        return tuple(key.split("."))
    return path


def _variables(prefix: str, env: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    for name, value in sorted(env.items()):
        if name.startswith(f"{prefix}__"):
            yield name, tuple(name.removeprefix(f"{prefix}__").lower().split("__")), value


def _misspelt(kind: type[Section], prefix: str, env: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """The variables that would be settings, or files of some, were their underscores doubled; under no key there is."""
    keys = {key.replace(".", "_") for key, _ in leaves(tree_of(kind))}
    for name, value in sorted(env.items()):
        rest = name.removeprefix(f"{prefix}_").lower()
        meant = next((each for each in (rest, rest.removesuffix("_file")) if each in keys), None)
        if name.startswith(f"{prefix}_") and meant is not None:
            yield name, (meant,), value


def _behind(kind: type[Section], path: tuple[str, ...]) -> tuple[str, ...] | None:
    """The path of the leaf whose value lies in a file, if this is `..._file` of one and no leaf itself."""
    last = path[-1]
    base = (*path[:-1], last.removesuffix("_file"))
    if last.endswith("_file") and not _is_leaf(kind, path) and _is_leaf(kind, base):
        return base
    return None


def _is_leaf(kind: type[Section], path: tuple[str, ...]) -> bool:
    return isinstance(tree_of(kind).find(path), Leaf)


def _secret(file: Path) -> str:
    return _read(file, "secret").rstrip("\r\n")


def _read(file: Path, what: str) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_NBYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{what} {file} cannot be read ({reason})", "check the path and who may read it") from error
    if len(data) > MOST_NBYTES:
        raise InputError(f"{what} {file} is larger than {MOST_NBYTES} bytes", "name the right file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {file} is not UTF-8 ({error.reason})", "save it as UTF-8") from error


# ---- lines of a TOML file -------------------------------------------------------------------------------------------


def _flat(table: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in table.items():
        path = (*prefix, name)
        if isinstance(value, dict) and value:
            yield from _flat(value, path)
        else:
            yield path, value


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """The line of every value: a statement is the fewest lines that are TOML by themselves."""
    prefix: tuple[str, ...] = ()
    statement: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        statement.append(line)
        try:
            found = tomllib.loads("\n".join(statement))
        except tomllib.TOMLDecodeError:
            if len(statement) > _MOST_LINES:
                return
            continue
        first = number - len(statement) + 1
        is_header = statement[0].lstrip().startswith("[")
        statement = []
        if is_header:
            prefix = next((path for path, _ in _flat(found)), ())
            yield prefix, first
        else:
            yield from (((*prefix, *path), first) for path, _ in _flat(found))


def documented(kind: type[Section]) -> Iterator[tuple[str, Leaf]]:
    """Every key with its leaf, in the order of declaration, for tables and completions."""
    yield from leaves(tree_of(kind))
