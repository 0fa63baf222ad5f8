from __future__ import annotations

import pytest

from protocol.oip.origins import refuse_pages
from protocol.oip.service import OipError


def refused(host: str | None, origin: str | None = None, *, checks_name: bool = True) -> str:
    headers = {} if host is None else {b"host": host.encode()}
    if origin is not None:
        headers[b"origin"] = origin.encode()
    try:
        refuse_pages(headers, machine="Device-7", checks_name=checks_name)
    except OipError as error:
        return f"{error.status}: {error.reason}"
    return ""


@pytest.mark.parametrize(
    "host",
    [None, "", "127.0.0.1:7480", "127.0.0.1", "[::1]:7480", "[::1]", "10.1.2.3:80", "localhost:7480", "LOCALHOST",
     "app.localhost:7480", "device-7:7480", "DEVICE-7", "device-7.local", "agent:7480", "localhost."],
)  # fmt: skip
def test_whoever_asks_for_this_machine_is_answered(host: str | None) -> None:
    assert refused(host) == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example:7480", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "x::y.example",
     "device-7.evil.example", "evil.example."],
)  # fmt: skip
def test_a_name_that_was_made_to_mean_this_machine_is_refused(host: str) -> None:
    assert refused(host).startswith("403: ")
    assert "not a name of this machine; ask 127.0.0.1" in refused(host)
    assert refused(host, checks_name=False) == "", "other machines may call it what they like"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:8000", "http://localhost:7480", ""]
)
@pytest.mark.parametrize("checks_name", [True, False])
def test_a_page_of_another_site_is_refused(origin: str, checks_name: bool) -> None:
    assert "pages of other sites" in refused("127.0.0.1:7480", origin, checks_name=checks_name)


def test_a_page_of_ours_is_answered() -> None:
    assert refused("127.0.0.1:7480", "http://127.0.0.1:7480") == ""
    assert refused("device-7:7480", "https://Device-7:7480") == ""
