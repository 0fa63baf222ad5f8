"""A status page as a person sees it: served beside a status document on loopback, drawn by headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
LIGHT, DARK = (0x0B, 0x64, 0x78), (0x5C, 0xC0, 0xD4)  # the accents of the style sheet


class Site(ThreadingHTTPServer):
    """The page, and `status.json` with whatever status and body it is given."""

    status, body, page = 200, b"", b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/status"


class _Reply(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        is_page = self.path == "/status"
        body = self.server.page if is_page else self.server.body
        self.send_response(200 if is_page else self.server.status)
        self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(page_html: Callable[[], tuple[bytes, str]], document: bytes) -> Iterator[Site]:
    with Site(("127.0.0.1", 0), _Reply) as server:
        server.page, server.body = page_html()[0], document
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


def words(dom: str) -> str:
    """The text that a reader sees."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", without_script(dom)))


def without_script(dom: str) -> str:
    return re.sub(r"<(script|style)>.*?</\1>", "", dom, flags=re.DOTALL)


def screenshot(site: Site, folder: Path, width: int, *flags: str) -> Pixels:
    target = folder / "page.png"
    browse(site, folder, f"--window-size={width},2600", f"--screenshot={target}", *flags)
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def assert_names_nothing_outside(page_html: Callable[[], tuple[bytes, str]]) -> None:
    page, etag = page_html()
    text = page.decode().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?:|url\(|@import|<link|<img|\ssrc=|\son[a-z]+=|innerHTML|eval\(", text) == []
    assert "default-src 'none'; script-src 'sha256-" in text
    assert not re.search(r"@(policy|style|script)@", text)
    assert re.fullmatch(r'"[0-9a-f]{16}"', etag)


def assert_drawn_within_its_width(pixels: Pixels, width: int, *, dark: bool) -> None:
    """Text and bars are there, in the reader's colours, and nothing sticks out at the right."""
    assert pixels.shape[1] == width
    paper = np.median(pixels, axis=(0, 1))
    assert (paper.max() < 60) == dark, "in the dark the paper is dark"
    assert 0.002 < (np.abs(pixels - paper).max(axis=2) > 120).mean() < 0.3, (
        "there is text, and it does not fill the page"
    )
    accent = np.array(DARK if dark else LIGHT)
    assert (np.abs(pixels - accent).max(axis=2) < 6).sum() > 5000, "the bars are drawn"
    margin = pixels[:, -8:]
    assert (np.abs(margin - margin[0, 0]).max(axis=2) < 8).mean() > 0.97, "nothing sticks out at the right"
