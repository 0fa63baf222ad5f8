"""Routes as a table: method, path, role, what it does. Who may call what, and the OpenAPI document, are read from it.

A path is written `/v2/models/{model}/infer`; a name in braces stands for one segment, percent-decoded. Looking a
path up is two dictionary look-ups for each of the few shapes that paths of its length have.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias

import msgspec

from protocol.oip.service import OipError, Refusal, Role

JSON = "application/json"


class Call(msgspec.Struct, frozen=True, eq=False):
    """One request as an endpoint sees it. `body` is whole, inflated and within the limits."""

    method: str
    path: str
    names: Mapping[str, str]  # what stands for the names in braces
    query: Mapping[str, str]
    headers: Mapping[bytes, bytes]  # names in lower case
    body: memoryview
    tenant: str


class Answer(msgspec.Struct, frozen=True, eq=False):
    body: bytes = b""
    content_type: str = JSON
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


Endpoint: TypeAlias = Callable[[Call], Awaitable[Answer]]


class Route(msgspec.Struct, frozen=True, eq=False):
    method: str
    path: str
    role: Role
    summary: str
    endpoint: Endpoint
    takes: str = ""  # name of the schema of its body
    gives: str = ""  # and of its answer
    largest_nbytes: int = 65_536  # of a body; an inference has the server's own limit


class Found(msgspec.Struct, frozen=True, eq=False):
    route: Route
    names: Mapping[str, str]


_NO_NAMES: Mapping[str, str] = {}


class Router:
    """Finds the route of a method and path. Built once; looking up changes nothing."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        # number of segments -> shape (which segments are literal) -> literal segments -> method -> route
        self._shapes: dict[int, dict[tuple[int, ...], dict[tuple[str, ...], dict[str, Route]]]] = {}
        for route in self.routes:
            segments = route.path.strip("/").split("/")
            literal = tuple(i for i, segment in enumerate(segments) if not segment.startswith("{"))
            shape = self._shapes.setdefault(len(segments), {}).setdefault(literal, {})
            methods = shape.setdefault(tuple(segments[i] for i in literal), {})
            assert route.method not in methods, f"{route.method} {route.path} stands twice"
            methods[route.method] = route
        for (
            length,
            shapes,
        ) in self._shapes.items():  # the most literal first: /v2/models/stats before /v2/models/{model}
            self._shapes[length] = dict(sorted(shapes.items(), key=lambda entry: -len(entry[0])))

    def find(self, method: str, raw_path: str) -> Found:
        """`raw_path` is still percent-encoded. Raises OipError NOT_FOUND, or NOT_ALLOWED for another method."""
        segments = raw_path.strip("/").split("/")
        others: set[str] = set()
        for literal, shape in self._shapes.get(len(segments), {}).items():
            methods = shape.get(tuple([segments[i] for i in literal]))
            if methods is None:
                continue
            route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
            if route is not None:
                return Found(route, _names(route.path, segments) if len(literal) < len(segments) else _NO_NAMES)
            others.update(methods)
        if others:
            reason = f"{method[:16]} {raw_path[:200]} is not spoken here; use {' or '.join(sorted(others))}"
            raise OipError(Refusal.NOT_ALLOWED, reason)
        raise OipError(Refusal.NOT_FOUND, f"no route {raw_path[:200]}; see /openapi.json")


def _names(path: str, segments: list[str]) -> dict[str, str]:
    names = path.strip("/").split("/")
    return {
        name[1:-1]: urllib.parse.unquote(segment) if "%" in segment else segment
        for name, segment in zip(names, segments, strict=True)
        if name.startswith("{")
    }
