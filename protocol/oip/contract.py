"""The gRPC contract, from the text of `inference.proto` itself: no compiler needed, no generated file kept in step.

Only what that file needs of the language is read (proto3: messages, enums, maps, oneofs, one service); anything else is
an InvariantViolation. The classes live in a pool of their own, beside whatever other protocol buffers there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from protocol.errors import InvariantViolation

SERVICE = "inference.GRPCInferenceService"
_FILE = Path(__file__).with_name("inference.proto")
_TOKEN = re.compile(r'//[^\n]*|\s+|("[^"]*"|[\w.]+|[{}()<>=;,])')
_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_FIELD, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


class Call(NamedTuple):
    """One call of the service; `is_stream` in both directions."""

    name: str
    request: Any
    response: Any
    is_stream: bool


class Contract:
    """`contract.ModelInferRequest()` makes a message; `calls` are what the service offers."""

    def __init__(self, text: str) -> None:
        parsed = _Parser(text).file()
        pool = descriptor_pool.DescriptorPool()
        pool.Add(parsed)
        self._found = message_factory.GetMessageClassesForFiles([parsed.name], pool)
        (service,) = parsed.service
        self.calls = tuple(
            Call(m.name, self._class(m.input_type), self._class(m.output_type), m.client_streaming)
            for m in service.method
        )

    def __getattr__(self, name: str) -> Any:
        return self._class(name)

    def _class(self, name: str) -> Any:
        try:
            return self._found[f"inference.{name}"]
        except KeyError:
            raise AttributeError(name) from None


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens, "")

    def _take(self, wanted: str = "") -> str:
        token = self._next
        if not token or (wanted and token != wanted):
            raise InvariantViolation(f"{_FILE.name}: {token!r} where {wanted or 'more'} should be")
        self._next = next(self._tokens, "")
        return token

    def _if(self, wanted: str) -> bool:
        if self._next != wanted:
            return False
        self._take()
        return True

    def file(self) -> Any:
        file = descriptor_pb2.FileDescriptorProto(name=f"isthmus/{_FILE.name}")
        for word in ("syntax", "=", '"proto3"', ";", "package"):
            self._take(word)
        file.syntax, file.package = "proto3", self._take()
        self._take(";")
        while self._next:
            self._definition(file.message_type, file.enum_type, file.service)
        return file

    def _definition(self, messages: Any, enums: Any, services: Any) -> None:
        match self._take():
            case "message":
                self._message(messages.add(name=self._take()))
            case "enum":
                self._enum(enums.add(name=self._take()))
            case "service" if services is not None:
                self._service(services.add(name=self._take()))
            case other:
                raise InvariantViolation(f"{_FILE.name}: {other!r} begins nothing that is read here")

    def _message(self, message: Any) -> None:
        self._take("{")
        while not self._if("}"):
            if self._next in ("message", "enum"):
                self._definition(message.nested_type, message.enum_type, None)
            elif self._if("oneof"):
                message.oneof_decl.add(name=self._take())
                self._take("{")
                while not self._if("}"):
                    self._field(message).oneof_index = len(message.oneof_decl) - 1
            elif self._if("map"):
                self._map(message)
            else:
                self._field(message)

    def _field(self, message: Any) -> Any:
        field = message.field.add(label=_FIELD.LABEL_REPEATED if self._if("repeated") else _FIELD.LABEL_OPTIONAL)
        _set_type(field, self._take())
        self._name(field)
        return field

    def _map(self, message: Any) -> None:
        self._take("<")
        key = self._take()
        self._take(",")
        value = self._take()
        self._take(">")
        field = message.field.add(label=_FIELD.LABEL_REPEATED)
        self._name(field)
        entry = message.nested_type.add(name=f"{field.name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", key), ("value", value)), 1):
            _set_type(entry.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL), kind)
        field.type_name = entry.name

    def _name(self, field: Any) -> None:
        field.name = self._take()
        self._take("=")
        field.number = int(self._take())
        self._take(";")

    def _enum(self, enum: Any) -> None:
        self._take("{")
        while not self._if("}"):
            self._name(enum.value.add())

    def _service(self, service: Any) -> None:
        self._take("{")
        while not self._if("}"):
            self._take("rpc")
            method = service.method.add(name=self._take())
            self._take("(")
            method.client_streaming, method.input_type = self._if("stream"), self._take()
            for word in (")", "returns", "("):
                self._take(word)
            method.server_streaming, method.output_type = self._if("stream"), self._take()
            for word in (")", ";"):
                self._take(word)


def _set_type(field: Any, name: str) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type_name = name


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise InvariantViolation(f"{_FILE.name}: {text[at : at + 20]!r} is no token")
        at = found.end()
        if found[1] is not None:
            yield found[1]


contract = Contract(_FILE.read_text("utf-8"))
