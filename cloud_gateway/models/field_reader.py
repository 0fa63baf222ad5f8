"""Takes the fields of a message one by one and refuses whatever was not taken, by name and line. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TypeVar

from cloud_gateway.models.text_format import Field, Message, Value, Word
from protocol.errors import InputError

T = TypeVar("T")

Convert = Callable[[Value], T]  # raises ValueError in words


class FieldReader:
    """One message. Every field must be asked for; `done` refuses the others, which are then unknown here."""

    def __init__(self, message: Message, source: str, path: str = "") -> None:
        self._message = message
        self._source = source
        self._path = path
        self._known: list[str] = []
        self.line = message.line

    def one(self, name: str, convert: Convert[T], default: T) -> T:
        """The value of a field that may stand once. Raises InputError."""
        field = self._single(name)
        return default if field is None else self._converted(field, convert)

    def all(self, name: str, convert: Convert[T]) -> tuple[T, ...]:
        """The values of a field that may be repeated. Raises InputError."""
        return tuple(self._converted(field, convert) for field in self._fields(name))

    def only(self, name: str, convert: Convert[T], *allowed: T) -> T:
        """The value of a field of which only `allowed` is offered; the first is the default. Raises InputError."""
        field = self._single(name)
        if field is None:
            return allowed[0]
        value = self._converted(field, convert)
        if value not in allowed:
            raise self.error(field, f"{name} is {_shown(field.value)}", f"only {_listed(allowed)} is offered here")
        return value

    def part(self, name: str, read: Callable[[FieldReader], T], default: T) -> T:
        """What `read` makes of a message that may stand once. Raises InputError."""
        field = self._single(name)
        return default if field is None else self._read(field, read)

    def parts(self, name: str, read: Callable[[FieldReader], T]) -> tuple[T, ...]:
        """What `read` makes of each of the messages of that name. Raises InputError."""
        return tuple(self._read(field, read) for field in self._fields(name))

    def has(self, name: str) -> bool:
        return bool(self._fields(name))

    def done(self) -> None:
        """Raises InputError for the first field that nobody asked for."""
        for field in self._message.fields:
            if field.name not in self._known:
                near = difflib.get_close_matches(field.name, self._known, 1)
                meant = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(self._known))}"
                raise self.error(field, f"{field.name} is not read here", meant)

    def error(self, at: Field | str, fact: str, remedy: str) -> InputError:
        """An error about a field of this message, with file and line."""
        fields = self._fields(at) if isinstance(at, str) else [at]
        line = fields[0].line if fields else self.line
        within = f" in {self._path}" if self._path else ""
        return InputError(f"{self._source}, line {line}{within}: {fact}", remedy)

    def _fields(self, name: str) -> list[Field]:
        if name not in self._known:
            self._known.append(name)
        return [field for field in self._message.fields if field.name == name]

    def _single(self, name: str) -> Field | None:
        fields = self._fields(name)
        if len(fields) > 1:
            raise self.error(fields[1], f"{name} stands twice", "leave one of them")
        return fields[0] if fields else None

    def _converted(self, field: Field, convert: Convert[T]) -> T:
        try:
            return convert(field.value)
        except ValueError as error:
            raise self.error(field, f"{field.name} is {_shown(field.value)}", str(error)) from error

    def _read(self, field: Field, read: Callable[[FieldReader], T]) -> T:
        if not isinstance(field.value, Message):
            raise self.error(field, f"{field.name} is {_shown(field.value)}", "it is a message: { ... }")
        path = f"{self._path}.{field.name}" if self._path else field.name
        inner = FieldReader(field.value, self._source, path)
        found = read(inner)
        inner.done()
        return found


def text(value: Value) -> str:
    if not isinstance(value, str):
        raise ValueError("it is text: put it in quotes")
    return value


def word(value: Value) -> str:
    if not isinstance(value, Word):
        raise ValueError("it is one of the format's words, without quotes")
    return value.text


def truth(value: Value) -> bool:
    known = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}
    if isinstance(value, Word) and value.text in known:
        return known[value.text]
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError("it is true or false")


def whole(least: int, most: int) -> Convert[int]:
    """Reads a whole number in that range."""

    def convert(value: Value) -> int:
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"it is a whole number from {least} to {most}")
        return value

    return convert


def chosen(table: dict[str, T], what: str) -> Convert[T]:
    """Reads one of the words of `table`."""

    def convert(value: Value) -> T:
        if not isinstance(value, Word) or value.text not in table:
            raise ValueError(f"{what} offered here: {', '.join(table)}")
        return table[value.text]

    return convert


def _shown(value: Value) -> str:
    if isinstance(value, Message):
        return "a message"
    return value.text if isinstance(value, Word) else repr(value)


def _listed(allowed: tuple[object, ...]) -> str:
    shown = (str(a).lower() if isinstance(a, bool) else str(a) for a in allowed if a != "")
    return " or ".join(shown)
