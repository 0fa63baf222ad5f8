"""The handle on an agent's process: what it says goes into the account, and it may be killed, stopped and started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.account import Account, Ask, End

ROOT = Path(__file__).parents[2]
READY_S = 60.0
UNSAID = 1000


@dataclass(slots=True)
class Stored:
    """Requests that were put on the disk. Tickets, and numbers."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    taken: dict[str, list[int]] = field(default_factory=dict)
    being_taken: str = ""
    cut_off: set[str] = field(default_factory=set)  # a kill came while it was taken: at most once, maybe never
    refused: int = 0

    @property
    def lost(self) -> list[str]:
        return [ticket for ticket in self.acknowledged if ticket not in self.taken and ticket not in self.cut_off]

    @property
    def twice(self) -> list[str]:
        return [ticket for ticket, echoes in self.taken.items() if len(echoes) > 1]

    @property
    def wrong(self) -> list[str]:
        return [t for t, echoes in self.taken.items() if t in self.acknowledged and echoes[0] != self.acknowledged[t]]


class DeviceProcess:
    """Many lives, one account. Not started when constructed."""

    def __init__(
        self, command: list[str], account: Account, *, log: Path,
        environment: Mapping[str, str] | None = None, namespace: int | None = None,
    ) -> None:  # fmt: skip
        """`command` are the arguments of `device_process` but for where its numbers begin."""
        self.stored = Stored()
        self.counters = {"sent": 0, "hedges": 0}
        self.ready_s: list[float] = []
        self.kills = 0
        self.crashed = ""
        self._account = account
        self._command = [sys.executable, "-m", "benchmarks.faults.device_process", *command]
        self._log = log
        self._environment = os.environ | dict(environment or {})
        self._namespace = namespace
        self._next, self._next_stored = 1, 1 << 23
        self._ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()

    def start(self) -> None:
        """Begin the next life; returns when it asks. Raises RuntimeError with its last words if it does not."""
        began = time.monotonic()
        self._ready.clear()
        self._next_stored += UNSAID  # what was put and not said keeps its number to itself
        command = [*self._command, "--first", str(self._next), "--first-stored", str(self._next_stored)]
        if self._namespace is not None:
            command += ["--namespace", str(self._namespace)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                env=self._environment, pass_fds=() if self._namespace is None else (self._namespace,),
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if not self._ready.wait(READY_S):
            raise RuntimeError(f"the device does not start: {self._log.read_text()[-2000:]}")
        self.ready_s.append(time.monotonic() - began)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; what was asked and not answered is nobody's any more."""
        self.signal(signal.SIGKILL)
        self.kills += 1
        self._wait()
        self._account.caller_killed()
        if self.stored.being_taken:
            self.stored.cut_off.add(self.stored.being_taken)
            self.stored.being_taken = ""

    def stop(self) -> None:
        """Let it ask no more and end by itself. Safe to call twice."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._wait()
        self.crashed = f"the device ended with {code}: {self._log.read_text()[-500:]}" if code else ""

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self._wait()

    def _wait(self) -> int:
        assert self._process is not None
        self._reader.join()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        self._process = None
        return code

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):
                self._take(*line.split())

    def _take(self, what: str, *rest: str) -> None:
        match what, rest:
            case "ready", ():
                self._ready.set()
            case "ask", (number, at, deadline):
                self._next = int(number) + 1
                self._account.note(Ask(int(number), float(at), float(deadline)))
            case "end", (number, at, by, echo, attempts, hedged):
                self._account.note(End(int(number), float(at), by, int(echo), int(attempts), hedged == "1"))
            case "stood", (since, until):
                self._account.stood_still(float(since), float(until))
            case "sent", (count, hedges):
                self.counters["sent"] += int(count)
                self.counters["hedges"] += int(hedges)
            case "put", (ticket, number):
                self._next_stored = int(number) + 1
                self.stored.acknowledged[ticket] = int(number)
            case "refused", ():
                self.stored.refused += 1
            case "taking", (ticket,):
                self.stored.being_taken = ticket
            case "took", (ticket, echo):
                self.stored.being_taken = ""
                self.stored.taken.setdefault(ticket, []).append(int(echo))
