"""The agent's status page as the owner of a device sees it, drawn by headless Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.seeing.page import page_html
from edge_agent.seeing.status import status_json
from protocol.control.causes import Cause
from tests.agent_scenes import new_scene, scene
from tests.pages import (
    Site,
    assert_drawn_within_its_width,
    assert_names_nothing_outside,
    browse,
    needs_chromium,
    screenshot,
    serving,
    without_script,
    words,
)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(page_html, status_json(scene())) as server:
        yield server


def test_the_page_names_nothing_outside_itself_but_the_status_beside_it() -> None:
    assert_names_nothing_outside(page_html)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_words_on_the_page(cause: Cause) -> None:
    assert re.search(rf"\b{cause}: \"[a-z]", page_html()[0].decode())


@needs_chromium
def test_the_owner_of_a_device_reads_where_requests_run_and_why(site: Site, tmp_path: Path) -> None:
    dom = browse(site, tmp_path, "--dump-dom")
    read = words(dom)
    for told in ("Requests run on the device and at the gateway", "It is predicted to take 18 ms",
                 "cut-1, predicted 18 ms", "below 3.1 Mbit/s (edge-only)",
                 "19.2 Mbit/s up, 5.2 ms there and back", "1 of 2 can be used", "power mode 15W, 71.5 °C of 99 °C",
                 "1.4 times slower than planned", "digits 3, abababababab, confirmed, signed by factory",
                 "4 requests waiting, the oldest for 2 min, 1 answer to be fetched", "its head could not be loaded",
                 "300 degraded answers of 3,000, by cause", "no link to a gateway", "12 refusals of 3,012 requests",
                 "sockets recreated", "isthmus 9"):  # fmt: skip
        assert told in read, f"{told!r} is not on the page: {read}"
    assert "<img" not in without_script(dom)
    assert "&lt;img src=x onerror=alert(1)&gt;" in dom


@needs_chromium
def test_an_agent_that_has_done_nothing_says_so_and_not_zero(site: Site, tmp_path: Path) -> None:
    site.body = status_json(new_scene())
    read = words(browse(site, tmp_path, "--dump-dom"))
    for told in ("Not ready Starting", "no request was placed yet", "none serves yet", "Nothing yet."):
        assert told in read, f"{told!r} is not on the page: {read}"
    assert "°C" not in read
    assert "NaN" not in read


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (500, 0)])
def test_chromium_draws_it_within_its_width_in_the_readers_colours(
    site: Site, tmp_path: Path, width: int, scheme: int
) -> None:
    pixels = screenshot(site, tmp_path, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert_drawn_within_its_width(pixels, width, dark=scheme == 0)
