"""The one folder that the daemon writes to, and the lock that keeps a second daemon out of it.

state_dir/run/        lock, agent.sock          state_dir/store/      requests that wait for a gateway
state_dir/bundles/    what came over the air    state_dir/keys/       who this device is
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from protocol.errors import InputError


class StateDir:
    """Held from `hold` to `release`. The lock is the system's: it ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def hold(self) -> None:
        """Make the folder and lock it. Raises InputError if it cannot be written to, or another daemon has it."""
        run = self.path / "run"
        try:
            run.mkdir(mode=0o750, parents=True, exist_ok=True)
            descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            fact = f"the state directory {self.path} cannot be written to ({error.strerror})"
            raise InputError(fact, "choose another with state_dir, or give it to this user") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            fact = f"the state directory {self.path} belongs to another edge-agent" + (
                f", process {owner}" * bool(owner)
            )
            raise InputError(fact, "stop that one, or give this one a state_dir of its own") from None
        with contextlib.suppress(OSError):  # for people; a full disk must not keep the daemon from serving
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Safe to call twice. The file stays: removing it would let two daemons lock two files of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
