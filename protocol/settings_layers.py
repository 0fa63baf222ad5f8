"""Layers of values, each with its origin, resolved into typed settings; and what differs between two of them. Pure.

Later layers win, key by key. Everything that is wrong is collected before anything is refused: whoever mends a file
wants the whole list. `protocol.settings` reads files and the environment and hands over what it found there.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec
import msgspec.inspect as shapes

from protocol.errors import InputError
from protocol.settings_fields import HIDDEN, Branch, Leaf, Secret, Section, key_of, leaves, tree_of

LayerName = Literal["default", "file", "environment", "secret", "flag"]


class Origin(NamedTuple):
    """Where a value comes from: `gateway.toml:12`, the name of a variable, a secret's file, a flag."""

    layer: LayerName
    where: str

    def __str__(self) -> str:
        return self.where


DEFAULT = Origin("default", "default")


@dataclass(frozen=True, slots=True)
class Given:
    """One value that somebody gave. `is_text`: from a place that knows only text, so `8` may mean a number.

    A relative path is meant relative to the folder `base`, where that is not empty.
    """

    path: tuple[str, ...]
    value: object = field(repr=False)
    origin: Origin
    is_text: bool = False
    base: str = ""


class Problem(NamedTuple):
    """One thing that is wrong, and what to do about it."""

    key: str
    fact: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.fact}; {self.remedy}" if self.remedy else self.fact


class SettingsError(InputError):
    """Settings that cannot be used; `problems` holds all that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        *others, last = self.problems
        super().__init__("; ".join([*map(str, others), last.fact]), last.remedy)


T = TypeVar("T", bound=Section)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """Settings, and the origin of every value by key."""

    settings: T
    origins: Mapping[str, Origin]


def resolve(kind: type[T], layers: Iterable[Iterable[Given]]) -> Loaded[T]:
    """The settings that `layers` give, later ones winning. Raises SettingsError with everything that is wrong."""
    root = tree_of(kind)
    problems: list[Problem] = []
    winners: dict[tuple[str, ...], tuple[Leaf, Given]] = {}
    for given in (each for layer in layers for each in layer):
        found = root.find(given.path)
        if isinstance(found, Leaf):
            winners[given.path] = (found, given)
        elif found is None:
            problems.append(_unknown(root, given))
        elif given.value != {}:
            key = key_of(given.path)
            problems.append(Problem(key, f"{key} ({given.origin}) is a section", f"set {key}.NAME, not {key} itself"))
    values: dict[tuple[str, ...], object] = {}
    for path, (leaf, given) in winners.items():
        try:
            values[path] = _converted(leaf, given)
        except (ValueError, TypeError):  # msgspec.ValidationError is a ValueError; its words do not say what is wanted
            problems.append(_wrong(leaf, given))
    if problems:
        raise SettingsError(problems)
    settings = _built(root, values)
    assert isinstance(settings, kind)
    origins = {key_of(path): given.origin for path, (_, given) in winners.items()}
    origins = {key: origins.get(key, DEFAULT) for key in flat(settings)}
    together = [
        Problem(key, f"{fact} ({origins[key]})" if key in origins else fact, remedy)
        for key, fact, remedy in settings.contradictions()
    ]
    if together:
        raise SettingsError(together)
    return Loaded(settings, origins)


def _converted(leaf: Leaf, given: Given) -> object:
    value: object = given.value
    if given.is_text and isinstance(value, str):
        if value == "" and leaf.is_optional:
            return None
        if isinstance(leaf.shape, shapes.VarTupleType):
            value = _listed(value)

    def made(kind: type[Any], text: object) -> object:
        if isinstance(text, kind):
            return text
        if not isinstance(text, str):
            raise TypeError
        if given.base and hasattr(kind, "__fspath__"):
            return kind(given.base) / text  # an absolute `text` replaces the base
        return kind(text)

    result = msgspec.convert(value, leaf.annotation, strict=not given.is_text, dec_hook=made)
    if isinstance(result, float) and not math.isfinite(result):
        raise ValueError
    return result


def _listed(text: str) -> list[object]:
    """Parts between commas, or a list as it would stand in the file. An address in brackets is neither."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return list(tomllib.loads(f"x = {text}")["x"])
    return [part.strip() for part in text.split(",") if part.strip()]


