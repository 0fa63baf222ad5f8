"""Our own console scripts as processes: started with argument lists, ended with certainty, every wait bounded."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

BIN = Path(sys.executable).parent
START_S = 90.0  # how long a process may take for its next word: it starts, and a busy machine is no failure
ROOT = Path(__file__).resolve().parent.parent


class Process:
    """A running command; its stdout arrives line by line."""

    def __init__(self, command: Sequence[str], *, stdin: bool = False) -> None:
        self.popen = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._lines: Queue[str | None] = Queue()
        self.errors: list[str] = []
        for target in (self._read_out, self._read_err):
            threading.Thread(target=target, daemon=True).start()

    def line(self, timeout_s: float = START_S) -> str:
        """The next line of stdout. Raises EOFError at its end, TimeoutError if none comes."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"no line within {timeout_s} s; stderr: {''.join(self.errors)}") from None
        if line is None:
            raise EOFError("".join(self.errors))
        return line.rstrip("\n")

    def json(self, timeout_s: float = START_S) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.line(timeout_s))
        return document

    def rest(self, timeout_s: float = START_S) -> list[str]:
        lines = []
        try:
            while True:
                lines.append(self.line(timeout_s))
        except EOFError:
            return lines

    def wait(self, timeout_s: float = START_S) -> int:
        return self.popen.wait(timeout_s)

    def _read_out(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_err(self) -> None:
        assert self.popen.stderr is not None
        self.errors.extend(self.popen.stderr)


@contextmanager
def running(*command: str, stdin: bool = False) -> Iterator[Process]:
    """A process that is killed at the end if it has not ended by itself."""
    process = Process(command, stdin=stdin)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait(10)


def finished(*command: str, timeout_s: float = 2 * START_S) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
