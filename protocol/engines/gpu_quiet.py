"""Captures, and calls that wait for a whole device, exclude one another in this process.

CUDA's law, whatever the mode of the capture: while any stream of a device is captured, waiting for that device
(cudaDeviceSynchronize, a plain cudaMemcpy) fails with error 900 on whatever thread asks, and spoils the capture too.
ONNX Runtime waits so where a binding is synchronised, and like TensorRT may where it loads; both count as loud here. A
capture takes milliseconds: what is loud waits for it. What is loud may take minutes: a capture is then tried later.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

CAPTURE_AT_MOST_S = 5.0  # one that takes longer hangs, and excuses nobody for ever


class Quiet:
    """Any number of captures at once, or any number of loud calls."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._loud = 0
        self._captures = 0  # going on, or waiting to

    @contextlib.contextmanager
    def loud(self) -> Iterator[None]:
        """While the whole device may be waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._captures == 0, CAPTURE_AT_MOST_S)
            self._loud += 1
        try:
            yield
        finally:
            with self._changed:
                self._loud -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def capture(self, within_s: float) -> Iterator[bool]:
        """Gives whether it became quiet in time; if not, nothing may be captured now."""
        with self._changed:
            self._captures += 1
            is_quiet = self._changed.wait_for(lambda: self._loud == 0, within_s)
            if not is_quiet:
                self._captures -= 1
                self._changed.notify_all()
        try:
            yield is_quiet
        finally:
            if is_quiet:
                with self._changed:
                    self._captures -= 1
                    self._changed.notify_all()


QUIET = Quiet()  # one for all devices: a capture is rare and short