def _wrong(leaf: Leaf, given: Given) -> Problem:
    key = key_of(given.path)
    shown = HIDDEN if leaf.is_secret else repr(given.value)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return Problem(key, f"{key} is {shown} ({given.origin})", f"give {leaf.wanted}")


def _unknown(root: Branch, given: Given) -> Problem:
    key = key_of(given.path)
    at, depth = root, 0
    while isinstance(child := at.child(given.path[depth]), Branch):
        at, depth = child, depth + 1
    inside, rest = given.path[:depth], given.path[depth + 1 :]
    near = [(*inside, name, *rest) for name in _close(given.path[depth], at.children)]
    known = [key_of(path) for path in near if root.find(path) is not None]
    if not known:
        # The right name in the wrong section, or section and name misspelt: look through everything.
        everywhere = [each for each, _ in leaves(root)]
        same = [each for each in everywhere if each.rpartition(".")[2] == given.path[-1]]
        known = [*same, *_close(key, everywhere, 0.85)]
    if known:
        parts = " (two underscores between its parts)" if given.origin.layer == "environment" else ""
        remedy = f"did you mean {known[0]}{parts}?"
    else:
        remedy = f"known {f'in {key_of(inside)}' if inside else 'sections'}: {', '.join(at.children)}"
    return Problem(key, f"{key} is unknown ({given.origin})", remedy)


def _close(name: str, known: Iterable[str], cutoff: float = 0.7) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)


def _built(branch: Branch, values: Mapping[tuple[str, ...], object]) -> object:
    inside: dict[str, dict[tuple[str, ...], object]] = {}
    for (name, *rest), value in values.items():
        inside.setdefault(name, {})[tuple(rest)] = value
    made: dict[str, Any] = {}
    for name, deeper in inside.items():
        child = branch.child(name)
        made[name] = _built(child, deeper) if isinstance(child, Branch) else deeper[()]
    return made if branch.by_name else branch.kind(**made)


# ---- looking at settings, and changing a few ------------------------------------------------------------------------


def flat(settings: Section, prefix: str = "") -> dict[str, object]:
    """Every value by its key, in the order of declaration."""
    found: dict[str, object] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Section):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, dict):
            for each, section in value.items():
                found |= flat(section, f"{prefix}{name}.{key_of([each])}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def plain(value: object) -> Any:
    """A value as JSON knows it; a secret stays hidden."""
    if isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return str(value) if hasattr(value, "__fspath__") else value


class Change(NamedTuple):
    """One value that differs between two settings; a section whose names the user chooses changes as a whole."""

    key: str
    reloadable: bool


def changes(before: T, after: T) -> tuple[Change, ...]:
    """What differs, in the order of declaration."""
    return tuple(_changes(tree_of(type(before)), before, after, ""))


def _changes(branch: Branch, before: object, after: object, prefix: str) -> Iterator[Change]:
    for name, child in branch.children.items():
        old, new, key = getattr(before, name), getattr(after, name), f"{prefix}{name}"
        if isinstance(child, Branch) and not child.by_name:
            yield from _changes(child, old, new, f"{key}.")
        elif old != new:
            yield Change(key, child.reloadable)


def grafted(before: T, after: T, take: Callable[[str], bool]) -> T:
    """`before`, with the values from `after` whose keys `take` accepts."""
    made = _grafted(tree_of(type(before)), before, after, take, "")
    assert isinstance(made, type(before))
    return made


def _grafted(branch: Branch, before: object, after: object, take: Callable[[str], bool], prefix: str) -> object:
    made: dict[str, Any] = {}
    for name, child in branch.children.items():
        old, new, key = getattr(before, name), getattr(after, name), f"{prefix}{name}"
        if isinstance(child, Branch) and not child.by_name:
            made[name] = _grafted(child, old, new, take, f"{key}.")
        else:
            made[name] = new if take(key) else old
    return branch.kind(**made)
