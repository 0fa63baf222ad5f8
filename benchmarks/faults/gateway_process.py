"""A gateway that can be killed: a process of its own that writes down every execution, and the handle on it.

python -m benchmarks.faults.gateway_process BUNDLE --bind tcp://127.0.0.1:7447 --life LEDGER/life-1
ready
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.faults.executions import CountedEngine
from benchmarks.faults.tun import enter_namespace
from cloud_gateway.config import from_flags, load_settings
from cloud_gateway.gateway import Gateway
from protocol.engines.base import Engine
from protocol.engines.catalogue import KINDS, EngineOptions, Kind

ROOT = Path(__file__).parents[2]
READY_S = 60.0  # a busy machine is no failure
WARM_UP_S = 0.1  # of each lane: the engines are small


class GatewayProcess:
    """One port, many lives. Not started when constructed."""

    def __init__(
        self, bundle: Path, ledger: Path, name: str, *, port: int, host: str = "127.0.0.1", keys: Path | None = None,
        busy_s: float = 0.0, namespace: int | None = None, environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`ledger` is the folder of all lives; `namespace` the descriptor of a network namespace to live in."""
        self.port = port
        self.ready_s: list[float] = []  # of each life: from nothing to serving
        self._ledger, self._name, self._lives = ledger, name, 0
        self._log = ledger / f"log-{name}"
        self._namespace = namespace
        self._environment = os.environ | dict(environment or {})
        self._command = [sys.executable, "-m", "benchmarks.faults.gateway_process", str(bundle)]
        self._command += ["--bind", f"tcp://{host}:{port}", "--busy-s", str(busy_s)]
        self._command += [] if keys is None else ["--keys", str(keys)]
        self._command += [] if namespace is None else ["--namespace", str(namespace)]
        self._process: subprocess.Popen[str] | None = None
        self._born = 0.0

    def start(self) -> None:
        """Begin the next life, and return at once."""
        assert self._process is None, "it lives"
        self._lives += 1
        self._born = time.monotonic()
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, "--life", str(self._ledger / f"life-{self._name}-{self._lives}")],
                stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=self._environment,
                pass_fds=() if self._namespace is None else (self._namespace,),
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Raises RuntimeError with its last words if it ends before it serves, or never does."""
        assert self._process is not None
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], READY_S)[0] or output.readline() != "ready\n":
            raise RuntimeError(f"gateway {self._name} does not serve: {self._log.read_text()[-2000:]}")
        self.ready_s.append(time.monotonic() - self._born)

    def cpu_s(self) -> float:
        """Processor time of this life so far, all threads."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.signal(signal.SIGKILL)
        self._forget()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def close(self) -> None:
        """End this life, whatever state it is in."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bind", required=True)
    parser.add_argument("--life", type=Path, required=True)
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--busy-s", type=float, default=0.0)
    parser.add_argument("--namespace", type=int)
    asked = parser.parse_args(argv)
    if asked.namespace is not None:
        enter_namespace(asked.namespace)
    flags = from_flags(
        bundles=[asked.bundle], bind=asked.bind, http="off", keys=asked.keys, insecure=asked.namespace is not None
    )
    settings = load_settings(env={}, overrides=flags | {"models.warm_up_s": WARM_UP_S}).settings

    def counted(kind: Kind) -> Kind:
        def make(graph: bytes, options: EngineOptions) -> Engine:
            return CountedEngine(kind.make(graph, options), asked.life, busy_s=asked.busy_s)

        return dataclasses.replace(kind, make=make)

    parent = os.getppid()
    with Gateway(settings, kinds={name: counted(kind) for name, kind in KINDS.items()}) as gateway:
        print("ready", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while not gateway.stopped.wait(0.5) and os.getppid() == parent:  # it does not outlive who started it
                pass
    if gateway.fatal is not None:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
