"""New settings while serving: what may change is applied, what may not is named, and what is wrong changes nothing.

    reloader = Reloader(lambda: load_settings(file=file, env=os.environ), started=loaded)
    reloader.subscribe("limits", lambda settings: desk.limit(settings.limits))
    watch = Watch(reloader, [file], told=log)          # notices changed files; `watch.now()` is what SIGHUP calls
    watch.start()

Settings *in force* are those of the start with every change that was applied since. A change that needs a restart, or
that a subscriber refused, is not in force: it is reported again by every later reload, until it is.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from protocol.errors import InputError, IsthmusError
from protocol.settings import Loaded, Section
from protocol.settings_layers import changes, grafted

LOOK_IVL_S = 1.0  # between two looks at the files: two of stat() cost microseconds

S = TypeVar("S", bound=Section)
Outcome = Literal["unchanged", "applied", "partly", "refused"]


@dataclass(frozen=True, slots=True)
class Reload:
    """What became of one attempt.

    `refused`: the settings are wrong, `reason` says how, nothing changed. `partly`: something needs a restart, or
    `failed` for the reason beside it. Keys are as in the file, `limits.pending_requests`.
    """

    outcome: Outcome
    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        """One line for the log."""
        parts = [f"applied {', '.join(self.applied)}"] if self.applied else []
        if self.needs_restart:
            parts.append(f"{', '.join(self.needs_restart)} will change with a restart")
        parts += [f"{key} stays as it was: {reason}" for key, reason in self.failed]
        if self.outcome == "refused":
            parts.append(f"nothing changed: {self.reason}")
        return "; ".join(parts) or "nothing differs"


class Reloader(Generic[S]):
    """Reads settings again and tells those who subscribed. Any thread may ask; one attempt runs at a time."""

    def __init__(self, read: Callable[[], Loaded[S]], *, started: S) -> None:
        self._read = read
        self._in_force = started
        self._subscribers: list[tuple[str, Callable[[S], None]]] = []
        self._lock = threading.Lock()
        self.counts: Counter[Outcome] = Counter()

    @property
    def settings(self) -> S:
        """What is in force."""
        return self._in_force

    def subscribe(self, part: str, apply: Callable[[S], None]) -> None:
        """Call `apply` with the new settings when a reloadable value of `part` changed: a section, or one key.

        `apply` runs on the thread that reloads. It raises IsthmusError to refuse; the values then stay as they were.
        """
        self._subscribers.append((part, apply))

    def reload(self) -> Reload:
        """Read and apply once."""
        with self._lock:
            done = self._reload()
            self.counts[done.outcome] += 1
            return done

    def _reload(self) -> Reload:
        try:
            wanted = self._read().settings
        except InputError as error:
            return Reload("refused", reason=str(error))
        differing = changes(self._in_force, wanted)
        if not differing:
            return Reload("unchanged")
        # A value that nobody listens to is read once, at the start, whatever its field promises.
        heard = {c.key: self._listeners(c.key) if c.reloadable else [] for c in differing}
        needs_restart = tuple(key for key, listeners in heard.items() if not listeners)
        candidate = grafted(self._in_force, wanted, lambda key: bool(heard.get(key)))
        failed: dict[str, str] = {}
        for apply in dict.fromkeys(apply for listeners in heard.values() for apply in listeners):
            try:
                apply(candidate)
            except IsthmusError as error:
                failed |= {key: str(error) for key, listeners in heard.items() if apply in listeners}
        applied = tuple(key for key, listeners in heard.items() if listeners and key not in failed)
        self._in_force = grafted(self._in_force, wanted, lambda key: key in applied)
        outcome: Outcome = "partly" if needs_restart or failed else "applied"
        return Reload(outcome, applied, needs_restart, tuple(failed.items()))

    def _listeners(self, key: str) -> list[Callable[[S], None]]:
        return [apply for part, apply in self._subscribers if key == part or key.startswith(f"{part}.")]


class Settled:
    """Says once that something changed and then stood still for one look: a file that is being written is not read."""

    def __init__(self, first: object) -> None:
        self._acted_on = first
        self._last = first

    def look(self, now_seen: object) -> bool:
        """Whether to act, given what is seen now."""
        act = now_seen == self._last and now_seen != self._acted_on
        self._last = now_seen
        if act:
            self._acted_on = now_seen
        return act


def fingerprint(paths: Iterable[Path]) -> tuple[object, ...]:
    """What changes when a file, a file in one of the folders, or what a link leads to is replaced or written."""
    found: list[object] = []
    for path in paths:
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else []
        except OSError:  # removed, or closed to us, in this moment
            inside = []
        for each in (path, *inside):
            try:
                seen = os.stat(each)
            except OSError:
                found.append((each, None))
            else:
                found.append((each, seen.st_mtime_ns, seen.st_size, seen.st_ino))
    return tuple(found)


class Watch(Generic[S]):
    """A thread that reloads when a file changed, or when asked by `now` (safe to call from a signal's function)."""

    def __init__(
        self,
        reloader: Reloader[S],
        paths: Sequence[Path],
        *,
        told: Callable[[Reload], None],
        crashed: Callable[[BaseException], None],
        look_ivl_s: float = LOOK_IVL_S,
    ) -> None:
        self.reloader = reloader
        self._paths = tuple(paths)
        self._told = told
        self._crashed = crashed
        self._look_ivl_s = look_ivl_s
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put may be interrupted by another put
        self._stopping = threading.Event()
        self._settled = Settled(fingerprint(self._paths))
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def now(self) -> None:
        """Reload as soon as the thread comes to it, whether or not a file changed."""
        self._asked.put(None)

    def stop(self) -> None:
        """Returns when a reload that runs has finished. Safe to call twice."""
        self._stopping.set()
        self._asked.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                asked = self._wait()
                if self._stopping.is_set():
                    return
                seen = fingerprint(self._paths)
                if asked:
                    self._settled = Settled(seen)
                if asked or self._settled.look(seen):
                    self._told(self.reloader.reload())
        except BaseException as error:
            self._crashed(error)

    def _wait(self) -> bool:
        """Whether somebody asked, several at once counting as one; False when it is time for another look."""
        try:
            self._asked.get(timeout=self._look_ivl_s if self._paths else None)
        except queue.Empty:
            return False
        with contextlib.suppress(queue.Empty):
            while True:
                self._asked.get_nowait()
        return True
