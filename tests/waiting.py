"""Waiting for what other threads and processes do: until it is so, and never longer than a busy machine may need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_S = 60.0  # a busy machine is no failure
LOOK_S = 0.005


def until(true: Callable[[], object], what: str = "it did not come about", *, within_s: float = PATIENCE_S) -> None:
    """Return as soon as `true()` is. Raises AssertionError saying `what` if it is not within the time."""
    never = threading.Event()
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"{what}, within {within_s:g} s"
        never.wait(LOOK_S)
