"""`edge-agent profile`: measures a kit of segments on this device. It needs no graph library."""

from __future__ import annotations

import sys
from pathlib import Path

from protocol.kit import KitRun, run_kit
from protocol.outputs import check_output, write_output
from protocol.profile import Profile, encode


class Ticker:
    """Progress on one line of stderr while that is a terminal; elsewhere nothing."""

    WIDTH = 24

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._stage = ""

    def stage(self, text: str) -> None:
        self._stage = text
        self._print(f"{'':{self.WIDTH}}  {text}")

    def progress(self, done: int, total: int) -> None:
        filled = min(self.WIDTH * done // max(total, 1), self.WIDTH)
        self._print(f"{'#' * filled:.<{self.WIDTH}}  {self._stage}")

    def clear(self) -> None:
        self._print("")

    def _print(self, line: str) -> None:
        if self._shown:
            print(f"\r\x1b[2K{line[:120]}", end="", file=sys.stderr, flush=True)


def profile(kit: Path, output: Path, how: KitRun) -> Profile:
    """Run the kit, write its profile to `output` and return it.

    Raises BundleError for a damaged kit, EngineError for a graph that does not run, InputError when `output` cannot be
    written.
    """
    check_output(output)
    ticker = Ticker()
    try:
        made = run_kit(kit, how, ticker)
    finally:
        ticker.clear()
    write_output(output, encode(made))
    return made
