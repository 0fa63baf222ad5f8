from __future__ import annotations

import json

import pytest

from protocol.oip.app import OipApp
from protocol.oip.openapi import SCHEMAS
from protocol.oip.routes import Answer, Call, Route, Router
from protocol.oip.service import OipError, OpenGuard, Refusal
from tests.oip import ToyService


async def nothing(_: Call) -> Answer:
    return Answer()


def router(*paths: str) -> Router:
    return Router([Route(*path.split(" "), "open", "", nothing) for path in paths])  # type: ignore[arg-type]


def app() -> OipApp:
    return OipApp(ToyService(), OpenGuard(), extra=[Route("GET", "/metrics", "metrics", "Prometheus", nothing)])


def test_names_stand_for_one_decoded_segment() -> None:
    found = router("GET /models/{model}/versions/{version}").find("GET", "/models/a%2Fb/versions/1")
    assert found.names == {"model": "a/b", "version": "1"}


def test_the_more_literal_path_wins() -> None:
    routes = router("GET /models/{model}", "GET /models/stats")
    assert routes.find("GET", "/models/stats").route.path == "/models/stats"
    assert routes.find("GET", "/models/other").names == {"model": "other"}


def test_head_is_answered_like_get() -> None:
    assert router("GET /a").find("HEAD", "/a").route.method == "GET"


@pytest.mark.parametrize("path", ["/b", "/a/b", "/", "//", "/a%20", "/%"])
def test_an_unknown_path_is_not_found(path: str) -> None:
    with pytest.raises(OipError) as caught:
        router("GET /a").find("GET", path)
    assert caught.value.refusal is Refusal.NOT_FOUND


def test_another_method_is_told_which_are_spoken() -> None:
    with pytest.raises(OipError, match="use GET or POST") as caught:
        router("GET /a", "POST /a").find("DELETE", "/a")
    assert caught.value.refusal is Refusal.NOT_ALLOWED


def test_a_route_cannot_stand_twice() -> None:
    with pytest.raises(AssertionError, match="twice"):
        router("GET /a", "GET /a")


def test_the_openapi_document_names_exactly_the_routes_that_are_served() -> None:
    served = app()
    document = json.loads(served._document)
    told = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(route.method, route.path) for route in served.router.routes}
    for method, path in told:
        operation = document["paths"][path][method.lower()]
        filled = path.replace("{", "").replace("}", "")
        found = served.router.find(method, filled)
        assert found.route.path == path
        assert operation["x-role"] == found.route.role
        assert [p["name"] for p in operation["parameters"]] == list(found.names)


def test_the_openapi_document_refers_only_to_schemas_that_it_holds() -> None:
    text = app()._document.decode()
    referred = {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert referred == set(SCHEMAS)


def test_only_health_metadata_of_the_server_and_the_document_are_open_to_all() -> None:
    assert {route.path for route in app().router.routes if route.role == "open"} == {
        "/v2/health/live",
        "/v2/health/ready",
        "/v2",
        "/openapi.json",
    }


def test_only_loading_and_unloading_are_administration() -> None:
    admin = {route.path.rpartition("/")[2] for route in app().router.routes if route.role == "admin"}
    assert admin == {"load", "unload"}
