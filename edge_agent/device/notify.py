"""What systemd is told of the daemon (sd_notify): datagrams to the socket that NOTIFY_SOCKET names, if there is one.

    READY=1        applications are answered              STATUS=...     one sentence for `systemctl status`
    WATCHDOG=1     a known question was just answered     STOPPING=1     it drains
    RELOADING=1    a bundle is being changed; READY=1 ends it
    EXTEND_TIMEOUT_USEC=...   the start takes longer than was said

A service manager that does not listen must not stop the service: what cannot be delivered is dropped.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

from protocol.unix_sockets import send_datagram

_MOST_STATUS = 500


class Notifier:
    """Reads the variables that systemd sets; without them every method does nothing."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        if not self._address.startswith(("/", "@")):
            self._address = ""
        self.watchdog_s = _watchdog_s(env) if self._address else None  # feed it at least this often; None: no watchdog

    @property
    def is_listened_to(self) -> bool:
        return bool(self._address)

    def ready(self, status: str) -> None:
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        self._send(_status(status))

    def feed(self) -> None:
        """The watchdog: only after work that proves that the daemon can do its own."""
        self._send("WATCHDOG=1")

    def reloading(self, status: str) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", _status(status))

    def patience(self, seconds: float, status: str) -> None:
        """The start may take so long from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}", _status(status))

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", _status(status))

    def _send(self, *lines: str) -> None:
        if self._address:
            with contextlib.suppress(OSError):
                send_datagram(self._address, "\n".join(lines).encode())


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:_MOST_STATUS]


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    """None if systemd expects nothing, or expects it of another process."""
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
