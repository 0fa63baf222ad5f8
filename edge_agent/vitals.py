"""Whether the device can do its own work: a thread that asks the known question, and feeds the watchdog if it can.

Nothing else feeds systemd's watchdog. So a compute thread that hangs, a socket thread that hangs and a head that
computes nonsense all end in a new process, as a crash would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from edge_agent.device.notify import Notifier
from edge_agent.known_answer import KnownAnswer

_BEATS = 3  # in the time after which systemd gives up: one may be late, one may be lost


class Vitals:
    """`reason` says why the device is unwell, or ""; read by any thread."""

    def __init__(
        self,
        known: Callable[[], KnownAnswer | None],
        notifier: Notifier,
        *,
        every_s: float,
        timeout_s: float,
        asked: Callable[[str], None] = lambda reason: None,
        changed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`known` gives the question of the agent that serves now, None while none does. `asked` hears of every
        answer why it was a bad one, or ""; `changed` only when that differs from before."""
        self._known = known
        self._notifier = notifier
        self.retune(every_s=every_s, timeout_s=timeout_s)
        self._asked = asked
        self._changed = changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="isthmus-vitals", daemon=True)
        self.reason = ""
        self.answered = 0
        self.answered_at: float | None = None  # monotonic seconds

    def retune(self, *, every_s: float, timeout_s: float) -> None:
        """From the next question on."""
        watchdog_s = self._notifier.watchdog_s
        self._every_s = every_s if watchdog_s is None else min(every_s, watchdog_s / _BEATS)
        self._timeout_s = timeout_s

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Safe to call twice, and before `start`."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s + 1.0)

    def _run(self) -> None:
        while True:
            known = self._known()
            reason = "" if known is None else known.check(self._timeout_s)
            if self._stop.is_set():
                return
            if not reason:  # where nothing serves, because all was revoked, nothing hangs
                self.answered += 1
                self.answered_at = time.monotonic()
                self._notifier.feed()
            self._asked(reason)
            if reason != self.reason:
                self.reason = reason
                self._changed(reason)
            if self._stop.wait(self._every_s):
                return
