r"""The text form of protocol buffers, read without a schema: fields in the order of the file, each with its line. Pure.

    name: "digits"              a field and its value; strings may stand in pieces, in either quotes, with escapes
    input [ { dims: [1, 28] } ] a list; of messages or of plain values
    dynamic_batching { }        a message; the colon before it may be left out, <> may replace {}
    # to the end of the line    a comment; fields may be followed by a comma or a semicolon

What a schema would know (types, which fields exist, which may be repeated) is for the reader of the fields to say.
Format: protobuf.dev/reference/protobuf/textformat-spec. Extensions and Any ([type.url/x]) are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol.errors import InputError

MOST_LEVELS = 32

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f\v]+|\#[^\n]*)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)(?![A-Za-z0-9_.]))
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<sign>[-:{}<>\[\],;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(
    rb"""\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([abfnrtv?\\'"])|(.)|$)""",
    re.DOTALL,
)
_PLAIN = dict(zip(b"abfnrtv?\\'\"", b"\a\b\f\n\r\t\v?\\'\"", strict=True))


@dataclass(frozen=True, slots=True)
class Word:
    """An enumerator, a truth value, inf or nan: the schema says which."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """One value of one field; a list gives as many fields as it has values."""

    name: str
    value: Value
    line: int


@dataclass(frozen=True, slots=True)
class Message:
    fields: tuple[Field, ...]
    line: int


Value = str | int | float | Word | Message


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str, *, source: str) -> Message:
    """The fields of `text`; errors call it `source`. Raises InputError with the line of what is wrong."""
    return _Parser(_tokens(text, source), source).message("", 0, 1)


def _tokens(text: str, source: str) -> list[_Token]:
    tokens, at, line = [], 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise _broken(source, line, f"{text[at : at + 12].splitlines()[0]!r} is nothing that can stand here")
        if found.lastgroup != "space":
            tokens.append(_Token(found.lastgroup, found.group(), line))
        line += found.group().count("\n")
        at = found.end()
    tokens.append(_Token("end", "the end", line))
    return tokens


class _Parser:
    def __init__(self, tokens: list[_Token], source: str) -> None:
        self._tokens = tokens
        self._source = source
        self._at = 0

    def message(self, closing: str, level: int, line: int) -> Message:
        """Fields up to the sign `closing`; "" is the end of the text."""
        if level > MOST_LEVELS:
            raise _broken(self._source, line, f"messages are nested more than {MOST_LEVELS} deep")
        fields: list[Field] = []
        while not self._took(closing):
            name = self._next()
            if name.kind != "word":
                raise _broken(self._source, name.line, f"{name.text!r} stands where a field's name was expected")
            fields += (Field(name.text, value, at) for value, at in self._values(level))
            if not self._took(","):
                self._took(";")
        return Message(tuple(fields), line)

    def _values(self, level: int) -> list[tuple[Value, int]]:
        colon = self._took(":")
        if not self._took("["):
            return [self._value(level, colon)]
        values: list[tuple[Value, int]] = []
        while not self._took("]"):
            if values and not self._took(","):
                token = self._next()
                raise _broken(self._source, token.line, f"{token.text!r} stands where a comma or ] was expected")
            values.append(self._value(level, colon))
        return values

    def _value(self, level: int, colon: bool) -> tuple[Value, int]:
        token = self._next()
        if token.kind == "sign" and token.text in "{<":
            return self.message("}" if token.text == "{" else ">", level + 1, token.line), token.line
        if not colon:
            raise _broken(self._source, token.line, f"{token.text!r} needs a colon before it")
        if token.kind == "string":
            return self._string(token), token.line
        if token.kind == "word":
            return Word(token.text), token.line
        negative = token.kind == "sign" and token.text == "-"
        number = self._next() if negative else token
        if negative and number.kind == "word" and number.text.lower() in ("inf", "infinity", "nan"):
            return Word(f"-{number.text}"), token.line
        if number.kind != "number":
            raise _broken(self._source, number.line, f"{number.text!r} stands where a value was expected")
        value = self._number(number)
        return (-value if negative else value), token.line

    def _number(self, token: _Token) -> int | float:
        text = token.text
        if text[:2] in ("0x", "0X"):
            return int(text, 16)
        if text.isdigit():
            if len(text) > 1 and text[0] == "0":
                if not set(text) <= set("01234567"):
                    raise _broken(self._source, token.line, f"{text!r} begins like an octal number but is none")
                return int(text, 8)
            if len(text) > 20:
                raise _broken(self._source, token.line, f"{text[:20]}... is larger than any number of the format")
            return int(text)
        return float(text.rstrip("fF"))

    def _string(self, token: _Token) -> str:
        pieces = [token.text[1:-1]]
        while self._tokens[self._at].kind == "string":
            pieces.append(self._next().text[1:-1])
        try:
            return b"".join(_ESCAPE.sub(_unescaped, piece.encode()) for piece in pieces).decode()
        except ValueError as error:
            raise _broken(self._source, token.line, f"{token.text[:40]} is no text ({error})") from error

    def _took(self, sign: str) -> bool:
        token = self._tokens[self._at]
        if (token.kind == "end" and not sign) or (token.kind == "sign" and token.text == sign):
            self._at += 1
            return True
        return False

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind == "end":
            raise _broken(self._source, token.line, "the text ends in the middle of a field")
        self._at += 1
        return token


def _unescaped(found: re.Match[bytes]) -> bytes:
    octal, hexadecimal, short, long, plain, other = found.groups()
    if octal is not None:
        return bytes([int(octal, 8) & 0xFF])
    if hexadecimal is not None:
        return bytes([int(hexadecimal, 16)])
    if short is not None or long is not None:
        return chr(int(short or long, 16)).encode()
    if plain is not None:
        return bytes([_PLAIN[plain[0]]])
    raise ValueError(f"\\{(other or b'').decode('utf-8', 'replace')} is no escape")


def _broken(source: str, line: int, fact: str) -> InputError:
    return InputError(f"{source}, line {line}: {fact}", "write it in protocol buffers' text format")
