"""What settings are: typed sections of documented fields. Pure.

    class Limits(Section, frozen=True):
        pending_requests: Annotated[int, setting("Requests that may wait.", ge=1, reloadable=True)] = 1024

    class Settings(Section, frozen=True):
        limits: Annotated[Limits, setting("Bounds.")] = Limits()

A field is a *leaf* (one value), a *section* (another struct), or sections by name (`dict[str, Section]`, whose names
the user chooses). A key is the way to a leaf as TOML writes it: `limits.pending_requests`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec
import msgspec.inspect as shapes

from protocol.errors import InvariantViolation

HIDDEN = "***"
_BARE = re.compile("[A-Za-z0-9_-]+")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of settings: every field has a default and a `setting`; a section's default is the section's own."""

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        """Of the root only: (key, fact, remedy) of values that are right by themselves but not together."""
        yield from ()


class Secret:
    """Text that is shown to nobody who does not ask by name."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def setting(
    text: str,
    *,
    reloadable: bool = False,
    wanted: str = "",
    ge: float | None = None,
    le: float | None = None,
    pattern: str | None = None,
) -> msgspec.Meta:
    """One field's documentation. `reloadable` may change while the daemon runs; `wanted` says what a good value is
    where the type does not say it well. Bounds belong to numbers, `pattern` to text."""
    extra = {"reloadable": reloadable, "wanted": wanted}
    more = {"x-reloadable": True} if reloadable else None
    if pattern is not None:
        return msgspec.Meta(description=text, extra=extra, extra_json_schema=more, pattern=pattern)
    return msgspec.Meta(description=text, extra=extra, extra_json_schema=more, ge=ge, le=le)


def by_default(value: object) -> Any:
    """`value`, which JSON does not know (a path), as a default: made by a factory, a schema can pass it over."""
    return msgspec.field(default_factory=lambda: value)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value that can be set."""

    annotation: Any
    shape: shapes.Type
    text: str
    wanted: str
    reloadable: bool
    default: object

    @property
    def is_secret(self) -> bool:
        return any(isinstance(s, shapes.CustomType) and s.cls is Secret for s in _alternatives(self.shape))

    @property
    def is_optional(self) -> bool:
        return any(isinstance(s, shapes.NoneType) for s in _alternatives(self.shape))


@dataclass(frozen=True, slots=True)
class Branch:
    """A section. `by_name` is that of `dict[str, Section]`: every child's name leads to the same `each`."""

    kind: type[Section]
    text: str
    children: Mapping[str, Leaf | Branch]
    by_name: bool = False
    reloadable: bool = False

    def child(self, name: str) -> Leaf | Branch | None:
        if self.by_name:
            return Branch(self.kind, self.text, self.children, reloadable=self.reloadable)
        return self.children.get(name)

    def find(self, path: tuple[str, ...]) -> Leaf | Branch | None:
        """What lies at the end of `path`."""
        at: Leaf | Branch | None = self
        for name in path:
            at = at.child(name) if isinstance(at, Branch) else None
        return at


@functools.cache
def tree_of(kind: type[Section]) -> Branch:
    """All that `kind` lets be set. Raises InvariantViolation if a field is not documented."""
    return _branch(kind, "")


def _branch(kind: type[Section], text: str, *, by_name: bool = False, reloadable: bool = False) -> Branch:
    described = shapes.type_info(kind)
    if not isinstance(described, shapes.StructType):
        raise InvariantViolation(f"{kind} is no section")
    hints = get_type_hints(kind, include_extras=True)
    children: dict[str, Leaf | Branch] = {}
    for each in described.fields:
        shape, extra, about = each.type, {}, ""
        if isinstance(shape, shapes.Metadata):
            extra, about = shape.extra or {}, (shape.extra_json_schema or {}).get("description", "")
            shape = shape.type
        if not about:
            raise InvariantViolation(f"{kind.__name__}.{each.name} is not documented")
        live = bool(extra.get("reloadable"))
        if isinstance(shape, shapes.StructType):
            children[each.name] = _branch(_section(shape), about)
        elif isinstance(shape, shapes.DictType) and isinstance(shape.value_type, shapes.StructType):
            children[each.name] = _branch(_section(shape.value_type), about, by_name=True, reloadable=live)
        else:
            wanted = str(extra.get("wanted", "")) or in_words(shape)
            default = each.default if each.default_factory is msgspec.NODEFAULT else each.default_factory()
            children[each.name] = Leaf(hints[each.name], shape, about, wanted, live, default)
    return Branch(kind, text, children, by_name, reloadable)


def _section(shape: shapes.StructType) -> type[Section]:
    if not issubclass(shape.cls, Section):
        raise InvariantViolation(f"{shape.cls.__name__} is no section")
    return shape.cls


def key_of(path: Iterable[str]) -> str:
    """The key at the end of `path`; a part that TOML would not take bare is quoted: `models.override."a.b".threads`."""
    return ".".join(part if _BARE.fullmatch(part) else msgspec.json.encode(part).decode() for part in path)


def leaves(branch: Branch, prefix: str = "", *, name: str = "NAME") -> Iterator[tuple[str, Leaf]]:
    """Every leaf with its key, in the order of declaration; `name` stands for names that the user chooses."""
    for child_name, child in branch.children.items():
        key = f"{prefix}{child_name}"
        if isinstance(child, Leaf):
            yield key, child
        else:
            yield from leaves(child, f"{key}.{name}." if child.by_name else f"{key}.", name=name)


def _alternatives(shape: shapes.Type) -> tuple[shapes.Type, ...]:
    if isinstance(shape, shapes.Metadata):
        return _alternatives(shape.type)
    return tuple(s for t in shape.types for s in _alternatives(t)) if isinstance(shape, shapes.UnionType) else (shape,)


def in_words(shape: shapes.Type) -> str:
    """What a value of this type looks like, for people: `a whole number from 1 to 64`."""
    words = [_word(each) for each in _alternatives(shape) if not isinstance(each, shapes.NoneType)]
    return " or ".join(words)


def _word(shape: shapes.Type) -> str:
    match shape:
        case shapes.BoolType():
            return "true or false"
        case shapes.IntType():
            return f"a whole number{_bounds(shape)}"
        case shapes.FloatType():
            return f"a number{_bounds(shape)}"
        case shapes.LiteralType():
            return "one of " + ", ".join(map(str, shape.values)) if len(shape.values) > 1 else str(shape.values[0])
        case shapes.VarTupleType():
            return f"a list, each {in_words(shape.item_type)}"
        case shapes.CustomType():
            return "a path" if hasattr(shape.cls, "__fspath__") else "text"
    return "text"


def _bounds(shape: shapes.IntType | shapes.FloatType) -> str:
    if shape.ge is not None and shape.le is not None:
        return f" from {_number(shape.ge)} to {_number(shape.le)}"
    sides = {"of at least": shape.ge, "of at most": shape.le}
    said = [f" {side} {_number(bound)}" for side, bound in sides.items() if bound is not None]
    return " and".join(said)


def _number(bound: float) -> str:
    return f"{bound:.15g}"
