"""Suite `knocks`: what a device that is turned away costs the gateway each time it knocks.

Law: a knock is what a device does: a TCP connection, a CURVE handshake with a key that the gateway does not know, and
the answer that it may not come in. The gateway is a process of its own, and what is counted is its processor time
alone, less what it takes while nobody knocks. `--set knocks=1000`
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import zmq

from benchmarks.faults.credentials import Credentials
from benchmarks.faults.gateway_process import GatewayProcess
from benchmarks.faults.model import numbered_bundle
from benchmarks.faults.scene import free_port
from benchmarks.results import Options, Result
from edge_agent.knocking import KNOCK_S, LONGEST_S
from protocol import keys, sockets

KNOCKS, QUICK_KNOCKS = 300, 30
FLEET = 1000
PATIENCE_MS = 20_000


def run(options: Options) -> list[Result]:
    """Knock so often, `options.repeats` times, each beside as long a silence."""
    count = int(options.settings.get("knocks", QUICK_KNOCKS if options.quick else KNOCKS))
    with tempfile.TemporaryDirectory(prefix="isthmus-knocks-") as name:
        folder = Path(name)
        credentials = Credentials(folder / "keys")
        (server,) = credentials.gateway.public_keys()
        gateway = GatewayProcess(
            numbered_bundle(folder), folder, "gateway", port=free_port(), keys=credentials.gateway.path
        )
        try:
            gateway.start()
            gateway.wait_ready()
            each_us = [_knock_us(gateway, server.data, count) for _ in range(1 if options.quick else options.repeats)]
        finally:
            gateway.close()
    mean_s, late_s = sum(KNOCK_S) / 2, 0.75 * LONGEST_S
    return [
        Result.of("the gateway's processor time for one knock", "us", each_us, note=f"{count} knocks"),
        Result.of(
            f"{FLEET} devices that were just turned away", "% of a core", [us * FLEET / mean_s / 1e4 for us in each_us],
            note=f"each knocks every {mean_s:g} s in the mean",
        ),
        Result.of(
            f"{FLEET} devices that were turned away long ago", "% of a core",
            [us * FLEET / late_s / 1e4 for us in each_us], note=f"every {late_s:g} s in the mean",
        ),
    ]  # fmt: skip


def _knock_us(gateway: GatewayProcess, server: bytes, count: int) -> float:
    before_s, began = gateway.cpu_s(), time.monotonic()
    for _ in range(count):
        _knock(gateway.port, server)
    knocked_s, took_s = gateway.cpu_s() - before_s, time.monotonic() - began
    before_s = gateway.cpu_s()
    time.sleep(took_s)
    return (knocked_s - (gateway.cpu_s() - before_s)) / count * 1e6


def _knock(port: int, server: bytes) -> None:
    stranger = keys.make_pair("stranger")
    context = sockets.make_context()
    curve = sockets.CurveClient(stranger.secret, server)
    sock, monitor = sockets.watched_dealer(context, sockets.Endpoint("127.0.0.1", port), curve)
    try:
        while monitor.poll(PATIENCE_MS):
            if sockets.monitor_event(monitor)[0] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return
        raise TimeoutError(f"no answer to a knock within {PATIENCE_MS // 1000} s (process {os.getpid()})")
    finally:
        sock.disable_monitor()
        sock.close(0)
        monitor.close(0)
        context.term()
