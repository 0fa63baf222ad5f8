"""The page as a person sees it: drawn by headless Chromium at the widths of a desk and a phone, light and dark."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.markup import read

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def page(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("page") / "page.html"
    command = [sys.executable, "-m", "partitioner", "report", str(toy_bundle), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert f"wrote {target}" in done.stdout
    return target


def screenshot(page: Path, width: int, *flags: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """What is drawn, uint8 [height, width, 3]. The browser is kept from any network by a proxy that does not exist."""
    assert CHROMIUM is not None
    target = page.with_name(f"{width}{''.join(flags)}.png".replace("=", "_"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={page.with_name('profile')}", f"--window-size={width},3000", f"--screenshot={target}", *flags,
        page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True, timeout=240)
    with Image.open(target) as image:
        return np.asarray(image.convert("RGB"))


def test_the_page_of_a_real_bundle_loads_nothing_and_shows_the_graph(page: Path, toy_bundle: Path) -> None:
    seen = read(page.read_text("utf-8"))
    assert seen.faults() == []
    for words in ("Where the time goes", "Which placement at which bandwidth", "The graph around the cut", "more step"):
        assert words in seen.words
    assert "Conv" in seen.words
    assert sorted(p.name for p in page.parent.iterdir() if p.suffix == ".part") == []


@needs_chromium
@pytest.mark.parametrize("width", [1280, 768, 500])  # headless Chromium draws no window narrower than 500 pixels
def test_chromium_draws_it_with_text_and_all_three_hues(page: Path, width: int) -> None:
    pixels = screenshot(page, width).astype(int)
    assert pixels.shape[1] == width
    dark = (pixels.sum(axis=2) < 200).mean()
    assert 0.002 < dark < 0.3, "there is text, and it does not fill the page"
    for name, colour in {"teal": (0x0B, 0x64, 0x78), "amber": (0xDD, 0x84, 0x21), "slate": (0x73, 0x7B, 0x88)}.items():
        near = (np.abs(pixels - np.array(colour)).max(axis=2) < 6).sum()
        assert near > 100, f"no {name} in the picture"
    margin = pixels[:, -8:]
    assert (np.abs(margin - margin[0, 0]).max(axis=2) < 8).mean() > 0.97, "nothing sticks out at the right"


@needs_chromium
def test_in_the_dark_the_paper_is_dark(page: Path) -> None:
    light, dark = screenshot(page, 1280), screenshot(page, 1280, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 240
    assert np.median(dark) < 60
