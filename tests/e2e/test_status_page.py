"""The status page as an operator sees it: served beside a status document, drawn by headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_gateway.seeing.ledger import Ledger, Scope
from cloud_gateway.seeing.metrics import Scene
from cloud_gateway.seeing.page import page_html
from cloud_gateway.seeing.standing import LaneState, ModelState, Standing
from cloud_gateway.seeing.status import status_json
from protocol.seeing.machine import MachineState
from protocol.seeing.nvml import Gpu
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

HOSTILE = "<img src=x onerror=alert(1)>"
CUT = Scope("digits", "3", "cut-1")


def document() -> bytes:
    """A busy gateway: 100 answers a second, one version in error under a name that would be markup."""
    ledger = Ledger(now=0.0)
    for i in range(6000):
        ledger.offered(CUT)
        ledger.answered(CUT, queue_s=0.001, residence_s=0.007, budget_s=0.05, late=False, now=i / 100)
        if i % 4 == 0:
            ledger.executed(
                CUT, rows=4, requests=4, decode_s=0.0, compute_s=0.004, predicted_s=0.005, engine="ort", now=i / 100
            )
    for _ in range(12):
        ledger.refused(CUT, "DEADLINE", slack_s=0.03, budget_s=0.05)
    ledger.counted("cache_hits", 17)
    states = (ModelState("digits", "3", "AVAILABLE"), ModelState(HOSTILE, "1", "ERROR", reason="no graph in it"))
    lane = LaneState("9f3b", "digits cut-1/tail", (CUT,), "onnxruntime", 2, 1, 8, {1: 0.002, 8: 0.006}, 0.002, 3, 4096)
    standing = Standing(
        ready=True, models=states, lanes=(lane,), pending={CUT: 3}, pending_limit_requests=1024, agents=5
    )
    machine = MachineState(171 * 2**20, 12.0, 0.5, 9, 30, 0.41, 8 * 2**30, 2**30, (Gpu("GPU-1", None, 2**34, 2**33),))
    return status_json(Scene(ledger.snapshot(now=60.0), standing, machine, "isthmus 9"))


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(page_html, document()) as server:
        yield server


def test_the_page_names_nothing_outside_itself_but_the_status_beside_it() -> None:
    assert_names_nothing_outside(page_html)


@needs_chromium
def test_an_operator_reads_what_the_gateway_says(site: Site, tmp_path: Path) -> None:
    dom = browse(site, tmp_path, "--dump-dom")
    read = words(dom)
    for told in ("Ready: 1 model version available, 1 in error", "AVAILABLE", "ERROR", "no graph in it", "7 ms",
                 "digits cut-1/tail", "2 ms for 1, 6 ms for 8", "it could not finish in time: 12, 100 %",
                 "on average 60 % of the budget", "3 of 1,024", "cache hits", "isthmus 9", "GPU-1, mem"):  # fmt: skip
        assert told in read, f"{told!r} is not on the page: {read}"
    assert "GPU-1, load" not in read, "what is unknown is not drawn as nothing"
    assert "<img" not in without_script(dom)
    assert "&lt;img src=x onerror=alert(1)&gt;" in dom


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1280, 1), (500, 0)])
def test_chromium_draws_it_within_its_width_in_the_readers_colours(
    site: Site, tmp_path: Path, width: int, scheme: int
) -> None:
    pixels = screenshot(site, tmp_path, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert_drawn_within_its_width(pixels, width, dark=scheme == 0)


@needs_chromium
def test_a_gateway_that_does_not_tell_is_said_to_be_so(site: Site, tmp_path: Path) -> None:
    site.status = 401
    dom = browse(site, tmp_path, "--dump-dom")
    assert "The gateway does not answer" in dom
    assert "it answered 401" in dom
    assert '<p id="door">' in dom, "it asks for a key"
