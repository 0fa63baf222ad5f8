"""The processes of the demo: partitioner, gateway, link and agent, each on its own.

Law: what is started here is ended here, whatever happens in between; nothing else is ever touched. Children run in
sessions of their own, so that Ctrl-C reaches only the demo, which then ends them in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.link import parse_address
from benchmarks.link_process import LinkProcess
from protocol.errors import IsthmusError

BIN = Path(sys.executable).parent
START_S = 30.0  # a loaded machine imports slowly
STOP_S = 15.0
DEADLINE_MS = 500


class StageError(IsthmusError):
    exit_code = 1


class Child:
    """One of our console scripts. Its JSON lines arrive in a queue with the moment of arrival, None at their end."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.lines: SimpleQueue[tuple[float, dict[str, Any]] | None] = SimpleQueue()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [str(BIN / name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def ready(self) -> dict[str, Any]:
        """Its first line. Raises StageError if it ends or stays silent instead."""
        try:
            item = self.lines.get(timeout=START_S)
        except Empty:
            item = None
        if item is None or item[1].get("event") != "ready":
            raise StageError(f"{self.name} did not become ready: {self._last_words()}", f"its whole log is {self.log}")
        return item[1]

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to the process and whatever it started. Safe to call on one that has ended."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)

    def stop(self) -> None:
        """Ask it to end, and see to it."""
        self.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            self.lines.put((time.monotonic(), json.loads(line)))
        self.lines.put(None)

    def _last_words(self) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Stage:
    """Gateway, link and agent for as long as the `with` block lasts."""

    def __init__(
        self, bundle: Path, shown: Path, out: Path, *, slowdown: float, rtt_ms: float, rate_mbit: float
    ) -> None:
        self._bundle, self._shown, self._out = bundle, shown, out
        self._slowdown, self._rtt_ms, self._rate_mbit = slowdown, rtt_ms, rate_mbit
        self._fault = out / "head-fault"
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ending:
            for name in ("edge-agent", "cloud-gateway"):
                self._log(name).unlink(missing_ok=True)
            self._fault.unlink(missing_ok=True)
            ending.callback(self._fault.unlink, missing_ok=True)
            self._gateway = self._start_gateway("tcp://127.0.0.1:0")
            ending.callback(lambda: self._gateway.stop())  # whichever it is by then
            self._endpoint = str(self._gateway.ready()["endpoint"])
            with _uninterruptible():
                target = parse_address(self._endpoint.removeprefix("tcp://"))
                link = LinkProcess(target, rate_mbit_per_s=self._rate_mbit, rtt_ms=self._rtt_ms)
                self._link = ending.enter_context(link)
            self.agent = self._start_agent()
            ending.callback(self.agent.stop)
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    # ---- what the script may do --------------------------------------------------------------------------------------

    def set_rate(self, mbit: float) -> None:
        self._link.control(rate_mbit=mbit)

    def kill_gateway(self) -> None:
        self._gateway.kill()

    def start_gateway(self) -> None:
        """On the port it had; returns at once."""
        self._gateway = self._start_gateway(self._endpoint)

    def break_head(self) -> None:
        self._fault.touch()

    def mend_head(self) -> None:
        self._fault.unlink(missing_ok=True)

    # ---- the processes -----------------------------------------------------------------------------------------------

    def _start_gateway(self, bind: str) -> Child:
        command = ["serve", str(self._bundle), "--bind", bind, "--http", "off", "--json"]
        return Child("cloud-gateway", command, self._log("cloud-gateway"))

    def _start_agent(self) -> Child:
        host, port = self._link.address
        arguments = {
            "--bundle": self._bundle,
            "--gateway": f"tcp://{host}:{port}",
            "--edge-slowdown": self._slowdown,
            "--deadline-ms": DEADLINE_MS,
            "--fault-file": self._fault,
        }
        options = [str(word) for pair in arguments.items() for word in pair]
        return Child("edge-agent", ["infer", str(self._shown), "--json", "--loop", *options], self._log("edge-agent"))

    def _log(self, name: str) -> Path:
        return self._out / f"{name}.log"


def build_bundle(
    model: Path, calibration: Path, target: Path, *, slowdown: float, rtt_ms: float, budget_s: float, jpeg: bool
) -> None:
    """Run the partitioner; what it prints goes to standard error. Ends the demo with its exit code if it refuses.

    Without --json, which would silence its progress: what is relied on is its exit code and the bundle's manifest.
    """
    command = [str(BIN / "partitioner"), "split", str(model), "--auto", "--force", "-o", str(target)]
    command += ["--edge-slowdown", str(slowdown), "--rtt-ms", str(rtt_ms), "--budget-s", str(budget_s)]
    command += ["--calibration", str(calibration), "--recipe-budget-s", "5", "--no-memory"]  # somebody is waiting
    command += [] if jpeg else ["--lossless-input"]
    sys.stdout.flush()
    code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode
    if code != 0:
        raise SystemExit(code)  # its own sentence is on the screen


@contextlib.contextmanager
def _uninterruptible() -> Iterator[None]:
    """A child that is started inside inherits that SIGINT is ignored: the demo ends it by closing its input."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
