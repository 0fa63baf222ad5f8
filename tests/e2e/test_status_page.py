"""The status page as an operator sees it: served beside a status document, drawn by headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloud_gateway.seeing.ledger import Ledger, Scope
from cloud_gateway.seeing.metrics import Scene
from cloud_gateway.seeing.page import page_html
from cloud_gateway.seeing.standing import LaneState, ModelState, Standing
from cloud_gateway.seeing.status import status_json
from protocol.seeing.machine import MachineState
from protocol.seeing.nvml import Gpu

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
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


class Site(ThreadingHTTPServer):
    """The page, and `status.json` with whatever status and body it is given."""

    status, body = 200, b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/status"


class Answer(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        is_page = self.path == "/status"
        body = page_html()[0] if is_page else self.server.body
        self.send_response(200 if is_page else self.server.status)
        self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    with Site(("127.0.0.1", 0), Answer) as server:
        server.body = document()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def browse(site: Site, folder: Path, *flags: str) -> str:
    """What Chromium says after three seconds of the page's own time. It can reach nothing but loopback."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", *flags, site.url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, check=True, timeout=90, text=True).stdout


def screenshot(site: Site, folder: Path, width: int, *flags: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    target = folder / "page.png"
    browse(site, folder, f"--window-size={width},2600", f"--screenshot={target}", *flags)
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def test_the_page_names_nothing_outside_itself_but_the_status_beside_it() -> None:
    page, etag = page_html()
    text = page.decode().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?:|url\(|@import|<link|<img|\ssrc=|\son[a-z]+=|innerHTML|eval\(", text) == []
    assert "default-src 'none'; script-src 'sha256-" in text
    assert "@script@" not in text
    assert re.fullmatch(r'"[0-9a-f]{16}"', etag)


@needs_chromium
def test_an_operator_reads_what_the_gateway_says(site: Site, tmp_path: Path) -> None:
    dom = browse(site, tmp_path, "--dump-dom")
    seen = re.sub(r"<(script|style)>.*?</\1>", "", dom, flags=re.DOTALL)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", seen))
    for told in ("Ready: 1 model version available, 1 in error", "AVAILABLE", "ERROR", "no graph in it", "7 ms",
                 "digits cut-1/tail", "2 ms for 1, 6 ms for 8", "it could not finish in time: 12, 100 %",
                 "on average 60 % of the budget", "3 of 1,024", "cache hits", "isthmus 9", "GPU-1, mem"):  # fmt: skip
        assert told in words, f"{told!r} is not on the page: {words}"
    assert "GPU-1, load" not in words, "what is unknown is not drawn as nothing"
    assert "<img" not in seen
    assert "&lt;img src=x onerror=alert(1)&gt;" in seen


LIGHT, DARK = (0x0B, 0x64, 0x78), (0x5C, 0xC0, 0xD4)


@needs_chromium
@pytest.mark.parametrize(("width", "scheme", "accent"), [(1280, 1, LIGHT), (500, 0, DARK)])
def test_chromium_draws_it_within_its_width_in_the_readers_colours(
    site: Site, tmp_path: Path, width: int, scheme: int, accent: tuple[int, int, int]
) -> None:
    pixels = screenshot(site, tmp_path, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert pixels.shape[1] == width
    paper = np.median(pixels, axis=(0, 1))
    assert (paper.max() < 60) == (scheme == 0), "in the dark the paper is dark"
    assert 0.002 < (np.abs(pixels - paper).max(axis=2) > 120).mean() < 0.3, (
        "there is text, and it does not fill the page"
    )
    assert (np.abs(pixels - np.array(accent)).max(axis=2) < 6).sum() > 5000, "the bars are drawn"
    margin = pixels[:, -8:]
    assert (np.abs(margin - margin[0, 0]).max(axis=2) < 8).mean() > 0.97, "nothing sticks out at the right"


@needs_chromium
def test_a_gateway_that_does_not_tell_is_said_to_be_so(site: Site, tmp_path: Path) -> None:
    site.status = 401
    dom = browse(site, tmp_path, "--dump-dom")
    assert "The gateway does not answer" in dom
    assert "it answered 401" in dom
    assert '<p id="door">' in dom, "it asks for a key"
