"""Tells when something below a folder changes, as the operating system reports it; the only module with watchfiles.

Reports may be late or missing on network file systems, so whoever watches also looks once in a while.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import watchfiles


class Watcher:
    """Calls `changed` from a thread of its own after every burst of changes below `paths`.

    `failed` is told, once, why the system reports nothing: most often because it has no watches left.
    """

    def __init__(self, paths: Sequence[Path], changed: Callable[[], None], failed: Callable[[str], None]) -> None:
        self._paths = paths
        self._changed = changed
        self._failed = failed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-folder-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        bursts = watchfiles.watch(
            *self._paths, watch_filter=None, stop_event=self._stop, debounce=500, step=100, raise_interrupt=False
        )
        try:
            for _ in bursts:
                self._changed()
        except (OSError, RuntimeError) as error:  # the library's own errors are RuntimeErrors
            self._failed(str(error))
